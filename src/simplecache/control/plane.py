"""The loop that turns listings and probes into snapshots.

Three tasks share one :class:`Membership`: one follows the source, one probes in rounds, one
publishes. All deciding is the membership's; here are the clocks, the retries and the log.

Changes are gathered for 100 ms, and at most for 1 s while more keep coming: a node whose four
shards come up one after another should rebuild every Envoy's table once, not four times.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from simplecache.control.endpoints import EndpointSource
from simplecache.control.membership import Decision, Membership, Outcome
from simplecache.control.observe import Metrics
from simplecache.control.probe import Prober
from simplecache.control.shards import Shard
from simplecache.control.snapshot import Snapshot
from simplecache.errors import SimpleCacheError

DEBOUNCE_S: Final = 0.1
DEBOUNCE_MAX_S: Final = 1.0

SnapshotMaker = Callable[[frozenset[Shard], int], Snapshot]
"""(published shards, number of listed shards) -> snapshot."""

_log = logging.getLogger(__name__)


class Plane:
    """Keeps the snapshot in force; streams read it and wait for the next."""

    def __init__(
        self,
        source: EndpointSource,
        prober: Prober,
        make_snapshot: SnapshotMaker,
        metrics: Metrics,
        *,
        probe_interval_s: float,
    ) -> None:
        self._source = source
        self._prober = prober
        self._make_snapshot = make_snapshot
        self._metrics = metrics
        self._probe_interval_s = probe_interval_s
        self._membership = Membership()
        self._listing_changed = asyncio.Event()
        self._dirty = asyncio.Event()
        self._decided: frozenset[Shard] = frozenset()
        """The set that was decided last; not published yet while changes are being gathered."""

        self._relist: asyncio.Task[None] | None = None
        self._reason = ""
        self.snapshot: Snapshot | None = None
        self.replaced = asyncio.Event()
        """Set when ``snapshot`` is replaced, and then itself replaced: take it before reading."""

    async def start(self) -> None:
        """Read the listing for the first time.

        Raises:
            SimpleCacheError: it cannot be read; better said at start than discovered later.
        """
        listing = await self._source.relist()
        self._apply(self._membership.update_listing(listing, fresh=True))

    async def run(self) -> None:
        """Work until cancelled; an exception is a fault of this program."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                group.create_task(self._probe())
                group.create_task(self._publish())
        finally:
            if self._relist:
                self._relist.cancel()
            self._prober.close()

    async def _follow(self) -> None:
        async for listing in self._source.changes():
            self._apply(self._membership.update_listing(listing))
            self._listing_changed.set()

    async def _probe(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._listing_changed.clear()
            started_s = loop.time()
            outcomes = await self._prober.probe_all(self._membership.listed)
            took_s = loop.time() - started_s
            self._metrics.probe_rounds += 1
            self._metrics.probe_round_ms = round(took_s * 1000)
            self._metrics.probe_failures += sum(o is not Outcome.READY for o in outcomes.values())
            self._apply(self._membership.update_probes(outcomes))
            # A new listing is probed at once: its shards wait to be let in.
            await _wait(self._listing_changed, max(0.0, self._probe_interval_s - took_s))

    async def _publish(self) -> None:
        while True:
            await self._dirty.wait()
            await self._settle()
            shards, listed = self._membership.published, self._membership.listed
            if not shards or (self.snapshot is not None and self.snapshot.shards == shards):
                continue
            # A thread, so that streams and probes go on while a large set is encoded.
            snapshot = await asyncio.to_thread(self._make_snapshot, shards, len(listed))
            self._metrics.snapshots += 1
            self._metrics.snapshot_at_s = asyncio.get_running_loop().time()
            self.snapshot = snapshot
            replaced, self.replaced = self.replaced, asyncio.Event()
            replaced.set()
            _log.info("published %r", snapshot)

    async def _settle(self) -> None:
        """Return once nothing changed for a while, or too much time went by."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + DEBOUNCE_MAX_S
        while (left_s := min(DEBOUNCE_S, deadline_s - loop.time())) > 0:
            self._dirty.clear()
            if not await _wait(self._dirty, left_s):
                return
        self._dirty.clear()

    def _apply(self, decision: Decision) -> None:
        membership, metrics = self._membership, self._metrics
        metrics.listed, metrics.ready = len(membership.listed), membership.ready
        if decision.reason and decision.reason != self._reason:
            _log.info("%s", decision.reason)
        self._reason = decision.reason
        metrics.published = len(decision.shards)
        if decision.shards != self._decided:
            self._decided = decision.shards
            self._dirty.set()
        if decision.relist and (self._relist is None or self._relist.done()):
            self._relist = asyncio.create_task(self._read_afresh())

    async def _read_afresh(self) -> None:
        self._metrics.relists += 1
        try:
            listing = await self._source.relist()
        except SimpleCacheError as error:
            # The next round of probes asks again; until then nothing leaves.
            self._metrics.relist_errors += 1
            _log.warning("the listing cannot be read afresh: %s", error)
            return
        self._apply(self._membership.update_listing(listing, fresh=True))
        self._listing_changed.set()


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether ``event`` was set within the time."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
