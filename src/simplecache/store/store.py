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
import fcntl
import itertools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from simplecache.errors import DataDirError, DiskError, DiskFull, TooLarge
from simplecache.model import Bucket, Key
from simplecache.store.blobs import Blob, BlobWriter, Corrupt, Meta, blob_id, open_blob
from simplecache.store.capacity import Level
from simplecache.store.evictor import Evictor
from simplecache.store.index import Index, Row, Tombstone
from simplecache.store.notes import Notes, target_hash
from simplecache.store.repair import reconcile, row_of
from simplecache.store.upload import Condition, Upload, translate
from simplecache.store.usage import Usage
from simplecache.store.writer import Writer

log = logging.getLogger(__name__)
T = TypeVar("T")

READ_THREADS: Final = 8
"""Cold reads at the same time: enough for an NVMe's queue, few enough for memory."""
NOTES_MAX: Final = 512
"""Accesses worked off at once: a fraction of a millisecond."""
NOTES_WAITING_MAX: Final = 1 << 17
"""Accesses that may wait for the writer thread; beyond, they are not noted."""
ROOM_TIMEOUT_S: Final = 2.0
"""An upload waits at most so long until others have made room for it."""
SHARE_SAID: Final = 5
"""Probes that must agree on a new part of the ring before it counts."""
OVERHEAD_S: Final = 30.0
"""How often directories and index are measured."""
BLOCK: Final = 4096
"""File systems allocate in pieces of this size."""


