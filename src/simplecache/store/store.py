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
5. A disk that fails costs the entries that it hits, and never a wrong answer (``health.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from simplecache.errors import DiskError, DiskFull, TooLarge
from simplecache.model import Bucket, Key
from simplecache.store.blobs import (
    Blob,
    BlobWriter,
    Corrupt,
    Meta,
    Unreadable,
    blob_id,
    open_blob,
    path_of,
)
from simplecache.store.capacity import Level
from simplecache.store.clock import steady
from simplecache.store.directory import overhead
from simplecache.store.disk import Disk
from simplecache.store.evictor import Evictor
from simplecache.store.health import is_shortage
from simplecache.store.index import Index, Row, Tombstone
from simplecache.store.notes import Notes, target_hash
from simplecache.store.opened import OpenBlobs
from simplecache.store.repair import Hands, Walker, reconcile, row_of
from simplecache.store.scrub import Scrubber
from simplecache.store.upload import Condition, Upload
from simplecache.store.usage import Usage
from simplecache.store.why import tell
from simplecache.store.writer import Writer

log = logging.getLogger(__name__)
T = TypeVar("T")

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
DOUBT_RETRY_S: Final = 2.0
"""Between two attempts to make rows and files agree, when the index failed meanwhile."""


class Store:
    """One directory of objects. Made and used on one event loop."""

    def __init__(  # noqa: PLR0913 - what a shard is told of its storage
        self,
        directory: Path,
        *,
        object_max_bytes: int = 64 << 30,
        capacity_bytes: int = 1 << 62,
        open_max: int = 8192,
        scrub_rate: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Lock and open ``directory``; remove what a crash left.

        Args:
            directory: made if it is missing.
            object_max_bytes: larger objects are refused.
            capacity_bytes: what all entries, directories and the index may take; the file
                system's free space is a limit anyway.
            open_max: object files kept open.
            scrub_rate: bytes per second that the scrubber reads; 0: only when a check is asked for.
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
        self._clock = steady(clock)
        self._open = OpenBlobs(open_max)
        self._temp_names = itertools.count()
        self._objects = str(directory / "objects")
        self._temp = directory / "tmp"
        self.disk = Disk(directory, self._open.close_some)
        self.in_thread = self.disk.in_thread
        try:
            index = Index(directory / "index.db")
            self._overhead = overhead(directory)
        except BaseException:
            self.disk.close()
            raise
        self.usage = Usage(index.usage())
        index.ledger = self.usage
        index.is_clean |= not self.usage.entries and not os.listdir(self._objects)
        self._index = index
        self.notes = Notes()
        self.evictor = Evictor(index, self.usage, self.notes, self._evict)
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(index, self._loop, index.close)
        hands = Hands(self.disk.in_readers, self._writer.run, self._drop_rotten)
        self._walker = Walker(self._objects, index, self.usage, hands)
        self.scrubber = Scrubber(
            self._objects, index, self.usage, hands, nowait=self.disk.nowait, rate=scrub_rate
        )
        self._doomed: set[bytes] = set()
        """Targets found to be bad whose files are not removed yet: misses, also to a HEAD."""
        self._repair: asyncio.Task[None] | None = None
        self._evicting: asyncio.Task[None] | None = None
        self._overhead_at = time.monotonic()
        self._share_said = 0
        self.is_configured = False
        """Whether the buckets are known; until then nothing is evicted."""
        self.is_full = False
        """At the last tick: an object of usual size takes another's place, or is not stored."""
        self.tick()
        self._scrubbing = self._loop.create_task(self._scrub())

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
        """How full the shard is.

        Raises:
            DiskError: the disk failed.
        """
        status = self.disk.translate(os.statvfs, self._temp)
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
        self._open.regain()
        if not self._index.is_clean and self.is_reconciled:
            self._repair = self._loop.create_task(self._reconcile())
        self.disk.tick()
        with contextlib.suppress(DiskError):
            usual = self.usage.total_disk // max(1, self.usage.entries) + 2 * BLOCK
            self.is_full = not self.level.is_open(usual)
        if time.monotonic() - self._overhead_at > OVERHEAD_S:
            self._overhead_at = time.monotonic()
            self.disk.readers.submit(self._measure)
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
        self.disk.refuse_on_probation()
        level = self.level
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
            except DiskError:
                return
            excess = level.excess() if level.is_high else 0
            step = partial(self.evictor.step, excess)
            expire = partial(self.evictor.expire, self.now_ms // 1000)
            if not (await self._writer.run(step) or await self._writer.run(expire)):
                return

    def _measure(self) -> None:
        with contextlib.suppress(OSError):
            self._overhead = overhead(self.directory)

    # -- reading ---------------------------------------------------------------------------

    def find_now(self, target: bytes) -> Blob | None:
        """The open blob of ``target``, or None when there is none.

        Raises:
            BlockingIOError: it would have to come from the disk; use :meth:`find`.
        """
        blob = self._open.get(target)
        if blob is None:
            if target in self._doomed:
                return None
            try:
                blob = open_blob(self._path(target), target, self.disk.nowait)
            except FileNotFoundError:
                return None
            except Corrupt as error:
                self.drop(target, error)
                return None
            except (
                OSError
            ) as error:  # a failing disk, no descriptors: the slow way knows what to do
                raise BlockingIOError from error
            self._open.remember(target, blob)
        if blob.expires_ms and blob.expires_ms <= self.now_ms:
            return None
        return blob

    async def find(self, target: bytes) -> Blob | None:
        """As :meth:`find_now`, waiting for the disk in a thread. What it cannot read is a miss.

        Raises:
            Overloaded: the process has no descriptor left.
        """
        if target in self._doomed:
            return None
        changes = self._open.changes
        try:
            blob = await self.in_thread(open_blob, self._path(target), target)
        except FileNotFoundError:
            return None
        except Corrupt as error:
            self.drop(target, error)
            return None
        if changes == self._open.changes:
            self._open.remember(target, blob)
        return None if 0 < blob.expires_ms <= self.now_ms else blob

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
            self._open.forget(target)
        inode = os.fstat(blob.fd).st_ino if blob is not None else None
        rule = "unreadable" if isinstance(why, Unreadable) else "corrupt"
        self._doomed.add(target)
        self._writer.post(partial(self._drop_doomed, target, inode, rule))

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
            DiskError: the disk failed, or is on probation.
        """
        self.disk.refuse_on_probation()
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
        return await self._change(target, lambda: self.disk.translate(self._delete, target))

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
        """Whether nothing is being done to make rows and files match (after a crash)."""
        return _is_over(self._repair)

    async def close(self) -> None:
        """Finish what was posted and mark the index clean. Uploads must have ended."""
        await self.scrubber.stop()
        tasks = [t for t in (self._repair, self._evicting, self._scrubbing) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.run_in_executor(None, self._writer.stop)
        self._open.clear()
        self.disk.close()

    # -- inside ----------------------------------------------------------------------------

    def _path(self, target: bytes) -> str:
        return path_of(self._objects, blob_id(target))

    async def _change(self, target: bytes, function: Callable[[], T]) -> T:
        """Let the writer thread change ``target``, and forget the old version when it has.

        It happens also when whoever waits is cancelled (a client that is gone): forgetting it then
        would be too early, and a reader in between would keep the old version open for ever.
        """
        change = self._writer.run(function)
        change.add_done_callback(lambda _: self._open.forget(target))  # before anyone hears of it
        return await asyncio.shield(change)

    async def _reconcile(self) -> None:
        """Make rows and files agree, until there is no doubt left."""
        is_trusted = False
        while not is_trusted:
            began, doubts = time.monotonic(), self._index.doubts
            try:
                found = await reconcile(self._walker, self.usage, self._writer.run)
            except sqlite3.Error as error:
                log.warning("%s: index not reconciled yet: %s", self.directory, error)
            else:
                log.info(
                    "%s: index reconciled in %.1f s: %d rows added, %d corrected, %d removed",
                    self.directory, time.monotonic() - began,
                    found.without_row, found.wrong_rows, found.without_file,
                )  # fmt: skip
                is_trusted = await self._writer.run(partial(self._trust, doubts))
            if not is_trusted:
                await asyncio.sleep(DOUBT_RETRY_S)

    async def _scrub(self) -> None:
        if self._repair is not None:
            await asyncio.wait([self._repair])
        await self.scrubber.run()

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
        row = row_of(key.bucket, meta, status, queue=queue, seq=self._index.next_seq())
        self.usage.replace(self._index.get(row.id), row)
        self._index.put(row)
        return meta

    def _trust(self, doubts: int) -> bool:
        """Rows and files agree, unless rows were lost since there were so many doubts."""
        self._index.is_clean = self._index.doubts == doubts
        return self._index.is_clean

    def _delete(self, target: bytes) -> bool:
        ident = blob_id(target)
        existed = self._unlink(ident)
        if existed:
            self._bury(ident, "deleted", "")
        return existed

    def _unlink(self, ident: bytes) -> bool:
        try:
            os.unlink(path_of(self._objects, ident))
        except FileNotFoundError:
            existed = False
        else:
            existed = True
        self.usage.replace(self._index.get(ident), None)
        self._index.delete(ident)
        return existed

    def _drop_doomed(self, target: bytes, inode: int | None, rule: str) -> None:
        try:
            self._drop(target, inode, rule)
        finally:
            self._loop.call_soon_threadsafe(self._doomed.discard, target)

    def _drop(self, target: bytes, inode: int | None, rule: str) -> None:
        path = self._path(target)
        try:
            if inode is None:  # it could not be opened: see whether that is still so
                with contextlib.suppress(Corrupt):
                    open_blob(path, target)
                    return
            elif os.stat(path).st_ino != inode:
                return
        except FileNotFoundError:
            return
        except OSError as error:
            if is_shortage(error):
                return
        try:
            if self._unlink(blob_id(target)):
                self._bury(blob_id(target), rule, "")
        except OSError as error:
            log.error("%r cannot be removed: %s", target, error.strerror)
            self.disk.note(error)

    def _drop_rotten(self, ident: bytes, rule: str) -> None:
        """What a walk found: the loop may have the file open, and must count it."""
        row = self._index.get(ident)
        self._unlink(ident)
        self._bury(ident, rule, "")
        self._loop.call_soon_threadsafe(self._note_rotten, row and row.target)

    def _note_rotten(self, target: bytes | None) -> None:
        self.corrupt_found += 1
        if target is not None:
            self._open.forget(target)

    def _evict(self, row: Row, rule: str, favour: str) -> bool:
        try:
            self._unlink(row.id)
        except OSError as error:  # it stays, and so does its row
            log.error("%r cannot be removed: %s", row.target, error.strerror)
            self.disk.note(error)
            return False
        self._bury(row.id, rule, favour)
        self._loop.call_soon_threadsafe(self._open.forget, row.target)
        return True

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
        return tell(self._index.get(ident), self._index.tombstone(ident), int(self._clock()))


def _present(path: str, target: bytes) -> Meta | None:
    try:
        return open_blob(path, target).meta
    except (OSError, Corrupt):  # what cannot be read is not there
        return None


def _is_over(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()
