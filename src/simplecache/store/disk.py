"""One shard's disk as its store meets it: every system call that may fail, and what then follows.

The system's errors become ours here and are counted (``health.py``); a shard on probation probes
its disk from here; and where descriptors are short, open files are given up for the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from simplecache.errors import DiskError, DiskFull, Overloaded
from simplecache.store.blobs import Unreadable
from simplecache.store.directory import is_displaced, knows_nowait, prepare, probe
from simplecache.store.health import Health, is_full, is_shortage

log = logging.getLogger(__name__)
T = TypeVar("T")
A = TypeVar("A")

READ_THREADS: Final = 8
"""Cold reads at the same time: enough for an NVMe's queue, few enough for memory."""


class Disk:
    """A locked directory, the threads that read it, and whether it works."""

    def __init__(self, directory: Path, free_descriptors: Callable[[], None]) -> None:
        """Lock ``directory`` and remove what a crash left in it.

        Args:
            directory: made if it is missing.
            free_descriptors: closes some; is called from any thread.

        Raises:
            DataDirError: it cannot be made or written, or another process has it.
        """
        self.directory = directory
        self.health = Health()
        self.is_displaced = False
        """Another directory stands where this one was: its disk was mounted anew. Only a new start
        can use it."""
        self._free_descriptors = free_descriptors
        self._lock_fd = prepare(directory)
        self.nowait = os.RWF_NOWAIT if knows_nowait(self._lock_fd) else 0
        """The flag for reads that must not wait; 0 where the file system does not know it."""
        self.readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="reader")
        self._loop = asyncio.get_running_loop()
        self._probing: asyncio.Future[None] | None = None

    def close(self) -> None:
        """Let the directory go; whoever reads must have ended."""
        self.readers.shutdown()
        os.close(self._lock_fd)

    def tick(self) -> None:
        """Once a second: see whether a disk on probation works again."""
        is_idle = self._probing is None or self._probing.done()
        if is_idle and self.health.take_probe(time.monotonic()):
            self._probing = self._loop.run_in_executor(None, self._probe)

    def refuse_on_probation(self) -> None:
        """Raise DiskError while nothing should be written."""
        if self.health.why:
            raise DiskError(f"the disk failed and is on probation: {self.health.why}")

    def in_readers(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run in a reader thread, errors as they are."""
        return self._loop.run_in_executor(self.readers, function)

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run a blocking read in a reader thread.

        Raises:
            FileNotFoundError: there is no such file.
            Unreadable: the disk failed; drop the entry.
            Overloaded: descriptors or memory are short.
        """
        try:
            return await self.in_readers(partial(self.despite_shortage, function, *args))
        except FileNotFoundError:
            raise
        except OSError as error:
            if is_shortage(error):
                raise Overloaded(f"this shard is short of resources: {error.strerror}") from error
            self.note(error)
            raise Unreadable(f"the disk failed: {error.strerror}") from error

    # For any thread.

    def translate(self, function: Callable[[A], T], argument: A) -> T:
        """Call, with the system's errors as ours, and noted."""
        try:
            return function(argument)
        except OSError as error:
            if is_full(error):
                raise DiskFull(f"no room for the object: {error.strerror}") from error
            if is_shortage(error):
                raise Overloaded(f"this shard is short of resources: {error.strerror}") from error
            self.note(error)
            raise DiskError(f"the disk failed: {error.strerror}") from error

    def despite_shortage(self, function: Callable[..., T], *args: Any) -> T:
        """Call; where descriptors are short, free some and call again.

        ``function`` must fail before it has done anything.
        """
        try:
            return function(*args)
        except OSError as error:
            if not is_shortage(error):
                raise
        self._free_descriptors()
        return function(*args)

    def note(self, error: OSError) -> None:
        """Count a failed system call; may put the disk on probation."""
        was_good = not self.health.why
        self.health.note(error, time.monotonic())
        if was_good and self.health.why:
            log.error("%s: on probation: %s", self.directory, self.health.why)

    def _probe(self) -> None:
        try:
            probe(self.directory, self._lock_fd)
        except OSError as error:
            log.warning("%s: the disk still fails: %s", self.directory, error.strerror)
            with contextlib.suppress(OSError):
                self.is_displaced = is_displaced(self.directory, self._lock_fd)
        else:
            self.health.pass_probe(time.monotonic())
            log.warning("%s: the disk works again", self.directory)
