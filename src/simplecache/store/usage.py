"""Entries and bytes of each tenant: changed by the writer thread, read by anyone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from simplecache.store.index import Row

Tenant = tuple[str, str]
"""(bucket, namespace that put the bytes; empty for anonymous)."""


class Usage:
    """Kept exactly: each change of a row is a change here."""

    def __init__(self, tenants: Iterable[tuple[str, str, int, int, int, int]]) -> None:
        """``tenants``: bucket, namespace, entries, body bytes, allocated, allocated in queue 0."""
        self._tenants = {(bucket, ns): list(figures) for bucket, ns, *figures in tenants}
        self.total_disk = sum(figures[2] for figures in self._tenants.values())
        """Allocated bytes of all entries."""
        self.entries = sum(figures[0] for figures in self._tenants.values())

    def replace(self, old: Row | None, new: Row | None) -> None:
        """Take ``old`` out and ``new`` in; either may be None."""
        for row, sign in ((old, -1), (new, 1)):
            if row is not None:
                figures = self._tenants.setdefault((row.bucket, row.namespace), [0, 0, 0, 0])
                figures[0] += sign
                figures[1] += sign * row.size
                figures[2] += sign * row.disk
                figures[3] += sign * row.disk * (row.queue == 0)
                self.total_disk += sign * row.disk
                self.entries += sign

    def disk(self, tenant: Tenant) -> int:
        """Allocated bytes of a tenant."""
        figures = self._tenants.get(tenant)
        return figures[2] if figures else 0

    def queue_disk(self, tenant: Tenant, queue: int) -> int:
        """Allocated bytes of a tenant's queue."""
        figures = self._tenants.get(tenant)
        if not figures:
            return 0
        return figures[3] if queue == 0 else figures[2] - figures[3]

    def by_tenant(self) -> Mapping[Tenant, int]:
        """Allocated bytes of each tenant that has any."""
        return {tenant: f[2] for tenant, f in list(self._tenants.items()) if f[2]}

    def snapshot(self) -> dict[Tenant, tuple[int, int, int]]:
        """Tenant -> (entries, body bytes, allocated bytes); empty tenants left out."""
        return {tenant: (f[0], f[1], f[2]) for tenant, f in list(self._tenants.items()) if f[0]}

    def rows(self) -> list[tuple[str, str, int, int, int, int]]:
        """What :meth:`__init__` takes."""
        return [
            (bucket, namespace, *(figures[i] for i in range(4)))  # type: ignore[misc]
            for (bucket, namespace), figures in self._tenants.items()
            if figures[0]
        ]
