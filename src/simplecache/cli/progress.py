"""A progress bar for one transfer, on a terminal and only there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Final, Self, TextIO

SHOW_OVER_BYTES: Final = 8 * 1024 * 1024
"""Less than this is there before anybody could read the bar."""
DRAW_EVERY_S: Final = 0.1
_BAR_WIDTH: Final = 24


class Progress:
    """Shows how far a transfer has come: bytes, percent, rate and the time left.

    Args:
        label: what is transferred.
        total_bytes: None when it is not known.
        out: where to draw; nothing is drawn unless it is a terminal.
        quiet: draw nothing.
        now: a monotonic clock in seconds.
    """

    def __init__(
        self,
        label: str,
        total_bytes: int | None,
        *,
        out: TextIO | None = None,
        quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        out = sys.stderr if out is None else out
        small = total_bytes is not None and total_bytes <= SHOW_OVER_BYTES
        self._out = None if quiet or small or out is None or not out.isatty() else out
        self._label = label.encode("ascii", "replace").decode()[-32:]
        self._total_bytes = total_bytes
        self._now = now
        self._began_s = self._drawn_s = now()
        self._drawn = False
        self.done_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._out is not None and self._drawn:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def add(self, count_bytes: int) -> None:
        """So much more was transferred."""
        self.done_bytes += count_bytes
        now_s = self._now()
        if self._out is None or now_s - self._drawn_s < DRAW_EVERY_S:
            return
        if self.done_bytes > SHOW_OVER_BYTES or self._total_bytes is not None:
            self._drawn_s, self._drawn = now_s, True
            line = self.describe(now_s - self._began_s)[: _get_width(self._out) - 1]
            self._out.write(f"\r{line}\x1b[K")
            self._out.flush()

    def restart(self) -> None:
        """The transfer begins again from its first byte."""
        self.done_bytes = 0

    def describe(self, elapsed_s: float) -> str:
        """The line that is drawn after ``elapsed_s``."""
        rate = self.done_bytes / max(elapsed_s, 1e-6)
        parts = [self._label, format_size(self.done_bytes), f"{format_size(rate)}/s"]
        if self._total_bytes:
            share = min(self.done_bytes / self._total_bytes, 1.0)
            filled = int(share * _BAR_WIDTH)
            left_s = (self._total_bytes - self.done_bytes) / max(rate, 1e-6)
            parts.insert(1, f"[{'#' * filled}{'-' * (_BAR_WIDTH - filled)}] {share:4.0%}")
            parts.append(f"{_format_time(left_s)} left")
        return "  ".join(parts)


def format_size(size_bytes: float) -> str:
    """A size as people read it: ``"812 B"``, ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def _get_width(out: TextIO) -> int:
    try:
        return os.get_terminal_size(out.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _format_time(time_s: float) -> str:
    minutes, seconds = divmod(min(round(max(time_s, 0)), 359999), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
