"""The keys of a bucket that storage management reads: what they mean, and what is nonsense."""

import pytest

from simplecache.config import parse_buckets
from simplecache.errors import InvalidConfig

GI = 1 << 30


def parse(**keys):
    return parse_buckets({"Bucket": [{"Name": "bkt", "Public": True, **keys}]})["bkt"]


def test_what_is_not_said_has_its_default():
    bucket = parse()
    assert (bucket.weight, bucket.min_share_bytes, bucket.is_pinned) == (1.0, None, False)
    assert (bucket.quota_bytes, bucket.eviction, bucket.ttl_s) == (None, "steady", None)


def test_all_keys():
    bucket = parse(
        BucketQuota="100Gi", Weight=2.5, MinShare="10Gi", Pinned=True, Eviction="lru", TTL="12h"
    )
    assert (bucket.quota_bytes, bucket.weight, bucket.min_share_bytes) == (100 * GI, 2.5, 10 * GI)
    assert (bucket.is_pinned, bucket.eviction, bucket.ttl_s) == (True, "lru", 43_200)


@pytest.mark.parametrize(
    ("text", "seconds"), [(90, 90), ("90", 90), ("90s", 90), ("15m", 900), ("7d", 604_800)]
)
def test_durations(text, seconds):
    assert parse(TTL=text).ttl_s == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("100G", 100 * 10**9), ("100Gi", 100 * GI), (4096, 4096), ("1.5Gi", 3 << 29)]
)
def test_both_kinds_of_units_mean_something(text, size):
    assert parse(BucketQuota=text).quota_bytes == size


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("BucketQuota", "-1Gi"), ("BucketQuota", -5), ("BucketQuota", 0), ("BucketQuota", "0Gi"),
        ("BucketQuota", "100GB"), ("BucketQuota", "100 gibibytes"), ("BucketQuota", True),
        ("BucketQuota", None), ("BucketQuota", "9999999Pi"), ("BucketQuota", [1]),
        ("Weight", 0), ("Weight", -1), ("Weight", "2"), ("Weight", True), ("Weight", float("nan")),
        ("Weight", float("inf")), ("MinShare", "0"), ("MinShare", "x"), ("Pinned", "yes"),
        ("Pinned", 1), ("Eviction", "mru"), ("Eviction", 3), ("Eviction", ["lru"]), ("TTL", 0),
        ("TTL", "-1s"), ("TTL", "1w"), ("TTL", "1.5h"), ("TTL", True), ("TTL", None),
    ],
)  # fmt: skip
def test_nonsense_names_the_key_and_the_value(key, value):
    with pytest.raises(InvalidConfig, match=rf"Bucket\[0\] \(bkt\)\.{key}: ") as raised:
        parse(**{key: value})
    assert repr(value) in str(raised.value)


def test_a_guarantee_above_the_quota_is_nonsense():
    with pytest.raises(InvalidConfig, match=r"MinShare: '2Gi' is above the BucketQuota"):
        parse(BucketQuota="1Gi", MinShare="2Gi")
