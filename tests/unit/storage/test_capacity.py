"""How much a shard may hold."""

import pytest

from simplecache.errors import InvalidConfig
from simplecache.store.capacity import FREE_FLOOR_BYTES, CapacityWish, Level, parse_capacity

GI = 1 << 30


def test_sizes_and_shares_are_read():
    assert parse_capacity("500Gi") == CapacityWish(500 * GI)
    assert parse_capacity("500G") == CapacityWish(500 * 10**9)
    assert parse_capacity("80%").of(10 * GI) == 8 * GI
    assert parse_capacity("12.5 %").of(8 * GI) == GI


@pytest.mark.parametrize("text", ["0%", "101%", "-5%", "%", "5 Gb", "", "0", "-1Gi", "500GiB"])
def test_nonsense_is_an_error_that_names_it(text):
    with pytest.raises(InvalidConfig, match=r"--capacity"):
        parse_capacity(text)


def level(used=0, announced=0, unwritten=0, configured=GI, free=10 * GI):
    return Level(used, announced, unwritten, configured, free)


def test_the_limit_is_what_was_configured_or_what_the_disk_can_give():
    assert level().limit == GI
    assert level(used=100, free=FREE_FLOOR_BYTES + 50).limit == 150
    assert level(free=0).limit == 0
    # Bytes of an upload that are on the disk are not free any more; those to come still are.
    assert level(announced=80, unwritten=30, free=FREE_FLOOR_BYTES + 100).limit == 150


def test_room_ends_at_the_limit_and_questions_begin_before():
    assert level(used=GI - 10).has_room(10)
    assert not level(used=GI - 10).has_room(11)
    assert level(used=int(0.96 * GI)).is_open()
    assert not level(used=int(0.96 * GI)).is_open(GI // 50)
    assert not level(used=int(0.985 * GI)).is_open()
    assert not level(used=int(0.985 * GI)).is_high
    assert level(used=int(0.985 * GI), announced=GI // 100).is_high


def test_what_is_made_free_ahead_of_need_stays_above_the_open_mark():
    full = level(used=GI)
    assert full.excess() == GI - int(GI * 0.98)
    assert not level(used=GI - full.excess()).is_open()
