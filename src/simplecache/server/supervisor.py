"""A cache node: the supervisor that starts its shards, restarts the dead, and speaks for all.

It carries no data. It reads the configuration, gives it to the shards, watches it for changes, and
answers on the ops port. A shard that dies is started again with a growing pause; one that can
never start (its directory is in use, its port taken) ends the node with the reason.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from simplecache.config import load, parse_buckets, parse_namespaces, parse_tokens
from simplecache.errors import DataDirError, InvalidConfig, SimpleCacheError
from simplecache.ops import PROMETHEUS, Answer, OpsServer
from simplecache.server import observe
from simplecache.server.channel import Channel
from simplecache.server.shard import ShardSettings
from simplecache.store.capacity import CapacityWish

log = logging.getLogger(__name__)

LAYOUT_VERSION: Final = 1
START_TIMEOUT_S: Final = 60.0
PAUSE_FIRST_S: Final = 0.2
PAUSE_MAX_S: Final = 10.0
"""Between a shard's death and its next start: doubled each time, forgotten after a minute."""
SAMPLE_TIMEOUT_S: Final = 2.0
WATCH_S: Final = 1.0
LOCK_WAIT_S: Final = 5.0
"""A shard of a killed supervisor needs a moment to notice and to leave its directory."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What ``scs serve`` is told; its flags, in the same words."""

    config: Path
    data: tuple[Path, ...]
    listen: tuple[str, int]
    ops: tuple[str, int]
    name: str
    shards: int
    capacity: CapacityWish
    auth: str = "static"
    tokens: Path | None = None
    kubernetes: dict[str, Any] | None = None
    """``KubernetesSettings`` as a mapping, for mode ``kubernetes``."""
    limits: dict[str, int] = field(default_factory=dict)
    uploads_max: int = 256
    object_max_bytes: int = 64 << 30
    fairness: bool = True
    drain_delay_s: float = 2.0
    drain_grace_s: float = 20.0

    def port(self, shard: int) -> int:
        """The port of a shard: the first, and those after it (or 0: the kernel's choice)."""
        return self.listen[1] + shard if self.listen[1] else 0

    def capacity_bytes(self, shard: int) -> int:
        """A shard's part of what its file system may give to this node.

        Raises:
            InvalidConfig: more is wished for than the file system has.
        """
        path = self.data[shard % len(self.data)]
        status = path.stat()
        system = os.statvfs(path)
        total = system.f_blocks * system.f_frsize
        wish = self.capacity.of(total)
        if wish > total:
            raise InvalidConfig(f"--capacity: {wish} bytes are more than {path} has ({total})")
        together = [
            number
            for number in range(self.shards)
            if self.data[number % len(self.data)].stat().st_dev == status.st_dev
        ]
        return wish // len(together)

    def directory(self, shard: int) -> Path:
        """Shards are dealt over the data directories in turn."""
        return self.data[shard % len(self.data)] / f"shard-{shard:02d}"


class _Configuration:
    """The bucket and token files: read, checked, and watched."""

    def __init__(self, settings: NodeSettings) -> None:
        self._files: list[tuple[Path, Callable[[object], object]]] = [
            (settings.config, _parse_config)
        ]
        if settings.tokens is not None:
            self._files.append((settings.tokens, parse_tokens))
        self._stamp = self._stamps()
        self.failures = 0
        self.buckets, self.tokens = self._read()

    def _read(self) -> tuple[Any, Any]:
        documents = [load(path, _checked(parse)) for path, parse in self._files]
        return documents[0], documents[1] if len(documents) > 1 else None

    def reload(self, *, force: bool = False) -> bool:
        """Read again if a file changed; False when nothing is new. A broken one changes nothing."""
        stamp = self._stamps()
        if stamp == self._stamp and not force:
            return False
        self._stamp = stamp
        try:
            self.buckets, self.tokens = self._read()
        except InvalidConfig as error:
            self.failures += 1
            log.error("the configuration in force stays: %s", error)
            return False
        log.info("configuration read again")
        return True

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        stamps: list[tuple[int, int, int] | None] = []
        for path, _ in self._files:
            try:
                status = path.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return stamps


def _parse_config(document: object) -> object:
    return parse_buckets(document), parse_namespaces(document)


def _checked(parse: Callable[[object], object]) -> Callable[[object], object]:
    def check(document: object) -> object:
        parse(document)
        return document

    return check


