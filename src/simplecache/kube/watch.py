"""A mirror of a collection of Kubernetes objects that stays right: list, then watch, for ever.

How it stays right:

* **List** in pages, and put the whole in place of what was there before at once. That is how
  deletions are noticed that happened while nobody watched.
* **Watch** from the list's resource version. Events and bookmarks move the version on, so a watch
  that ends (each does, after some minutes) is taken up without a new list.
* **410**, as an HTTP status or as an ERROR event, means that the version is forgotten: list again.
  So does an event that cannot be read: it may have been a deletion.
* **Silence** ends a watch. Apiservers send a bookmark about once a minute, so a connection that
  says nothing for longer is half-open.
* **A broken watch says nothing about the objects.** Until a list or an event says otherwise, the
  last state stands; ``last_event_age_s`` tells how old it is.
* Failures are retried after a pause that doubles, with jitter so that replicas spread out. Only a
  watch that got somewhere resets the pause: a server that takes watches just to end them is not
  asked in a tight loop.

Sources: Kubernetes' API concepts, "Efficient detection of changes" and "410 Gone responses".
Streaming lists (``sendInitialEvents``) are left out: not every supported server has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from simplecache.errors import ApiFault, ApiGone, Malformed
from simplecache.kube.mirror import Lines, Mirror, items_of, parse_event, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from simplecache.kube.api import KubeApi
    from simplecache.kube.mirror import Change, Event

T = TypeVar("T")

OBJECTS_MAX: Final = 100_000
"""Ten times the nodes we plan for, and two pods each. Beyond it a label selector is missing."""

PAGES_MAX: Final = 1_000
"""Five times what so many objects need; a server may send short pages, but not for ever."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take, in seconds; tests shorten them."""

    pause_min_s: float = 0.05
    pause_max_s: float = 30.0
    silence_s: float = 90.0
    """Bookmarks come about once a minute."""

    watch_min_s: float = 240.0
    """The server ends a watch after a time drawn between this and ``watch_max_s``: an even spread
    of reconnections, over servers too."""

    watch_max_s: float = 300.0
    watch_grace_s: float = 15.0
    """How much later we end it ourselves."""

    settled_s: float = 1.0
    """A watch that lasted so long, or brought an event, got somewhere."""

    page_objects: int = 500


