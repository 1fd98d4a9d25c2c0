"""One shard's listening socket and its connections: accepting, the second's tick, draining."""

from __future__ import annotations

import asyncio
import time
from typing import cast

from simplecache.server.connection import Connection, Limits
from simplecache.server.handle import Handler
from simplecache.server.wire import HeaderMemo


class Server:
    """The connections of one shard, and what they share."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self.handler = handler
        self.limits = limits
        self.memo = HeaderMemo()
        self.connections: set[Connection] = set()
        self.is_started = False
        self.is_ready = False
        """Started, and the disk is not on probation: what ``/readyz`` says."""
        self.is_draining = False
        """Answers say ``Connection: close`` and ``/readyz`` says 503."""
        self.sockets: list[asyncio.Server] = []

    async def listen(self, host: str, port: int) -> int:
        """Accept connections; returns the port (the kernel's choice for 0).

        Raises:
            OSError: the address cannot be bound.
        """
        self.handler.tick(time.time())
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Connection(self), host, port, backlog=1024, reuse_address=True
        )
        self.sockets.append(server)
        return cast("int", server.sockets[0].getsockname()[1])

    def tick(self) -> None:
        """Once a second: the clock of every timeout."""
        self.handler.tick(time.time())
        store = self.handler.store
        store.tick()
        self.is_ready = self.is_started and not store.disk.health.is_on_probation
        for connection in tuple(self.connections):
            connection.tick()

    async def drain(self, *, delay_s: float, grace_s: float) -> None:
        """Stop in good order: leave the ring, finish what runs, then close.

        Args:
            delay_s: go on accepting for so long while ``/readyz`` says 503 already.
            grace_s: wait at most so long, after that, for requests in progress.
        """
        self.is_draining = True
        await asyncio.sleep(delay_s)
        for server in self.sockets:
            server.close()
        deadline = time.monotonic() + grace_s
        while (  # noqa: ASYNC110 - thousands of connections, for one moment
            any(c.is_busy for c in self.connections) and time.monotonic() < deadline
        ):
            await asyncio.sleep(0.02)
        ended = [connection.end() for connection in tuple(self.connections)]
        tasks = [task for task in ended if task is not None]
        if tasks:  # their uploads give up, and take their temporary files with them
            await asyncio.wait(tasks, timeout=5)