class _ShardProcess:
    """One shard as the supervisor sees it: a process, its channel, and what became of it."""

    def __init__(self, number: int, settings: Callable[[], ShardSettings]) -> None:
        self.number = number
        self._settings = settings
        self.channel: Channel | None = None
        self.pid: int | None = None
        self.port: int | None = None
        """None while the shard does not serve."""
        self.last_port = 0
        """It comes back at the port it had, also where the kernel chose it."""
        self.restarts = 0

    async def start(self) -> tuple[asyncio.subprocess.Process, str]:
        """Start the process; returns it and why it failed (empty: it serves)."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "simplecache.server.shard", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        self.pid = process.pid
        self.channel = await Channel.open(ours)
        self.channel.send(self._settings().to_message())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                message = await self.channel.receive()
        except TimeoutError:
            process.kill()
            message = {"failed": f"it did not start within {START_TIMEOUT_S:.0f} s"}
        if message is not None and "ready" in message:
            self.port = self.last_port = message["ready"]["port"]
            return process, ""
        return process, (message or {}).get("failed", "it ended while it started")

    async def run_once(self, *, started: asyncio.Event) -> str:
        """Start, serve until the end of the process; returns what happened in words."""
        process, failure = await self.start()
        assert self.channel is not None
        if not failure:
            started.set()
            while await self.channel.receive() is not None:
                pass
        self.port = None
        self.channel.close()
        status = await process.wait()
        self.pid = None
        return failure or f"ended with status {status}"

    async def samples(self) -> list[observe.Sample]:
        """What the shard counts; only that it is down when it does not answer."""
        labels = {"shard": str(self.number)}
        found: list[observe.Sample] = [
            ("scs_shard_up", labels, int(self.port is not None)),
            ("scs_shard_restarts_total", labels, self.restarts),
        ]
        if self.port is None or self.channel is None:
            return found
        try:
            answer = await self.channel.ask({"do": "samples"}, timeout_s=SAMPLE_TIMEOUT_S)
        except (ConnectionError, TimeoutError):
            return found
        return found + [(name, labels | more, value) for name, more, value in answer]


class Supervisor:
    """One cache node."""

    def __init__(self, settings: NodeSettings) -> None:
        """Check the configuration and the data directories.

        Raises:
            InvalidConfig: a file is wrong.
            DataDirError: a directory is another node's, or laid out otherwise.
        """
        self._settings = settings
        self._configuration = _Configuration(settings)
        for directory in settings.data:
            _claim(directory, settings)
        for number in range(settings.shards):
            settings.capacity_bytes(number)
        self._shards = [
            _ShardProcess(number, lambda number=number: self._shard_settings(number))  # type: ignore[misc]
            for number in range(settings.shards)
        ]
        self._stopping = asyncio.Event()
        self._failure = ""

    def _shard_settings(self, number: int) -> ShardSettings:
        settings = self._settings
        return ShardSettings(
            name=f"{settings.name}/{number}",
            directory=str(settings.directory(number)),
            host=settings.listen[0],
            port=settings.port(number) or self._shards[number].last_port,
            auth=settings.auth,
            limits=settings.limits,
            uploads_max=settings.uploads_max,
            object_max_bytes=settings.object_max_bytes,
            capacity_bytes=settings.capacity_bytes(number),
            fairness=settings.fairness,
            buckets=self._configuration.buckets,
            tokens=self._configuration.tokens,
            kubernetes=settings.kubernetes,
        )

    async def run(self, *, announce: Callable[[dict[str, Any]], None]) -> None:
        """Serve until SIGTERM or SIGINT, then stop in good order.

        Args:
            announce: is called once with what is served where, when all shards are up.

        Raises:
            DataDirError, OSError: the node cannot start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._reload(force=True))
        ops = await OpsServer({"/readyz": self._readyz, "/metrics": self._metrics}).start(
            *self._settings.ops
        )
        started = [asyncio.Event() for _ in self._shards]
        keeping = [
            asyncio.create_task(self._keep(shard, event))
            for shard, event in zip(self._shards, started, strict=True)
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        starting = asyncio.create_task(_all(started))
        await asyncio.wait([stopping, starting], return_when=asyncio.FIRST_COMPLETED)
        watching = asyncio.create_task(self._watch())
        if not self._stopping.is_set():
            announce(self._describe(ops.sockets[0].getsockname()[1]))
        await stopping
        starting.cancel()
        watching.cancel()
        await self._drain(keeping)
        ops.close()
        if self._failure:
            raise DataDirError(self._failure)

    def _describe(self, ops_port: int) -> dict[str, Any]:
        return {
            "node": self._settings.name,
            "listen": [[self._settings.listen[0], shard.port] for shard in self._shards],
            "ops": [self._settings.ops[0], ops_port],
            "pids": [shard.pid for shard in self._shards],
        }

    async def _keep(self, shard: _ShardProcess, started: asyncio.Event) -> None:
        """Keep one shard running until the node stops."""
        loop = asyncio.get_running_loop()
        pause_s, first_try = PAUSE_FIRST_S, loop.time()
        while True:
            began = loop.time()
            reason = await shard.run_once(started=started)
            if self._stopping.is_set():
                return
            if not started.is_set() and loop.time() - first_try > LOCK_WAIT_S:
                self._failure = f"shard {shard.number} cannot start: {reason}"
                self._stopping.set()
                return
            if loop.time() - began > 60:
                pause_s = PAUSE_FIRST_S
            log.error("shard %d: %s; next start in %.1f s", shard.number, reason, pause_s)
            shard.restarts += 1
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_MAX_S, 2 * pause_s)
            if self._stopping.is_set():
                return

    async def _drain(self, keeping: list[asyncio.Task[None]]) -> None:
        settings = self._settings
        message = {
            "do": "drain", "delay_s": settings.drain_delay_s, "grace_s": settings.drain_grace_s,
        }  # fmt: skip
        for shard in self._shards:
            if shard.channel is not None:
                shard.channel.send(message)
        bound_s = settings.drain_delay_s + settings.drain_grace_s + 10
        _, late = await asyncio.wait(keeping, timeout=bound_s)
        for shard in self._shards:
            if late and shard.pid is not None:
                log.error("shard %d did not stop within %.0f s: killed", shard.number, bound_s)
                os.kill(shard.pid, signal.SIGKILL)
        await asyncio.gather(*keeping)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            self._reload()

    def _reload(self, *, force: bool = False) -> None:
        if self._configuration.reload(force=force):
            message = {
                "do": "configure",
                "buckets": self._configuration.buckets,
                "tokens": self._configuration.tokens,
            }
            for shard in self._shards:
                if shard.channel is not None:  # one that is just starting takes it afterwards
                    shard.channel.send(message)

    def _readyz(self, _: dict[str, str]) -> Answer:
        states = {
            f"{self._settings.name}/{shard.number}": {"port": shard.port, "pid": shard.pid}
            for shard in self._shards
        }
        is_ready = not self._stopping.is_set() and any(s.port is not None for s in self._shards)
        body = json.dumps({"ready": is_ready, "shards": states}).encode() + b"\n"
        return Answer(200 if is_ready else 503, body, "application/json")

    async def _metrics(self, _: dict[str, str]) -> Answer:
        gathered = await asyncio.gather(*(shard.samples() for shard in self._shards))
        found = [sample for samples in gathered for sample in samples]
        found.append(("scs_config_reload_failures_total", {}, self._configuration.failures))
        return Answer(200, observe.render(found).encode(), PROMETHEUS)


