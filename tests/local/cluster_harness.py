"""Loads for tests against a local cluster: pipelined requests, and clients that count failures."""

import http.client
import itertools
import random
import socket
import threading
from pathlib import Path

from simplecache.local.cluster import Cluster, get_json
from simplecache.placement import make_placement
from simplecache.store.blobs import blob_id

BATCH = 50


def pipelined(port, requests):
    """Send raw requests over one connection, ``BATCH`` at a time; [(status, body)] in order."""
    answers = []
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as sock,
        sock.makefile("rb") as file,
    ):
        for at in range(0, len(requests), BATCH):
            batch = requests[at : at + BATCH]
            sock.sendall(b"".join(batch))
            answers += [read_answer(file) for _ in batch]
    return answers


def read_answer(file):
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, file.read(length)


def request(verb, target, body=None):
    head = b"%b %b HTTP/1.1\r\nHost: cache\r\n" % (verb, target)
    if body is None:
        return head + b"\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def statuses(port, verb, targets, body=None):
    return [status for status, _ in pipelined(port, [request(verb, t, body) for t in targets])]


def placement_of(cluster: Cluster):
    """Our own table, from what the control plane publishes."""
    directory = get_json(cluster.ops_port, "/v1/endpoints")
    shards = [(shard["name"], shard["weight"]) for shard in directory["shards"]]
    return make_placement(directory["lb"], shards, directory["table_size"])


def holders(cluster: Cluster, target: bytes):
    """The shards whose directory holds the object's file: the truth, from the disk."""
    name = blob_id(target).hex()
    return [
        f"{node.name}/{int(shard.name.removeprefix('shard-'))}"
        for node in cluster.nodes
        for shard in (cluster.directory / node.name).glob("shard-*")
        if Path(shard, "objects", name[:3], name[3:]).exists()
    ]


def processes_of(cluster: Cluster):
    """{name: pid} of everything that runs for the cluster, shards included."""
    found = {part.name: part.pid for part in cluster.parts}
    for name, told in cluster.announced.items():
        for number, pid in enumerate(told["pids"]):
            found[f"{name}/{number}"] = pid
    return found


def peak_mib(pid):
    """The most memory that a process ever had, in MiB (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no VmHWM for {pid}")


class Load:
    """Clients that GET random targets over one kept connection each, and count what they see."""

    def __init__(self, port, targets, connections=16):
        self.port = port
        self.targets = targets
        self.answered = [0] * connections
        self.failures = [[] for _ in range(connections)]
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(connections)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for(self, more):
        """Until every connection has had ``more`` answers more."""
        goals = [answered + more for answered in self.answered]
        for _ in itertools.repeat(None, 3000):
            if all(a >= goal for a, goal in zip(self.answered, goals, strict=True)):
                return
            self._stop.wait(0.01)
        raise AssertionError(f"the load stands still: {self.answered} of {goals}")

    def _run(self, number):
        random_ = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self._stop.is_set():
            try:
                connection.request("GET", random_.choice(self.targets))
                answer = connection.getresponse()
                answer.read()
                if answer.status not in {200, 404}:
                    self.failures[number].append(f"{answer.status} {answer.getheader('SCS-Error')}")
            except (OSError, http.client.HTTPException) as error:
                self.failures[number].append(repr(error))
                connection.close()
            self.answered[number] += 1
        connection.close()