class Reflector(Generic[T]):
    """Mirrors one collection. Start :meth:`run` as a task; one event loop owns it all.

    Args:
        api: who to ask.
        path: the collection, for example ``/api/v1/namespaces/NAMESPACE/pods``.
        project: see :class:`Mirror`. Keep little: whole pods are large.
        label_selector: which objects; empty for all.
        on_change: called with the changes of each event and list, after ``objects`` has them; also,
            with none, after the first list. It must not raise or block.
        timing: see there.
        clock: monotonic seconds.
        rng: for jitter.
    """

    def __init__(  # noqa: PLR0913  every argument after the third has a default
        self,
        api: KubeApi,
        path: str,
        project: Callable[[dict[str, Any]], T | None],
        *,
        label_selector: str = "",
        on_change: Callable[[Sequence[Change[T]]], None] = lambda _: None,
        timing: Timing = Timing(),
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._api = api
        self._path = path
        self._selector = {"labelSelector": label_selector} if label_selector else {}
        self._on_change = on_change
        self._timing = timing
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311  spreads load, guards nothing
        self._mirror = Mirror(project)
        self._version: str | None = None
        """From where to watch on. None: list first."""

        self._synced = asyncio.Event()
        self._list_waiters: list[asyncio.Future[None]] = []
        self._watching: asyncio.Timeout | None = None
        """Ends the watch that runs now, when a list is wanted."""

        self._got_somewhere = False
        """Of the latest watch: it brought an event or lasted."""

        self._heard_at: float | None = None
        self.lists_total = 0
        self.faults_total = 0

    def __repr__(self) -> str:
        state = "synced" if self.synced else "not synced"
        return f"<Reflector {self._path}: {len(self._mirror)} objects, {state} at {self._version}>"

    @property
    def objects(self) -> Mapping[str, T]:
        """The collection as last seen, by namespace/name; a read-only live view."""
        return self._mirror.objects

    @property
    def synced(self) -> bool:
        """Whether a whole list was ever seen; before that, ``objects`` being empty says nothing."""
        return self._synced.is_set()

    @property
    def last_event_age_s(self) -> float | None:
        """Seconds since the server last told us anything, be it a bookmark. None: never yet."""
        return None if self._heard_at is None else self._clock() - self._heard_at

    async def wait_synced(self) -> None:
        """Return when the first list is there."""
        await self._synced.wait()

    async def relist(self) -> None:
        """Return when a list that began after this call has been taken over.

        For a decision that is too grave to rest on events alone. It waits as long as the server is
        away: bound it with a timeout. Callers at the same time share a list.
        """
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._list_waiters.append(waiter)
        # A watch runs only while nobody waits for a list, so the first who does ends it.
        if self._watching is not None and len(self._list_waiters) == 1:
            self._watching.reschedule(loop.time())
        await waiter

    async def run(self) -> None:
        """Mirror until cancelled."""
        pause = _Pause(self._timing, self._rng)
        try:
            while True:
                self._got_somewhere = False
                try:
                    if self._version is None or self._list_waiters:
                        await self._list()
                    await self._watch_until_list_wanted()
                except (ApiFault, Malformed) as fault:
                    self._note(fault)
                if self._got_somewhere:
                    pause.reset()
                await asyncio.sleep(pause.next_s())
        finally:
            for waiter in self._list_waiters:
                waiter.cancel()

    def _note(self, fault: ApiFault | Malformed) -> None:
        self.faults_total += 1
        if isinstance(fault, (ApiGone, Malformed)):
            # Were the pause reset here, a server whose every watch ends so would be listed from
            # in a tight loop.
            self._got_somewhere = False
            self._version = None
        plan = "will list" if self._version is None else "will watch on"
        _log.warning("%s: %s; %s", self._path, fault, plan)

    async def _list(self) -> None:
        # Only who waits now is served: for later callers this list began too early.
        served, self._list_waiters = self._list_waiters, []
        try:
            objects, version = await self._read_pages()
        except BaseException:
            self._list_waiters += (waiter for waiter in served if not waiter.done())
            raise
        self._version = version
        self.lists_total += 1
        self._heard_at = self._clock()
        is_first = not self.synced
        changes = self._mirror.replace(objects)
        self._synced.set()
        if changes or is_first:
            self._on_change(changes)
        for waiter in served:
            if not waiter.done():
                waiter.set_result(None)

    async def _read_pages(self) -> tuple[dict[str, T], str]:
        """The whole collection, and the version of its first page.

        Later pages show the same version. Should a server ever show them newer, watching from the
        first brings the difference again, which does no harm.
        """
        objects: dict[str, T] = {}
        first_version = None
        query = {**self._selector, "limit": str(self._timing.page_objects)}
        for _ in range(PAGES_MAX):
            page = await self._api.get(self._path, query)
            objects |= self._mirror.reduce(items_of(page))
            if len(objects) > OBJECTS_MAX:
                raise ApiFault(f"list {self._path}: more than {OBJECTS_MAX} objects")
            first_version = first_version or version_of(page)
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return objects, first_version
            query["continue"] = str(token)
        raise ApiFault(f"list {self._path}: more than {PAGES_MAX} pages")

    async def _watch_until_list_wanted(self) -> None:
        if self._list_waiters:  # they came while the list before was read
            return
        began = self._clock()
        try:
            async with asyncio.timeout(None) as self._watching:
                await self._watch()
        except TimeoutError:
            pass  # relist() ended it
        finally:
            self._watching = None
            self._got_somewhere |= self._clock() - began >= self._timing.settled_s

    async def _watch(self) -> None:
        """Follow one watch to its end."""
        timing = self._timing
        length_s = self._rng.uniform(timing.watch_min_s, timing.watch_max_s)
        query = {
            **self._selector,
            "watch": "1",
            "resourceVersion": self._version or "",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(length_s))),
        }
        stream = self._api.watch(
            self._path,
            query,
            silence_s=timing.silence_s,
            total_s=length_s + timing.watch_grace_s,
        )
        lines = Lines()
        async with contextlib.aclosing(stream) as chunks:
            async for chunk in chunks:
                for line in lines.feed(chunk):
                    self._take(parse_event(line))
        if not lines.is_whole:
            raise ApiFault(f"watch {self._path}: ended in the middle of an event")

    def _take(self, event: Event) -> None:
        changes = self._mirror.apply(event)
        # After the mirror has it: were it before, an event that cannot be applied would be lost.
        self._version = event.version
        self._heard_at = self._clock()
        self._got_somewhere = True
        if changes:
            self._on_change(changes)


class _Pause:
    """How long to wait before the next try: doubling, jittered, bounded."""

    def __init__(self, timing: Timing, rng: random.Random) -> None:
        self._timing = timing
        self._rng = rng
        self.reset()

    def reset(self) -> None:
        self._base_s = self._timing.pause_min_s

    def next_s(self) -> float:
        base_s = self._base_s
        self._base_s = min(base_s * 2, self._timing.pause_max_s)
        return base_s * self._rng.uniform(0.8, 1.2)
