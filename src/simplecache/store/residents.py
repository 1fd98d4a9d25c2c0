"""A tenant's entries as eviction policies see them, out of the SQLite index."""

from __future__ import annotations

import random
from collections.abc import Sequence

from simplecache.store.index import Index, Row
from simplecache.store.notes import group_number, group_of, target_hash
from simplecache.store.policies import Entry
from simplecache.store.usage import Usage

_SCAN_MAX = 4096
"""Rows looked at, from a random place on, to sample a tenant that is a small part of the shard."""


class SqlResidents:
    """Implements :class:`policies.Residents`. The index must have been flushed."""

    def __init__(self, index: Index, usage: Usage, tenant: tuple[str, str]) -> None:
        self._index = index
        self._usage = usage
        self._tenant = tenant
        self.rows: dict[bytes, Row] = {}
        """The rows of the entries handed out, by id: whoever evicts one needs its row."""

    @property
    def disk(self) -> int:
        """Allocated bytes of all."""
        return self._usage.disk(self._tenant)

    def queue_disk(self, queue: int) -> int:
        """Allocated bytes of a queue."""
        return self._usage.queue_disk(self._tenant, queue)

    def sample(self, count: int) -> Sequence[Entry]:
        """Up to ``count`` entries from a random place on: ids are hashes, neighbours random."""
        found: list[Row] = []
        for _ in range(2):
            found += self._index.select(
                "FROM (SELECT * FROM entry WHERE id >= ? ORDER BY id LIMIT ?) "
                "WHERE bucket = ? AND namespace = ? LIMIT ?",
                (random.randbytes(16) if not found else b"", _SCAN_MAX, *self._tenant, count),  # noqa: S311
            )
            if len(found) >= count:
                break
        if not found:
            return self.after(-1, 1, count) or self.after(-1, 0, count)
        return self._entries(found[:count])

    def after(self, seq: int, queue: int, count: int) -> Sequence[Entry]:
        """The oldest entries of a queue whose ``seq`` is larger."""
        return self._entries(
            self._index.select(
                "FROM entry WHERE bucket = ? AND namespace = ? AND queue = ? AND seq > ? "
                "ORDER BY seq LIMIT ?",
                (*self._tenant, queue, seq, count),
            )
        )

    def of_group(self, group: bytes, count: int) -> Sequence[Entry]:
        """Up to ``count`` entries of a group."""
        return self._entries(
            self._index.select(
                "FROM entry WHERE bucket = ? AND namespace = ? AND grp = ? LIMIT ?",
                (*self._tenant, group_number(group), count),
            )
        )

    def requeue(self, entry: Entry, queue: int) -> None:
        """Put an entry behind all others of a queue."""
        old = self.rows[entry.id]
        new = old._replace(queue=queue, seq=self._index.next_seq())
        self._usage.replace(old, new)
        self._index.put(new)
        self._index.flush()

    def _entries(self, rows: list[Row]) -> list[Entry]:
        self.rows.update((row.id, row) for row in rows)
        return [
            Entry(
                row.id, target_hash(row.target), group_of(row.target), row.disk, row.seq, row.queue
            )
            for row in rows
        ]
