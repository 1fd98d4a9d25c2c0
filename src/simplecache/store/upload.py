"""One object on its way in: bytes gathered, written to a temporary file, checked, handed over."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from simplecache.errors import DigestMismatch, DiskFull, PreconditionFailed, TooLarge
from simplecache.model import Key
from simplecache.store.blobs import BlobWriter, Meta

if TYPE_CHECKING:
    from simplecache.store.store import Store

CHUNK_BYTES: Final = 1 << 20
"""An upload's bytes are handed to the disk in pieces of this size; smaller bodies in one."""


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
            DiskError: the disk failed.
        """
        store = self._store
        if size > store.object_max_bytes:
            raise TooLarge(f"the object has more than {store.object_max_bytes} bytes")
        more = size - self._announced
        if more > 0:
            if not store.level.has_room(more):
                raise DiskFull(f"no room for {size} bytes on this shard")
            store.announced_bytes += more
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
            return await store._change(
                self._meta.target, lambda: store.disk.translate(self._finish, data)
            )
        finally:
            self._end()

    async def abort(self) -> None:
        """Give the upload up; nothing of it stays. Harmless after :meth:`commit`."""
        self._buffer = bytearray()
        self._end()
        if not self._is_handed_over:
            with contextlib.suppress(Exception):
                await self._settle()
            with contextlib.suppress(Exception):  # on a disk that failed: the next start removes it
                if self._writer is not None:
                    await self._store.in_thread(self._writer.discard)

    def _start_writing(self) -> None:
        self._unsettled = len(self._buffer)
        self._writing = self._store._loop.run_in_executor(
            self._store.disk.readers, self._store.disk.translate, self._write, self._take()
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

    def _end(self) -> None:
        """Nothing is announced any more: the entry counts itself, or is not there."""
        self._release(self._reserved)
        self._store.announced_bytes -= self._announced
        self._announced = 0

    def _release(self, size: int) -> None:
        self._store.reserved_bytes -= size
        self._reserved -= size

    # In a thread: a reader's while the body comes, the writer's at the end.

    def _write(self, data: bytearray) -> None:
        if self._writer is None:
            store = self._store
            name = f"{os.getpid()}-{next(store._temp_names)}"
            path = store._temp / name
            self._writer = store.disk.despite_shortage(BlobWriter, path, self._meta)
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
