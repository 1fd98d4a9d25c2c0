"""One shard: the process that owns a directory and a port. Here its parts are put together.

Started by the supervisor as ``python -m simplecache.server.shard FD`` with one end of a control
channel. The first message holds the settings; the shard answers ``ready`` or ``failed``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from simplecache.config import StaticTokens, parse_buckets, parse_namespaces, parse_tokens
from simplecache.errors import SimpleCacheError
from simplecache.server import observe
from simplecache.server.authenticate import Authenticator, OpenAuthenticator, StaticAuthenticator
from simplecache.server.channel import Channel
from simplecache.server.connection import Limits
from simplecache.server.handle import Handler
from simplecache.server.serve import Server
from simplecache.store.store import Store

log = logging.getLogger(__name__)

DESCRIPTORS: Final = 65_536
"""Wanted: connections, open objects, and room to work."""
SWITCH_S: Final = 0.0005
"""The writer thread lets the loop go on after so long at the latest; Python's default is ten times
that, which would be a request's whole budget."""
ORPHAN_GRACE_S: Final = 1.0
"""What runs may go on for so long when the supervisor is gone."""


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """What a shard is told at its start."""

    name: str
    directory: str
    host: str
    port: int
    auth: str
    limits: dict[str, int]
    uploads_max: int
    object_max_bytes: int
    capacity_bytes: int
    fairness: bool
    scrub_rate: int
    buckets: Any
    """The document of buckets and namespaces, as it was read from its file."""
    tokens: Any
    """The token document; None without mode ``static``."""
    kubernetes: Any
    """``KubernetesSettings`` as a mapping; None without mode ``kubernetes``."""

    def to_message(self) -> dict[str, Any]:
        """For the channel."""
        return asdict(self)


class Shard:
    """The composition root: store, handler, server, and the channel that steers them."""

    def __init__(self, settings: ShardSettings, channel: Channel) -> None:
        self.settings = settings
        self._channel = channel
        self._authenticator = _authenticator(settings)
        files_max = _raise_descriptors()
        limits = Limits(**settings.limits)
        self._store = Store(
            Path(settings.directory),
            object_max_bytes=settings.object_max_bytes,
            capacity_bytes=settings.capacity_bytes,
            # A connection that sends a large body has two descriptors of its own.
            open_max=max(64, min(8192, files_max - 2 * limits.connections_max - 256)),
            scrub_rate=settings.scrub_rate,
        )
        handler = Handler(
            self._store,
            self._authenticator,
            uploads_max=settings.uploads_max,
            is_fair=settings.fairness,
        )
        handler.configure(parse_buckets(settings.buckets), parse_namespaces(settings.buckets))
        if settings.auth == "kubernetes":
            handler.answer_peer = self._authenticator.answer_peer  # type: ignore[attr-defined]
        self._server = Server(handler, limits)
        self._told = ""
        """Why the disk is on probation, as the supervisor was told."""

    async def run(self) -> None:
        """Serve until the supervisor says stop, or is gone."""
        await self._authenticator.start()
        port = await self._server.listen(self.settings.host, self.settings.port)
        self._server.is_started = self._server.is_ready = True
        gc.collect()
        sys.setswitchinterval(SWITCH_S)
        gc.freeze()  # what lives from here on is found without walking the modules again
        self._channel.send({"ready": {"port": port}})
        ticking = asyncio.create_task(self._tick())
        delay_s, grace_s = await self._obey()
        ticking.cancel()
        await self._server.drain(delay_s=delay_s, grace_s=grace_s)
        await self._authenticator.close()
        await self._store.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._server.tick()
            disk = self._store.disk
            if disk.health.why != self._told:
                self._told = disk.health.why
                self._channel.send({"probation": self._told})
            if disk.is_displaced:
                log.error("%s is not the directory that was opened: starting again", disk.directory)
                self._channel.close()

    async def _obey(self) -> tuple[float, float]:
        """Do what the supervisor says; returns (delay, grace) of the stop, in seconds."""
        while True:
            message = await self._channel.receive()
            match message:
                case None:
                    return 0.0, ORPHAN_GRACE_S
                case {"do": "drain", "delay_s": delay_s, "grace_s": grace_s}:
                    return delay_s, grace_s
                case {"do": "samples"}:
                    self._channel.answer(message, observe.samples(self._server))
                case {"do": "check", "start": start}:
                    scrubber = self._store.scrubber
                    check = scrubber.start_check() if start else scrubber.check
                    self._channel.answer(message, check)
                case {"do": "configure", "buckets": buckets, "tokens": tokens}:
                    self._configure(buckets, tokens)
                case _:
                    log.error("unknown message from the supervisor: %.200r", message)

    def _configure(self, buckets: Any, tokens: Any) -> None:
        """Take a configuration that the supervisor has checked already."""
        if isinstance(self._authenticator, StaticAuthenticator):
            self._authenticator.tokens = parse_tokens(tokens)
        self._server.handler.configure(parse_buckets(buckets), parse_namespaces(buckets))


def _authenticator(settings: ShardSettings) -> Authenticator:
    if settings.auth == "none":
        return OpenAuthenticator()
    if settings.auth == "kubernetes":
        from simplecache.server.kubernetes import (  # noqa: PLC0415 - an extra of its own
            KubernetesAuthenticator,
            KubernetesSettings,
        )

        return KubernetesAuthenticator(KubernetesSettings.of(settings.kubernetes), settings.name)
    tokens = StaticTokens({}) if settings.tokens is None else parse_tokens(settings.tokens)
    return StaticAuthenticator(tokens)


def _raise_descriptors() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, DESCRIPTORS) if hard != resource.RLIM_INFINITY else DESCRIPTORS
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


async def serve(fd: int) -> int:
    """Run one shard over the control channel at descriptor ``fd``; returns the exit status."""
    channel = await Channel.open(socket.socket(fileno=fd))
    message = await channel.receive()
    if message is None:
        return 1
    settings = ShardSettings(**message)
    try:
        await Shard(settings, channel).run()
    except (SimpleCacheError, OSError) as error:
        channel.send({"failed": str(error)})
        channel.close()
        return 1
    return 0


def main() -> int:
    """The process: signals of the terminal are the supervisor's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s shard %(name)s: %(message)s"
    )
    return uvloop.run(serve(int(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
