"""What the tests with a real Envoy share: shards that say their name, an Envoy, a raw client.

Everything lives in the test's own event loop, except Envoy and, where its death is the point, the
control plane. Ports are the kernel's choice. Targets are bytes and reach the wire untouched.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from simplecache.control.bootstrap import make_bootstrap
from simplecache.control.resources import (
    make_cluster,
    make_listener,
    make_load_assignment,
    make_routes,
)
from simplecache.control.shards import Shard

DEADLINE_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for what no event tells of, such as another process's state."""
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                result = condition()
                if asyncio.iscoroutine(result):
                    result = await result
                if result:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {deadline_s} s: {what}") from None


class Backend:
    """One shard: says its name in ``x-shard``; ``ready`` is what ``/readyz`` answers."""

    def __init__(self, name: str, *, zone: str = "", weight: int = 1) -> None:
        self.name, self.zone, self.weight = name, zone, weight
        self.ready = True
        self.port = 0
        self.targets: list[bytes] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def shard(self) -> Shard:
        return Shard(self.name, self.zone, "127.0.0.1", self.port, self.weight)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Die: close the port and every connection at once."""
        if self._server is None:
            return
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                method, target, headers = await read_head(reader)
                if length := int(headers.get("content-length", 0)):
                    if headers.get("expect") == "100-continue":
                        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    await reader.readexactly(length)
                writer.write(self._answer(method, target))
                await writer.drain()
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, method: str, target: bytes) -> bytes:
        if target == b"/readyz":
            status = "200 OK" if self.ready else "503 Service Unavailable"
        else:
            self.targets.append(target)
            status = "201 Created" if method == "PUT" else "200 OK"
        return (
            f"HTTP/1.1 {status}\r\nServer: scs-test\r\nX-Shard: {self.name}\r\n"
            "Content-Length: 0\r\n\r\n"
        ).encode()


async def read_head(reader: asyncio.StreamReader) -> tuple[str, bytes, dict[str, str]]:
    """First word, rest up to the last space, and the fields, of a request or an answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    line, *rest = head.split(b"\r\n")
    first, _, middle = line.partition(b" ")
    fields = (field.decode("latin-1").partition(":") for field in rest if field)
    return (
        first.decode(),
        middle.rpartition(b" ")[0],
        {name.lower(): value.strip() for name, _, value in fields},
    )


@asynccontextmanager
async def running(backends: Iterable[Backend]) -> AsyncIterator[list[Backend]]:
    backends = list(backends)
    try:
        for backend in backends:
            await backend.start()
        yield backends
    finally:
        for backend in backends:
            await backend.stop()


class Client:
    """One kept-alive connection that sends targets as they are."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, target: bytes, body: bytes = b"", headers: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(DEADLINE_S):
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            writer.write(
                b"%s %s HTTP/1.1\r\nHost: cache\r\n%s%s\r\n%s"
                % (method.encode(), target, length.encode(), headers.encode(), body)
            )
            line = await reader.readuntil(b"\r\n")
            status = int(line.split(b" ")[1])
            fields: dict[str, str] = {}
            while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                name, _, value = line.decode("latin-1").partition(":")
                fields[name.lower()] = value.strip()
            if method == "HEAD":
                answer = b""
            else:
                answer = await reader.readexactly(int(fields.get("content-length", 0)))
            if fields.get("connection") == "close":
                await self.close()
            return status, fields, answer

    async def owner(self, target: bytes) -> str:
        """The shard that answered, or the status of Envoy's own answer."""
        status, fields, _ = await self.request("GET", target)
        return fields.get("x-shard", str(status))

    async def close(self) -> None:
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def owners(port: int, targets: list[bytes], connections: int = 8) -> list[str]:
    """Who answers for each target, in order."""

    async def some(part: list[bytes]) -> list[str]:
        client = Client(port)
        try:
            return [await client.owner(target) for target in part]
        finally:
            await client.close()

    parts = await asyncio.gather(*(some(targets[i::connections]) for i in range(connections)))
    result = [""] * len(targets)
    for i, part in enumerate(parts):
        result[i::connections] = part
    return result


