"""Shards out of pods: what counts, what is left out, and who wins."""

import asyncio
import contextlib
import logging

import pytest

from cluster import objects
from fakes.kube import FakeApiserver
from simplecache.control.pods import PodSource, claim_of, shards_of
from simplecache.control.shards import Shard
from simplecache.errors import SimpleCacheError
from simplecache.kube.api import KubeApi
from simplecache.kube.config import KubeConfig

READY = [{"type": "Ready", "status": "True"}]


def pod(
    name="scs-cache-x", node="node-a", ip="10.0.0.1", *, created="2026-01-01T00:00:00Z", **meta
):
    annotations = {"simple-cache-service/ports": "7400,7401"} | meta.pop("annotations", {})
    return {
        "metadata": {
            "name": name,
            "namespace": "cache-service",
            "uid": f"uid-{name}",
            "creationTimestamp": created,
            "labels": {"topology.kubernetes.io/zone": "zone-a"},
            "annotations": annotations,
        }
        | meta,
        "spec": {"nodeName": node},
        "status": {"podIP": ip, "conditions": READY},
    }


def shards(*pods, zones=None):
    claims = [claim for claim in map(claim_of, pods) if claim is not None]
    return shards_of(claims, zones or {})


def names(found):
    return sorted(shard.name for shard in found)


def changed(document, path, value):
    """A copy with one place changed; None: removed."""
    first, *rest = path
    copy = dict(document)
    if rest:
        copy[first] = changed(copy.get(first, {}), rest, value)
    elif value is None:
        del copy[first]
    else:
        copy[first] = value
    return copy


def test_a_ready_pod_is_its_nodes_shards():
    weighted = pod(annotations={"simple-cache-service/weight": "3"})
    assert shards(weighted) == {
        Shard("node-a/0", "zone-a", "10.0.0.1", 7400, 3),
        Shard("node-a/1", "zone-a", "10.0.0.1", 7401, 3),
    }


def test_with_volumes_the_name_is_the_pods():
    one = pod("scs-cache-0", annotations={"simple-cache-service/name-from": "pod"})
    assert names(shards(one)) == ["scs-cache-0/0", "scs-cache-0/1"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("status", "podIP"), None),
        (("status", "podIP"), ""),
        (("status", "conditions"), None),
        (("status", "conditions"), []),
        (("status", "conditions"), [{"type": "Ready", "status": "False"}]),
        (("status", "conditions"), [{"type": "Ready", "status": True}]),
        (("status", "conditions"), [{"type": "ContainersReady", "status": "True"}]),
        (("status", "conditions"), ["Ready"]),
        (("status", "conditions"), {"type": "Ready"}),
        (("status",), "Ready"),
        (("status",), None),
        (("spec", "nodeName"), None),
        (("spec",), []),
        (("metadata", "deletionTimestamp"), "2026-01-01T00:00:00Z"),
    ],
)
def test_who_is_not_ready_placed_or_staying_does_not_count(path, value):
    assert claim_of(changed(pod(), path, value)) is None


@pytest.mark.parametrize("garbage", [{}, {"metadata": 7}, {"status": {"conditions": 1}}])
def test_garbage_is_no_claim(garbage):
    assert claim_of(garbage) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ports", ""),
        ("ports", "http"),
        ("ports", "7400,"),
        ("ports", "0"),
        ("ports", "70000"),
        ("ports", "7400,7400"),
        ("ports", "9" * 5000),
        ("weight", ""),
        ("weight", "0"),
        ("weight", "heavy"),
        ("weight", "1.5"),
        ("weight", "-1"),
    ],
)
def test_annotations_that_make_no_sense_leave_their_pod_out_and_no_other(key, value, caplog):
    bad = pod("bad", "node-b", "10.0.0.2", annotations={f"simple-cache-service/{key}": value})
    with caplog.at_level(logging.ERROR):
        assert names(shards(pod(), bad)) == ["node-a/0", "node-a/1"]
    assert "uid-bad on node node-b is left out" in caplog.text


