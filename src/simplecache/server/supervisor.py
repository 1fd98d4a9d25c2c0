"""A cache node: the supervisor that starts its shards, restarts the dead, and speaks for all.

It carries no data. It reads the configuration, gives it to the shards, watches it for changes, and
answers on the ops port. A shard that dies, or cannot start (its disk is missing, its directory in
use, its port taken), is started again with a growing pause while the others serve; when none can
start, the node ends with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Final

from simplecache.errors import DataDirError, SimpleCacheError
from simplecache.ops import PROMETHEUS, Answer, OpsServer
from simplecache.server import observe
from simplecache.server.layout import Layout
from simplecache.server.process import ShardProcess
from simplecache.server.reload import Configuration
from simplecache.server.shard import ShardSettings
from simplecache.store.capacity import CapacityWish

log = logging.getLogger(__name__)

PAUSE_FIRST_S: Final = 0.2
PAUSE_MAX_S: Final = 10.0
"""Between a shard's death and its next start: doubled each time, forgotten after a minute."""
WATCH_S: Final = 1.0
HOMELESS_S: Final = 1.0
"""How often a data directory that cannot be used is looked at: it costs the reading of marks."""
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
    scrub_rate: int = 16 << 20
    reshard: bool = False

    def port(self, shard: int) -> int:
        """The port of a shard: the first, and those after it (or 0: the kernel's choice)."""
        return self.listen[1] + shard if self.listen[1] else 0


class Supervisor:
    """One cache node."""

    def __init__(self, settings: NodeSettings) -> None:
        """Check the configuration and the data directories.

        Raises:
            InvalidConfig: a file is wrong.
            DataDirError: a directory is another node's, or laid out otherwise.
        """
        self._settings = settings
        self._configuration = Configuration(settings.config, settings.tokens)
        self._layout = Layout(
            settings.data, settings.name, settings.shards, reshard=settings.reshard
        )
        self._layout.check_capacity(settings.capacity)
        self._shards = [
            ShardProcess(number, lambda number=number: self._shard_settings(number))  # type: ignore[misc]
            for number in range(settings.shards)
        ]
        self._stopping = asyncio.Event()
        self._failure = ""

    def _shard_settings(self, number: int) -> ShardSettings:
        settings = self._settings
        return ShardSettings(
            name=f"{settings.name}/{number}",
            directory=str(self._layout.directory(number)),
            host=settings.listen[0],
            port=settings.port(number) or self._shards[number].last_port,
            auth=settings.auth,
            limits=settings.limits,
            uploads_max=settings.uploads_max,
            object_max_bytes=settings.object_max_bytes,
            capacity_bytes=self._layout.capacity_bytes(number, settings.capacity),
            fairness=settings.fairness,
            scrub_rate=settings.scrub_rate,
            buckets=self._configuration.buckets,
            tokens=self._configuration.tokens,
            kubernetes=settings.kubernetes,
        )

    async def run(self, *, announce: Callable[[dict[str, Any]], None]) -> None:
        """Serve until SIGTERM or SIGINT, then stop in good order.

        Args:
            announce: is called once with what is served where, when all shards are up, or are
                known not to come up for now.

        Raises:
            DataDirError, OSError: the node cannot start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._reload(force=True))
        ops = await OpsServer(
            {"/readyz": self._readyz, "/metrics": self._metrics, "/check": partial(self._check)},
            {"/check": partial(self._check, start=True)},
        ).start(*self._settings.ops)
        keeping = [asyncio.create_task(self._keep(shard)) for shard in self._shards]
        stopping = asyncio.create_task(self._stopping.wait())
        starting = asyncio.create_task(_all(shard.settled for shard in self._shards))
        await asyncio.wait([stopping, starting], return_when=asyncio.FIRST_COMPLETED)
        watching = asyncio.create_task(self._watch())
        if not self._stopping.is_set():
            announce(self._describe(ops.sockets[0].getsockname()[1]))
            # Nobody waits for it, and a node that ends leaves the rest to its next start.
            Thread(target=self._layout.remove_leftovers, name="leftovers", daemon=True).start()
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
            "listen": [
                [self._settings.listen[0], shard.port or self._settings.port(shard.number) or None]
                for shard in self._shards
            ],
            "failures": {s.number: s.failure for s in self._shards if s.port is None},
            "ops": [self._settings.ops[0], ops_port],
            "pids": [shard.pid for shard in self._shards],
        }

    async def _keep(self, shard: ShardProcess) -> None:
        """Keep one shard running until the node stops."""
        loop = asyncio.get_running_loop()
        pause_s, first_try = PAUSE_FIRST_S, loop.time()
        while True:
            began = loop.time()
            reason = await self._run(shard)
            if self._stopping.is_set():
                return
            is_late = shard.is_homeless or loop.time() - first_try > LOCK_WAIT_S
            if not shard.settled.is_set() and is_late:
                shard.settled.set()
                self._give_up_if_none_serves(f"shard {shard.number} cannot start: {reason}")
            if shard.is_homeless or loop.time() - began > 60:
                pause_s = PAUSE_FIRST_S
            if reason != shard.failure or not shard.is_homeless:
                log.error("shard %d: %s; next start in %.1f s", shard.number, reason, pause_s)
            shard.failure = reason
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(pause_s, HOMELESS_S * shard.is_homeless)):
                    await self._stopping.wait()
            pause_s = min(PAUSE_MAX_S, 2 * pause_s)
            if self._stopping.is_set():
                return

    async def _run(self, shard: ShardProcess) -> str:
        """Run a shard once, if its directory can be used; returns what ended it, in words."""
        try:
            fault = await asyncio.to_thread(self._layout.fault, shard.number)
            shard.is_homeless = bool(fault)
            return fault or await shard.run_once()
        except (OSError, SimpleCacheError) as error:
            return str(error)

    def _give_up_if_none_serves(self, reason: str) -> None:
        if all(each.settled.is_set() and not each.has_served for each in self._shards):
            self._failure = reason
            self._stopping.set()

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
        states = {f"{self._settings.name}/{shard.number}": shard.state for shard in self._shards}
        is_ready = not self._stopping.is_set() and any(shard.is_ready for shard in self._shards)
        body = json.dumps({"ready": is_ready, "shards": states}).encode() + b"\n"
        return Answer(200 if is_ready else 503, body, "application/json")

    async def _metrics(self, _: dict[str, str]) -> Answer:
        gathered = await asyncio.gather(*(shard.samples() for shard in self._shards))
        found = [sample for samples in gathered for sample in samples]
        found.append(("scs_config_reload_failures_total", {}, self._configuration.failures))
        return Answer(200, observe.render(found).encode(), PROMETHEUS)

    async def _check(self, _: dict[str, str], *, start: bool = False) -> Answer:
        """How each shard's last check goes; ``start`` begins one where none is under way."""
        checks = await asyncio.gather(*(shard.check(start=start) for shard in self._shards))
        shards = {str(s.number): check for s, check in zip(self._shards, checks, strict=True)}
        return Answer(200, json.dumps({"shards": shards}).encode() + b"\n", "application/json")


async def _all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


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
