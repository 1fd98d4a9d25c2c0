"""Reviews remembered: which are still good, due for another look, or usable in need.

Pure: time comes in as ``now``, keys are opaque. Two shelves, each bounded and emptied from what was
used longest ago: callers, and refusals. A flood of bad tokens so never pushes a good caller out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from simplecache.model import Caller

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A token is not good, and the sentence that says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ttl:
    """How long reviews count, in seconds."""

    good_s: float = 60.0
    """A good token's. It bounds how long a deleted pod still gets in. kube-rbac-proxy takes 120 s,
    apiservers among themselves 10 s."""

    bad_s: float = 10.0
    """A refused token's: short, for a pod that was just made must not stay locked out."""

    stale_s: float = 600.0
    """How long after a review a caller may still get in while no new review can be had."""

    jitter: float = 0.2
    """Each time to live is shortened by up to this share, so that reviews spread out."""

    ahead: float = 0.8
    """After this share of its time a caller in use is reviewed again, ahead of need."""


DEFAULT_TTL: Final = Ttl()


@dataclass(frozen=True, slots=True)
class Seen:
    """A caller as of the last review. Its times are ordered, and none is after the token's end."""

    caller: Caller
    ahead_at: float
    """From here on a new review should start."""

    fresh_until: float
    """Until here the review counts."""

    stale_until: float
    """Until here it may be used in need."""


class Verdicts:
    """The two shelves.

    Args:
        ttl: how long reviews count.
        callers_max: entries on the first shelf, of about 500 bytes.
        refusals_max: entries on the second.
    """

    def __init__(self, ttl: Ttl, *, callers_max: int = 32_768, refusals_max: int = 4_096) -> None:
        self._ttl = ttl
        self._callers: _Shelf[Seen] = _Shelf(callers_max)
        self._refusals: _Shelf[tuple[Refusal, float]] = _Shelf(refusals_max)

    def __len__(self) -> int:
        return len(self._callers) + len(self._refusals)

    def caller(self, key: bytes, now: float) -> Seen | None:
        """The caller behind a token, if it is usable, be it in need."""
        seen = self._callers.get(key)
        if seen is not None and now >= seen.stale_until:
            self._callers.drop(key)
            return None
        return seen

    def refusal(self, key: bytes, now: float) -> Refusal | None:
        """Why a token was refused a short time ago."""
        entry = self._refusals.get(key)
        if entry is None:
            return None
        refusal, until = entry
        if now >= until:
            self._refusals.drop(key)
            return None
        return refusal

    def record(
        self,
        key: bytes,
        outcome: Caller | Refusal,
        now: float,
        *,
        expires_at: float | None,
        luck: float,
    ) -> None:
        """Remember a review; it replaces what was known of the token.

        Args:
            key: the token's.
            outcome: of the review.
            now: when the review was asked for.
            expires_at: the token's own end on the clock of ``now``; None if it tells none.
            luck: 0 to 1, drawn evenly: how much of the jitter to apply.
        """
        self._callers.drop(key)
        self._refusals.drop(key)
        shortening = 1.0 - self._ttl.jitter * luck
        if isinstance(outcome, Refusal):
            self._refusals.put(key, (outcome, now + self._ttl.bad_s * shortening))
            return
        end = float("inf") if expires_at is None else expires_at
        if end <= now:
            return
        good_s = self._ttl.good_s * shortening
        fresh_until = min(now + good_s, end)
        self._callers.put(
            key,
            Seen(
                caller=outcome,
                ahead_at=min(now + good_s * self._ttl.ahead, end),
                fresh_until=fresh_until,
                stale_until=max(fresh_until, min(now + self._ttl.stale_s, end)),
            ),
        )


class _Shelf(Generic[V]):
    """A bounded mapping that forgets what was not used for longest."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._entries: OrderedDict[bytes, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> V | None:
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: V) -> None:
        self._entries[key] = value
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)

    def drop(self, key: bytes) -> None:
        self._entries.pop(key, None)
