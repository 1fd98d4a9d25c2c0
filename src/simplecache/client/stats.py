"""What a client has counted."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Final

_LOCK: Final = threading.Lock()
# One lock for all clients, held for an addition only. A fork waits for it, so that a child never
# inherits it locked by a thread that the child does not have.
os.register_at_fork(
    before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
)


@dataclass(slots=True)
class ClientStats:
    """Counters of one client in one process; a forked child goes on from its parent's."""

    hits: int = 0
    """Reads and stats that found the object."""
    misses: int = 0
    """Reads, stats and deletions that found none."""
    stored: int = 0
    """PUTs that the cache has kept."""
    faults: int = 0
    """Requests that failed, whether they were raised or taken for a miss."""
    fault_kinds: dict[str, int] = field(default_factory=dict)
    """``faults`` by the name of the error's class."""
    repeats: int = 0
    """Requests sent once more: over a new connection, or with a renewed token."""
    read_bytes: int = 0
    """Bytes of objects received."""
    written_bytes: int = 0
    """Bytes of objects that the cache has kept."""

    def add(  # noqa: PLR0913  one per counter
        self,
        *,
        hits: int = 0,
        misses: int = 0,
        stored: int = 0,
        repeats: int = 0,
        read_bytes: int = 0,
        written_bytes: int = 0,
    ) -> None:
        """Add to the counters. Safe for threads."""
        with _LOCK:
            self.hits += hits
            self.misses += misses
            self.stored += stored
            self.repeats += repeats
            self.read_bytes += read_bytes
            self.written_bytes += written_bytes

    def add_fault(self, kind: str) -> None:
        """Count one fault. Safe for threads."""
        with _LOCK:
            self.faults += 1
            self.fault_kinds[kind] = self.fault_kinds.get(kind, 0) + 1