def targets(count: int, bucket: str = "prj-foobar") -> list[bytes]:
    """Names as they come: plain, with queries, double slashes, escapes and dots."""
    shapes = ("img/%06d.jpg", "s3://b//a.zip/x-%d", "what?%d.jpg", "a%%2Fb-%d", "x/../y/%d")
    return [f"/v1/objects/{bucket}/{shapes[i % len(shapes)] % i}".encode() for i in range(count)]


class Envoy:
    """A running Envoy: ask its admin socket, see its log."""

    def __init__(self, admin: Path, port: int, log: Path) -> None:
        self.admin, self.port, self.log = admin, port, log

    async def ask(self, path: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(self.admin), limit=1 << 24)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            _, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            return body.decode()
        finally:
            writer.close()

    async def is_live(self) -> bool:
        try:
            return "LIVE" in await self.ask("/ready")
        except OSError:
            return False

    async def stat(self, name: str) -> int:
        """One counter or gauge, by its full name."""
        text = await self.ask(f"/stats?filter=^{name}$")
        return sum(int(line.rpartition(": ")[2]) for line in text.splitlines() if ": " in line)


@asynccontextmanager
async def envoy(binary: str, config: dict, port: int, tmp_path: Path) -> AsyncIterator[Envoy]:
    """An Envoy for as long as the context lasts; live when it begins."""
    path, log = tmp_path / f"envoy-{port}.json", tmp_path / f"envoy-{port}.log"
    path.write_text(json.dumps(config))
    process = start_envoy(binary, path, log)
    try:
        admin = Path(config["admin"]["address"]["pipe"]["path"])
        result = Envoy(admin, port, log)

        async def is_up() -> bool:
            assert process.poll() is None, log.read_text()
            return await result.is_live()

        await until(is_up, "Envoy is live")
        yield result
    finally:
        stop(process)


def start_envoy(binary: str, config: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [binary, "-c", config, "--disable-hot-restart", "--concurrency", "1", "-l", "warning"],
            stdout=output,
            stderr=output,
        )


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """End one process, by its id, and wait for it."""
    if process.poll() is None:
        os.kill(process.pid, number)
    process.wait(timeout=10)


@contextlib.contextmanager
def socket_path():
    """A path for an admin socket: short, which pytest's are not always."""
    with tempfile.TemporaryDirectory(prefix="scs-") as folder:
        yield str(Path(folder) / "a.sock")


def static_config(
    shards: Iterable[Shard],
    *,
    admin: str,
    port: int,
    lb: str = "maglev",
    table_size: int = 65537,
    ejection: bool = False,
) -> dict:
    """The control plane's resources in one static document, without a control plane."""
    config = make_bootstrap(xds=("127.0.0.1", 1), node_id="test", admin_path=admin)
    del config["dynamic_resources"]
    cluster = make_cluster(lb, table_size)
    del cluster["eds_cluster_config"]
    if not ejection:
        del cluster["outlier_detection"]
    cluster |= {"type": "STATIC", "load_assignment": make_load_assignment(shards)}
    listener = make_listener("127.0.0.1", port)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["route_config"] = make_routes()
    config["static_resources"]["clusters"].append(cluster)
    config["static_resources"]["listeners"].append(listener)
    return config


def start_control_plane(tmp_path: Path, **flags: object) -> subprocess.Popen[bytes]:
    """``scs control-plane`` as a process of its own."""
    program = (
        "import argparse, sys; from simplecache.cli.control import add_parsers\n"
        "parser = argparse.ArgumentParser(); add_parsers(parser.add_subparsers())\n"
        "args = parser.parse_args(); sys.exit(args.run(args))"
    )
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    with (tmp_path / "control-plane.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", program, "control-plane", *arguments], stdout=log, stderr=log
        )


def write_endpoints(path: Path, shards: Iterable[Shard]) -> None:
    """An endpoints file, swapped in whole. Every shard's name must be ``node/0``."""
    nodes = [
        {
            "Name": shard.name.removesuffix("/0"),
            "Zone": shard.zone,
            "Address": shard.address,
            "Ports": [shard.port],
            "Weight": shard.weight,
        }
        for shard in shards
    ]
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"Nodes": nodes}))
    draft.replace(path)
