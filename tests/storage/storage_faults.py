"""Faults for storage tests: a process that dies between two system calls, rot, and failing disks."""

import contextlib
import errno
import os
import random
from pathlib import Path

from simplecache.store import writer
from simplecache.store.blobs import BLOCK_BYTES, block_count
from simplecache.store.index import Index


class Crash(BaseException):
    """The process is dead: nothing it does from here on reaches the disk."""


class DyingProcess:
    """Lets everything that changes the disk fail from the k-th system call on.

    The index's transactions count as calls, too. It is as deterministic as the store is: the index
    is only written when a test or the store itself says so, not by time.
    """

    CALLS = ("open", "pwrite", "rename", "unlink", "mkdir")

    def __init__(self, directory):
        self._directory = str(directory)
        self.is_dead = False
        self.calls = 0
        """So many were made in all."""
        self._left = None
        self._way = "before"
        self._fds = set()
        self._real = {name: getattr(os, name) for name in (*self.CALLS, "close")}
        self._flush = Index.flush
        self._flush_s = writer.FLUSH_S

    def __enter__(self):
        for name in self.CALLS:
            setattr(os, name, self._wrap(name))
        os.close = self._close
        Index.flush = lambda index: self._flush_or_die(index)  # noqa: PLW0108 - it is bound so
        writer.FLUSH_S = 3600.0
        return self

    def __exit__(self, *_):
        for name, real in self._real.items():
            setattr(os, name, real)
        Index.flush = self._flush
        writer.FLUSH_S = self._flush_s

    def die_after(self, calls, way):
        """Die at the next call but so many: before it, in its middle, or right after it."""
        self._left, self._way = calls, way

    def spare(self):
        """It does not die after all."""
        self._left = None

    def live(self):
        """The next process begins."""
        self.is_dead, self._left = False, None
        for fd in self._fds:
            with contextlib.suppress(OSError):
                self._real["close"](fd)
        self._fds.clear()

    def _wrap(self, name):
        real = self._real[name]

        def call(*args, **options):
            if not self._is_change(name, args):
                return real(*args, **options)
            is_last = self._step()
            if is_last and self._way == "before":
                raise Crash
            if is_last and self._way == "middle" and name == "pwrite":
                real(args[0], args[1][: len(args[1]) // 2], args[2])
                raise Crash
            result = real(*args, **options)
            if name == "open":
                self._fds.add(result)
            if is_last:
                raise Crash
            return result

        return call

    def _is_change(self, name, args):
        if name == "pwrite":
            return args[0] in self._fds
        is_ours = os.fspath(args[0]).startswith(self._directory)
        return is_ours and (name != "open" or args[1] & (os.O_WRONLY | os.O_RDWR))

    def _close(self, fd):
        self._fds.discard(fd)
        self._real["close"](fd)

    def _flush_or_die(self, index):
        if self.is_dead:
            return False
        is_last = self._left == 0
        with contextlib.suppress(Crash):
            self._step()
        if is_last and self._way == "before":
            return False
        return self._flush(index)

    def _step(self):
        """Count; whether the process dies at this call."""
        if self.is_dead:
            raise Crash
        self.calls += 1
        if self._left is None:
            return False
        self._left -= 1
        self.is_dead = self._left < 0
        return self.is_dead


def object_files(directory):
    return sorted(Path(directory).glob("objects/*/*"))


def blocks_of(directory):
    """Allocated bytes of a shard's objects, as ``du`` counts them."""
    return sum(path.stat().st_blocks * 512 for path in object_files(directory))


def flip_bit(path, rng=random):
    """Rot: one bit of a file, as a stray write."""
    at = rng.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def read_all(blob):
    """A blob's body, checked block by block as a large answer is."""
    for block in range(block_count(blob.size)):
        blob.verify(block)
    body = os.pread(blob.fd, blob.size, blob.body_at)
    assert len(body) == blob.size
    assert BLOCK_BYTES
    return body


class FailingDisk:
    """Lets named calls of ``os`` fail with an error, where ``applies`` says so."""

    def __init__(self, monkeypatch, *names, error=errno.EIO, applies=lambda *_: True):
        self.failures = 0
        self.is_failing = True
        for name in names:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), error, applies))

    def _wrap(self, real, error, applies):
        def call(*args, **options):
            if self.is_failing and applies(*args):
                self.failures += 1
                raise OSError(error, os.strerror(error))
            return real(*args, **options)

        return call
