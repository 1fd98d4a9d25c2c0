"""Whether a shard's disk is to be trusted: errors counted, probation, and the way back. Pure.

Theory: a single bad sector is one entry less, so an error drops what it hit and nothing more. When
errors come together the disk itself is in doubt, and the shard goes on **probation**: it says that
it is not ready (so the control plane takes it out of the ring), takes no PUTs, and answers GETs as
well as it can. A probe writes, syncs, reads and removes a small file, again and again with growing
pauses; when one passes the shard is back, without anybody's help. Where the trouble returns soon
the pauses go on growing.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from typing import Final

ERRORS_MAX: Final = 5
WINDOW_S: Final = 60.0
"""So many errors within so long put the disk on probation."""
PROBE_FIRST_S: Final = 2.0
PROBE_MAX_S: Final = 60.0
"""Until the first probe, and the longest pause between two."""
RELAPSE_S: Final = 600.0
"""Trouble within so long after the last one makes the pauses go on growing from where they were."""

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHORTAGE: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_CONCLUSIVE: Final = {errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN}
"""One of these is proof enough: read-only, or gone."""


def is_full(error: OSError) -> bool:
    """No room: says nothing against the disk."""
    return error.errno in _FULL


def is_shortage(error: OSError) -> bool:
    """This process, or the system, has no more of something: nothing against the disk either."""
    return error.errno in _SHORTAGE


class Health:
    """One disk. Times are any monotonic clock's, in seconds; may be told from any thread."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        """Since the start, by name: EIO."""
        self.why = ""
        """Why it is on probation; empty: it is not."""
        self._recent: deque[float] = deque(maxlen=ERRORS_MAX)
        self._pause_s = PROBE_FIRST_S
        self._probe_at = 0.0
        self._passed_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Health why={self.why!r} errors={dict(self.errors)}>"

    @property
    def is_on_probation(self) -> bool:
        """Whether the shard should not be used for now."""
        return bool(self.why)

    def note(self, error: OSError, now: float) -> None:
        """Take a failed system call into account."""
        if is_full(error) or is_shortage(error):
            return
        self.errors[errno.errorcode.get(error.errno or 0, "other")] += 1
        self._recent.append(now)
        if self.why:
            return
        is_often = len(self._recent) == ERRORS_MAX and now - self._recent[0] <= WINDOW_S
        if is_often or error.errno in _CONCLUSIVE:
            if now - self._passed_at > RELAPSE_S:
                self._pause_s = PROBE_FIRST_S
            self._probe_at = now + self._pause_s
            self.why = error.strerror or str(error)

    def take_probe(self, now: float) -> bool:
        """Whether it is time for a probe; the next one is due later."""
        if not self.why or now < self._probe_at:
            return False
        self._pause_s = min(PROBE_MAX_S, 2 * self._pause_s)
        self._probe_at = now + self._pause_s
        return True

    def pass_probe(self, now: float) -> None:
        """The disk works again."""
        self.why = ""
        self._recent.clear()
        self._passed_at = now
