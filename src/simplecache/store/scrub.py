"""The scrubber: reads and checks every byte of a shard, again and again, in the background.

Theory: rot is found by who reads, and nobody reads most files for weeks. So a walk (``repair.py``)
goes through all directories, looks at each file whole, and drops what does not fit its sums. It has
a budget in bytes per second; a small file costs as much as ``FILE_COST_BYTES``, for what it takes
is a seek and a processor's time. Its place is kept over restarts. It leaves the page cache as it
found it: what had to be read from the disk is given back at once, and what is hot stays.

A **check** (``scs check --ops``) is a whole round that begins now and takes half a thread's time,
whatever the budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

from simplecache.store.blobs import BLOCK_BYTES, Blob, Meta, block_count, open_blob
from simplecache.store.index import Index, find_rot
from simplecache.store.repair import STEPS, Findings, Hands, Walker
from simplecache.store.usage import Usage

log = logging.getLogger(__name__)

FILE_COST_BYTES: Final = 64 << 10
"""The least that a file takes of the budget: 256 small files a second at 16 MiB/s."""
ROUND_MIN_S: Final = 3600.0
"""A small shard is not gone through again and again."""
NOTE_EVERY_S: Final = 10.0
"""How often the place is written down."""
RETRY_S: Final = 5.0
PAGE: Final = 4096
_PLACE: Final = "scrub"


class _Stopped(Exception):
    """The scrubber is to end."""


class GentleReader:
    """Looks at files whole, and leaves the page cache as it was. For one thread at a time."""

    def __init__(self, nowait: int, pace: Callable[[int, int], None]) -> None:
        """Make one.

        Args:
            nowait: ``RWF_NOWAIT``, or 0 where the file system does not know it.
            pace: is told of bytes that were read, and what they cost; may wait.
        """
        self._nowait = nowait
        self._pace = pace

    def look(self, path: str) -> tuple[Meta, os.stat_result]:
        """Read and check all of a file.

        Raises:
            Corrupt: it is not what its sums say.
            OSError: it is not there, or the disk failed.
        """
        blob, is_hot = self._open(path)
        file = _Pages(blob, self._nowait, is_hot=is_hot)
        for block in range(block_count(blob.size)):
            blob.verify(block, file.read)
            size = min(BLOCK_BYTES, blob.size - block * BLOCK_BYTES)
            self._pace(size, size if block else max(size, FILE_COST_BYTES))
        file.give_back()
        return blob.meta, os.fstat(blob.fd)

    def _open(self, path: str) -> tuple[Blob, bool]:
        """The open file, and whether its beginning was in the page cache.

        What the kernel reads ahead would look hot a moment later.
        """
        try:
            return open_blob(path, None, self._nowait, reads_ahead=False), True
        except BlockingIOError:
            return open_blob(path, None, reads_ahead=False), False


class _Pages:
    """One file's pages: which were in the page cache before, and that the others leave it again."""

    def __init__(self, blob: Blob, nowait: int, *, is_hot: bool) -> None:
        self._blob = blob
        self._nowait = nowait
        self._is_hot = self._was_hot = is_hot
        """Whether the page that is read next was there, and whether any was."""

    def read(self, fd: int, length: int, at: int) -> bytes | bytearray:
        """As ``os.pread``."""
        if not self._nowait:
            return os.pread(fd, length, at)
        data = bytearray(length)
        with contextlib.suppress(BlockingIOError):
            if self._is_hot and os.preadv(fd, (data,), at, self._nowait) == length:
                self._was_hot = True
                return data
        self._is_hot = True  # that is to be seen of the next one
        cold = os.pread(fd, length, at)
        start = at - at % PAGE  # only whole pages are given back
        os.posix_fadvise(fd, start, at + length - start + PAGE, os.POSIX_FADV_DONTNEED)
        return cold

    def give_back(self) -> None:
        """A file of which nothing was there before leaves nothing behind."""
        if self._nowait and not self._was_hot:
            os.posix_fadvise(self._blob.fd, 0, 0, os.POSIX_FADV_DONTNEED)


