"""Who owns an object: the arithmetic of Envoy's consistent hashing, reproduced to the bit.

A proxy and a client that compute the same owner need no directory of objects and no agreement:
the set of shards *is* the directory. Envoy 1.40 offers two such functions and this module has
both, weights and the alternates of a retry included.

Theory of operation. The request target is hashed by XXH64. **Maglev** looks the hash up in a
table of a prime number of slots, which the shards filled in turn, each in the order of its own
permutation; the load per shard is even and few keys move when a shard leaves. **Ring hash** puts
many points per shard on a circle and takes the first point at or after the hash; fewer keys move,
and the load is less even.

Rules it keeps:
  * Maglev depends on the *set* of shards only, a ring on their *order* as well, because with
    unequal weights Envoy rounds along the order of its endpoints. The control plane publishes one
    order (by zone, then name), and everybody uses that.
  * A shard is known by its hash key alone. Its address may change and no object moves.
  * Sums and products of weights are IEEE doubles in Envoy's order of evaluation.

No I/O, no state besides the table; a table never changes once built.

Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016),
section 3.4; Envoy's documentation, "Supported load balancers".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Sequence
from typing import Final

from xxhash import xxh64_intdigest

from simplecache.errors import InvalidConfig

MAGLEV: Final = "maglev"
RING_HASH: Final = "ring_hash"
LB_NAMES: Final = (MAGLEV, RING_HASH)
"""What ``--lb`` takes."""

TABLE_SIZE: Final = 65537
"""Maglev's slots by default: Envoy's own default, and the paper's (section 5.3)."""

TABLE_SIZE_MAX: Final = 5_000_011
"""The largest table that Envoy takes; a prime."""

RING_SIZE_MAX: Final = 8 << 20
"""Envoy's default ``maximum_ring_size``."""

RETRY_ATTEMPTS: Final = 5
"""How often a retry looks for another shard: ``host_selection_retry_max_attempts`` as we set it."""

_TABLE_SIZES: Final = ((655, TABLE_SIZE), (6553, 655_373))
"""(shards up to, slots): at 100 slots a shard the least and the most loaded differ by 1 %."""

_HASH_SPACE: Final = 1 << 64
_WEIGHT_SUM_MAX: Final = (1 << 32) - 1

WeightedKeys = Sequence[tuple[str, int]]
"""Shards as placement sees them: hash keys and weights."""


def table_size_for(n_shards: int) -> int:
    """A prime well above 100 slots a shard, in coarse steps so that it hardly ever changes.

    A new size moves nearly every key. A cluster that may cross a step names its size itself.
    """
    return next((size for limit, size in _TABLE_SIZES if n_shards <= limit), TABLE_SIZE_MAX)


def check_table_size(size: int, where: str = "table size") -> int:
    """``size``, if Envoy takes it as a Maglev table's size.

    Raises:
        InvalidConfig: not a prime between 2 and 5,000,011.
    """
    if not 2 <= size <= TABLE_SIZE_MAX or any(
        size % n == 0 for n in range(2, math.isqrt(size) + 1)
    ):
        raise InvalidConfig(
            f"{where}: {size} must be a prime number up to {TABLE_SIZE_MAX}, such as {TABLE_SIZE}"
        )
    return size


class Placement(ABC):
    """One immutable table from hashes to shards."""

    def __init__(self, shards: WeightedKeys) -> None:
        keys = [key for key, _ in shards]
        if not keys:
            raise ValueError("a placement needs at least one shard")
        if len(set(keys)) != len(keys):
            twice = next(key for key, count in Counter(keys).items() if count > 1)
            raise ValueError(f"shard {twice!r} is there twice: its place would be undefined")
        for key, weight in shards:
            if not 1 <= weight <= _WEIGHT_SUM_MAX:
                raise ValueError(f"weight {weight} of shard {key!r} must be at least 1")
        self._total = sum(weight for _, weight in shards)
        if self._total > _WEIGHT_SUM_MAX:
            raise ValueError(f"the weights' sum {self._total} is above {_WEIGHT_SUM_MAX}")

    @abstractmethod
    def owner_after(self, target: bytes, attempt: int) -> str:
        """The shard that Envoy considers at its ``attempt``-th look; 0 is the owner.

        Two attempts may name the same shard: see :meth:`alternate`.
        """

    @abstractmethod
    def slots(self) -> dict[str, int]:
        """Slots (points) of each shard: its share of all keys, up to the hash's evenness."""

    def owner(self, target: bytes) -> str:
        """The hash key of the shard that owns ``target``, the raw bytes of ``:path``."""
        return self.owner_after(target, 0)

    def alternate(
        self, target: bytes, tried: Container[str], attempts: int = RETRY_ATTEMPTS
    ) -> str:
        """Where a retry goes when the shards in ``tried`` have failed.

        Envoy's ``previous_hosts``: the first look at a shard that was not tried, or the last look.
        """
        for attempt in range(attempts):
            shard = self.owner_after(target, attempt)
            if shard not in tried:
                return shard
        return self.owner_after(target, attempts)

    def __repr__(self) -> str:
        slots = self.slots()
        return f"<{type(self).__name__} {len(slots)} shards, {sum(slots.values())} slots>"


