"""Access notes: what a shard remembers of who is read, in a fixed amount of memory.

A GET appends its target to a list; once a second, or when the list is long, :meth:`Notes.take`
works it off in one go. Nothing is written to the disk for a read, and no entry has an object of its
own: notes are sketches, arrays indexed by a hash of the target, so a million entries cost what ten
do.

* ``frequency``: how often a target was asked for, misses included; two counters a target of which
  the smaller one counts; halved again and again, so that the past fades.
* ``touches``: 0 to 3, since the entry came or a policy last looked (SIEVE's and S3-FIFO's bits).
* ``last``: when, in accesses of this shard (LRU).
* ``groups``: targets by directory, i.e. data sets, with their pace: whether one has fallen silent.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_intdigest

SLOTS: Final = 1 << 20
"""A counter for each of so many hashes: 8 MiB a shard in all; collisions only blur."""
GROUPS_MAX: Final = 4096
"""Directories with a pace of their own; beyond, the most silent are forgotten."""
SILENT_OWED: Final = 12.0
"""A group is silent when so many reads are overdue by its pace: by chance, 1 in e^12 = 160,000."""
SILENT_GAPS: Final = 1.5
"""... and its silence is so much longer than any before: what comes back every epoch stays."""
GAPS_MIN: Final = 100
"""Accesses to what was asked for before, from which the mean time between two of them is taken."""
STALE_GAPS: Final = 3.0
"""What was not asked for in so many mean times is stale. In shuffled epochs it is at most 2."""
AGE_FACTOR: Final = 8
"""Frequencies are halved after so many accesses for each entry the shard holds."""

_HALVED: Final = bytes(value >> 1 for value in range(256))


@dataclass(slots=True)
class Group:
    """The pace of one directory. Time is counted in accesses of the whole shard."""

    rate: float
    """Its share of the accesses, while it is read."""
    idle: int = 0
    """Accesses of the shard since it was last read."""
    gap_max: float = 0.0
    """The longest such time after which it was read again; fades."""

    @property
    def is_silent(self) -> bool:
        """Nobody reads it any more, as far as its pace tells."""
        return self.rate * self.idle > SILENT_OWED and self.idle > SILENT_GAPS * self.gap_max


def target_hash(target: bytes) -> int:
    """The hash by which notes know a target; stable, so that notes may be kept over a restart."""
    return xxh3_64_intdigest(target)


def group_of(target: bytes) -> bytes:
    """The directory of a target: all up to and with the last slash."""
    return target[: target.rfind(b"/") + 1]


def group_number(group: bytes) -> int:
    """A group's number in the index, whose integers are signed."""
    number = target_hash(group)
    return number - (1 << 64) if number >> 63 else number


class Notes:
    """The sketches of one shard. Owned by one thread at a time."""

    def __init__(self, slots: int = SLOTS) -> None:
        """``slots`` must be a power of two."""
        assert slots & (slots - 1) == 0
        self._mask = slots - 1
        self._frequency = (bytearray(slots), bytearray(slots))
        self._touches = bytearray(slots)
        self._last = array("Q", bytes(8 * slots))
        self.clock = 0
        """Accesses so far."""
        self._age_at = 0
        self._gaps = self._returns = 0
        self._gap_mean = 0.0
        self._settled_at = 1 << 62
        """When all that is read in turn must have been read since the start."""
        self.groups: dict[bytes, Group] = {}

    # -- what is noted ---------------------------------------------------------------------

    def take(self, targets: Sequence[bytes], entries: int) -> None:
        """Work off a list of accesses.

        Args:
            targets: what was asked for, hits and misses, in order.
            entries: how many the shard holds: the measure for ageing.
        """
        for target in targets:
            self.touch(target_hash(target))
        self.take_groups(Counter(map(group_of, targets)), len(targets))
        self.age(entries)

    def touch(self, key: int) -> None:
        """Note one access to a hash."""
        self.clock += 1
        low, high, mask = self._frequency[0], self._frequency[1], self._mask
        one, two = key & mask, (key >> 32) & mask
        last = self._last[one]
        if last:
            self._gaps += self.clock - last
            self._returns += 1
        if low[one] < 255:
            low[one] += 1
        if high[two] < 255:
            high[two] += 1
        if self._touches[one] < 3:
            self._touches[one] += 1
        self._last[one] = self.clock

    def take_groups(self, counts: Counter[bytes], accesses: int) -> None:
        """Note how many of the last ``accesses`` went to each group."""
        self._fold_gaps()
        for name, group in self.groups.items():
            if name not in counts:
                group.idle += accesses
        for name, count in counts.items():
            known = self.groups.get(name)
            if known is None:
                self._make_room()
                self.groups[name] = Group(count / accesses)
            else:
                pace = count / (known.idle + accesses)
                known.rate += 0.5 * (pace - known.rate)
                known.gap_max = max(0.98 * known.gap_max, known.idle)
                known.idle = 0

    def _fold_gaps(self) -> None:
        if self._returns >= GAPS_MIN:
            mean = self._gaps / self._returns
            self._gap_mean += (0.25 if self._gap_mean else 1.0) * (mean - self._gap_mean)
            self._gaps = self._returns = 0

    def _make_room(self) -> None:
        if len(self.groups) >= GROUPS_MAX:
            del self.groups[max(self.groups, key=lambda name: self.groups[name].idle)]

    def age(self, entries: int) -> None:
        """Let the past fade, when it is time; ``entries`` is how many the shard holds."""
        if self.clock < self._age_at:
            return
        period = AGE_FACTOR * max(entries, 1024)
        self._settled_at = min(self._settled_at, self.clock + period)
        self._age_at = self.clock + period
        for counters in self._frequency:
            counters[:] = counters.translate(_HALVED)

    # -- what policies ask -----------------------------------------------------------------

    def frequency(self, key: int) -> int:
        """Accesses to a hash, halved as time goes by; too high where hashes collide twice."""
        return min(
            self._frequency[0][key & self._mask], self._frequency[1][(key >> 32) & self._mask]
        )

    def last(self, key: int) -> int:
        """``clock`` at the last access to a hash; 0: none is known."""
        return self._last[key & self._mask]

    def is_stale(self, key: int) -> bool:
        """Whether what comes again usually comes again much sooner than this has not."""
        return 0 < STALE_GAPS * self._gap_mean < self.clock - self.last(key)

    def touches(self, key: int) -> int:
        """Accesses since the entry came or was looked at, 3 at most."""
        return self._touches[key & self._mask]

    def set_touches(self, key: int, value: int) -> None:
        """A policy has looked at the entry."""
        self._touches[key & self._mask] = value

    @property
    def is_settled(self) -> bool:
        """Whether a directory that is not in ``groups`` has not been read for a long time."""
        return self.clock >= self._settled_at

    def silent_groups(self) -> list[bytes]:
        """Groups that nobody reads any more, the longest silent first."""
        silent = [name for name, group in self.groups.items() if group.is_silent]
        return sorted(silent, key=lambda name: -self.groups[name].rate * self.groups[name].idle)
