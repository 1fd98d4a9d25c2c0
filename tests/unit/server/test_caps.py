"""Caps alone, and on whose account a request is. No loop, no clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplecache.config import parse_buckets, parse_namespaces
from simplecache.errors import InvalidConfig
from simplecache.model import Bucket, Namespace
from simplecache.server.accounts import Accounts
from simplecache.server.caps import Cap, retry_after_s
from simplecache.server.fair import Fair


def bucket(name, **options):
    return Bucket(name, True, None, (), None, **options)


def accounts(*rows, namespaces=()):
    found = Accounts(Fair())
    found.configure({b.name: b for b in rows}, {n.name: n for n in namespaces})
    return found


@given(
    rate=st.floats(0.01, 1e6),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 10_000)), max_size=60),
)
def test_over_any_time_no_more_passes_than_the_cap_and_one_second_and_one_request(rate, steps):
    cap = Cap("bucket", "bytes")
    cap.set_rate(rate)
    now, passed, largest = 0.0, 0, 0
    for after_s, size in steps:
        now += after_s
        if not cap.wait_s(now):
            cap.spend(size)
            passed += size
            largest = max(largest, size)
    assert passed <= rate * (now + 1) + largest + 1e-6 * (1 + passed)


@given(rate=st.floats(0.01, 1e6), debt=st.integers(0, 10**9))
def test_who_waits_as_long_as_was_said_passes(rate, debt):
    cap = Cap("bucket", "bytes")
    cap.set_rate(rate)
    cap.wait_s(0)
    cap.spend(debt)
    wait_s = cap.wait_s(0)
    assert not cap.wait_s(wait_s * 1.000001 + 1e-6)


def test_a_second_is_kept_no_more():
    cap = Cap("bucket", "requests")
    cap.set_rate(10)
    passed = 0
    for now in (0, 1000):
        for _ in range(100):
            if not cap.wait_s(now):
                cap.spend(1)
                passed += 1
    assert passed == 20


def test_a_clock_that_stands_or_goes_back_gives_nothing():
    cap = Cap("bucket", "requests")
    cap.set_rate(1)
    assert not cap.wait_s(100)
    cap.spend(1)
    assert cap.wait_s(100)
    assert cap.wait_s(50)


@pytest.mark.parametrize(("wait_s", "said"), [(1e-9, 1), (0.3, 1), (1.2, 2), (1e9, 60)])
def test_retry_after_is_whole_seconds_at_least_one(wait_s, said):
    assert retry_after_s(wait_s) == said


# -- accounts ------------------------------------------------------------------------------


def test_a_namespace_is_one_tenant_in_all_buckets_and_the_anonymous_are_the_bucket():
    found = accounts(bucket("aaa"), bucket("bbb"))
    a, b = bucket("aaa"), bucket("bbb")
    assert found.of(a, "prj").tenant is found.of(b, "prj").tenant
    assert found.of(a, "").tenant is not found.of(b, "").tenant
    assert found.of(a, "").tenant is not found.of(a, "aaa").tenant


def test_the_price_is_by_the_buckets_weight_unless_the_namespace_has_its_own():
    heavy, light = bucket("aaa", weight=3.0), bucket("bbb", weight=1.0)
    found = accounts(heavy, light, namespaces=[Namespace("own", weight=6.0)])
    assert found.of(light, "prj").price == 3 * found.of(heavy, "prj").price
    assert found.of(light, "own").price == found.of(heavy, "own").price
    assert found.of(heavy, "prj").price == 2 * found.of(heavy, "own").price


def test_caps_are_the_shards_part_of_the_clusters():
    row = bucket("aaa", requests_per_s=100.0)
    found = accounts(row)
    found.set_share(0.1)
    account = found.of(row, "")
    passed = 0
    while account.refusal(0.0) is None:
        account.spend(0, requests=1)
        passed += 1
    assert passed == 10


def test_a_namespaces_cap_counts_over_all_buckets_and_other_namespaces_go_on():
    a, b = bucket("aaa"), bucket("bbb")
    found = accounts(a, b, namespaces=[Namespace("prj", bytes_per_s=1000)])
    found.of(a, "prj").refusal(0.0)
    found.of(a, "prj").spend(2500, requests=1)
    refusal = found.of(b, "prj").refusal(0.0)
    assert refusal is not None
    assert 'namespace "prj"' in str(refusal)
    assert "bytes/s" in str(refusal)
    assert refusal.retry_after_s == 2
    assert found.of(b, "other").refusal(0.0) is None
    assert found.refused() == {("namespace", "bytes"): 1}


def test_a_reload_keeps_what_caps_have_counted():
    row = bucket("aaa", requests_per_s=1.0)
    found = accounts(row)
    found.of(row, "").refusal(0.0)
    found.of(row, "").spend(0, requests=1)
    found.configure({"aaa": row}, {})
    assert found.of(row, "").refusal(0.0) is not None
    found.configure({"aaa": bucket("aaa")}, {})
    assert found.of(bucket("aaa"), "").caps == ()
    assert found.refused() == {("bucket", "requests"): 1}


# -- configuration -------------------------------------------------------------------------


def test_the_document():
    document = {
        "Bucket": [
            {"Name": "aaa", "Public": True, "MaxRequestsPerSecond": 0.5, "MaxBytesPerSecond": "1Ki"}
        ],
        "Namespace": [{"Name": "prj", "Weight": 2, "MaxBytesPerSecond": 7}, {"Name": "prj-b"}],
    }
    row = parse_buckets(document)["aaa"]
    assert (row.requests_per_s, row.bytes_per_s) == (0.5, 1024)
    assert parse_namespaces(document) == {
        "prj": Namespace("prj", 2.0, None, 7),
        "prj-b": Namespace("prj-b"),
    }
    assert parse_namespaces({"Bucket": []}) == {}


@pytest.mark.parametrize(
    ("namespace", "says"),
    [
        ("prj", "Namespace: expected a list of namespaces, not a string"),
        ([1], r"Namespace\[0\]: expected an object"),
        ([{}], r"Namespace\[0\]: Name is missing"),
        ([{"Name": "Prj_1"}], r"Namespace\[0\].Name: 'Prj_1' is not a Kubernetes namespace name"),
        ([{"Name": "a"}, {"Name": "a"}], r"Namespace\[1\].Name: 'a' is there twice"),
        ([{"Name": "a", "Quota": 1}], r"Namespace\[0\]: unknown key 'Quota'"),
        ([{"Name": "a", "Weight": 0}], r"Namespace\[0\] \(a\).Weight: 0 must be a number above 0"),
        (
            [{"Name": "a", "MaxRequestsPerSecond": "10"}],
            r"Namespace\[0\] \(a\).MaxRequestsPerSecond: '10' must be a number above 0",
        ),
        ([{"Name": "a", "MaxRequestsPerSecond": 0}], "MaxRequestsPerSecond: 0 must be"),
        ([{"Name": "a", "MaxRequestsPerSecond": True}], "MaxRequestsPerSecond: True must be"),
        ([{"Name": "a", "MaxRequestsPerSecond": float("nan")}], "nan must be"),
        ([{"Name": "a", "MaxBytesPerSecond": "10 apples"}], "MaxBytesPerSecond: '10 apples' is"),
        ([{"Name": "a", "MaxBytesPerSecond": 0}], "must be larger than zero"),
    ],
)
def test_a_wrong_namespace_is_an_error_that_names_the_place_and_the_value(namespace, says):
    with pytest.raises(InvalidConfig, match=says):
        parse_namespaces({"Bucket": [], "Namespace": namespace})


def test_a_wrong_cap_of_a_bucket_is_too():
    row = {"Name": "aaa", "Public": True, "MaxRequestsPerSecond": -1}
    with pytest.raises(InvalidConfig, match=r"Bucket\[0\] \(aaa\).MaxRequestsPerSecond: -1 must"):
        parse_buckets({"Bucket": [row]})
