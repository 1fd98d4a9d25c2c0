"""Hard caps: so many requests and bytes a second, of a bucket or a namespace. Pure.

Theory: a token bucket that may go into debt. A request passes while the balance is above zero, and
is charged when its cost is known; a large body is charged block by block, while it moves. So a cap
far below one object's size still lets objects through, one after the other, and over a while the
rate is the cap. An unused second is kept, no more.
"""

from __future__ import annotations

import math
from typing import Final

RETRY_AFTER_MAX_S: Final = 60
"""Debts may be longer: a cap may be raised meanwhile, and a client's patience is finite."""


class Cap:
    """One figure of one bucket or namespace, on this shard."""

    __slots__ = ("_at_s", "_balance", "name", "per_s", "refused", "what")

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        """For people: ``bucket "public"`` or ``namespace "prj-a"``."""
        self.what = what
        """``requests`` or ``bytes``."""
        self.per_s = 0.0
        self.refused = 0
        self._balance = 0.0
        self._at_s: float | None = None

    def __repr__(self) -> str:
        return f"<Cap {self.name} {self.per_s:g} {self.what}/s balance={self._balance:g}>"

    def set_rate(self, per_s: float) -> None:
        """Allow so much from now on; what was saved or owed stays, within the new burst."""
        self.per_s = per_s
        self._balance = min(self._balance, per_s)

    def wait_s(self, now_s: float) -> float:
        """How long it takes until a request may pass: 0 for now.

        Args:
            now_s: of a clock that does not jump.
        """
        if self._at_s is None:
            self._balance = self.per_s
        else:
            earned = max(0.0, now_s - self._at_s) * self.per_s
            self._balance = min(self.per_s, self._balance + earned)
        self._at_s = now_s
        return 0.0 if self._balance > 0 else max(1e-9, -self._balance / self.per_s)

    def spend(self, amount: int) -> None:
        """Charge what passed."""
        self._balance -= amount


def retry_after_s(wait_s: float) -> int:
    """``Retry-After`` for a wait: whole seconds, at least one."""
    return max(1, min(RETRY_AFTER_MAX_S, math.ceil(wait_s)))
