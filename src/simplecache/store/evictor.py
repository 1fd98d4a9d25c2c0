"""Making room: whose entries go, which, and who may come. Runs in the writer thread.

It joins the pure parts: ``shares.py`` says which tenant gives, that tenant's policy
(``policies.py``) says which of its entries, and the store's ``remove`` lets them go. It works in
steps of a few entries, so that a PUT never waits behind a long purge.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from simplecache.store.index import Index, Row
from simplecache.store.notes import Notes
from simplecache.store.policies import DEFAULT, POLICIES, Policy
from simplecache.store.residents import SqlResidents
from simplecache.store.shares import Giver, Shares
from simplecache.store.usage import Tenant, Usage

log = logging.getLogger(__name__)

STEP: Final = 8
"""Entries taken at one look: fewer looks for the same room, and still a short step."""

Remove = Callable[[Row, str, str], bool]
"""(row, rule, in whose favour) -> whether the entry is gone: a disk that fails keeps it."""


class Evictor:
    """Decides over one shard's entries."""

    def __init__(self, index: Index, usage: Usage, notes: Notes, remove: Remove) -> None:
        self.shares = Shares({}, 1.0)
        self.notes = notes
        self.evicted: dict[str, int] = {}
        """Entries that went, by rule."""
        self.refused = 0
        """Objects that were not admitted."""
        self._index = index
        self._usage = usage
        self._remove = remove
        self._policies: dict[Tenant, Policy] = {}
        self._bar: int | None = None
        """What an object had to be asked for at the last question; None: it was admitted."""

    def would_admit(self, key: int) -> bool:
        """A guess from the last question; may be called from any thread."""
        bar = self._bar
        return bar is None or self.notes.frequency(key) > bar

    def arrived(self, tenant: Tenant, key: int) -> int:
        """An object was stored; returns the queue it stands in."""
        return self._policy(tenant).arrived(key)

    def admits(self, tenant: Tenant, key: int, size: int) -> bool:
        """Whether an object should come although something must go for it."""
        giver = self.shares.giver(self._usage.by_tenant(), tenant[0], size)
        if giver is None:  # nobody can give: there is room, or there is none
            return True
        if giver.tenant != tenant:
            return True
        if not self._index.flush():
            return True
        residents = SqlResidents(self._index, self._usage, giver.tenant)
        is_wanted = self._policy(giver.tenant).admits(residents, key)
        self._bar = None if is_wanted else self.notes.frequency(key)
        self.refused += not is_wanted
        return is_wanted

    def is_over_quota(self, bucket: str, size: int) -> bool:
        """Whether ``size`` bytes more put a bucket above its quota."""
        quota = self.shares.quota(bucket)
        if quota is None:
            return False
        used = sum(disk for (name, _), disk in self._usage.by_tenant().items() if name == bucket)
        return used + size > quota

    def step(self, excess: int, asking: str = "", need: int = 0) -> bool:
        """Let a few entries go; False when there is nothing to do, or nothing that can be done.

        Args:
            excess: bytes that must go for want of room; 0 or less: only what the rules ask for.
            asking: the bucket on whose behalf room is made; empty: ahead of need.
            need: what it wants to store.
        """
        used = self._usage.by_tenant()
        giver = (
            self.shares.giver(used, asking, need) if excess > 0 else self.shares.over_rules(used)
        )
        if giver is None or not self._index.flush():
            return False
        return self._take(giver, asking, excess)

    def expire(self, now_s: int) -> bool:
        """Let a few entries go whose time is over; False when there are none left."""
        if not self._index.flush():
            return False
        rows = self._index.expired(now_s, STEP)
        return sum(self._let_go(row, "expired", "") for row in rows) == STEP

    def purge(self, bucket: str, prefix: bytes) -> int:
        """Let a few entries of a bucket go whose target begins with ``prefix``; how many."""
        if not self._index.flush():
            return 0
        rows = self._index.with_target_prefix(bucket, prefix, 16 * STEP)
        return sum(self._let_go(row, "purged", "") for row in rows)

    def _take(self, giver: Giver, asking: str, excess: int) -> bool:
        residents = SqlResidents(self._index, self._usage, giver.tenant)
        policy = self._policy(giver.tenant)
        rule = giver.rule if giver.rule != "capacity" else f"{policy.name}: {policy.rule}"
        freed = 0
        for entry in policy.victims(residents, STEP):
            if self._let_go(residents.rows[entry.id], rule, asking):
                freed += entry.disk
            if freed >= excess > 0:
                break
        if not freed:
            log.error("tenant %s has bytes but nothing of it can be let go", giver.tenant)
        return freed > 0

    def _let_go(self, row: Row, rule: str, favour: str) -> bool:
        if not self._remove(row, rule, favour):
            return False
        short = rule.partition(":")[0]
        self.evicted[short] = self.evicted.get(short, 0) + 1
        return True

    def _policy(self, tenant: Tenant) -> Policy:
        bucket = self.shares.buckets.get(tenant[0])
        name = bucket.eviction if bucket is not None else DEFAULT
        policy = self._policies.get(tenant)
        if policy is None or policy.name != name:
            policy = self._policies[tenant] = POLICIES[name](self.notes)
        return policy
