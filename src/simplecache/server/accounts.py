"""On whose account a request is: the tenant that it competes as, its price, and its caps. Pure.

The tenant is the namespace of whoever asks, in whichever bucket; callers without a namespace are
the bucket they use. The price is by the bucket's weight, unless the namespace has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from simplecache.errors import Throttled
from simplecache.model import Bucket, Namespace
from simplecache.server.caps import Cap, retry_after_s
from simplecache.server.fair import Fair, Tenant, price

ACCOUNTS_MAX: Final = 10_000
"""Remembered; past it the memory starts again. Nothing is lost: tenants and caps live elsewhere."""


class Account:
    """What is charged for a request."""

    __slots__ = ("caps", "price", "tenant")

    def __init__(self, tenant: Tenant, price: int, caps: tuple[Cap, ...] = ()) -> None:
        self.tenant = tenant
        self.price = price
        self.caps = caps

    def charge(self, cost: int) -> None:
        """Take one request off the tenant's credit."""
        self.tenant.credit -= 1
        self.tenant.used += cost * self.price

    def refusal(self, now_s: float) -> Throttled | None:
        """Why a request may not pass; None: it may."""
        longest, reached = 0.0, None
        for cap in self.caps:
            wait_s = cap.wait_s(now_s)
            if wait_s > longest:
                longest, reached = wait_s, cap
        if reached is not None:
            reached.refused += 1
            return Throttled(
                f"{reached.name} has used its {reached.per_s:g} {reached.what}/s on this shard",
                retry_after_s=retry_after_s(longest),
            )
        return None

    def spend(self, size: int, *, requests: int = 0) -> None:
        """Count against the caps what has passed."""
        for cap in self.caps:
            cap.spend(size if cap.what == "bytes" else requests)


class Accounts:
    """The accounts of one shard, and the caps that they share."""

    def __init__(self, fair: Fair) -> None:
        self._fair = fair
        self._buckets: Mapping[str, Bucket] = {}
        self._namespaces: Mapping[str, Namespace] = {}
        self._share = 1.0
        self._caps: dict[tuple[str, str, str], Cap] = {}
        """By ``bucket`` or ``namespace``, its name, and ``requests`` or ``bytes``."""
        self._accounts: dict[tuple[str, str], Account] = {}
        self._gone: dict[tuple[str, str], int] = {}
        """Refusals of caps that are no more."""
        self._heaviest = 1.0
        self.of_nothing = Account(fair.tenant("none"), price(1, 1))
        """For requests in no bucket that there is."""

    def configure(self, buckets: Mapping[str, Bucket], namespaces: Mapping[str, Namespace]) -> None:
        """Charge by this configuration from now on; caps keep what they have counted."""
        self._buckets, self._namespaces = buckets, namespaces
        self._accounts.clear()
        weights = [bucket.weight for bucket in buckets.values()]
        weights += [row.weight for row in namespaces.values() if row.weight is not None]
        self._heaviest = max(weights, default=1.0)
        self._set_rates()

    def set_share(self, share: float) -> None:
        """This shard's part of the ring, hence of every cap: 0 < share <= 1."""
        if share != self._share:
            self._share = share
            self._set_rates()

    def _set_rates(self) -> None:
        rates: dict[tuple[str, str, str], float | None] = {}
        for by, rows in (("bucket", self._buckets), ("namespace", self._namespaces)):
            for row in rows.values():
                rates[by, row.name, "requests"] = row.requests_per_s
                rates[by, row.name, "bytes"] = row.bytes_per_s
        for key in [key for key in self._caps if rates.get(key) is None]:
            by, _, what = key
            self._gone[by, what] = self._gone.get((by, what), 0) + self._caps.pop(key).refused
        for key, rate in rates.items():
            if rate is not None:
                by, name, what = key
                cap = self._caps.setdefault(key, Cap(f'{by} "{name}"', what))
                cap.set_rate(rate * self._share)

    def of(self, bucket: Bucket, namespace: str) -> Account:
        """The account of a caller (empty: without a namespace) in a bucket."""
        account = self._accounts.get((bucket.name, namespace))
        if account is None:
            if len(self._accounts) >= ACCOUNTS_MAX:
                self._accounts.clear()
            account = self._accounts[bucket.name, namespace] = self._make(bucket, namespace)
        return account

    def _make(self, bucket: Bucket, namespace: str) -> Account:
        row = self._namespaces.get(namespace)
        weight = row.weight if row is not None and row.weight is not None else bucket.weight
        holders = (("bucket", bucket.name), ("namespace", namespace))
        caps = [
            self._caps.get((by, name, what))
            for by, name in holders
            for what in ("requests", "bytes")
        ]
        name = f"namespace {namespace}" if namespace else f"bucket {bucket.name}"
        tenant = self._fair.tenant(name)
        tenant.price = price(weight, self._heaviest)
        return Account(tenant, tenant.price, tuple(cap for cap in caps if cap is not None))

    def refused(self) -> dict[tuple[str, str], int]:
        """Requests refused, by whose cap (``bucket``, ``namespace``) and of what."""
        counts = dict(self._gone)
        for (by, _, what), cap in self._caps.items():
            counts[by, what] = counts.get((by, what), 0) + cap.refused
        return counts
