"""Eviction policies, one table. Pure: they look at entries and notes, and name victims.

A policy sees a tenant's entries through :class:`Residents`, of which the store's SQLite index is
one implementation and the simulator's lists another. It is asked two things:

* ``victims``: which entries go next when room is needed; a few at once, for a look costs a query;
* ``admits``: whether an object that is not here should come, if the room for it is another's.

Theory of ``steady``, the default. Training reads a data set epoch after epoch, each in a new order.
LRU throws out exactly what is read next: where the cache holds the share c of the data, it keeps
c + (1-c)·ln(1-c) of the hits, and a cache that changes nothing keeps c. So within what is being
read nothing is replaced, unless the newcomer is asked for far more often than what would go (a
skewed, Zipf-like load, where it clearly is). What goes first is what nobody reads any more: a
directory that is silent for longer than its pace and its past allow (``notes.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from simplecache.store.notes import Notes

SAMPLE: Final = 16
"""Entries looked at to find one victim: the sampled LRU of this size is within a percent of LRU."""
SMALL_SHARE: Final = 0.1
"""Of a tenant's bytes, in S3-FIFO's probationary queue."""
MAIN: Final = 1
SMALL: Final = 0
"""The two queues that an entry may stand in; only S3-FIFO uses both."""


STALE: Final = -1
FORGOTTEN: Final = -2
"""Worth, to ``steady``, of entries that were not asked for in a long time."""


class Entry(NamedTuple):
    """What a policy knows of an entry."""

    id: bytes
    key: int
    """Its hash in the notes."""
    group: bytes
    disk: int
    """Allocated bytes."""
    seq: int
    """Grows with each entry that comes or is put behind the others again."""
    queue: int


class Residents(Protocol):
    """One tenant's entries."""

    @property
    def disk(self) -> int:
        """Allocated bytes of all."""

    def queue_disk(self, queue: int) -> int:
        """Allocated bytes of a queue."""

    def sample(self, count: int) -> Sequence[Entry]:
        """Up to ``count`` entries at random."""

    def after(self, seq: int, queue: int, count: int) -> Sequence[Entry]:
        """The oldest entries of a queue whose ``seq`` is larger."""

    def of_group(self, group: bytes, count: int) -> Sequence[Entry]:
        """Up to ``count`` entries of a group."""

    def requeue(self, entry: Entry, queue: int) -> None:
        """Put an entry behind all others of a queue."""


class Policy:
    """One policy with its state for one tenant."""

    name = ""
    rule = "it was next in line"
    """Why an entry goes, for people who ask."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes

    def admits(self, residents: Residents, key: int) -> bool:  # noqa: ARG002 - most admit all
        """Whether an object that is not here should take another's room."""
        return True

    def arrived(self, key: int) -> int:  # noqa: ARG002 - most have one queue
        """An object was stored; returns the queue it stands in."""
        return MAIN

    def victims(self, residents: Residents, count: int) -> Sequence[Entry]:
        """The next entries to go, ``count`` at most; none when there is nothing."""
        raise NotImplementedError


class Random(Policy):
    """Any entry."""

    name = "random"

    def victims(self, residents: Residents, count: int) -> Sequence[Entry]:
        """Any entries, each once."""
        return list({entry.id: entry for entry in residents.sample(count)}.values())


class Fifo(Policy):
    """The entry that came first."""

    name = "fifo"

    def victims(self, residents: Residents, count: int) -> Sequence[Entry]:
        """The oldest."""
        return residents.after(-1, MAIN, count)


class Lru(Policy):
    """The entry that was not read for the longest time, of a sample."""

    name = "lru"

    def victims(self, residents: Residents, count: int) -> Sequence[Entry]:
        """Those of a sample that were read last the longest ago."""
        return _least(residents, count, lambda entry: self.notes.last(entry.key))


class Lfu(Policy):
    """The entry that is read the least, of a sample, with frequencies that fade."""

    name = "lfu"

    def victims(self, residents: Residents, count: int) -> Sequence[Entry]:
        """Those of a sample that are asked for the least."""
        return _least(residents, count, lambda entry: self.notes.frequency(entry.key))


