"""Which shards the ring holds: the listing, what the probes say, and when not to believe them.

Theory of operation. A shard that leaves the ring takes its keys along, so a wrong removal costs
the origin real traffic, whereas a dead shard that stays costs little: Envoy ejects it and retries
reads. Hence the rules lean to keeping:

  1. A shard joins when it is listed and answers, and leaves when it is no longer listed or when
     two probes in a row failed (one, if the connection was refused).
  2. An empty set is never published once there was a set.
  3. A listing that drops more than half of the published shards counts only after a fresh read.
  4. When more than half of the shards do not answer, the fault may well be on our side. None
     leaves then, until a fresh read of the listing and three further rounds of probes agree, with
     at least one shard answering in each.
  5. A round that no shard answers says something about us, not about the shards.

Half is half of the listed shards that were ever published, so that a set cannot be halved again
and again by small steps. A name is a shard: one that is listed with a new address and answers
there replaces its old self at once.

Pure: no clock and no I/O. Every decision carries the sentence that explains it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from simplecache.control.shards import Shard

STRIKES: Final = 2
"""Failed probes in a row after which a shard is down: one may be a lost packet."""

AGREEING_ROUNDS: Final = 3
"""Rounds after a fresh listing that must agree before more than half may leave."""


class Outcome(enum.Enum):
    """What one probe of a shard found."""

    READY = "is ready"
    UNREADY = "says it is not ready"
    SILENT = "does not answer"
    REFUSED = "refuses connections"


@dataclass(frozen=True, slots=True)
class Decision:
    """The set to publish, and why."""

    shards: frozenset[Shard]
    """Empty only before the first publication: then there is nothing to publish yet."""

    reason: str
    """A sentence when something changed or is being withheld; else empty."""

    relist: bool = False
    """The caller shall read the listing afresh and hand it in with ``fresh=True``."""


class Membership:
    """The state behind the published set. Not safe for use by several threads."""

    def __init__(self) -> None:
        self._listed: dict[str, Shard] = {}
        self._published: dict[str, Shard] = {}
        self._known: set[str] = set()
        """Listed names that were published at some time: what "half" is half of."""

        self._strikes: dict[tuple[str, int], int] = {}
        """Failures in a row, by endpoint. 0: up. Absent: never probed."""

        self._last: dict[tuple[str, int], Outcome] = {}
        self._shrunk_listing = False
        """A listing was put off by rule 3."""

        self._fresh = False
        """The listing was read afresh since the present doubt (rule 4) began."""

        self._doubted: frozenset[str] = frozenset()
        self._agreeing = 0
        self._answered = False
        """Whether any shard answered in the last round."""

    @property
    def listed(self) -> frozenset[Shard]:
        """The listing in force: what is to be probed."""
        return frozenset(self._listed.values())

    @property
    def published(self) -> frozenset[Shard]:
        """The set in force; empty before the first publication."""
        return frozenset(self._published.values())

    @property
    def ready(self) -> int:
        """How many of the listed shards are up."""
        return sum(self._is_up(shard) for shard in self._listed.values())

    def update_listing(self, shards: Iterable[Shard], *, fresh: bool = False) -> Decision:
        """The source lists ``shards`` now; ``fresh`` when it was asked to read afresh."""
        listing = {shard.name: shard for shard in shards}
        gone = self._published.keys() - listing.keys()
        if self._published and not listing:
            self._shrunk_listing = not fresh
            return self._hold("the source lists no shard at all")
        if not fresh and 2 * len(gone) > len(self._published):
            self._shrunk_listing = True
            return self._hold(
                f"the source drops {len(gone)} of {len(self._published)} shards: it is read again"
            )
        self._listed = listing
        self._shrunk_listing = False
        self._known &= listing.keys()
        endpoints = {shard.endpoint for shard in listing.values()}
        self._strikes = {key: n for key, n in self._strikes.items() if key in endpoints}
        self._last = {key: outcome for key, outcome in self._last.items() if key in endpoints}
        if fresh:
            self._fresh, self._agreeing = True, 0
        return self._decide()

    def update_probes(self, outcomes: Mapping[Shard, Outcome]) -> Decision:
        """One round of probes over the listed shards is through."""
        self._answered = any(
            outcome in {Outcome.READY, Outcome.UNREADY} for outcome in outcomes.values()
        )
        for shard, outcome in outcomes.items():
            listed = self._listed.get(shard.name)
            if listed is None or listed.endpoint != shard.endpoint:
                continue  # the listing moved on while the round was under way
            strikes = {Outcome.READY: 0, Outcome.REFUSED: STRIKES}.get(
                outcome, min(self._strikes.get(shard.endpoint, STRIKES - 1) + 1, STRIKES)
            )
            self._strikes[shard.endpoint] = strikes
            self._last[shard.endpoint] = outcome
        return self._decide(round_ended=True)

    def _decide(self, *, round_ended: bool = False) -> Decision:
        unprobed = {n for n, shard in self._listed.items() if shard.endpoint not in self._strikes}
        if not self._published and unprobed:
            return self._hold(f"{len(unprobed)} of {len(self._listed)} shards were not probed yet")
        up = {name for name, shard in self._listed.items() if self._is_up(shard)}
        known = self._known if self._published else set(self._listed)
        missing = known - up - unprobed
        leaving = missing & self._published.keys() if self._published else missing
        withheld = bool(leaving) and self._doubts(leaving, missing, known, round_ended=round_ended)
        if not withheld:
            self._fresh, self._agreeing, self._doubted = False, 0, frozenset()
        kept = self._published.keys() & (unprobed | missing if withheld else unprobed)
        chosen = {n: self._listed[n] for n in up} | {n: self._published[n] for n in kept}
        if withheld and not self._published:
            return self._hold(f"{len(missing)} of {len(known)} shards do not answer")
        if not chosen:
            return self._hold("no listed shard is ready")
        doubt = f"kept although {len(missing)} of {len(known)} do not answer: the fault may be ours"
        return self._publish(chosen, doubt if withheld else "")

    def _doubts(
        self, leaving: set[str], missing: set[str], known: set[str], *, round_ended: bool
    ) -> bool:
        """Whether those that are about to leave must stay for now: rules 4 and 5."""
        if not self._answered:
            self._agreeing = 0
            return True
        if 2 * len(missing) <= len(known):
            return False
        if round_ended and self._fresh:
            self._agreeing = self._agreeing + 1 if leaving <= self._doubted else 0
        self._doubted = frozenset(leaving)
        return not (self._fresh and self._agreeing >= AGREEING_ROUNDS)

    def _publish(self, chosen: dict[str, Shard], doubt: str) -> Decision:
        before = self._published
        changed = (s for n, s in chosen.items() if n in before and before[n] != s)
        parts = [
            _sentence("joined", (chosen[n] for n in chosen.keys() - before.keys())),
            _sentence("changed", changed),
            _sentence("no longer listed", (before[n] for n in before.keys() - self._listed.keys())),
            *(_sentence(why.value, gone) for why, gone in self._left(before, chosen).items()),
            doubt,
        ]
        self._published = chosen
        self._known |= chosen.keys()
        reason = "; ".join(part for part in parts if part)
        return Decision(self.published, reason, relist=self._wants_relist)

    def _left(
        self, before: Mapping[str, Shard], chosen: Mapping[str, Shard]
    ) -> dict[Outcome, list[Shard]]:
        left: dict[Outcome, list[Shard]] = {}
        for name in before.keys() - chosen.keys():
            if name in self._listed:
                outcome = self._last.get(self._listed[name].endpoint, Outcome.SILENT)
                left.setdefault(outcome, []).append(before[name])
        return left

    def _hold(self, why: str) -> Decision:
        stay = f"{len(self._published)} shards stay" if self._published else "nothing published yet"
        return Decision(self.published, f"{why}; {stay}", relist=self._wants_relist)

    @property
    def _wants_relist(self) -> bool:
        return self._shrunk_listing or (bool(self._doubted) and not self._fresh)

    def _is_up(self, shard: Shard) -> bool:
        return self._strikes.get(shard.endpoint, STRIKES) < STRIKES

    def __repr__(self) -> str:
        return (
            f"<Membership {len(self._listed)} listed, {self.ready} ready, "
            f"{len(self._published)} published>"
        )


def _sentence(what: str, shards: Iterable[Shard]) -> str:
    names = sorted(str(shard) for shard in shards)
    if not names:
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{what}: {', '.join(names[:5])}{more}"
