"""One shard's directory: made, locked, measured and probed. ``docs/storage.md`` draws it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from simplecache.errors import DataDirError

PROBE_BYTES: Final = 4096


def lock(directory: Path) -> int:
    """Take the directory for this process; returns the lock's descriptor.

    Raises:
        DataDirError: another process has it, or it cannot be used.
    """
    try:
        lock_fd = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise DataDirError(f"{directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_fd)
        raise DataDirError(f"{directory}: in use by another process") from error
    return lock_fd


def prepare(directory: Path) -> int:
    """Make and lock the directory, remove what uploads left; returns the lock's descriptor.

    Raises:
        DataDirError: another process has it, or it cannot be used.
    """
    try:
        for part in ("objects", "tmp"):
            (directory / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataDirError(f"{directory}: {error.strerror}") from error
    lock_fd = lock(directory)
    try:
        for leftover in (directory / "tmp").iterdir():
            leftover.unlink()
    except OSError as error:
        os.close(lock_fd)
        raise DataDirError(f"{directory}: {error.strerror}") from error
    return lock_fd


def knows_nowait(fd: int) -> bool:
    """Whether the file system knows RWF_NOWAIT (memory file systems of older kernels do not)."""
    try:
        os.preadv(fd, (bytearray(1),), 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def is_displaced(directory: Path, lock_fd: int) -> bool:
    """Whether another directory than the locked one stands there now: its disk was remounted.

    Raises:
        OSError: none stands there, or the disk fails.
    """
    return not os.path.samestat(os.stat(directory / "LOCK"), os.fstat(lock_fd))


def probe(directory: Path, lock_fd: int) -> None:
    """Write, sync, read and remove a small file: whether the disk works. Blocks.

    Raises:
        OSError: it does not.
    """
    if is_displaced(directory, lock_fd):
        raise OSError(errno.ESTALE, "another directory stands in its place")
    path = directory / "tmp" / "probe"
    data = os.urandom(PROBE_BYTES)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        os.pwrite(fd, data, 0)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what is read comes from the disk
        if os.pread(fd, PROBE_BYTES, 0) != data:
            raise OSError(errno.EIO, "the disk gives other bytes than were written")
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(path)


def overhead(directory: Path) -> int:
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