class Sieve(Policy):
    """A hand goes round from old to new and takes what was not read since it last passed.

    Source: Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024.
    """

    name = "sieve"

    def __init__(self, notes: Notes) -> None:
        super().__init__(notes)
        self._hand = -1

    def arrived(self, key: int) -> int:
        """The access that brought it does not count."""
        self.notes.set_touches(key, 0)
        return MAIN

    def victims(self, residents: Residents, count: int) -> Sequence[Entry]:
        """The first entries from the hand on that were not read since the hand's last visit."""
        found: list[Entry] = []
        wraps = 0
        while len(found) < count and wraps < 3:
            batch = residents.after(self._hand, MAIN, SAMPLE)
            for entry in batch:
                self._hand = entry.seq
                if self.notes.touches(entry.key):
                    self.notes.set_touches(entry.key, 0)
                elif entry not in found:
                    found.append(entry)
                    if len(found) == count:
                        break
            if not batch:
                self._hand = -1
                wraps += 1
        return found


class S3Fifo(Policy):
    """A small queue on probation, a main one, and a memory of what was turned out.

    Source: Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023.
    """

    name = "s3fifo"
    GHOSTS_MAX: Final = 65_536

    def __init__(self, notes: Notes) -> None:
        super().__init__(notes)
        self._ghosts: dict[int, None] = {}

    def arrived(self, key: int) -> int:
        """On probation, unless it was turned out not long ago."""
        self.notes.set_touches(key, 0)
        return MAIN if self._ghosts.pop(key, 0) is None else SMALL

    def victims(self, residents: Residents, count: int) -> Sequence[Entry]:  # noqa: ARG002
        """One entry: from the small queue while it has more than its share, else the main one."""
        while True:
            small = residents.queue_disk(SMALL)
            queue = SMALL if small > SMALL_SHARE * residents.disk else MAIN
            entry = next(iter(residents.after(-1, queue, 1)), None)
            if entry is None and queue == MAIN:
                entry = next(iter(residents.after(-1, SMALL, 1)), None)
            if entry is None:
                return []
            touches = self.notes.touches(entry.key)
            if entry.queue == SMALL and touches > 1:
                self.notes.set_touches(entry.key, 0)
                residents.requeue(entry, MAIN)
            elif entry.queue == MAIN and touches:
                self.notes.set_touches(entry.key, touches - 1)
                residents.requeue(entry, MAIN)
            else:
                if entry.queue == SMALL:
                    self._remember(entry.key)
                return [entry]

    def _remember(self, key: int) -> None:
        self._ghosts[key] = None
        if len(self._ghosts) > self.GHOSTS_MAX:
            del self._ghosts[next(iter(self._ghosts))]


class Steady(Policy):
    """What is being read stays; the silent go first; a newcomer must be wanted far more."""

    name = "steady"
    rule = "its directory was read no more, or it was asked for the least"

    def admits(self, residents: Residents, key: int) -> bool:
        """Yes if something silent can go; else only what is wanted more than twice as often."""
        if self._silent(residents, 1):
            return True
        least = _least(residents, 1, self._worth)
        if not least:
            return True
        worth, wanted = self._worth(least[0]), self.notes.frequency(key)
        if worth == STALE:  # not for what is asked for once
            return wanted > 1
        return wanted > 2 * worth + 2

    def victims(self, residents: Residents, count: int) -> Sequence[Entry]:
        """Entries of the longest silent group, else the least wanted of a sample."""
        return self._silent(residents, count) or _least(residents, count, self._worth)

    def _worth(self, entry: Entry) -> int:
        """How often it is asked for; less than nothing if that is long ago.

        A directory that is unknown for a long time is what a restart leaves behind of a data set
        that was read before it.
        """
        notes = self.notes
        if entry.group not in notes.groups and notes.is_settled:
            return FORGOTTEN
        return STALE if notes.is_stale(entry.key) else notes.frequency(entry.key)

    def _silent(self, residents: Residents, count: int) -> Sequence[Entry]:
        for group in self.notes.silent_groups():
            found = residents.of_group(group, count)
            if found:
                return found
        return ()


def _least(residents: Residents, count: int, worth: Callable[[Entry], int]) -> Sequence[Entry]:
    """The ``count`` entries of a sample that are worth the least."""
    sample = {entry.id: entry for entry in residents.sample(SAMPLE * count)}
    if count == 1:
        return [min(sample.values(), key=worth)] if sample else []
    return sorted(sample.values(), key=worth)[:count]


POLICIES: Final[dict[str, Callable[[Notes], Policy]]] = {
    policy.name: policy for policy in (Steady, Lru, Fifo, Random, Lfu, Sieve, S3Fifo)
}
DEFAULT: Final = Steady.name
