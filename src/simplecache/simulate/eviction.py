"""Every eviction policy on every trace, beside Belady's optimum. The policies are the product's."""

from __future__ import annotations

import bisect
import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from simplecache.simulate.traces import SHARES, Access, Trace
from simplecache.store.notes import Notes
from simplecache.store.policies import POLICIES, Entry

NOTE_EVERY = 50
"""Accesses between two updates of the directories' pace."""
NEVER = 1 << 62


class MemoryResidents:
    """One tenant's entries in memory: implements ``policies.Residents``."""

    def __init__(self, seed: int = 0) -> None:
        self.disk = 0
        self._random = random.Random(seed)  # noqa: S311
        self._entries: list[Entry] = []
        self._places: dict[int, int] = {}
        self._groups: dict[bytes, dict[int, Entry]] = {}
        self._queues: tuple[dict[int, Entry], dict[int, Entry]] = ({}, {})
        self._orders: tuple[list[int], list[int]] = ([], [])
        """``seq`` of each queue's entries, growing; those that are gone are still in it."""
        self._queue_disk = [0, 0]
        self._seq = 0

    def __contains__(self, key: int) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: int, group: bytes, disk: int, queue: int) -> None:
        """An object was stored."""
        self._seq += 1
        entry = Entry(key.to_bytes(8, "big"), key, group, disk, self._seq, queue)
        self._places[key] = len(self._entries)
        self._entries.append(entry)
        self._groups.setdefault(group, {})[key] = entry
        self._queues[queue][self._seq] = entry
        self._orders[queue].append(self._seq)
        self._queue_disk[queue] += disk
        self.disk += disk

    def remove(self, entry: Entry) -> None:
        """An entry was evicted."""
        place, last = self._places.pop(entry.key), self._entries.pop()
        if place < len(self._entries):
            self._entries[place] = last
            self._places[last.key] = place
        group = self._groups[entry.group]
        del group[entry.key]
        if not group:
            del self._groups[entry.group]
        queue, order = self._queues[entry.queue], self._orders[entry.queue]
        del queue[entry.seq]
        if len(order) > 2 * len(queue) + 64:
            order[:] = queue
        self._queue_disk[entry.queue] -= entry.disk
        self.disk -= entry.disk

    def queue_disk(self, queue: int) -> int:
        """Allocated bytes of a queue."""
        return self._queue_disk[queue]

    def sample(self, count: int) -> Sequence[Entry]:
        """Up to ``count`` entries at random."""
        entries, draw = self._entries, self._random.random
        size = len(entries)
        return [entries[int(draw() * size)] for _ in range(min(count, size))]

    def after(self, seq: int, queue: int, count: int) -> Sequence[Entry]:
        """The oldest entries of a queue whose ``seq`` is larger."""
        entries, order, found = self._queues[queue], self._orders[queue], []
        for at in range(bisect.bisect_right(order, seq), len(order)):
            entry = entries.get(order[at])
            if entry is not None:
                found.append(entry)
                if len(found) == count:
                    break
        return found

    def of_group(self, group: bytes, count: int) -> Sequence[Entry]:
        """Up to ``count`` entries of a group."""
        found = []
        for entry in self._groups.get(group, {}).values():
            found.append(entry)
            if len(found) == count:
                break
        return found

    def requeue(self, entry: Entry, queue: int) -> None:
        """Put an entry behind all others of a queue."""
        self.remove(entry)
        self.add(entry.key, entry.group, entry.disk, queue)


def run(policy_name: str, accesses: Sequence[Access], capacity: int) -> Iterator[bool]:
    """Whether each access is a hit, for a cache of ``capacity`` objects of one size."""
    notes = Notes(1 << 17)
    policy, residents = POLICIES[policy_name](notes), MemoryResidents()
    groups: Counter[bytes] = Counter()
    for at, (key, group) in enumerate(accesses, start=1):
        notes.touch(key)
        groups[group] += 1
        if at % NOTE_EVERY == 0:
            notes.take_groups(groups, NOTE_EVERY)
            notes.age(len(residents))
            groups.clear()
        if key in residents:
            yield True
            continue
        yield False
        if len(residents) >= capacity:
            if not policy.admits(residents, key):
                continue
            for victim in policy.victims(residents, 1):
                residents.remove(victim)
        residents.add(key, group, 1, policy.arrived(key))


def belady(accesses: Sequence[Access], capacity: int) -> Iterator[bool]:
    """Whether each access is a hit where the future is known and objects need not be taken."""
    next_use = [NEVER] * len(accesses)
    later: dict[int, int] = {}
    for at in range(len(accesses) - 1, -1, -1):
        next_use[at] = later.get(accesses[at][0], NEVER)
        later[accesses[at][0]] = at
    cached: dict[int, int] = {}
    furthest: list[tuple[int, int]] = []
    for at, (key, _) in enumerate(accesses):
        is_hit = key in cached
        yield is_hit
        if not is_hit and len(cached) >= capacity:
            while cached.get(furthest[0][1]) != -furthest[0][0]:
                heapq.heappop(furthest)
            if -furthest[0][0] <= next_use[at]:
                continue
            del cached[heapq.heappop(furthest)[1]]
        cached[key] = next_use[at]
        heapq.heappush(furthest, (-next_use[at], key))


@dataclass(frozen=True, slots=True)
class Result:
    """Hit ratios of all policies, and the optimum, on one trace with one size of cache."""

    trace: str
    share: float
    ratios: dict[str, float]


def compare(
    traces: Sequence[Trace], *, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> list[Result]:
    """Run every policy on every trace. ``progress`` is called with (runs done, runs in all)."""
    results, done = [], 0
    total = len(traces) * len(SHARES) * (len(POLICIES) + 1)
    for share in SHARES:
        for trace in traces:
            capacity = int(share * trace.working_set)
            ratios = {}
            for name in (*POLICIES, "belady"):
                hits = (
                    belady(trace.accesses, capacity)
                    if name == "belady"
                    else run(name, trace.accesses, capacity)
                )
                ratios[name] = _ratio(hits, trace.count_from, trace.count_to)
                done += 1
                progress(done, total)
            results.append(Result(trace.name, share, ratios))
    return results


def _ratio(hits: Iterator[bool], start: int, stop: int) -> float:
    counted = [hit for at, hit in enumerate(hits) if start <= at < stop]
    return sum(counted) / len(counted)


def table(results: Sequence[Result]) -> str:
    """A Markdown table; the best policy of a row in bold."""
    names = [*POLICIES, "belady"]
    lines = [
        f"| cache | trace | {' | '.join(names)} |",
        f"| ---: | --- |{' ---: |' * len(names)}",
    ]
    for result in results:
        best = max(f"{result.ratios[name]:.2f}" for name in POLICIES)
        cells = [f"{result.ratios[name]:.2f}" for name in names]
        cells = [
            f"**{c}**" if c == best and n != "belady" else c
            for n, c in zip(names, cells, strict=True)
        ]
        lines.append(f"| {result.share} | {result.trace} | {' | '.join(cells)} |")
    return "\n".join(lines)
