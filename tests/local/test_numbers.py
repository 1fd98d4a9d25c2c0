"""The numbers of docs/numbers.md, on real nodes behind a real Envoy. ``-s`` prints the tables."""

import collections
import hashlib
import http.client
import os
import signal
from pathlib import Path

import cluster_harness as harness
import pytest

from simplecache.local.cluster import Cluster, get_json, wait_until

OBJECTS = 10_000


@pytest.fixture
def make_cluster(envoy_bin, tmp_path):
    made = []

    def make(**options):
        cluster = Cluster(tmp_path / str(len(made)), envoy=Path(envoy_bin), port=0, **options)
        made.append(cluster)
        cluster.start()
        return cluster

    yield make
    for cluster in made:
        cluster.stop()


def kill_node(cluster, node):
    """The whole node at once, as a power cut does: supervisor and shards."""
    for pid in (node.pid, *cluster.announced[node.name]["pids"]):
        os.kill(pid, signal.SIGKILL)
    node.reap()


def wait_for_shards(cluster, count):
    wait_until(
        lambda: len(get_json(cluster.ops_port, "/v1/endpoints")["shards"]) == count,
        20, f"the ring did not get {count} shards", [cluster.control, cluster.envoy],
    )  # fmt: skip


@pytest.mark.parametrize("lb", ["maglev", "ring_hash"])
def test_placement_of_10000_objects_over_5_nodes(make_cluster, lb):
    cluster = make_cluster(nodes=5, lb=lb)
    targets = [b"/v1/objects/public/data/%d.jpg" % i for i in range(OBJECTS)]
    table = harness.placement_of(cluster)
    predicted = {target: table.owner(target) for target in targets}

    assert set(harness.statuses(cluster.port, b"PUT", targets, b"x")) == {201}
    actual = {target: harness.holders(cluster, target) for target in targets}
    right = sum(actual[target] == [predicted[target]] for target in targets)

    # One node goes: its keys are misses, nearly all others are still found where they were.
    gone = cluster.nodes[2]
    kill_node(cluster, gone)
    wait_for_shards(cluster, 4)
    others = [target for target in targets if predicted[target] != "node-3/0"]
    wait_until(
        lambda: set(harness.statuses(cluster.port, b"GET", targets[:200])) <= {200, 404},
        10, "Envoy did not learn of the change",
    )  # fmt: skip
    after = harness.placement_of(cluster)
    moved_predicted = sum(after.owner(target) != predicted[target] for target in others)
    moved = harness.statuses(cluster.port, b"GET", others).count(404)

    # It comes back with its disk: every object is where it was.
    cluster.start_node(gone)
    wait_for_shards(cluster, 5)
    wait_until(
        lambda: set(harness.statuses(cluster.port, b"GET", targets)) == {200},
        10, "not every object is back",
    )  # fmt: skip

    slots, counts = table.slots(), collections.Counter(predicted.values())
    total = sum(slots.values())
    print(f"\n{lb}: {right} of {OBJECTS} owners predicted; one of five nodes stopped: "
          f"{moved} of {len(others)} keys of the others moved ({moved / len(others):.2%}); "
          "node back: all found")  # fmt: skip
    print(
        "| node | table slots | of even | objects | of even |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for shard in sorted(slots):
        print(f"| {shard} | {slots[shard]} | {slots[shard] * 5 / total:.3f} "
              f"| {counts[shard]} | {counts[shard] * 5 / OBJECTS:.3f} |")  # fmt: skip
    assert right == OBJECTS
    assert moved == moved_predicted
    if lb == "maglev":
        assert all(abs(count * 5 / total - 1) <= 0.01 for count in slots.values())
        assert all(abs(count * 5 / OBJECTS - 1) <= 0.06 for count in counts.values())
        assert moved <= 0.02 * len(others)


def test_a_node_killed_under_load_costs_each_connection_one_failure_at_most(make_cluster):
    cluster = make_cluster(nodes=3)
    targets = [f"/v1/objects/public/{i}" for i in range(600)]
    put = harness.statuses(cluster.port, b"PUT", [t.encode() for t in targets], b"y" * 3000)
    assert set(put) == {201}
    with harness.Load(cluster.port, targets) as load:
        load.wait_for(20)
        kill_node(cluster, cluster.nodes[0])
        load.wait_for(100)
        wait_for_shards(cluster, 2)
        load.wait_for(100)
        cluster.start_node(cluster.nodes[0])
        wait_for_shards(cluster, 3)
        load.wait_for(100)
    failures = [len(found) for found in load.failures]
    print(f"\nnode killed and back under load of 16 connections: {sum(load.answered)} requests, "
          f"failures per connection {failures}: {load.failures}")  # fmt: skip
    assert max(failures) <= 1


def test_the_control_plane_restarted_under_load_fails_no_request(make_cluster):
    cluster = make_cluster(nodes=3)
    targets = [f"/v1/objects/public/{i}" for i in range(600)]
    put = harness.statuses(cluster.port, b"PUT", [t.encode() for t in targets], b"y" * 3000)
    assert set(put) == {201}
    with harness.Load(cluster.port, targets) as load:
        load.wait_for(20)
        cluster.control.signal(signal.SIGKILL)
        cluster.control.reap()
        load.wait_for(100)
        cluster.control.start()
        wait_until(
            lambda: get_json(cluster.ops_port, "/v1/endpoints") is not None,
            20, "the control plane did not come back",
        )  # fmt: skip
        load.wait_for(200)
    print(f"\ncontrol plane killed and back under load of 16 connections: "
          f"{sum(load.answered)} requests, {sum(map(len, load.failures))} failures")  # fmt: skip
    assert load.failures == [[]] * 16


def test_one_gib_through_envoy_in_bounded_memory(make_cluster):
    cluster = make_cluster(nodes=3)
    before = {name: harness.peak_mib(pid) for name, pid in harness.processes_of(cluster).items()}
    piece = os.urandom(1 << 20)
    sent, received = hashlib.sha256(), hashlib.sha256()

    def body():
        for i in range(1024):
            block = i.to_bytes(8, "little") + piece[8:]
            sent.update(block)
            yield block

    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    connection.request("PUT", "/v1/objects/public/big", body(), {"Content-Length": str(1 << 30)})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (201, b"")
    connection.request("GET", "/v1/objects/public/big")
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.length == 1 << 30
    while block := answer.read(1 << 20):
        received.update(block)
    connection.close()
    assert received.digest() == sent.digest()

    print("\n| process | peak MiB before | after 1 GiB PUT and GET |\n| --- | ---: | ---: |")
    after = {name: harness.peak_mib(pid) for name, pid in harness.processes_of(cluster).items()}
    for name, peak in after.items():
        print(f"| {name} | {before[name]:.0f} | {peak:.0f} |")
    assert max(after[name] - before[name] for name in after) < 64
