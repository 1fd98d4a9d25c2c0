"""Object files that describe themselves: their format, reading and writing.

A file is ``prefix | names | body | block sums``, all integers little-endian:

====================  =====================================================================
``MAGIC``             8 bytes; the last is the format's version
``meta_sum``          xxh3-64 of everything from here to the body
numbers               see ``_NUMBERS``: body offset, lengths, size, times, ETag, first sum
names                 target, namespace, content type, content encoding
body                  ``size`` bytes
block sums            one xxh3-64 for each ``BLOCK_BYTES`` of the body, if it has more than one
====================  =====================================================================

Rules it keeps:

* A file is trusted only as far as its sums go. The prefix is checked when it is opened; a body
  **whenever its bytes come from the disk**: small bodies at each read, large ones block by block
  before the block is first sent, and again when it has left the page cache or the file was touched.
* The name stands in the file: a hash collision or a misplaced file is a miss, no wrong answer.
* No fsync: after a power loss a file is whole or its sums say that it is not. A cache needs
  integrity, not durability.

Nothing here knows of SQLite, buckets' rights or HTTP.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from xxhash import xxh3_64, xxh3_64_intdigest, xxh3_128

from simplecache.errors import Malformed

MAGIC: Final = b"SCSblob\x01"
BLOCK_BYTES: Final = 1 << 20
"""What is checked at once: large enough that a sum (8 bytes) costs nothing, small enough that the
first byte of a large object is not late."""

Read = Callable[[int, int, int], bytes | bytearray]
"""As ``os.pread``: descriptor, length, offset."""

_HEAD: Final = struct.Struct("<8sQ")
_NUMBERS: Final = struct.Struct("<IHHHHQQQ16sQ")
"""body_at, target, namespace, type, encoding lengths, size, created_ms, expires_ms, etag, sum0."""
_NAMES_AT: Final = _HEAD.size + _NUMBERS.size
PREFIX_MAX_BYTES: Final = 8192
"""Prefix and names together: target 4,096 + 76, type 256, encoding 64, namespace 63 at most."""


class Corrupt(Malformed):
    """The file's bytes are not what its sums or its name say: it must be dropped."""


class Unreadable(Corrupt):
    """The disk could not give the file's bytes: as good as corrupt, and told apart for people."""


def blob_id(target: bytes) -> bytes:
    """16 bytes that name a target's file. The file repeats the target: a collision is a miss."""
    return blake2b(target, digest_size=16).digest()


def path_of(objects: str, ident: bytes) -> str:
    """Where the file of an id stands below ``objects``: 4,096 directories."""
    name = ident.hex()
    return f"{objects}/{name[:3]}/{name[3:]}"


@dataclass(frozen=True, slots=True)
class Meta:
    """What a file says of itself before its body."""

    target: bytes
    size: int
    created_ms: int
    """Since the Unix epoch, by the clock of the node."""
    etag: bytes
    """16 bytes: xxh3-128 of the body."""
    namespace: str = ""
    """Who put it; empty for anonymous."""
    content_type: bytes = b"application/octet-stream"
    content_encoding: bytes = b""
    expires_ms: int = 0
    """0: never."""

    @property
    def body_at(self) -> int:
        """Where the body begins; known before the body is."""
        return _NAMES_AT + sum(map(len, self._names()))

    def _names(self) -> tuple[bytes, bytes, bytes, bytes]:
        return self.target, self.namespace.encode(), self.content_type, self.content_encoding

    def encode(self, sum0: int) -> bytes:
        """The file's bytes up to the body. ``sum0`` is the sum of the body's first block."""
        names = self._names()
        numbers = _NUMBERS.pack(
            self.body_at, *map(len, names), self.size, self.created_ms, self.expires_ms,
            self.etag, sum0,
        )  # fmt: skip
        rest = numbers + b"".join(names)
        return _HEAD.pack(MAGIC, xxh3_64_intdigest(rest)) + rest