async def _all(events: list[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


def _claim(directory: Path, settings: NodeSettings) -> None:
    """Make a data directory this node's, or find that it is.

    Raises:
        DataDirError: it is another node's, of another layout, or cannot be written.
    """
    mark = directory / "node.json"
    wanted = {
        "layout": LAYOUT_VERSION,
        "node": settings.name,
        "shards": settings.shards,
        "directories": len(settings.data),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = json.loads(mark.read_text()) if mark.exists() else None
        if found is None:
            temporary = mark.with_suffix(".tmp")
            temporary.write_text(json.dumps(wanted) + "\n")
            temporary.rename(mark)
            return
    except OSError as error:
        raise DataDirError(f"{directory}: {error.strerror}") from error
    except ValueError as error:
        raise DataDirError(f"{mark}: not JSON: {error}") from error
    for key, value in wanted.items():
        if not isinstance(found, dict) or found.get(key) != value:
            have = found.get(key) if isinstance(found, dict) else found
            raise DataDirError(
                f"{directory}: it was made with {key} {have!r}, and this node has {value!r}. "
                "To start with an empty cache, remove the directory"
            )


def run(settings: NodeSettings, *, announce: Callable[[dict[str, Any]], None]) -> None:
    """Run a node until it is told to stop.

    Raises:
        SimpleCacheError: it cannot start, in a sentence.
    """

    async def main() -> None:
        await Supervisor(settings).run(announce=announce)

    try:
        asyncio.run(main())
    except OSError as error:
        raise SimpleCacheError(f"cannot listen on {settings.ops}: {error.strerror}") from error
