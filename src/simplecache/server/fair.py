"""Whose request is next: weighted fair queueing between tenants. Pure: no loop, no clock.

Theory: start-time fair queueing. Each tenant has a *tag*, the virtual time until which it has been
served: what its requests cost, divided by their weight, moves it on. The least tag is next. Who
comes back after a pause starts at the present virtual time, so idling earns no credit, and a
tenant that asks for less than its share finds itself first in the line. Costs are charged after
the service, when they are known. (Deficit round robin has the same shares; but there a modest
tenant waits for a quantum of everyone else, here for the one that has its turn.)

Most of the time nobody competes. Then the one tenant that is there has credit for as many requests
as it likes, and all that each costs more is to count it. Only when a second tenant comes is credit
handed out in small pieces: by :meth:`Fair.admit` on the spot, and by :meth:`Fair.turn` to those who
had to :meth:`Fair.wait`. When one tenant alone was served for :data:`CALM_S`, it has all the credit
again.

Rules it keeps:

* Work-conserving: somebody who waits is always next; nothing is held back for a share unused.
* A turn is short: then the event loop looks at the sockets, and sees who else has come.
* A waiter is in one queue, once; it holds the place of its connection's next request, so the
  order of a connection's answers cannot change.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import ClassVar, Final, Protocol
from weakref import WeakValueDictionary

REQUEST_COST: Final = 32 << 10
"""What a request costs beside its bytes, in bytes: a small hit takes about as long as moving 32 KiB
more of a large one (docs/numbers.md)."""
TASK_COST: Final = 4 * REQUEST_COST
"""A request that is not answered on the hot way."""
TURN_REQUESTS: Final = 8
"""Measured (docs/numbers.md): with fewer, looking at the sockets so often costs the rate; with
more, a modest tenant waits longer and nothing is gained."""
TURN_COST: Final = TURN_REQUESTS * (REQUEST_COST + 8192)
"""A turn of large requests has fewer of them."""
QUANTUM: Final = 2 * REQUEST_COST
"""Tenants that both wait are not swapped for each single request."""
CALM_S: Final = 0.1
UNLIMITED: Final = 1 << 29
"""Requests: hours of them; whoever has used them up gets more. (Larger integers are slower.)"""

_PRICE: Final = 64
"""Of a byte, for the heaviest tenant: weights are as fine as that. Costs are whole numbers, so that
nothing is rounded away in a year, and small ones, which are faster."""


class Waiter(Protocol):
    """Who stands in a queue: a connection before its next request, or a task between two blocks."""

    is_in_line: bool
    """Kept by :class:`Fair`."""

    def take_turn(self) -> None:
        """Go on now, as far as the tenant's credit goes; never raises."""


class Tenant:
    """One who shares: a namespace, or a bucket that is used anonymously."""

    __slots__ = (
        "__weakref__", "credit", "is_listed", "left", "name", "number", "price", "queue", "tag",
        "used",
    )  # fmt: skip
    _numbers: ClassVar = itertools.count()

    def __init__(self, name: str) -> None:
        self.name = name
        self.credit = 0
        """Requests that may go now. Whoever answers one takes it off, and adds to ``used``."""
        self.used = 0
        """What they cost, at each one's price."""
        self.price = _PRICE
        """The last one seen, to measure out a turn."""
        self.tag = 0
        self.queue: deque[Waiter] = deque()
        self.left = 0
        """How many of the queue have given up their place since it was last cleaned."""
        self.is_listed = False
        """It stands in the heap, maybe with a tag of the past."""
        self.number = next(self._numbers)
        """Orders equal tags: the heap compares no tenants."""

    def __repr__(self) -> str:
        return f"<Tenant {self.name} waiting={len(self.queue)} tag={self.tag} credit={self.credit}>"


def price(weight: float, heaviest: float) -> int:
    """What a unit of cost is charged with at this weight, when that is the heaviest there is."""
    return round(_PRICE * max(1, heaviest / weight))


