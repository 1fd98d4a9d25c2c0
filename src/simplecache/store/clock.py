"""A clock that does not go back: what times to live are measured by."""

from __future__ import annotations

import time
from collections.abc import Callable


def steady(clock: Callable[[], float]) -> Callable[[], float]:
    """``clock`` as long as it goes forward; while it is behind, time goes on from where it was.

    An administrator's or NTP's step back would otherwise bring back what has expired already. May
    be called from any thread.
    """
    last = (clock(), time.monotonic())

    def now() -> float:
        nonlocal last
        monotonic = time.monotonic()
        last = (max(clock(), last[0] + monotonic - last[1]), monotonic)
        return last[0]

    return now
