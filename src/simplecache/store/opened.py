"""The object files that a shard keeps open: what makes a GET cheap. Owned by the loop."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import Final

from simplecache.store.blobs import Blob

OPEN_MIN: Final = 16
REGAINED: Final = 64
"""When descriptors are short, half of the files are closed and no more are kept; each second so
many more are allowed again."""


class OpenBlobs(OrderedDict[bytes, Blob]):
    """Target -> its open file. A blob closes itself when its last reader is done with it.

    Ordered, for the first of a plain dict is found the later the more have gone before it.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.changes = 0
        """Grows whenever a target is forgotten: an open that began before is not to be kept."""
        self._wish = self._limit = limit

    def remember(self, target: bytes, blob: Blob) -> None:
        """Keep a file open, for which the one that was opened first may have to go."""
        if len(self) >= self._limit:
            with contextlib.suppress(KeyError):  # another thread has closed some
                self.popitem(last=False)
        self[target] = blob

    def forget(self, target: bytes) -> None:
        """The file is another one now, or none."""
        self.changes += 1
        self.pop(target, None)

    def close_some(self) -> None:
        """Close half, and keep no more for now. For any thread: a step at a time is atomic."""
        self._limit = max(OPEN_MIN, len(self) // 2)
        for target in list(self)[: -self._limit]:
            self.pop(target, None)

    def regain(self) -> None:
        """Once a second: allow some more again."""
        self._limit = min(self._wish, self._limit + REGAINED)