class Maglev(Placement):
    """Envoy's ``maglev``: even load, and a look-up that costs one modulo.

    Building costs O(M ln M) steps for M slots, whatever the number of shards.
    """

    def __init__(self, shards: WeightedKeys, table_size: int = TABLE_SIZE) -> None:
        super().__init__(shards)
        self._size = check_table_size(table_size)
        ordered = sorted((key.encode(), weight) for key, weight in shards)
        self._keys = [key.decode() for key, _ in ordered]
        starts = [xxh64_intdigest(key) % table_size for key, _ in ordered]
        steps = [xxh64_intdigest(key, 1) % (table_size - 1) + 1 for key, _ in ordered]
        weights = [weight / self._total for _, weight in ordered]
        self._table = _fill(starts, steps, weights, table_size)

    def owner_after(self, target: bytes, attempt: int) -> str:
        """See :class:`Placement`."""
        digest = xxh64_intdigest(target)
        if attempt:
            digest ^= _HASH_SPACE - attempt
        return self._keys[self._table[digest % self._size]]

    def slots(self) -> dict[str, int]:
        """See :class:`Placement`."""
        counts = Counter(self._table)
        return {key: counts[index] for index, key in enumerate(self._keys)}


def _fill(places: list[int], steps: list[int], weights: list[float], size: int) -> array[int]:
    """The table: in each round, every shard that is due takes its next free slot.

    A shard of the greatest weight is due in every round, one of half that weight in every second.
    ``places`` is consumed: it holds each shard's place in its permutation.
    """
    # A list of ints is the quickest thing to probe; -1 is free. This loop is all the cost.
    table = [-1] * size
    heaviest = max(weights)
    even = min(weights) == heaviest
    targets = [0.0] * len(weights)
    everyone = range(len(weights))
    left, iteration = size, 0
    while True:
        iteration += 1
        due: Sequence[int] = everyone
        if not even:
            due = [i for i in everyone if iteration * weights[i] >= targets[i]]
            for i in due:
                targets[i] += heaviest
        for i in due[:left]:
            place, step = places[i], steps[i]
            while table[place] >= 0:
                place += step
                if place >= size:
                    place -= size
            table[place] = i
            places[i] = place
        left -= len(due)
        if left <= 0:
            return array("H" if len(weights) <= 1 << 16 else "L", table)


class RingHash(Placement):
    """Envoy's ``ring_hash`` with XXH64 and ``minimum_ring_size``: points on a circle.

    Args:
        shards: hash keys and weights, in the order in which Envoy has its endpoints.
        ring_size: points in all, at least; each shard has its share by weight.
    """

    def __init__(self, shards: WeightedKeys, ring_size: int = TABLE_SIZE) -> None:
        super().__init__(shards)
        if not 1 <= ring_size <= RING_SIZE_MAX:
            raise InvalidConfig(f"ring size: {ring_size} must be between 1 and {RING_SIZE_MAX}")
        self._keys = [key for key, _ in shards]
        weights = [weight / self._total for _, weight in shards]
        # The lightest shard gets a whole number of points; the others are rounded along the way.
        lightest = min(weights)
        scale = min(math.ceil(lightest * ring_size) / lightest, float(RING_SIZE_MAX))
        points: list[tuple[int, int]] = []
        target = 0.0
        for index, (key, weight) in enumerate(zip(self._keys, weights, strict=True)):
            target += scale * weight
            count = max(0, math.ceil(target) - len(points))
            prefix = key.encode() + b"_"
            points += [(xxh64_intdigest(prefix + b"%d" % n), index) for n in range(count)]
        points.sort()
        self._hashes = array("Q", [point for point, _ in points])
        self._owners = array("L", [index for _, index in points])

    def owner_after(self, target: bytes, attempt: int) -> str:
        """See :class:`Placement`."""
        place = bisect_left(self._hashes, xxh64_intdigest(target))
        if place == len(self._hashes):
            place = 0
        return self._keys[self._owners[(place + attempt) % len(self._owners)]]

    def slots(self) -> dict[str, int]:
        """See :class:`Placement`."""
        counts = Counter(self._owners)
        return {key: counts[index] for index, key in enumerate(self._keys)}


def make_placement(lb: str, shards: WeightedKeys, table_size: int = 0) -> Placement:
    """The placement that Envoys of the control plane use.

    Args:
        lb: ``maglev`` or ``ring_hash``.
        shards: (hash key, weight) in the published order.
        table_size: slots, or for a ring its least number of points; 0 goes by the shards.

    Raises:
        InvalidConfig: an unknown ``lb``, or a size that Envoy would refuse.
    """
    size = table_size or table_size_for(len(shards))
    if lb == MAGLEV:
        return Maglev(shards, size)
    if lb == RING_HASH:
        return RingHash(shards, size)
    raise InvalidConfig(f"lb: {lb!r} is not known; expected {' or '.join(LB_NAMES)}")
