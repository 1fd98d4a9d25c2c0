"""The one thread that changes a shard: renames, unlinks and the index, one after the other.

Because every change passes here, there is a total order of them without a lock: which of two PUTs
to one name is the last, and what the accounting must say, is never in doubt. The loop posts a
function and awaits its result; functions that wait together are run together and wake it once.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from simplecache.store.index import Index

log = logging.getLogger(__name__)
T = TypeVar("T")

FLUSH_S: Final = 0.25
"""How long a change may wait for its transaction."""
FLUSH_CHANGES: Final = 256
"""So many changes do not wait so long: a transaction of them takes a few milliseconds, for which
PUTs wait."""
BATCH_MAX: Final = 256
"""Functions run before the loop is told of their results."""

_Job = tuple[Callable[[], Any], "asyncio.Future[Any] | None"]


class Writer:
    """Runs posted functions in order, and flushes the index between them."""

    def __init__(
        self, index: Index, loop: asyncio.AbstractEventLoop, close: Callable[[], None]
    ) -> None:
        """``close`` is the last that the thread does."""
        self._index = index
        self._close = close
        self._loop = loop
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def run(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run ``function`` in the thread; await the result. Call from the loop only."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((function, future))
        return future

    def post(self, function: Callable[[], object]) -> None:
        """Run ``function`` in the thread when its turn comes; its errors are logged."""
        self._jobs.put((function, None))

    @property
    def backlog(self) -> int:
        """Functions that wait."""
        return self._jobs.qsize()

    def stop(self) -> None:
        """Do what was posted, close, end the thread. Blocks."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        flush_at = time.monotonic() + FLUSH_S
        going = has_flushed = True
        while going:
            batch = self._take(flush_at - time.monotonic())
            going = None not in batch
            results = [_call(job) for job in batch if job is not None]
            awaited = [result for result in results if result is not None]
            if awaited and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_resolve, awaited)
            is_much = has_flushed and self._index.pending >= FLUSH_CHANGES
            if is_much or time.monotonic() >= flush_at:
                has_flushed = self._flush()
                flush_at = time.monotonic() + (FLUSH_S if has_flushed else 4 * FLUSH_S)
        self._close()

    def _flush(self) -> bool:
        try:
            return self._index.flush()
        except Exception:  # the thread must live, or no PUT is ever answered again
            log.exception("the index cannot be written")
            return False

    def _take(self, wait_s: float) -> list[_Job | None]:
        """The jobs that are there, at least one unless it takes longer than ``wait_s``."""
        batch: list[_Job | None] = []
        try:
            batch.append(self._jobs.get(timeout=max(0.0, wait_s)))
            while len(batch) < BATCH_MAX:
                batch.append(self._jobs.get_nowait())
        except queue.Empty:
            pass
        return batch


_Result = tuple["asyncio.Future[Any]", Any, "BaseException | None"]


def _call(job: _Job) -> _Result | None:
    function, future = job
    try:
        value, error = function(), None
    except BaseException as raised:
        value, error = None, raised
        if future is None:
            log.exception("a posted change failed", exc_info=raised)
    return None if future is None else (future, value, error)


def _resolve(results: list[_Result]) -> None:
    for future, value, error in results:
        if future.done():  # cancelled: its connection is gone; what was changed stays changed
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
