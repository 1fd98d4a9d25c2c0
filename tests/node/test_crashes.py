"""kill -9 in the middle of PUTs, 50 times: old or new, whole, and nothing left behind."""

import os
import random
import signal
import threading

from harness import Wire, make_head, make_name, noise, until

KILLS = 50
KEYS = 24
SIZES = (0, 10, 4_000, 100_000, 300_000, 1_500_000)


def make_body(key, version):
    """What version ``version`` of a key holds; the version stands in front."""
    size = SIZES[(key + version) % len(SIZES)]
    return b"%06d" % version + NOISE[key : key + size]


NOISE = noise(2_000_000)


class Uploader(threading.Thread):
    """Replaces its keys again and again, and remembers what was acknowledged and what was tried."""

    def __init__(self, address, keys, versions, stop):
        super().__init__()
        self.address, self.keys, self.versions, self.stop = address, keys, versions, stop
        self.acknowledged, self.tried = {}, {}

    def run(self):
        while not self.stop.is_set():
            try:
                with Wire(self.address, timeout_s=5) as wire:
                    for key in self.keys * 1000:
                        if self.stop.is_set():
                            return
                        self.put(wire, key)
            except OSError:  # killed: what was tried last may be there or not
                return

    def put(self, wire, key):
        version = next(self.versions)
        body = make_body(key, version)
        self.tried[key] = version
        wire.send(make_head("PUT", make_name(f"key-{key}"), body=body), body)
        assert wire.response().status == 201
        self.acknowledged[key] = version


class History:
    """For each key: the version that was acknowledged last, and those that may be there."""

    def __init__(self):
        self.possible = {key: {None} for key in range(KEYS)}
        self.found = {"new": 0, "old": 0}

    def note(self, uploaders):
        for uploader in uploaders:
            for key, tried in uploader.tried.items():
                acknowledged = uploader.acknowledged.get(key)
                if acknowledged is not None:
                    self.possible[key] = {acknowledged}
                if tried != acknowledged:
                    self.possible[key] = self.possible[key] | {tried}

    def check(self, address, shard):
        with Wire(address) as wire:
            for key in range(KEYS):
                if key % 2 != shard:
                    continue
                got = wire.request("GET", make_name(f"key-{key}"))
                assert got.status in {200, 404}
                version = int(got.body[:6]) if got.status == 200 else None
                assert version in self.possible[key], f"key {key}: {self.possible[key]}"
                if version is not None:
                    assert got.body == make_body(key, version), "a torn object"
                if len(self.possible[key]) > 1:
                    self.found[
                        "new" if version == max(filter(None, self.possible[key])) else "old"
                    ] += 1
                self.possible[key] = {version}


def test_fifty_kills_in_the_middle_of_uploads(make_node):
    node = make_node(shards=2).start()
    history, versions, chance = History(), iter(range(1, 999_999)), random.Random(7)
    kills, is_whole_node = 0, False
    while kills < KILLS:
        stop = threading.Event()
        uploaders = [
            Uploader(node.addresses[n % 2], list(range(n, KEYS, 4)), versions, stop)
            for n in range(4)
        ]
        before = [state["pid"] for state in node.states()]
        for uploader in uploaders:
            uploader.start()
        until(lambda: all(u.acknowledged for u in uploaders), "the first uploads")  # noqa: B023
        stop.wait(chance.random() * 0.1)  # somewhere in the middle of them
        if is_whole_node:
            node.kill()
            kills += 1
        else:
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            kills += len(before)
        stop.set()
        for uploader in uploaders:
            uploader.join()
        history.note(uploaders)
        if is_whole_node:
            node.start()
        else:
            until(lambda: is_back(node, before), "the shards' return")  # noqa: B023
        assert not node.temporary_files()
        for shard, address in enumerate(node.addresses):
            history.check(address, shard)
        is_whole_node = not is_whole_node
    print(f"\n{kills} kills; uploads cut short: {history.found}")
    assert history.found["old"] > 0, "no upload was cut short: the test shows nothing"
    assert node.stop() == 0
    node.start()
    assert not node.temporary_files()
    until(lambda: node.metric("scs_entries") == len(node.object_files()), "rows and files agree")
    for shard, address in enumerate(node.addresses):
        history.check(address, shard)


def is_back(node, before):
    states = node.states()
    return all(state["port"] and state["pid"] not in before for state in states)
