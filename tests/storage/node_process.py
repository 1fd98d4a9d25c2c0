"""A real cache node for storage tests: its supervisor and shards as processes, its CLI, its clients."""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from xxhash import xxh3_64_intdigest

BUCKETS = {"Bucket": [{"Name": "aaa", "Public": True}, {"Name": "bbb", "Public": True}]}


def scs(*args):
    """(exit status, output) of a command."""
    command = [sys.executable, "-m", "simplecache", *map(str, args)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return ended.returncode, ended.stdout + ended.stderr


class NodeProcess:
    """``scs serve``, as an operator runs it."""

    def __init__(self, directory, *, data=("data",), shards=2, name="node", flags=()):
        self.directory = Path(directory)
        self.data = [self.directory / each for each in data]
        self.config = self.directory / "buckets.json"
        self.config.write_text(json.dumps(BUCKETS))
        self.log = self.directory / "log"
        self.shards = shards
        self.flags = ["--node-name", name, *flags]
        self.process = None
        self.told = {}

    def command(self, *flags):
        return [
            sys.executable, "-m", "simplecache", "serve", "--announce", "--auth", "none",
            "--config", str(self.config), "--data", *map(str, self.data),
            "--shards", str(self.shards), "--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0",
            "--drain-delay", "0", "--drain-grace", "5", *self.flags, *flags,
        ]  # fmt: skip

    def start(self, *flags):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*flags), stdout=subprocess.PIPE, stderr=log, text=True
            )
        line = self.process.stdout.readline()
        assert line, self.log.read_text()[-3000:]
        self.told = json.loads(line)
        return self

    def refuses(self, *flags):
        """What it says when it cannot start; its exit status must be 3."""
        ended = subprocess.run(self.command(*flags), capture_output=True, text=True, timeout=60)
        assert ended.returncode == 3, ended.stderr
        return ended.stderr.splitlines()[-1]

    def stop(self):
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()[-3000:]
        self.process.stdout.close()

    def kill(self):
        """The supervisor is gone; its shards notice."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, failed, *_):
        if failed is None and self.process.poll() is None:
            self.stop()
        elif self.process.poll() is None:
            self.kill()

    def ops(self, path):
        with urlopen(f"http://127.0.0.1:{self.told['ops'][1]}{path}", timeout=10) as answer:
            return answer.read().decode()

    def states(self):
        """What ``/readyz`` says of each shard, by number."""
        try:
            text = self.ops("/readyz")
        except HTTPError as error:  # 503: none serves
            with error:
                text = error.read()
        shards = json.loads(text)["shards"]
        return {int(name.rpartition("/")[2]): state for name, state in shards.items()}

    def await_metric(self, name, value, shards=None):
        """Until every shard says so."""
        wanted = {f'{name}{{shard="{n}"}} {value}' for n in shards or range(self.shards)}
        until(lambda: wanted <= set(self.ops("/metrics").splitlines()), f"{name} {value}")

    def port(self, shard):
        return self.told["listen"][shard][1]

    def kill_shard(self, shard):
        """End a shard's process; it is started again by its supervisor. Whether it lived."""
        pid = self.states()[shard]["pid"]
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, TypeError):
            return False
        return True

    def put(self, name, body, shard=None):
        return self.request("PUT", name, body, shard)[0]

    def get(self, name, shard=None):
        status, body = self.request("GET", name, None, shard)
        return body if status == 200 else None

    def request(self, verb, name, body=None, shard=None):
        shard = owner(name, self.shards) if shard is None else shard
        connection = http.client.HTTPConnection("127.0.0.1", self.port(shard), timeout=10)
        try:
            connection.request(verb, f"/v1/objects/{name}", body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def owner(name, shards):
    """Whose object it is: as Envoy's table, something that depends on name and number alone."""
    return xxh3_64_intdigest(name.encode()) % shards


def until(condition, what="it", timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come to pass"
        time.sleep(0.05)


def make_body(name, version, size):
    """A body that says what it is, and that nothing else has."""
    head = f"{name} {version} {size}\n".encode()
    return head + random.Random(f"{name} {version}").randbytes(size)


def client(number, ports, seconds, report):
    """A client process: puts, gets and deletes objects of its own, and notes what was wrong.

    Every get must be a whole version that is not older than the last that was acknowledged.
    """
    rng = random.Random(number)
    acknowledged, started, wrong, counts = {}, {}, [], {"put": 0, "get": 0, "hit": 0, "fault": 0}
    connections = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not Path(report).with_suffix(".stop").exists():
        name = f"{'ab'[number % 2] * 3}/client-{number}/{rng.randrange(60)}"
        port = ports[owner(name, len(ports))]
        target = f"/v1/objects/{name}"
        dice = rng.random()
        try:
            connection = connections.get(port)
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connections[port] = connection
            if dice < 0.4:
                version = started[name] = started.get(name, 0) + 1
                size = rng.choice([0, 100, 3000, 20_000, 300_000, 1_500_000])
                connection.request("PUT", target, make_body(name, version, size))
                answer = connection.getresponse()
                answer.read()
                if answer.status == 201:
                    acknowledged[name] = version
                    counts["put"] += 1
            elif dice < 0.95:
                connection.request("GET", target)
                answer = connection.getresponse()
                body = answer.read()
                counts["get"] += 1
                if answer.status == 200:
                    counts["hit"] += 1
                    wrong += check(name, body, acknowledged.get(name, 0), started.get(name, 0))
            else:
                connection.request("DELETE", target)
                answer = connection.getresponse()
                answer.read()
                if answer.status in {204, 404}:
                    acknowledged[name] = started.get(name, 0) + 1
                    started[name] = acknowledged[name]
        except (OSError, http.client.HTTPException):
            counts["fault"] += 1
            connections.pop(port).close()
            time.sleep(0.01)
    Path(report).write_text(json.dumps({"wrong": wrong, **counts}))


def check(name, body, at_least, at_most):
    head = body.partition(b"\n")[0].decode("latin-1").split(" ")
    if len(head) != 3 or head[0] != name:
        return [f"{name}: {body[:80]!r}"]
    version, size = int(head[1]), int(head[2])
    if body != make_body(name, version, size):
        return [f"{name}: version {version} is torn"]
    if not at_least <= version <= at_most:
        return [f"{name}: version {version} is not of {at_least} to {at_most}"]
    return []


if __name__ == "__main__":
    client(int(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
