"""Who has to give: quotas and fair shares, between buckets and between their namespaces. Pure.

Theory: room is shared by weighted max-min. Nobody is limited while there is room. When there is
none, the next victim is taken from the bucket that has the most for its weight, again and again,
which is just what levels the water; in the bucket from the namespace that put the most. A
guaranteed ``MinShare`` is never taken from, a pinned bucket only gives for itself, and a bucket
above its own quota gives first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simplecache.model import Bucket

Tenant = tuple[str, str]
"""(bucket, namespace that put the bytes)."""


@dataclass(frozen=True, slots=True)
class Giver:
    """The tenant whose entry is the next to go, and by which rule."""

    tenant: Tenant
    rule: str
    """``removed``, ``quota`` or ``capacity``."""


@dataclass(frozen=True, slots=True)
class Shares:
    """The rules of one shard: the configuration, and which part of the cluster it is."""

    buckets: Mapping[str, Bucket]
    ring_share: float
    """This shard's part of the ring, hence of every cluster-wide figure: 0 < share <= 1."""

    def quota(self, bucket: str) -> int | None:
        """What the bucket may have on this shard, in allocated bytes; None: no limit of its own."""
        quota = self.buckets[bucket].quota_bytes if bucket in self.buckets else None
        return None if quota is None else int(quota * self.ring_share)

    def over_rules(self, used: Mapping[Tenant, int]) -> Giver | None:
        """Who gives although there is room: removed buckets, and those above their quota."""
        for tenant, disk in used.items():
            if disk and tenant[0] not in self.buckets:
                return Giver(tenant, "removed")
        for bucket, disk in _by_bucket(used).items():
            quota = self.quota(bucket)
            if quota is not None and disk > quota:
                return Giver(_largest(used, bucket), "quota")
        return None

    def giver(self, used: Mapping[Tenant, int], asking: str, need: int) -> Giver | None:
        """Who gives when ``asking`` needs ``need`` bytes that are not free; None: nobody can.

        Args:
            used: allocated bytes of each tenant.
            asking: the bucket that wants to store; empty when room is made ahead of need.
            need: bytes it wants.
        """
        over = self.over_rules(used)
        if over is not None:
            return over
        totals = _by_bucket(used)
        quota = self.quota(asking)
        if quota is not None and totals.get(asking, 0) + need > quota:
            return Giver(_largest(used, asking), "quota") if totals.get(asking) else None
        best, most = "", 0.0
        for name, disk in totals.items():
            if not disk or not self._gives(name, disk, asking):
                continue
            level = (disk + (need if name == asking else 0)) / self.buckets[name].weight
            if level > most:
                best, most = name, level
        return Giver(_largest(used, best), "capacity") if best else None

    def _gives(self, name: str, disk: int, asking: str) -> bool:
        if name == asking:
            return True
        bucket = self.buckets[name]
        return not bucket.is_pinned and disk > (bucket.min_share_bytes or 0) * self.ring_share


def _by_bucket(used: Mapping[Tenant, int]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for (bucket, _), disk in used.items():
        totals[bucket] = totals.get(bucket, 0) + disk
    return totals


def _largest(used: Mapping[Tenant, int], bucket: str) -> Tenant:
    return max((t for t in used if t[0] == bucket), key=lambda tenant: used[tenant])
