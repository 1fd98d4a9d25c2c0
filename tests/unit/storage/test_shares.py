"""Who gives: quotas, weights, guarantees, pins. Pure arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplecache.model import Bucket
from simplecache.store.shares import Giver, Shares


def bucket(name, **options):
    return Bucket(name, True, options.pop("quota", None), (), None, **options)


def shares(*buckets, ring_share=1.0):
    return Shares({b.name: b for b in buckets}, ring_share)


def test_the_bucket_with_the_most_for_its_weight_gives():
    rules = shares(bucket("aaa", weight=3), bucket("bbb"))
    assert rules.giver({("aaa", ""): 290, ("bbb", ""): 100}, "", 0).tenant == ("bbb", "")
    assert rules.giver({("aaa", ""): 310, ("bbb", ""): 100}, "", 0).tenant == ("aaa", "")


def test_in_a_bucket_the_namespace_that_put_the_most_gives():
    used = {("aaa", "one"): 10, ("aaa", "two"): 90, ("bbb", "x"): 95}
    assert shares(bucket("aaa"), bucket("bbb")).giver(used, "", 0).tenant == ("aaa", "two")


def test_what_one_asks_for_counts_as_had():
    used = {("aaa", ""): 100, ("bbb", ""): 99}
    assert shares(bucket("aaa"), bucket("bbb")).giver(used, "bbb", 10).tenant == ("bbb", "")


def test_a_bucket_above_its_part_of_the_quota_gives_first():
    rules = shares(bucket("aaa", quota=1000), bucket("bbb"), ring_share=0.1)
    used = {("aaa", ""): 101, ("bbb", ""): 5000}
    assert rules.giver(used, "bbb", 1) == Giver(("aaa", ""), "quota")
    assert rules.over_rules(used) == Giver(("aaa", ""), "quota")
    assert rules.over_rules({("aaa", ""): 100}) is None


def test_one_that_would_exceed_its_quota_gives_for_itself():
    rules = shares(bucket("aaa", quota=100), bucket("bbb"))
    assert rules.giver({("aaa", ""): 95, ("bbb", ""): 5000}, "aaa", 10) == Giver(
        ("aaa", ""), "quota"
    )


def test_a_removed_bucket_gives_before_all_others():
    rules = shares(bucket("aaa", quota=1))
    assert rules.over_rules({("aaa", ""): 50, ("old", "x"): 1}) == Giver(("old", "x"), "removed")


def test_pinned_and_guaranteed_bytes_are_not_taken_by_others():
    rules = shares(bucket("pin", is_pinned=True), bucket("min", min_share_bytes=500), bucket("bbb"))
    used = {("pin", ""): 900, ("min", ""): 500, ("bbb", ""): 1}
    assert rules.giver(used, "bbb", 1).tenant == ("bbb", "")
    assert rules.giver(used | {("min", ""): 501}, "bbb", 1).tenant == ("min", "")
    assert rules.giver({("pin", ""): 900}, "bbb", 1) is None
    assert rules.giver({("pin", ""): 900}, "pin", 1).tenant == ("pin", "")


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 10_000), min_size=1),
    st.lists(st.integers(1, 5), min_size=5, max_size=5),
    st.integers(1, 10_000),
)
def test_taking_again_and_again_levels_to_max_min(used, weights, capacity):
    """Whoever has less than an equal part, for its weight, has all it wanted."""
    rules = shares(*(bucket(f"b{n}x", weight=w) for n, w in zip("abcde", weights, strict=True)))
    used = {(f"b{name}x", ""): disk for name, disk in used.items()}
    wanted = dict(used)
    while sum(used.values()) > capacity:
        giver = rules.giver({t: d for t, d in used.items() if d}, "", 0)
        used[giver.tenant] -= 1
    cut = [t for t in used if used[t] < wanted[t]]
    for tenant in used:
        for other in cut:
            mine = used[tenant] / rules.buckets[tenant[0]].weight
            theirs = (used[other] + 1) / rules.buckets[other[0]].weight
            assert mine <= theirs + 1e-9


@pytest.mark.parametrize("share", [1 / 5, 1 / 400])
def test_the_parts_of_a_quota_add_up(share):
    rules = shares(bucket("aaa", quota=100 << 30), ring_share=share)
    assert abs(rules.quota("aaa") / share - (100 << 30)) < 1 / share