def decode(prefix: bytes | bytearray) -> tuple[Meta, int]:
    """The inverse of :meth:`Meta.encode`; more bytes may follow.

    Raises:
        Corrupt: other magic, too short, or the sum does not fit.
    """
    if len(prefix) < _NAMES_AT:
        raise Corrupt("the file is shorter than a prefix")
    magic, meta_sum = _HEAD.unpack_from(prefix)
    if magic != MAGIC:
        raise Corrupt(f"the file begins with {bytes(magic)!r}, not {MAGIC!r}")
    body_at, *lengths, size, created_ms, expires_ms, etag, sum0 = _NUMBERS.unpack_from(
        prefix, _HEAD.size
    )
    if not _NAMES_AT + sum(lengths) == body_at <= len(prefix):
        raise Corrupt("the prefix's lengths do not add up")
    if xxh3_64_intdigest(prefix[_HEAD.size : body_at]) != meta_sum:
        raise Corrupt("the prefix does not match its sum")
    at, names = _NAMES_AT, []
    for length in lengths:
        names.append(bytes(prefix[at : at + length]))
        at += length
    target, namespace, content_type, content_encoding = names
    meta = Meta(
        target, size, created_ms, etag, namespace.decode(), content_type, content_encoding,
        expires_ms,
    )  # fmt: skip
    return meta, sum0


