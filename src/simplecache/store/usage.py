"""Entries and bytes of each tenant: changed by the writer thread, read by anyone.

The figures are saved in the transaction that brings the rows they count into the database, so
after a crash they are what its rows add up to, and no start ever counts a million rows. Whether
they are is proved again and again all the same: a **recount** goes through the rows slice by slice
while entries come and go, and its figures take the place of the others at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from simplecache.store.index import Row, TenantFigures

Tenant = tuple[str, str]
"""(bucket, namespace that put the bytes; empty for anonymous)."""

SLICES: Final = 1 << 16
"""The shard's ids by their first two bytes: the unit of a recount."""


class _Ledger:
    """One set of figures: entries, body bytes, allocated bytes, those of queue 0; by tenant."""

    def __init__(self, tenants: Iterable[TenantFigures] = ()) -> None:
        self.tenants = {(bucket, ns): list(figures) for bucket, ns, *figures in tenants}
        self.disk = sum(figures[2] for figures in self.tenants.values())
        self.entries = sum(figures[0] for figures in self.tenants.values())

    def add(self, row: Row, sign: int) -> None:
        figures = self.tenants.setdefault((row.bucket, row.namespace), [0, 0, 0, 0])
        figures[0] += sign
        figures[1] += sign * row.size
        figures[2] += sign * row.disk
        figures[3] += sign * row.disk * (row.queue == 0)
        self.disk += sign * row.disk
        self.entries += sign

    def figures(self, tenant: Tenant) -> list[int]:
        return self.tenants.get(tenant) or [0, 0, 0, 0]


class Usage:
    """Kept exactly: each change of a row is a change here."""

    def __init__(self, tenants: Iterable[TenantFigures]) -> None:
        """``tenants``: what was saved."""
        self._ledger = _Ledger(tenants)
        self._unsaved: set[Tenant] = set()
        self._recount: _Ledger | None = None
        self._counted = bytearray()
        """One byte a slice: 1 once the recount has it."""

    @property
    def total_disk(self) -> int:
        """Allocated bytes of all entries."""
        return self._ledger.disk

    @property
    def entries(self) -> int:
        """How many there are."""
        return self._ledger.entries

    def replace(self, old: Row | None, new: Row | None) -> None:
        """Take ``old`` out and ``new`` in; either may be None."""
        for row, sign in ((old, -1), (new, 1)):
            if row is not None:
                self._ledger.add(row, sign)
                self._unsaved.add((row.bucket, row.namespace))
                if self._recount is not None and self._counted[_slice(row.id)]:
                    self._recount.add(row, sign)

    def disk(self, tenant: Tenant) -> int:
        """Allocated bytes of a tenant."""
        return self._ledger.figures(tenant)[2]

    def queue_disk(self, tenant: Tenant, queue: int) -> int:
        """Allocated bytes of a tenant's queue."""
        figures = self._ledger.figures(tenant)
        return figures[3] if queue == 0 else figures[2] - figures[3]

    def by_tenant(self) -> Mapping[Tenant, int]:
        """Allocated bytes of each tenant that has any."""
        return {tenant: f[2] for tenant, f in list(self._ledger.tenants.items()) if f[2] > 0}

    def snapshot(self) -> dict[Tenant, tuple[int, int, int]]:
        """Tenant -> (entries, body bytes, allocated bytes); empty tenants left out."""
        tenants = list(self._ledger.tenants.items())
        return {tenant: (f[0], f[1], f[2]) for tenant, f in tenants if f[0]}

    # -- saving: ``index.Ledger`` ----------------------------------------------------------

    def unsaved(self) -> list[TenantFigures]:
        """The figures that changed since :meth:`saved`."""
        return [
            (*tenant, *self._ledger.figures(tenant))  # type: ignore[misc]
            for tenant in self._unsaved
        ]

    def saved(self) -> None:
        """What :meth:`unsaved` returned is in the database."""
        self._unsaved.clear()

    def lost(self) -> None:
        """Rows were lost, or may have been: no recount is worth anything."""
        self._recount = None

    def begin_anew(self, rows: Iterable[Row]) -> None:
        """The database is empty: only ``rows`` are left, and nothing is saved."""
        ledger = _Ledger()
        for row in rows:
            ledger.add(row, 1)
        self._ledger, self._recount = ledger, None
        self._unsaved = set(ledger.tenants)

    # -- counting again --------------------------------------------------------------------

    def begin_recount(self) -> None:
        """From now on, :meth:`count` takes the slices of a new count, in any order."""
        self._recount, self._counted = _Ledger(), bytearray(SLICES)

    def count(self, first: int, last: int, rows: Iterable[Row]) -> None:
        """``rows`` are all of the slices from ``first`` to ``last``, at this moment."""
        if self._recount is None or any(self._counted[first : last + 1]):
            return
        for row in rows:
            self._recount.add(row, 1)
        self._counted[first : last + 1] = b"\x01" * (last + 1 - first)

    def end_recount(self, *, corrects: bool = True) -> list[Tenant]:
        """The tenants whose figures were wrong. A recount that is not complete proves nothing.

        Args:
            corrects: the new figures count from now on.
        """
        recount, self._recount = self._recount, None
        if recount is None or not all(self._counted):
            return []
        tenants = self._ledger.tenants.keys() | recount.tenants.keys()
        wrong = [t for t in tenants if self._ledger.figures(t) != recount.figures(t)]
        if corrects:
            self._unsaved.update(wrong)
            self._ledger = recount
        return sorted(wrong)


def _slice(ident: bytes) -> int:
    return ident[0] << 8 | ident[1]