class Scrubber:
    """Goes round and round. Made and used on the store's loop; reads in a thread of its own."""

    def __init__(  # noqa: PLR0913 - a store's parts
        self,
        objects: str,
        index: Index,
        usage: Usage,
        hands: Hands,
        *,
        nowait: int,
        rate: int,
    ) -> None:
        """Make it; :meth:`run` is its life.

        Args:
            objects: the directory of the shard's files.
            index: its rows.
            usage: what they add up to.
            hands: how it changes things; it reads by itself.
            nowait: ``RWF_NOWAIT``, or 0 where the file system does not know it.
            rate: bytes per second; 0: only when a check is asked for.
        """
        self.rate = rate
        self.scrubbed_bytes = 0
        self.rounds = 0
        """Since the start, of those that went through all directories without a break."""
        self.found = Findings()
        """All that was found since the start."""
        self._index = index
        self._usage = usage
        self._change = hands.change
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scrub", initializer=_be_idle)
        self._walker = Walker(objects, index, usage, replace(hands, read=self._read))
        self._reader = GentleReader(nowait, self._pace)
        self._poke = threading.Event()
        self._wanted = asyncio.Event()
        self._is_stopping = False
        self._is_check = False
        self._due = self._paced_at = time.monotonic()
        self._noted_at = 0.0
        self._check: dict[str, Any] = {"state": "none"}

    # -- checks ----------------------------------------------------------------------------

    def start_check(self) -> dict[str, Any]:
        """Begin a whole round now, if none is under way; the same answer as :meth:`check`."""
        if self._check["state"] != "running":
            self._check = {"state": "running", "share": 0.0, "found": asdict(Findings())}
            self._wanted.set()
            self._poke.set()
        return self._check

    @property
    def check(self) -> dict[str, Any]:
        """How the last check goes, or went: state (none, running, done), share, found."""
        return self._check

    # -- life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Go on until :meth:`stop`."""
        while not self._is_stopping:
            try:
                if not self.rate:
                    await self._wanted.wait()
                await self._go_round()
            except _Stopped:
                return
            except sqlite3.Error:  # it is being made anew; the round begins again where it was
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("a scrub round failed")
                await asyncio.sleep(RETRY_S)

    async def stop(self) -> None:
        """End soon; what was found is settled."""
        self._is_stopping = True
        self._poke.set()
        self._wanted.set()
        await asyncio.to_thread(self._thread.shutdown)

    async def _go_round(self) -> None:
        self._is_check = self._wanted.is_set()
        self._wanted.clear()
        first = 0 if self._is_check else await self._change(self._place)
        began = time.monotonic()
        found = Findings()
        if not first:
            await self._look_at_index(found)
            await self._change(self._usage.begin_recount)
        for step in range(first, STEPS):
            more = await self._walker.walk(step, self._reader.look, is_deep=True)
            self.found += more
            found += more
            await self._note(step + 1, found)
            if self._wanted.is_set() and not self._is_check:
                return
        if not first:
            for bucket, namespace in await self._change(self._usage.end_recount):
                found.note("wrong_figures", f"{bucket!r}, put by {namespace!r}: miscounted")
            self.rounds += 1
        await self._note(0, found)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, began + ROUND_MIN_S - time.monotonic())):
                await self._wanted.wait()

    async def _look_at_index(self, found: Findings) -> None:
        rot = await self._read(partial(find_rot, self._index.path, lambda: self._is_stopping))
        if rot and not self._is_stopping:
            found.note("index_faults", f"{self._index.path}: {rot}")
            await self._change(partial(self._index.doubt, rot, is_broken=True))
            await self._change(self._index.flush)

    async def _note(self, step: int, found: Findings) -> None:
        """Write the place down now and then; 0: the round is over."""
        if self._is_check:
            share = step / STEPS if step else 1.0
            state = "running" if step else "done"
            self._check = {"state": state, "share": share, "found": asdict(found)}
        if not step or time.monotonic() - self._noted_at > NOTE_EVERY_S:
            self._noted_at = time.monotonic()
            place = step % STEPS
            await self._change(partial(self._index.note, _PLACE, str(place)))

    def _place(self) -> int:
        text = self._index.noted(_PLACE)
        return int(text) % STEPS if text.isdecimal() else 0

    # -- in the thread ---------------------------------------------------------------------

    async def _read(self, function: Callable[[], Any]) -> Any:
        if self._is_stopping:
            raise _Stopped
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _pace(self, size: int, cost: int) -> None:
        """Wait as the budget wants it; a check rests for as long as it worked."""
        now = time.monotonic()
        self.scrubbed_bytes += size
        if self._is_check:
            wait_s = min(0.1, now - self._paced_at)
        else:
            self._due = max(self._due, now - 1.0) + cost / max(1, self.rate)
            wait_s = 0.0 if self._wanted.is_set() else self._due - now
        if wait_s > 0.001:
            self._poke.wait(wait_s)
            self._poke.clear()
        if self._is_stopping:
            raise _Stopped
        self._paced_at = time.monotonic()


def _be_idle() -> None:
    """This thread's reads come after everybody else's, where the kernel's scheduler knows that."""
    number = {"x86_64": 251, "aarch64": 30}.get(os.uname().machine)
    if number is not None:
        who_process, class_idle = 1, 3 << 13
        ctypes.CDLL(None).syscall(number, who_process, 0, class_idle)  # ioprio_set(2)