class Fair:
    """The queues of one shard."""

    def __init__(self, *, is_on: bool = True) -> None:
        """``is_on`` False: all callers are one tenant, and so nobody ever waits."""
        self._is_on = is_on
        self.is_contended = False
        self.waited = 0
        """Requests that had their turn in one."""
        self._tenants: WeakValueDictionary[str, Tenant] = WeakValueDictionary()
        """Those that something refers to: an account, a connection, the heap."""
        self._alone: Tenant | None = None
        self._heap: list[tuple[int, int, Tenant]] = []
        """Tenants that wait, by a tag that they have or had: see :meth:`_first`."""
        self._now = 0
        """Virtual time: the tag with which credit was handed out last."""
        self._granted: Tenant | None = None
        """Who has credit, and must still be charged for what was made of it."""
        self._room = TURN_REQUESTS
        """How many may still be admitted on the spot before the next turn."""
        self._latest: Tenant | None = None
        self._has_mixed = False
        """Whether another tenant than the one before was served since the last turn began."""
        self._mixed_at = 0.0

    def __repr__(self) -> str:
        return f"<Fair contended={self.is_contended} waiting={self.waiting} alone={self._alone}>"

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(tenant.queue) - tenant.left for _, _, tenant in self._heap)

    def tenant(self, name: str) -> Tenant:
        """The tenant of this name: one object while anything refers to it."""
        name = name if self._is_on else "all"
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = Tenant(name)
        return tenant

    # -- a request comes -------------------------------------------------------------------

    def admit(self, tenant: Tenant) -> bool:
        """Whether a tenant without credit may have its next request answered on the spot.

        It may when it is alone, and when it would be handed out next anyway. If not: wait.
        """
        if not self.is_contended:
            if self._alone is None or self._alone is tenant:
                self._alone = tenant
                tenant.credit = UNLIMITED
                return True
            self._contend(self._alone)
        if tenant.queue or not self._room:
            return False
        self._settle()
        first = self._first()
        if first is not None and first.tag < max(tenant.tag, self._now):
            return False
        self._room -= 1
        self._grant(tenant, 1)
        return True

    def wait(self, tenant: Tenant, waiter: Waiter) -> None:
        """Take a place at the end of a tenant's queue; a turn must follow."""
        if not tenant.queue:
            self._settle()
            tenant.tag = max(tenant.tag, self._now)
            if not tenant.is_listed:
                tenant.is_listed = True
                heapq.heappush(self._heap, (tenant.tag, tenant.number, tenant))
        tenant.queue.append(waiter)
        waiter.is_in_line = True

    def leave(self, tenant: Tenant, waiter: Waiter) -> None:
        """Give a place up, for good. A queue is cleaned when half of it is gone."""
        waiter.is_in_line = False
        queue = tenant.queue
        tenant.left += 1
        if 2 * tenant.left > len(queue):
            kept = [waiter for waiter in queue if waiter.is_in_line]
            queue.clear()
            queue.extend(kept)
            tenant.left = 0

    def charge(self, tenant: Tenant, cost: int) -> None:
        """Note what was used although no credit was given for it."""
        if self.is_contended:
            tenant.tag = max(tenant.tag, self._now) + cost

    # -- a turn ----------------------------------------------------------------------------

    def turn(self, now_s: float) -> bool:
        """Let those go on whose turn it is; returns whether another turn must follow.

        Args:
            now_s: of a clock that does not jump; only :data:`CALM_S` is measured by it.
        """
        self._settle()
        self._look(now_s)
        requests, cost = TURN_REQUESTS, TURN_COST
        while requests > 0 and cost > 0 and (tenant := self._first()) is not None:
            most = self._most(tenant, cost * tenant.price)
            if self.is_contended:
                self._grant(tenant, requests)
            else:  # those who came while there was another tenant
                tenant.used = 0
            queue = tenant.queue
            for _ in range(requests):
                if not queue or tenant.credit <= 0 or tenant.used >= most:
                    break
                waiter = queue.popleft()
                if waiter.is_in_line:
                    waiter.is_in_line = False
                    requests -= 1
                    waiter.take_turn()
                else:
                    tenant.left -= 1
            cost -= tenant.used // tenant.price
            if self._granted is not tenant:  # one that stood here by mistake was another's
                break
            self._settle()
        self.waited += TURN_REQUESTS - requests
        self._room = TURN_REQUESTS
        return self.waiting > 0

    def _look(self, now_s: float) -> None:
        """See whether tenants still compete."""
        if self._has_mixed:
            self._has_mixed = False
            self._mixed_at = now_s
        elif self.is_contended and now_s - self._mixed_at >= CALM_S:
            latest = self._latest
            if latest and all(tenant is latest or not tenant.queue for _, _, tenant in self._heap):
                self.is_contended = False
                self._alone = latest
                latest.credit = UNLIMITED

    # -- the virtual clock -----------------------------------------------------------------

    def _contend(self, alone: Tenant) -> None:
        """A second tenant is there: what was used until now is forgiven."""
        self.is_contended = self._has_mixed = True
        self._alone = None
        alone.credit = alone.used = 0
        alone.tag = self._now

    def _grant(self, tenant: Tenant, requests: int) -> None:
        self._settle()
        self._now = tenant.tag = max(tenant.tag, self._now)
        self._granted = tenant
        tenant.credit = requests
        if tenant is not self._latest:
            self._latest = tenant
            self._has_mixed = True

    def _settle(self) -> None:
        """Charge the tenant that has credit for what it did with it, and take the rest back."""
        tenant = self._granted
        if tenant is not None:
            tenant.tag += tenant.used
            tenant.credit = tenant.used = 0
            self._granted = None

    def _first(self) -> Tenant | None:
        """The tenant with the least tag among those that wait."""
        heap = self._heap
        while heap:
            tag, number, tenant = heap[0]
            if not tenant.queue:
                heapq.heappop(heap)
                tenant.is_listed = False
            elif tag != tenant.tag:
                heapq.heapreplace(heap, (tenant.tag, number, tenant))
            else:
                return tenant
        return None

    def _most(self, first: Tenant, most: int) -> int:
        """What the first tenant may use until it is another's turn, and a quantum more."""
        heap = self._heap
        if len(heap) == 1:
            return most
        return min(most, min(heap[1:3])[0] - first.tag + QUANTUM * first.price)
