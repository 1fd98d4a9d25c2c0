"""A real node: caps that reload, what it counts, and large bodies that come whole beside others."""

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from shard_harness import token


class Node:
    def __init__(self, directory, *flags, config):
        self.config = directory / "buckets.json"
        self.configure(config)
        tokens = [{"Token": token(name), "Namespace": name} for name in ("greedy", "modest")]
        (directory / "tokens.json").write_text(json.dumps({"Token": tokens}))
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "simplecache", "serve", "--announce", "--shards", "1",
                "--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0", "--drain-delay", "0",
                "--config", self.config, "--tokens", directory / "tokens.json",
                "--data", directory / "data", *flags,
            ],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        announced = json.loads(self.process.stdout.readline())
        self.address = announced["listen"][0]
        self.ops = announced["ops"]

    def configure(self, config):
        rows = [
            {"Name": name, "AllowNamespaces": [name]} | config.get(name, {})
            for name in ("greedy", "modest")
        ]
        document = {"Bucket": rows, "Namespace": config.get("Namespace", [])}
        new = self.config.with_suffix(".new")
        new.write_text(json.dumps(document))
        new.rename(self.config)

    def ask(self, verb, namespace, name="o", body=None):
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request(
                verb,
                f"/v1/objects/{namespace}/{name}",
                body,
                {"Authorization": f"Bearer {token(namespace)}"},
            )
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def metric(self, line):
        with urllib.request.urlopen(f"http://{self.ops[0]}:{self.ops[1]}/metrics") as answer:
            text = answer.read().decode()
        return sum(
            float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line)
        )

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.process.stdout.close()
        return status


@pytest.fixture
def start(tmp_path):
    nodes = []

    def start(*flags, config=None):
        nodes.append(Node(tmp_path, *flags, config=config or {}))
        return nodes[-1]

    yield start
    for node in nodes:
        assert node.stop() == 0


def test_a_cap_answers_429_is_counted_and_is_lifted_by_a_reload(start):
    node = start(config={"Namespace": [{"Name": "greedy", "MaxRequestsPerSecond": 0.1}]})
    assert node.ask("PUT", "greedy", body=b"x")[0] == 201
    status, headers, body = node.ask("GET", "greedy")
    assert status == 429
    assert headers["SCS-Error"] == "throttled"
    assert 1 <= int(headers["Retry-After"]) <= 10
    assert 'namespace "greedy"' in json.loads(body)["detail"]
    assert node.ask("PUT", "modest", body=b"x")[0] == 201
    assert node.metric('scs_throttled_total{shard="0",by="namespace",of="requests"}') == 1
    node.configure({})
    deadline = time.monotonic() + 30
    while node.ask("GET", "greedy")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_wrong_cap_later_changes_nothing_and_is_counted(start):
    node = start()
    node.configure({"Namespace": [{"Name": "greedy", "MaxRequestsPerSecond": "many"}]})
    deadline = time.monotonic() + 30
    while not node.metric("scs_config_reload_failures_total"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert node.ask("PUT", "greedy", body=b"x")[0] == 201


@pytest.mark.parametrize("fairness", ["on", "off"])
def test_large_bodies_come_whole_beside_others(start, fairness):
    node = start("--fairness", fairness)
    large = os.urandom(9_000_001)
    assert node.ask("PUT", "modest", "large", large)[0] == 201
    assert node.ask("PUT", "greedy", body=b"y" * 100_000)[0] == 201
    stop, wrong = threading.Event(), []

    def greedy():
        connection = http.client.HTTPConnection(*node.address, timeout=60)
        while not stop.is_set():
            connection.request(
                "GET",
                "/v1/objects/greedy/o",
                headers={"Authorization": f"Bearer {token('greedy')}"},
            )
            if connection.getresponse().read() != b"y" * 100_000:
                wrong.append("greedy")
        connection.close()

    threads = [threading.Thread(target=greedy) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            assert hashlib.md5(node.ask("GET", "modest", "large")[2]).digest() == (
                hashlib.md5(large).digest()
            )
            large = os.urandom(3_000_000 + number)
            assert node.ask("PUT", "modest", "large", large)[0] == 201
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    waits = node.metric('scs_fair_waits_total{shard="0"}')
    assert waits > 0 if fairness == "on" else waits == 0