def test_a_pod_without_annotations_is_left_out():
    assert shards(pod() | {"metadata": {"name": "x", "uid": "u"}}) == frozenset()


def test_an_address_that_is_none_leaves_its_pod_out():
    assert shards(pod(ip="cache.example")) == frozenset()


def test_the_zone_is_the_pods_own_or_its_nodes_or_unknown():
    bare = changed(pod(), ("metadata", "labels"), None)
    assert {s.zone for s in shards(pod(), zones={"node-a": "zone-z"})} == {"zone-a"}
    assert {s.zone for s in shards(bare, zones={"node-a": "zone-z"})} == {"zone-z"}
    assert {s.zone for s in shards(bare, zones={"node-b": "zone-z"})} == {""}


def test_of_two_pods_on_a_node_the_newest_ready_one_wins():
    old = pod("old", ip="10.0.0.1", created="2026-01-01T00:00:00Z")
    new = pod("new", ip="10.0.0.2", created="2026-01-01T00:00:09Z")
    for order in ((old, new), (new, old)):
        assert {s.address for s in shards(*order)} == {"10.0.0.2"}
    unready = changed(new, ("status", "conditions"), [])
    assert {s.address for s in shards(old, unready)} == {"10.0.0.1"}


def test_of_two_pods_of_the_same_second_all_replicas_choose_the_same():
    one, two = pod("a", ip="10.0.0.1"), pod("b", ip="10.0.0.2")
    assert shards(one, two) == shards(two, one)
    assert len(shards(one, two)) == 2


def test_two_pods_with_one_address_do_not_both_get_in(caplog):
    """A host-network misconfiguration: the endpoint would be in the ring twice."""
    found = shards(pod("a", "node-a"), pod("b", "node-b"))
    assert len(found) == 2
    assert "its ports are taken" in caplog.text


def test_the_nodes_name_must_be_a_name():
    assert shards(pod(node="node a")) == frozenset()


# -- the source, on an apiserver that the test plays --------------------------------------------

PODS = "/api/v1/namespaces/cache-service/pods"


async def until(changes, wanted):
    async with asyncio.timeout(10):
        async for found in changes:
            if wanted(found):
                return


def test_the_source_follows_pods_and_the_zones_of_their_nodes():
    async def scenario():
        async with FakeApiserver() as fake, KubeApi(fake.config) as api:
            bare = changed(pod("p1"), ("metadata", "labels"), None)
            await objects.make_node(api, "node-a", "zone-z")
            await api.call("POST", PODS, bare)
            source = PodSource(api, "cache-service", "", zones_from_nodes=True)
            async with source, contextlib.aclosing(source.changes()) as changes:
                found = await source.relist()
                assert {(s.name, s.zone) for s in found} == {
                    ("node-a/0", "zone-z"),
                    ("node-a/1", "zone-z"),
                }
                await api.call("POST", PODS, pod("p2", "node-b", "10.0.0.2"))
                await until(changes, lambda found: len(found) == 4)
                await objects.set_pod_ready(api, "cache-service", "p1", "10.0.0.1", ready=False)
                await until(changes, lambda found: names(found) == ["node-b/0", "node-b/1"])
                await objects.delete_now(api, "cache-service", "pods", "p2")
                await until(changes, lambda found: not found)

    asyncio.run(scenario())


def test_an_apiserver_that_is_away_is_an_error_and_no_empty_list(monkeypatch):
    monkeypatch.setattr("simplecache.control.pods.RELIST_TIMEOUT_S", 0.2)

    async def scenario():
        async with PodSource(KubeApi(KubeConfig("http://127.0.0.1:9")), "ns", "") as source:
            with pytest.raises(SimpleCacheError, match="does not list the cache pods"):
                await source.relist()

    asyncio.run(scenario())
