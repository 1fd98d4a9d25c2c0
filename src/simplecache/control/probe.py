"""Asking each shard whether it is ready, over one kept-alive connection per shard.

``GET /readyz`` goes to the data port, for only that tells whether the process that owns the
objects answers. N probes from the control plane replace N probes from each of N Envoys.

Plain asyncio streams and a dozen lines of HTTP: the answers are our own nodes', and a client
library would cost more than it saves. What a shard sends is bounded and distrusted all the same.

A probe also tells the shard its part of the ring (``SCS-Ring-Share``: its weight over all listed),
by which it divides quotas that are given for the whole cluster.

What a probe *means* is not decided here: see ``membership.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from simplecache.control.membership import Outcome
from simplecache.control.shards import Shard

PATH: Final = "/readyz"
HEAD_MAX_BYTES: Final = 16 << 10
BODY_MAX_BYTES: Final = 64 << 10
"""A larger body is not read: the connection is closed instead, and the status still counts."""

CONCURRENCY: Final = 128
"""Probes under way at once: a round over dead hosts must not hold thousands of sockets open."""


class _BadAnswer(Exception):
    """The bytes that came are not HTTP, or too many."""


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def close(self) -> None:
        self.writer.close()


class Prober:
    """Probes shards in rounds and keeps their connections between rounds."""

    def __init__(self, *, timeout_s: float = 1.0, concurrency: int = CONCURRENCY) -> None:
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(concurrency)
        self._kept: dict[tuple[str, int], _Connection] = {}

    async def probe_all(self, shards: Collection[Shard]) -> dict[Shard, Outcome]:
        """One round. Connections to shards that are not in ``shards`` are closed."""
        wanted = {shard.endpoint for shard in shards}
        for endpoint in self._kept.keys() - wanted:
            self._kept.pop(endpoint).close()
        total = sum(shard.weight for shard in shards)
        async with asyncio.TaskGroup() as group:
            tasks = {
                shard: group.create_task(self._probe(shard, shard.weight / total))
                for shard in shards
            }
        return {shard: task.result() for shard, task in tasks.items()}

    def close(self) -> None:
        """Close all connections."""
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()

    async def _probe(self, shard: Shard, share: float) -> Outcome:
        async with self._slots:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._ask(shard, share)
            except ConnectionRefusedError:
                return Outcome.REFUSED
            except (OSError, EOFError, TimeoutError, _BadAnswer):
                return Outcome.SILENT

    async def _ask(self, shard: Shard, share: float) -> Outcome:
        kept = self._kept.pop(shard.endpoint, None)
        if kept is not None:
            # The shard may have closed it since: only a new connection's failure counts.
            with contextlib.suppress(OSError, EOFError, _BadAnswer):
                return await self._exchange(shard, share, kept)
        reader, writer = await asyncio.open_connection(*shard.endpoint, limit=HEAD_MAX_BYTES)
        return await self._exchange(shard, share, _Connection(reader, writer))

    async def _exchange(self, shard: Shard, share: float, connection: _Connection) -> Outcome:
        reusable = False
        try:
            host = f"[{shard.address}]" if ":" in shard.address else shard.address
            connection.writer.write(
                f"GET {PATH} HTTP/1.1\r\nHost: {host}:{shard.port}\r\n"
                f"SCS-Ring-Share: {share:.9f}\r\n\r\n".encode()
            )
            status, reusable = await _read_answer(connection.reader)
        finally:
            if reusable:
                self._kept[shard.endpoint] = connection
            else:
                connection.close()
        return Outcome.READY if status == 200 else Outcome.UNREADY


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the connection can be used again."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError as error:
        raise _BadAnswer from error
    lines = head.split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if version not in {"HTTP/1.0", "HTTP/1.1"} or not rest[:3].isdecimal():
        raise _BadAnswer
    fields = {
        name.strip().lower(): value.strip().lower()
        for name, _, value in (line.partition(":") for line in lines[1:])
    }
    length = fields.get("content-length", "")
    reusable = (
        version == "HTTP/1.1"
        and fields.get("connection") != "close"
        and length.isdecimal()
        and int(length) <= BODY_MAX_BYTES
    )
    if reusable:
        await reader.readexactly(int(length))
    return int(rest[:3]), reusable
