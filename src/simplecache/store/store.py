"""One shard's storage: the façade that orders files, index and accounting. The only one that does.

A PUT: reserve → write a temporary file → finish (prefix, sums) → rename → row → acknowledged.
A GET: target → path by hash → open → checked bytes. It touches neither SQLite nor a lock.

Invariants:

1. A file under ``objects/`` is whole from the moment it is there: only a rename puts it.
2. Only the writer thread renames and unlinks, so changes have one order.
3. Once a PUT is acknowledged no later find returns an older version: the open-blob cache forgets
   the target first, and a slow open that began before a change is not cached.
4. kill -9 at any point leaves at most a temporary file (removed at start) or a file without its
   row (found by ``repair.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hmac
import itertools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from simplecache.errors import (
    DataDirError,
    DigestMismatch,
    DiskError,
    DiskFull,
    PreconditionFailed,
    TooLarge,
)
from simplecache.model import Key
from simplecache.store.blobs import Blob, BlobWriter, Corrupt, Meta, blob_id, open_blob
from simplecache.store.index import Index, Row
from simplecache.store.repair import reconcile
from simplecache.store.writer import Writer

log = logging.getLogger(__name__)
T = TypeVar("T")
A = TypeVar("A")

CHUNK_BYTES: Final = 1 << 20
"""An upload's bytes are handed to the disk in pieces of this size; smaller bodies in one."""
READ_THREADS: Final = 8
"""Cold reads at the same time: enough for an NVMe's queue, few enough for memory."""
FREE_FLOOR_BYTES: Final = 64 << 20
"""Free space that uploads never touch: SQLite and the file system need room to work."""

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold at the moment an upload becomes visible.

    ``etags`` None: no object may be there (``If-None-Match: *``). Otherwise the object that is
    there must have one of these ETags; empty: any (``If-Match: *``).
    """

    etags: frozenset[bytes] | None

    def check(self, present: Meta | None) -> None:
        """Raise PreconditionFailed if it does not hold."""
        if self.etags is None:
            if present is not None:
                raise PreconditionFailed("the object is there already (If-None-Match: *)")
        elif present is None or (self.etags and present.etag not in self.etags):
            raise PreconditionFailed("the object is not there, or not with that ETag (If-Match)")


class Store:
    """One directory of objects. Made and used on one event loop."""

    def __init__(
        self,
        directory: Path,
        *,
        object_max_bytes: int = 64 << 30,
        open_max: int = 8192,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Lock and open ``directory``; remove what a crash left.

        Raises:
            DataDirError: it cannot be made or written, or another process has it.
        """
        self.directory = directory
        self.object_max_bytes = object_max_bytes
        self.reserved_bytes = 0
        """Announced by uploads and not written yet."""
        self.corrupt_found = 0
        """Entries dropped since the start because their bytes were not what their sums say."""
        self._clock = clock
        self._open_max = open_max
        self._open: dict[bytes, Blob] = {}
        self._changes = 0
        self._temp_names = itertools.count()
        self._objects = str(directory / "objects")
        self._temp = directory / "tmp"
        self._lock_fd = _prepare(directory)
        index = Index(directory / "index.db")
        self.usage = Usage(index)
        self._index = index
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(index, self._loop)
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="reader")
        self._nowait = os.RWF_NOWAIT if _has_nowait(self._temp) else 0
        self._repair = None if index.is_clean else self._loop.create_task(self._reconcile())

    # -- reading ---------------------------------------------------------------------------

    def find_now(self, target: bytes) -> Blob | None:
        """The open blob of ``target``, or None when there is none.

        Raises:
            BlockingIOError: it would have to come from the disk; use :meth:`find`.
        """
        blob = self._open.get(target)
        if blob is None:
            try:
                blob = open_blob(self._path(target), target, self._nowait)
            except FileNotFoundError:
                return None
            except Corrupt as error:
                self.drop(target, error)
                return None
            except (
                OSError
            ) as error:  # a failing disk, no descriptors: the slow way knows what to do
                raise BlockingIOError from error
            self._remember(target, blob)
        return blob

    async def find(self, target: bytes) -> Blob | None:
        """As :meth:`find_now`, waiting for the disk in a thread.

        Raises:
            DiskError: the disk failed.
        """
        blob = self._open.get(target)
        if blob is not None:
            return blob
        changes = self._changes
        try:
            blob = await self.in_thread(open_blob, self._path(target), target)
        except FileNotFoundError:
            return None
        except Corrupt as error:
            self.drop(target, error)
            return None
        if changes == self._changes:
            self._remember(target, blob)
        return blob

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run a blocking read in a reader thread; a failing disk is a DiskError."""
        try:
            return await self._loop.run_in_executor(self._readers, function, *args)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DiskError(f"the disk failed: {error.strerror}") from error

    def drop(self, target: bytes, why: Corrupt, blob: Blob | None = None) -> None:
        """Remove an entry whose bytes are not to be trusted, unless it was replaced since.

        Args:
            target: its name.
            why: what is wrong with it.
            blob: the file that was found to be bad; None when it could not even be opened.
        """
        self.corrupt_found += 1
        log.error("dropping %r: %s", target, why)
        if blob is None or self._open.get(target) is blob:
            self._forget(target)
        inode = os.fstat(blob.fd).st_ino if blob is not None else None
        self._writer.post(lambda: self._drop(target, inode))

    # -- writing ---------------------------------------------------------------------------

    def begin(  # noqa: PLR0913 - what a PUT says of its object
        self,
        key: Key,
        *,
        length: int | None,
        namespace: str = "",
        content_type: bytes = b"application/octet-stream",
        content_encoding: bytes = b"",
        condition: Condition | None = None,
        digests: Sequence[tuple[Any, bytes]] = (),
    ) -> Upload:
        """Start an upload; nothing is on the disk before it ends well.

        Args:
            key: the object.
            length: of the body, if it is known.
            namespace: of the caller who puts it.
            content_type: kept with it.
            content_encoding: kept with it.
            condition: must hold when it becomes visible.
            digests: (hashlib object, expected digest) pairs to check the body by.

        Raises:
            TooLarge: above the limit for one object.
            DiskFull: there is no room.
        """
        meta = Meta(
            key.target, 0, int(self._clock() * 1000), b"", namespace, content_type,
            content_encoding,
        )  # fmt: skip
        upload = Upload(self, key, meta, condition, digests)
        upload.reserve(length or 0)
        return upload

    async def delete(self, target: bytes) -> bool:
        """Remove an entry; False when there was none."""
        return await self._change(target, lambda: _translate(self._unlink, target))

    async def meta(self, target: bytes) -> Meta | None:
        """What is there under ``target``, for a condition that is checked before the body."""
        try:
            blob = self.find_now(target)
        except BlockingIOError:
            blob = await self.find(target)
        return None if blob is None else blob.meta

    @property
    def free_bytes(self) -> int:
        """What the file system has left for unprivileged writers, minus what uploads announced."""
        status = os.statvfs(self._temp)
        return status.f_bavail * status.f_frsize - self.reserved_bytes

    @property
    def backlog(self) -> int:
        """Changes that wait for the writer thread or for the index."""
        return self._writer.backlog + self._index.pending

    @property
    def is_reconciled(self) -> bool:
        """Whether rows and files are known to match (after a crash it takes a while)."""
        return self._index.is_clean and (self._repair is None or self._repair.done())

    async def close(self) -> None:
        """Finish what was posted and mark the index clean. Uploads must have ended."""
        if self._repair is not None and not self._repair.done():
            self._repair.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._repair
            self._index.is_clean = False
        await self._loop.run_in_executor(None, self._writer.stop)
        self._readers.shutdown()
        self._open.clear()
        os.close(self._lock_fd)

    # -- inside ----------------------------------------------------------------------------

    def _path(self, target: bytes) -> str:
        name = blob_id(target).hex()
        return f"{self._objects}/{name[:3]}/{name[3:]}"

    def _remember(self, target: bytes, blob: Blob) -> None:
        if len(self._open) >= self._open_max:
            del self._open[next(iter(self._open))]
        self._open[target] = blob

    def _forget(self, target: bytes) -> None:
        self._changes += 1
        self._open.pop(target, None)

    async def _change(self, target: bytes, function: Callable[[], T]) -> T:
        """Let the writer thread change ``target``, and forget the old version when it has.

        It happens also when whoever waits is cancelled (a client that is gone): forgetting it then
        would be too early, and a reader in between would keep the old version open for ever.
        """
        change = self._writer.run(function)
        change.add_done_callback(lambda _: self._forget(target))  # before anyone hears of it
        return await asyncio.shield(change)

    async def _reconcile(self) -> None:
        started = time.monotonic()
        try:
            found, lost = await reconcile(self._objects, self._writer, self._index, self.usage)
        except (OSError, sqlite3.Error) as error:
            log.error("%s: %s; reconciled at the next start", self.directory, error)
            return
        log.info(
            "%s: index reconciled in %.1f s: %d rows added, %d removed",
            self.directory, time.monotonic() - started, found, lost,
        )  # fmt: skip
        self._index.is_clean = True

    # The rest runs in the writer thread.

    def _commit(
        self, writer: BlobWriter, key: Key, meta: Meta, condition: Condition | None
    ) -> Meta:
        path = self._path(meta.target)
        if condition is not None:
            condition.check(_present(path, meta.target))
        status = os.stat(writer.path)
        try:
            os.rename(writer.path, path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(writer.path, path)
        created_s = meta.created_ms // 1000
        ident = blob_id(meta.target)
        row = Row(
            ident, key.bucket, meta.namespace, meta.target, meta.size, status.st_blocks * 512,
            status.st_mtime_ns, created_s, created_s,
        )  # fmt: skip
        self.usage.replace(self._index.get(ident), row)
        self._index.put(row)
        return meta

    def _unlink(self, target: bytes) -> bool:
        try:
            os.unlink(self._path(target))
        except FileNotFoundError:
            existed = False
        else:
            existed = True
        ident = blob_id(target)
        self.usage.replace(self._index.get(ident), None)
        self._index.delete(ident)
        return existed

    def _drop(self, target: bytes, inode: int | None) -> None:
        path = self._path(target)
        with contextlib.suppress(FileNotFoundError):
            if inode is None:  # it could not be opened: see whether that is still so
                with contextlib.suppress(Corrupt):
                    open_blob(path, target)
                    return
            elif os.stat(path).st_ino != inode:
                return
        self._unlink(target)


class Usage:
    """Entries and bytes of each tenant; changed by the writer thread, read by anyone."""

    def __init__(self, index: Index) -> None:
        self._tenants: dict[tuple[str, str], list[int]] = {
            (bucket, namespace): [entries, size, disk]
            for bucket, namespace, entries, size, disk in index.usage()
        }

    def replace(self, old: Row | None, new: Row | None) -> None:
        """Take ``old`` out and ``new`` in; either may be None."""
        for row, sign in ((old, -1), (new, 1)):
            if row is not None:
                tenant = self._tenants.setdefault((row.bucket, row.namespace), [0, 0, 0])
                tenant[0] += sign
                tenant[1] += sign * row.size
                tenant[2] += sign * row.disk

    def snapshot(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        """(bucket, namespace) -> (entries, body bytes, allocated bytes); empty tenants left out."""
        return {
            tenant: (entries, size, disk)
            for tenant, (entries, size, disk) in list(self._tenants.items())
            if entries
        }


class Upload:
    """One object on its way in. Ends in :meth:`commit` or :meth:`abort`; both may be called."""

    def __init__(
        self,
        store: Store,
        key: Key,
        meta: Meta,
        condition: Condition | None,
        digests: Sequence[tuple[Any, bytes]],
    ) -> None:
        self._store = store
        self._key = key
        self._meta = meta
        self._condition = condition
        self._digests = digests
        self._buffer = bytearray()
        """One buffer, not the pieces: they may be of two bytes, and would be an object each."""
        self._size = 0
        self._announced = 0
        self._reserved = 0
        """Of what was announced, not on the disk yet: what is, the file system counts itself."""
        self._unsettled = 0
        self._writer: BlobWriter | None = None
        self._writing: asyncio.Future[None] | None = None
        self._is_handed_over = False
        """The writer thread has it: nobody else may touch the file any more."""

    def reserve(self, size: int) -> None:
        """Announce a body of ``size`` bytes in all.

        Raises:
            TooLarge: above the limit for one object.
            DiskFull: there is no room.
        """
        store = self._store
        if size > store.object_max_bytes:
            raise TooLarge(f"the object has more than {store.object_max_bytes} bytes")
        more = size - self._announced
        if more > 0:
            try:
                free_bytes = store.free_bytes
            except OSError as error:
                raise DiskError(f"the disk failed: {error.strerror}") from error
            if free_bytes - more < FREE_FLOOR_BYTES:
                raise DiskFull(f"no room for {size} bytes on this shard's disk")
            store.reserved_bytes += more
            self._reserved += more
            self._announced = size

    async def write(self, data: bytes) -> None:
        """Take the next bytes of the body; waits while the disk is behind.

        Raises:
            TooLarge, DiskFull, DiskError: the upload cannot go on; :meth:`abort` it.
        """
        self._buffer += data
        self._size += len(data)
        if self._size > self._announced:
            self.reserve(self._size + CHUNK_BYTES if self._size > CHUNK_BYTES else self._size)
        if len(self._buffer) >= CHUNK_BYTES:
            await self._settle()
            self._start_writing()

    async def commit(self) -> Meta:
        """Make the object visible; returns what was stored.

        Raises:
            DigestMismatch, PreconditionFailed, DiskFull, DiskError: nothing was stored.
        """
        await self._settle()
        store = self._store
        if self._writer is not None and self._buffer:
            self._start_writing()
            await self._settle()
        data = self._take()
        self._is_handed_over = True
        try:
            return await store._change(self._meta.target, lambda: _translate(self._finish, data))
        finally:
            self._release(self._reserved)

    async def abort(self) -> None:
        """Give the upload up; nothing of it stays. Harmless after :meth:`commit`."""
        self._buffer = bytearray()
        self._release(self._reserved)
        if not self._is_handed_over:
            with contextlib.suppress(Exception):
                await self._settle()
            if self._writer is not None:
                await self._store.in_thread(self._writer.discard)

    def _start_writing(self) -> None:
        self._unsettled = len(self._buffer)
        self._writing = self._store._loop.run_in_executor(
            self._store._readers, _translate, self._write, self._take()
        )

    async def _settle(self) -> None:
        """Wait for the thread that writes. It keeps running if whoever waits is cancelled."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
            self._writing = None
            self._release(min(self._unsettled, self._reserved))

    def _take(self) -> bytearray:
        data, self._buffer = self._buffer, bytearray()
        return data

    def _release(self, size: int) -> None:
        self._store.reserved_bytes -= size
        self._reserved -= size

    # In a thread: a reader's while the body comes, the writer's at the end.

    def _write(self, data: bytearray) -> None:
        if self._writer is None:
            store = self._store
            name = f"{os.getpid()}-{next(store._temp_names)}"
            self._writer = BlobWriter(store._temp / name, self._meta)
        self._writer.write(data)
        for digest, _ in self._digests:
            digest.update(data)

    def _finish(self, data: bytearray) -> Meta:
        try:
            if data or self._writer is None:
                self._write(data)
            writer = self._writer
            assert writer is not None
            for digest, expected in self._digests:
                if not hmac.compare_digest(digest.digest(), expected):
                    raise DigestMismatch(
                        f"the body's {digest.name} digest is {digest.hexdigest()}, "
                        f"not {expected.hex()} as sent; nothing was stored"
                    )
            meta = writer.finish()
            return self._store._commit(writer, self._key, meta, self._condition)
        except BaseException:
            if self._writer is not None:
                self._writer.discard()
            raise


def _translate(function: Callable[[A], T], argument: A) -> T:
    """Call, with the system's errors as ours."""
    try:
        return function(argument)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"no room for the object: {error.strerror}") from error
        raise DiskError(f"the disk failed: {error.strerror}") from error


def _present(path: str, target: bytes) -> Meta | None:
    try:
        return open_blob(path, target).meta
    except (FileNotFoundError, Corrupt):
        return None


def _prepare(directory: Path) -> int:
    """Make and lock the directories, clear the temporary one; returns the lock's descriptor."""
    try:
        for part in ("objects", "tmp"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        lock_fd = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise DataDirError(f"{directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_fd)
        raise DataDirError(f"{directory}: in use by another process") from error
    for leftover in (directory / "tmp").iterdir():
        leftover.unlink()
    return lock_fd


def _has_nowait(directory: Path) -> bool:
    """Whether the file system knows RWF_NOWAIT (memory file systems of older kernels do not)."""
    probe = directory / "probe"
    fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        os.pwrite(fd, b"x", 0)
        os.preadv(fd, (bytearray(1),), 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
        probe.unlink()
    return True
