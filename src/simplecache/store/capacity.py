"""How much a shard may hold: its part of the disk, and what the disk itself has left. Pure.

All figures are allocated bytes. The limit is the smaller of what was configured and what the file
system can give now: other programs' growth shrinks it, and it grows again when they leave.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from simplecache.config import parse_size
from simplecache.errors import InvalidConfig

FREE_FLOOR_BYTES: Final = 64 << 20
"""Free space of the file system that is never used: SQLite and the system need room to work."""
OPEN_MARK: Final = 0.97
"""Below this part of the limit whatever comes is stored; above, it must be wanted more than what
would go for it."""
LOW_MARK: Final = 0.98
HIGH_MARK: Final = 0.99
"""Above the high mark entries go ahead of need, down to the low one, and never to the open one:
room that was made would otherwise be filled by whatever happens to come."""


@dataclass(frozen=True, slots=True)
class CapacityWish:
    """``--capacity``: so many bytes of each data directory, or such a share of its file system."""

    size_bytes: int | None
    share: float = 0.0

    def of(self, total_bytes: int) -> int:
        """In bytes, on a file system of ``total_bytes``."""
        return self.size_bytes if self.size_bytes is not None else int(self.share * total_bytes)


def parse_capacity(text: str) -> CapacityWish:
    """``500Gi`` or ``80%``.

    Raises:
        InvalidConfig: neither, or out of range.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match is None:
        return CapacityWish(parse_size(text, "--capacity"))
    if not 0 < float(match[1]) <= 100:
        raise InvalidConfig(f"--capacity: {text!r} must be above 0% and at most 100%")
    return CapacityWish(None, float(match[1]) / 100)


@dataclass(frozen=True, slots=True)
class Level:
    """A shard's fill level at one moment."""

    used: int
    """Entries, directories and the index."""
    announced: int
    """Of uploads under way, in all."""
    unwritten: int
    """Of these, not on the disk yet: the file system does not know of them."""
    configured: int
    """What the shard may have."""
    free: int
    """What the file system has left for unprivileged writers."""

    @property
    def limit(self) -> int:
        """What ``used`` and ``announced`` may come to."""
        given = self.used + self.announced - self.unwritten + self.free - FREE_FLOOR_BYTES
        return max(0, min(self.configured, given))

    def has_room(self, size: int) -> bool:
        """Whether ``size`` bytes more stay within the limit."""
        return self.used + self.announced + size <= self.limit

    def is_open(self, size: int = 0) -> bool:
        """Whether ``size`` bytes more are stored without a question."""
        return self.used + self.announced + size <= self.limit * OPEN_MARK

    @property
    def is_high(self) -> bool:
        """Whether entries should go ahead of need."""
        return self.used + self.announced > self.limit * HIGH_MARK

    def excess(self, size: int = 0) -> int:
        """Bytes that must go until the low mark is reached, with ``size`` bytes more to come."""
        return self.used + self.announced + size - int(self.limit * LOW_MARK)
