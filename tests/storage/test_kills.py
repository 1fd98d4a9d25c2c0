"""A hundred times kill -9, of shards and supervisors, while four processes put, get and delete."""

import json
import os
import random
import subprocess
import sys
import time

from node_process import NodeProcess, scs
from storage_faults import blocks_of, object_files

KILLS = int(os.environ.get("SCS_KILLS", "100"))
SHARDS = 4
PER_LIFE = 12
"""Kills of shards in each life of a supervisor: no shard so often that its next start waits long."""
CLIENTS = 4


def start_clients(node, directory, life):
    reports = [directory / f"report-{life}-{n}.json" for n in range(CLIENTS)]
    ports = json.dumps([node.port(n) for n in range(SHARDS)])
    script = __file__.replace("test_kills", "node_process")
    clients = [
        # Names differ from life to life: what a client knows dies with it.
        subprocess.Popen(
            [sys.executable, script, str(life * CLIENTS + n), ports, "60", str(report)]
        )
        for n, report in enumerate(reports)
    ]
    return clients, reports


def kill_shards(node, wanted, rng):
    time.sleep(0.3)
    kills = 0
    for _ in range(wanted):
        serving = [n for n, state in node.states().items() if state["port"] is not None]
        if serving:
            kills += node.kill_shard(rng.choice(serving))
        time.sleep(rng.uniform(0.05, 0.4))
    return kills


def test_after_a_hundred_kills_nothing_is_wrong_or_lost(tmp_path):
    rng = random.Random(4)
    total = {"put": 0, "get": 0, "hit": 0, "fault": 0, "wrong": []}
    node = NodeProcess(tmp_path, data=("one", "two"), shards=SHARDS, flags=["--scrub-rate", "64Mi"])
    kills = life = 0
    while kills < KILLS:
        node.start()
        clients, reports = start_clients(node, tmp_path, life)
        try:
            kills += kill_shards(node, min(PER_LIFE, KILLS - kills - 1), rng)
        finally:
            node.kill()
            kills += 1
            life += 1
            for each, report in zip(clients, reports, strict=True):
                report.with_suffix(".stop").touch()
                assert each.wait(60) == 0
        for report in reports:
            for key, value in json.loads(report.read_text()).items():
                total[key] += value
    assert total["wrong"] == []
    assert total["hit"] > 100
    assert total["fault"] > 0

    with node:
        node.await_metric("scs_reconciling", 0)
    status, output = scs("check", *node.data)
    assert status == 0, output
    shards = [shard for data in node.data for shard in data.glob("shard-*")]
    assert len(shards) == SHARDS
    assert f"{sum(len(object_files(shard)) for shard in shards)} objects" in output
    assert all(blocks_of(shard) for shard in shards)
    assert not [path for shard in shards for path in (shard / "tmp").iterdir()]
    print(f"{kills} kills in {life} lives: {total}")


def test_a_shard_that_was_killed_serves_at_once_and_its_accounting_is_exact_afterwards(tmp_path):
    with NodeProcess(tmp_path, shards=1) as node:
        for i in range(300):
            assert node.put(f"aaa/{i}", os.urandom(3000)) == 201
        node.kill_shard(0)
        node.await_metric("scs_shard_restarts_total", 1)
        node.await_metric("scs_shard_up", 1)
        assert node.get("aaa/7") is not None
        node.await_metric("scs_reconciling", 0)
        shard = node.data[0] / "shard-00"
        line = next(
            line
            for line in node.ops("/metrics").splitlines()
            if line.startswith("scs_stored_bytes")
        )
        assert int(line.rpartition(" ")[2]) == blocks_of(shard)
        assert scs("check", node.data[0])[0] == 3  # in use
    status, output = scs("check", node.data[0])
    assert (status, "300 objects" in output) == (0, True), output
