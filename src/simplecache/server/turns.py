"""The turns of a shard's event loop: short stretches of work, with a look at the sockets between.

The thin part around ``fair.py``, which decides. A turn is one callback, and between two of them the
loop polls: so a request of a modest tenant is seen after microseconds, whatever waits.
"""

from __future__ import annotations

import asyncio
import time

from simplecache.server.fair import Fair, Tenant, Waiter


class Turns:
    """Who waits on this loop, and when they go on."""

    def __init__(self, fair: Fair) -> None:
        self.fair = fair
        self._is_called = False

    def wait(self, tenant: Tenant, waiter: Waiter) -> None:
        """Let ``waiter`` take its turn when it comes."""
        self.fair.wait(tenant, waiter)
        if not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._turn)

    async def pay(self, tenant: Tenant, cost: int) -> None:
        """Charge a task for its next step, and wait until it is its turn.

        Others' requests are looked at in any case.
        """
        if tenant.credit <= 0 and not self.fair.admit(tenant):
            pause = _Pause(tenant, cost)
            self.wait(tenant, pause)
            try:
                await pause.ended
            except asyncio.CancelledError:
                if pause.is_in_line:
                    self.fair.leave(tenant, pause)
                raise
        else:
            tenant.credit -= 1
            tenant.used += cost
            await asyncio.sleep(0)

    def _turn(self) -> None:
        self._is_called = self.fair.turn(time.monotonic())
        if self._is_called:
            asyncio.get_running_loop().call_soon(self._turn)


class _Pause:
    """A task between two of its steps."""

    __slots__ = ("_cost", "_tenant", "ended", "is_in_line")

    def __init__(self, tenant: Tenant, cost: int) -> None:
        self._tenant = tenant
        self._cost = cost
        self.is_in_line = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take_turn(self) -> None:
        """The task's next step runs before the next turn does, and is charged now."""
        self._tenant.credit -= 1
        self._tenant.used += self._cost
        if not self.ended.done():
            self.ended.set_result(None)