def block_count(size: int) -> int:
    """Blocks of a body of ``size`` bytes; at least one."""
    return max(1, -(-size // BLOCK_BYTES))


def file_bytes(meta: Meta) -> int:
    """The length of the file that holds ``meta`` and its body."""
    blocks = block_count(meta.size)
    return meta.body_at + meta.size + (8 * blocks if blocks > 1 else 0)


class Blob:
    """One open object file; the descriptor is closed when the last reference is gone.

    Reading never blocks the loop: ``*_now`` raises BlockingIOError where bytes are not in the page
    cache, and the caller goes on with the blocking twin in a thread.
    """

    __slots__ = (
        "_stamp",
        "_sums",
        "body_at",
        "expires_ms",
        "fd",
        "head",
        "meta",
        "size",
        "sum0",
        "verified",
    )

    def __init__(self, fd: int, meta: Meta, sum0: int, stamp: int) -> None:
        self.fd = fd
        self._stamp = stamp
        self.meta = meta
        self.size = meta.size
        self.body_at = meta.body_at
        self.expires_ms = meta.expires_ms
        self.sum0 = sum0
        self._sums: tuple[int, ...] | None = None if block_count(meta.size) > 1 else (sum0,)
        self.verified = bytearray(block_count(meta.size))
        """One byte a block: 1 once its bytes were checked in this process."""
        self.head = b""
        """Room for the reader's prepared response head; empty until it fills it."""

    def __del__(self) -> None:
        os.close(self.fd)

    def __repr__(self) -> str:
        return f"<Blob fd={self.fd} {self.meta.target!r} size={self.size}>"

    def read_now(self) -> bytearray:
        """The whole body of a small object, checked, out of the page cache.

        Raises:
            BlockingIOError: (a part of) it would have to come from the disk, or the file system
                cannot tell (some in memory do not know RWF_NOWAIT).
            Corrupt: it is not what its sum says.
        """
        body = bytearray(self.size)
        try:
            if self.size and os.preadv(self.fd, (body,), self.body_at, os.RWF_NOWAIT) != self.size:
                raise BlockingIOError
        except OSError as error:
            raise BlockingIOError from error
        if xxh3_64_intdigest(body) != self.sum0:
            raise Corrupt("the body does not match its sum")
        return body

    def read(self) -> bytearray:
        """As :meth:`read_now`, waiting for the disk."""
        body = bytearray(self.size)
        if self.size and os.preadv(self.fd, (body,), self.body_at) != self.size:
            raise Corrupt("the file is shorter than it says")
        if xxh3_64_intdigest(body) != self.sum0:
            raise Corrupt("the body does not match its sum")
        return body

    def check_untouched(self) -> None:
        """Forget what was verified if the file was written to since (rot by a stray program)."""
        stamp = os.fstat(self.fd).st_mtime_ns
        if stamp != self._stamp:
            self._stamp = stamp
            self.verified = bytearray(len(self.verified))

    def is_ready(self, block: int) -> bool:
        """Whether ``block`` was checked and, by a probe of its ends, still is in the page cache."""
        if not self.verified[block]:
            return False
        start = self.body_at + block * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, self.body_at + self.size) - 1
        probe = bytearray(1)
        try:
            os.preadv(self.fd, (probe,), start, os.RWF_NOWAIT)
            os.preadv(self.fd, (probe,), end, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # a file system without RWF_NOWAIT is one in memory
            return True
        return True

    def verify(self, block: int, read: Read | None = None) -> None:
        """Read a block, which brings it into the page cache, and check it. Blocks on the disk.

        Args:
            block: its number.
            read: what reads, instead of ``os.pread``.

        Raises:
            Corrupt: it is not what its sum says.
        """
        read = read or os.pread
        if self._sums is None:
            table = read(self.fd, 8 * block_count(self.size), self.body_at + self.size)
            if len(table) != 8 * block_count(self.size):
                raise Corrupt("the file is shorter than it says")
            self._sums = struct.unpack(f"<{len(table) // 8}Q", table)
        length = min(BLOCK_BYTES, self.size - block * BLOCK_BYTES)
        data = read(self.fd, length, self.body_at + block * BLOCK_BYTES)
        if len(data) != length or xxh3_64_intdigest(data) != self._sums[block]:
            raise Corrupt(f"block {block} of the body does not match its sum")
        self.verified[block] = 1


def open_blob(path: str, target: bytes | None, flags: int = 0, *, reads_ahead: bool = True) -> Blob:
    """Open and check a file's prefix. ``target`` None takes whatever name the file bears.

    Args:
        path: the file.
        target: the name that it must bear.
        flags: ``os.RWF_NOWAIT`` to take the prefix from the page cache only.
        reads_ahead: the kernel may bring in more than is asked for.

    Raises:
        FileNotFoundError: there is none.
        BlockingIOError: with RWF_NOWAIT, the prefix would have to come from the disk.
        Corrupt: it is not a whole object file, or another target's.
        OSError: the disk failed.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not reads_ahead:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        status = os.fstat(fd)
        prefix = bytearray(min(PREFIX_MAX_BYTES, status.st_size))
        if os.preadv(fd, (prefix,), 0, flags) != len(prefix):
            raise BlockingIOError
        meta, sum0 = decode(prefix)
        _check(meta, target, status.st_size)
    except BaseException:
        os.close(fd)
        raise
    return Blob(fd, meta, sum0, status.st_mtime_ns)


def _check(meta: Meta, target: bytes | None, length: int) -> None:
    if target is not None and meta.target != target:
        raise Corrupt(f"the file holds {meta.target!r}, not {target!r}")
    if length != file_bytes(meta):
        raise Corrupt("the file's length is not what its prefix says")


class BlobWriter:
    """Writes one object file under a temporary path; ends in :meth:`finish` or :meth:`discard`.

    All methods block on the disk, except :meth:`feed`, which only sums: call them from a thread.
    """

    def __init__(self, path: Path, meta: Meta) -> None:
        """``meta``'s size and etag need not be right yet: :meth:`finish` fills them in."""
        self.path = path
        self.meta = meta
        self.size = 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._etag = xxh3_128()
        self._block = xxh3_64()
        self._block_left = BLOCK_BYTES
        self._sums: list[int] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append to the body.

        Raises:
            OSError: ENOSPC, EFBIG, EIO and the like; :meth:`discard` is still to be called.
        """
        view = memoryview(data)
        _write_all(self._fd, view, self.meta.body_at + self.size)
        self.size += len(view)
        self._etag.update(view)
        while len(view) >= self._block_left:
            self._block.update(view[: self._block_left])
            view = view[self._block_left :]
            self._sums.append(self._block.intdigest())
            self._block, self._block_left = xxh3_64(), BLOCK_BYTES
        self._block.update(view)
        self._block_left -= len(view)

    def finish(self) -> Meta:
        """Write what stands before and after the body, and close. The file is then whole.

        Raises:
            OSError: as :meth:`write`.
        """
        if self._block_left < BLOCK_BYTES or not self._sums:
            self._sums.append(self._block.intdigest())
        meta = Meta(
            self.meta.target, self.size, self.meta.created_ms, self._etag.digest(),
            self.meta.namespace, self.meta.content_type, self.meta.content_encoding,
            self.meta.expires_ms,
        )  # fmt: skip
        if len(self._sums) > 1:
            table = struct.pack(f"<{len(self._sums)}Q", *self._sums)
            _write_all(self._fd, memoryview(table), meta.body_at + self.size)
        _write_all(self._fd, memoryview(meta.encode(self._sums[0])), 0)
        fd, self._fd = self._fd, -1
        os.close(fd)
        return meta

    def discard(self) -> None:
        """Close and remove the temporary file; harmless after :meth:`finish` and twice."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        self.path.unlink(missing_ok=True)


def _write_all(fd: int, view: memoryview, at: int) -> None:
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written