class Store:
    """One directory of objects. Made and used on one event loop."""

    def __init__(
        self,
        directory: Path,
        *,
        object_max_bytes: int = 64 << 30,
        capacity_bytes: int = 1 << 62,
        open_max: int = 8192,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Lock and open ``directory``; remove what a crash left.

        Args:
            directory: made if it is missing.
            object_max_bytes: larger objects are refused.
            capacity_bytes: what all entries, directories and the index may take; the file
                system's free space is a limit anyway.
            open_max: object files kept open.
            clock: seconds since the Unix epoch.

        Raises:
            DataDirError: it cannot be made or written, or another process has it.
        """
        self.directory = directory
        self.object_max_bytes = object_max_bytes
        self.capacity_bytes = capacity_bytes
        self.announced_bytes = 0
        """By uploads under way, in all."""
        self.reserved_bytes = 0
        """Of these, not written yet."""
        self.corrupt_found = 0
        """Entries dropped since the start because their bytes were not what their sums say."""
        self.touched: list[bytes] = []
        """Targets that were asked for since the notes were last brought up to date."""
        self.now_ms = 0
        """The time at the last tick: what expiry is measured by."""
        self._clock = clock
        self._open_max = open_max
        self._open: dict[bytes, Blob] = {}
        self._changes = 0
        self._temp_names = itertools.count()
        self._objects = str(directory / "objects")
        self._temp = directory / "tmp"
        self._lock_fd = _prepare(directory)
        index = Index(directory / "index.db")
        self.usage = Usage(index.usage())
        self._index = index
        self.notes = Notes()
        self.evictor = Evictor(index, self.usage, self.notes, self._evict)
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(index, self._loop, lambda: index.close(self.usage.rows()))
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="reader")
        self._nowait = os.RWF_NOWAIT if _has_nowait(self._temp) else 0
        self._repair = None if index.is_clean else self._loop.create_task(self._reconcile())
        self._evicting: asyncio.Task[None] | None = None
        self._overhead = _overhead(directory)
        self._overhead_at = time.monotonic()
        self._share_said = 0
        self.is_configured = False
        """Whether the buckets are known; until then nothing is evicted."""
        self.is_full = False
        """At the last tick: an object of usual size takes another's place, or is not stored."""
        self.tick()

    # -- managing --------------------------------------------------------------------------

    def configure(self, buckets: Mapping[str, Bucket]) -> None:
        """Manage these buckets from now on; entries of others go away in the background."""
        self.is_configured = True
        self.evictor.shares = replace(self.evictor.shares, buckets=buckets)
        self._nudge()

    def set_ring_share(self, share: float) -> None:
        """This shard's part of the ring, by which the cluster's quotas are divided: 0 < share <= 1.

        It counts once it was said a few times in a row: while a cluster starts, shards are listed
        one after the other, and the first would take the whole quota away from itself.
        """
        if share == self.evictor.shares.ring_share:
            self._share_said = 0
            return
        self._share_said += 1
        if self._share_said >= SHARE_SAID:
            self.evictor.shares = replace(self.evictor.shares, ring_share=share)

    @property
    def level(self) -> Level:
        """How full the shard is."""
        status = os.statvfs(self._temp)
        return Level(
            used=self.usage.total_disk + self._overhead,
            announced=self.announced_bytes,
            unwritten=self.reserved_bytes,
            configured=self.capacity_bytes,
            free=status.f_bavail * status.f_frsize,
        )

    def tick(self) -> None:
        """Once a second: the time, the notes, and room ahead of need."""
        self.now_ms = int(self._clock() * 1000)
        self.take_notes()
        with contextlib.suppress(OSError):
            usual = self.usage.total_disk // max(1, self.usage.entries) + 2 * BLOCK
            self.is_full = not self.level.is_open(usual)
        if time.monotonic() - self._overhead_at > OVERHEAD_S:
            self._overhead_at = time.monotonic()
            self._readers.submit(self._measure)
        self._nudge()

    def take_notes(self) -> None:
        """Bring the notes up to date with what was asked for."""
        touched, self.touched = self.touched, []
        for at in range(0, min(len(touched), NOTES_WAITING_MAX), NOTES_MAX):
            part = touched[at : at + NOTES_MAX]
            self._writer.post(partial(self.notes.take, part, self.usage.entries))

    async def admits(self, key: Key, namespace: str, length: int | None) -> bool:
        """Whether an object should be stored now; makes room for it where it is to come.

        Raises:
            TooLarge: above the limit for one object.
            DiskFull: it should, and there is no room.
            DiskError: the disk failed.
        """
        if (length or 0) > self.object_max_bytes:
            raise TooLarge(f"the object has more than {self.object_max_bytes} bytes")
        try:
            level = self.level
        except OSError as error:
            raise DiskError(f"the disk failed: {error.strerror}") from error
        disk = (length or 0) + 2 * BLOCK
        quota = self.evictor.shares.quota(key.bucket)
        if disk > (level.limit if quota is None else min(quota, level.limit)):
            raise DiskFull(f"{disk} bytes are more than this shard may ever hold of the bucket")
        if level.is_open(disk) and not self.evictor.is_over_quota(key.bucket, disk):
            return True
        if not self.is_configured:
            return True
        if not await self._writer.run(partial(self._is_wanted, key, namespace, disk)):
            return False
        await self._make_room(key.bucket, disk)
        return True

    async def _make_room(self, bucket: str, disk: int) -> None:
        deadline = time.monotonic() + ROOM_TIMEOUT_S
        while self.evictor.is_over_quota(bucket, disk) or not self.level.has_room(disk):
            excess = max(1, self.level.excess(disk))
            has_freed = await self._writer.run(partial(self.evictor.step, excess, bucket, disk))
            if not has_freed or time.monotonic() > deadline:
                raise DiskFull(f"no room for {disk} bytes on this shard, and none can be made")
        self._nudge()

    def would_admit(self, target: bytes) -> bool:
        """A guess, without waiting, whether an object that is not here would be stored."""
        return self.evictor.would_admit(target_hash(target))

    async def why(self, key: Key) -> str:
        """Why an object is here, or is not, in a sentence."""
        return await self._writer.run(partial(self._why, key))

    async def purge(self, bucket: str, prefix: bytes) -> int:
        """Remove a bucket's entries whose target begins with ``prefix``; how many there were."""
        total = 0
        while more := await self._writer.run(partial(self.evictor.purge, bucket, prefix)):
            total += more
        return total

    def _nudge(self) -> None:
        """See to it that what must go goes, in the background."""
        if self.is_configured and (self._evicting is None or self._evicting.done()):
            self._evicting = self._loop.create_task(self._evict_all())

    async def _evict_all(self) -> None:
        while True:
            try:
                level = self.level
            except OSError:
                return
            excess = level.excess() if level.is_high else 0
            step = partial(self.evictor.step, excess)
            expire = partial(self.evictor.expire, self.now_ms // 1000)
            if not (await self._writer.run(step) or await self._writer.run(expire)):
                return

    def _measure(self) -> None:
        self._overhead = _overhead(self.directory)

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
        if blob.expires_ms and blob.expires_ms <= self.now_ms:
            return None
        return blob

    async def find(self, target: bytes) -> Blob | None:
        """As :meth:`find_now`, waiting for the disk in a thread.

        Raises:
            DiskError: the disk failed.
        """
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
        return None if 0 < blob.expires_ms <= self.now_ms else blob

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
        ttl_s: int | None = None,
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
            ttl_s: it goes after so long; None: never by age.
            condition: must hold when it becomes visible.
            digests: (hashlib object, expected digest) pairs to check the body by.

        Raises:
            TooLarge: above the limit for one object.
            DiskFull: there is no room.
        """
        now_ms = int(self._clock() * 1000)
        meta = Meta(
            key.target, 0, now_ms, b"", namespace, content_type, content_encoding,
            0 if ttl_s is None else now_ms + 1000 * ttl_s,
        )  # fmt: skip
        upload = Upload(self, key, meta, condition, digests)
        upload.reserve(length or 0)
        return upload

    async def delete(self, target: bytes) -> bool:
        """Remove an entry; False when there was none."""
        return await self._change(target, lambda: translate(self._delete, target))

    async def meta(self, target: bytes) -> Meta | None:
        """What is there under ``target``, for a condition that is checked before the body."""
        try:
            blob = self.find_now(target)
        except BlockingIOError:
            blob = await self.find(target)
        return None if blob is None else blob.meta

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
        if self._evicting is not None:
            self._evicting.cancel()
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
        queue = self.evictor.arrived((key.bucket, meta.namespace), target_hash(meta.target))
        row = row_of(key.bucket, meta, status, self._index, queue)
        self.usage.replace(self._index.get(row.id), row)
        self._index.put(row)
        return meta

    def _delete(self, target: bytes) -> bool:
        existed = self._unlink(target)
        if existed:
            self._bury(blob_id(target), "deleted", "")
        return existed

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
        if self._unlink(target):
            self._bury(blob_id(target), "corrupt", "")

    def _evict(self, row: Row, rule: str, favour: str) -> None:
        try:
            self._unlink(row.target)
        except OSError as error:  # it stays, and so does its row; another goes in its stead
            log.error("%r cannot be removed: %s", row.target, error)
            return
        self._bury(row.id, rule, favour)
        self._loop.call_soon_threadsafe(self._forget, row.target)

    def _bury(self, ident: bytes, rule: str, favour: str) -> None:
        self._index.bury(Tombstone(ident, int(self._clock()), rule, favour))

    def _is_wanted(self, key: Key, namespace: str, disk: int) -> bool:
        ident = blob_id(key.target)
        if self._index.get(ident) is not None:
            return True
        is_wanted = self.evictor.admits((key.bucket, namespace), target_hash(key.target), disk)
        if not is_wanted:
            self._bury(ident, "not admitted", "")
        return is_wanted

    def _why(self, key: Key) -> str:
        ident = blob_id(key.target)
        row = self._index.get(ident)
        now_s = int(self._clock())
        if row is not None and not 0 < row.expires_s <= now_s:
            who = f'namespace "{row.namespace}"' if row.namespace else "an anonymous caller"
            return f"it is here: {row.size} bytes, put {_ago(now_s - row.created_s)} ago by {who}"
        if row is not None:
            return f"it expired {_ago(now_s - row.expires_s)} ago"
        grave = self._index.tombstone(ident)
        if grave is None:
            return "it was never put here, or so long ago that nobody remembers"
        favour = f', in favour of bucket "{grave.favour}"' if grave.favour else ""
        ended = {
            "deleted": "it was deleted",
            "purged": "it was purged",
            "corrupt": "its bytes did not match their sums, so it was dropped,",
            "expired": "it expired",
            "removed": "its bucket was removed from the configuration",
            "quota": "it was evicted because its bucket was above its quota",
            "not admitted": "it was put but not kept, for the shard is full and what is there is "
            "wanted more;",
        }.get(grave.rule, f"it was evicted ({grave.rule})")
        return f"{ended} {_ago(now_s - grave.at_s)} ago{favour}"


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


def _overhead(directory: Path) -> int:
    """Allocated bytes of a shard's directory that belong to no entry: directories and index."""
    total = 0
    for path in (directory, directory / "tmp", directory / "objects"):
        total += os.stat(path).st_blocks * 512
        with os.scandir(path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if path.name != "tmp":
                        total += _blocks(entry, is_counted=path.name == "objects")
    return total


def _blocks(entry: os.DirEntry[str], *, is_counted: bool) -> int:
    """A directory below ``objects`` counts itself; the others are counted by their own turn."""
    if entry.is_dir() and not is_counted:
        return 0
    return entry.stat().st_blocks * 512


def _ago(seconds: int) -> str:
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}s"
    return f"{max(0, seconds)} s"
