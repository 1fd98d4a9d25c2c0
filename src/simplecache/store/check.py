"""Checking a shard that nobody serves: every file, every row, and what they add up to.

The scrubber does the same to a shard that serves; this walk takes the shard's lock, reads with
several threads, and changes nothing unless it is told to mend.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from simplecache.errors import DataDirError
from simplecache.store.blobs import path_of
from simplecache.store.directory import knows_nowait, lock
from simplecache.store.index import Index, Tombstone, find_rot
from simplecache.store.repair import STEPS, Findings, Hands, Walker
from simplecache.store.scrub import GentleReader
from simplecache.store.usage import Usage

THREADS: Final = 8
"""Files read at the same time: an NVMe wants a queue."""
_DIRECTORY = re.compile(r"[0-9a-f]{3}")

Progress = Callable[[int], None]
"""Is told of bytes that were read; from any thread."""


def shards_of(data: Path) -> list[Path]:
    """The shards of a data directory, or the one that ``data`` is itself.

    Raises:
        DataDirError: it is neither.
    """
    found = sorted(data.glob("shard-[0-9]*[0-9]"))
    if not found and (data / "objects").is_dir():
        found = [data]
    if not found:
        raise DataDirError(f"{data}: neither a data directory nor a shard's directory")
    return found


def stored_bytes(directory: Path) -> int:
    """What a shard's index says that it holds: a guess, for a progress bar."""
    index = Index(directory / "index.db", is_read_only=True)
    try:
        return sum(size for _, _, _, size, _, _ in index.usage())
    finally:
        index.close()


def check_shard(directory: Path, *, mends: bool, progress: Progress) -> Findings:
    """Look at everything in a shard's directory.

    Args:
        directory: the shard's.
        mends: remove what is corrupt, and make rows and figures what the files say.
        progress: is told of bytes that were read.

    Raises:
        DataDirError: a process uses it.
    """
    with _locked(directory) as lock_fd:
        nowait = os.RWF_NOWAIT if knows_nowait(lock_fd) else 0
        reader = GentleReader(nowait, lambda size, _: progress(size))
        return asyncio.run(_check(directory, reader, mends=mends))


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    lock_fd = lock(directory)
    try:
        yield lock_fd
    finally:
        os.close(lock_fd)


async def _check(directory: Path, reader: GentleReader, *, mends: bool) -> Findings:
    found = Findings()
    objects, path = str(directory / "objects"), directory / "index.db"
    rot = find_rot(path, lambda: False) if path.exists() else ""
    index = Index(path, is_read_only=not mends)
    if index.fault or rot:
        found.note("index_faults", f"{path}: {index.fault or rot}")
        if rot and not index.fault:
            index.doubt(rot, is_broken=True)
            index.flush()
    usage = Usage(index.usage())
    index.ledger = usage

    def drop(ident: bytes, rule: str) -> None:
        os.unlink(path_of(objects, ident))
        usage.replace(index.get(ident), None)
        index.delete(ident)
        index.bury(Tombstone(ident, int(time.time()), rule, ""))

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            walker = Walker(objects, index, usage, Hands(_in(pool), _at_once, drop, mends))
            _take_strays(directory, walker, found)
            usage.begin_recount()
            slots = asyncio.Semaphore(THREADS)
            async with asyncio.TaskGroup() as group:
                for step in range(STEPS):
                    await slots.acquire()
                    group.create_task(_walk(walker, step, reader, found, slots))
                    if mends:
                        index.flush()
        for bucket, namespace in usage.end_recount(corrects=mends):
            found.note("wrong_figures", f"{bucket!r}, put by {namespace!r}: miscounted")
        index.is_clean = True
    finally:
        index.close()
    return found


async def _walk(
    walker: Walker, step: int, reader: GentleReader, found: Findings, slots: asyncio.Semaphore
) -> None:
    try:
        more = await walker.walk(step, reader.look, is_deep=True)
        found += more
    finally:
        slots.release()


def _take_strays(directory: Path, walker: Walker, found: Findings) -> None:
    temporary, objects = directory / "tmp", directory / "objects"
    strays = list(temporary.iterdir()) if temporary.is_dir() else []
    strays += [path for path in objects.iterdir() if not _DIRECTORY.fullmatch(path.name)]
    for path in strays:
        walker.take_stray(str(path), found)


def _in(pool: ThreadPoolExecutor) -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    def run(function: Callable[[], Any]) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(pool, function)

    return run


async def _at_once(function: Callable[[], Any]) -> Any:
    """Nothing else changes the shard: the loop's own thread will do."""
    return function()
