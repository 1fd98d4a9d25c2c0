"""Where the control plane learns which shards exist: the source, and the one that is a file.

A source tells two things: that its listing changed, and, when asked, what it lists *now*. The
second is what the safety rules of ``membership.py`` rest on: a set that shrank is believed only
after it was read afresh.

The file is looked at twice a second by its identity (device, inode, size, time), through symbolic
links, so that the swap of a Kubernetes ConfigMap is seen as well as an editor's rename. A file
that is broken or gone is logged once, and what it said before stays in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol

from simplecache import config
from simplecache.control.shards import Shard, parse_endpoints
from simplecache.errors import InvalidConfig

POLL_INTERVAL_S: Final = 0.5

_log = logging.getLogger(__name__)


class EndpointSource(Protocol):
    """Whoever knows the shards: a file here, the Kubernetes API elsewhere."""

    async def relist(self) -> frozenset[Shard]:
        """Read the listing afresh, from the place of truth and no cache.

        Raises:
            SimpleCacheError: it cannot be read now; nothing may be concluded from that.
        """
        ...

    def changes(self) -> AsyncIterator[frozenset[Shard]]:
        """Every further listing, as it changes; never ends and never raises for a bad listing."""
        ...


class FileSource:
    """An endpoints file, JSON or (by its suffix) YAML. See ``shards.py`` for its form."""

    def __init__(self, path: Path, *, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._path = path
        self._poll_interval_s = poll_interval_s
        self._seen: tuple[int, ...] | None = None
        """The identity of the file that was read last; None: nothing, or it was not there."""

    async def relist(self) -> frozenset[Shard]:
        """See :class:`EndpointSource`.

        Raises:
            InvalidConfig: the file cannot be read or is not valid; the text says where.
        """
        return await asyncio.to_thread(self._load)

    async def changes(self) -> AsyncIterator[frozenset[Shard]]:
        """See :class:`EndpointSource`. The first is there once the file differs from relist's."""
        while True:
            await asyncio.sleep(self._poll_interval_s)
            try:
                if await asyncio.to_thread(self._identity) != self._seen:
                    yield await self.relist()
            except InvalidConfig as error:
                _log.error("endpoints are unchanged, for the file is broken: %s", error)

    def _load(self) -> frozenset[Shard]:
        # The identity is taken first: a file that is replaced while it is read is read again.
        self._seen = self._identity()
        return config.load(self._path, parse_endpoints)

    def _identity(self) -> tuple[int, ...] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    def __repr__(self) -> str:
        return f"<FileSource {self._path}>"
