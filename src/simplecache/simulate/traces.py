"""Access traces as training makes them, from a seed: (hash of the target, directory) in order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Access = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Trace:
    """A named list of accesses, and which of them count for the hit ratio."""

    name: str
    accesses: Sequence[Access]
    working_set: int
    """Objects to which a cache's size is compared."""
    count_from: int
    count_to: int
    """Hits are counted here: past the cold start, or in the phase that matters."""


def make_traces(objects: int, seed: int) -> list[Trace]:
    """All traces of docs/eviction.md, over data sets of ``objects`` objects."""
    return [
        _shuffled(objects, seed),
        _three_jobs(objects, seed),
        _sequential(objects, seed),
        _sequential_directories(objects, seed),
        _zipf(objects, 0.8, seed),
        _zipf(objects, 1.0, seed),
        _scan_and_hot(objects, seed),
        *_swapped(objects, seed, b"b/", (1, 2)),
        *_swapped(objects, seed, b"a/", (3, 4)),
    ]


def _keys(count: int, seed: int) -> list[int]:
    source = random.Random(seed)  # noqa: S311 - traces are to be repeatable, not secret
    return [source.getrandbits(64) for _ in range(count)]


def _epochs(keys: list[int], epochs: int, seed: int, directory: bytes) -> list[Access]:
    source, found = random.Random(seed), []  # noqa: S311
    keys = list(keys)
    for _ in range(epochs):
        source.shuffle(keys)
        found += [(key, directory) for key in keys]
    return found


def _shuffled(objects: int, seed: int) -> Trace:
    accesses = _epochs(_keys(objects, seed), 10, seed + 1, b"a/")
    return Trace("shuffled epochs", accesses, objects, 2 * objects, len(accesses))


def _three_jobs(objects: int, seed: int) -> Trace:
    """Three jobs over one data set, each with its own shuffles, a third of an epoch apart."""
    keys = _keys(objects, seed)
    jobs = [_epochs(keys, 8, seed + number, b"a/") for number in range(3)]
    starts = [number * objects // 3 for number in range(3)]
    accesses = [
        job[at - start]
        for at in range(len(jobs[0]) + starts[-1])
        for job, start in zip(jobs, starts, strict=True)
        if 0 <= at - start < len(job)
    ]
    return Trace("three jobs, own shuffles", accesses, objects, 6 * objects, len(accesses))


def _sequential(objects: int, seed: int) -> Trace:
    accesses = [(key, b"a/") for key in _keys(objects, seed)] * 10
    return Trace("sequential epochs", accesses, objects, 2 * objects, len(accesses))


def _sequential_directories(objects: int, seed: int) -> Trace:
    """As sequential, in 50 directories, one after the other: each is silent most of the time."""
    keys = _keys(objects, seed)
    accesses = [(key, b"d%d/" % (at * 50 // objects)) for at, key in enumerate(keys)] * 10
    return Trace("sequential, 50 directories", accesses, objects, 4 * objects, len(accesses))


def _zipf(objects: int, skew: float, seed: int) -> Trace:
    """Popularity ~ 1/rank^skew over five times the objects; the cache is compared to a tenth."""
    keys = _keys(5 * objects, seed)
    weights = [1 / (rank + 1) ** skew for rank in range(len(keys))]
    chosen = random.Random(seed).choices(keys, weights, k=15 * objects)  # noqa: S311
    accesses = [(key, b"z/") for key in chosen]
    return Trace(f"Zipf {skew}", accesses, objects // 2, 5 * objects, len(accesses))


def _scan_and_hot(objects: int, seed: int) -> Trace:
    """Half of the accesses to a hot set of a quarter, half to objects that never come again."""
    source = random.Random(seed)  # noqa: S311
    hot, scan = _keys(objects // 4, seed), _keys(15 * objects, seed + 1)
    accesses = [
        (hot[int(source.random() ** 2 * len(hot))], b"hot/")
        if source.random() < 0.5
        else (once, b"scan/")
        for once in scan
    ]
    return Trace("scan + hot set", accesses, objects // 2, 5 * objects, len(accesses))


def _swapped(objects: int, seed: int, directory: bytes, epochs: Sequence[int]) -> list[Trace]:
    """Six epochs of one data set in ``a/``, then another one: what its epochs hit (from 0)."""
    accesses = _epochs(_keys(objects, seed), 6, seed, b"a/")
    accesses += _epochs(_keys(objects, seed + 1), max(epochs) + 1, seed, directory)
    where = "same directory" if directory == b"a/" else "new directory"
    return [
        Trace(
            f"data set swapped, {where}, epoch {epoch + 1}",
            accesses, objects, (6 + epoch) * objects, (7 + epoch) * objects,
        )
        for epoch in epochs
    ]  # fmt: skip


SHARES: Final = (0.5, 0.8, 0.95)
"""Of the working set that fits into the cache."""
