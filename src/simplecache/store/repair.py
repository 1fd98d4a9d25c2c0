"""Making rows and files agree: one directory at a time, while the shard serves, or offline.

Three walks share this code: after a crash (:func:`reconcile`), the scrubber's rounds (``scrub.py``)
and ``scs check`` (``check.py``). Theory: files win. One without its row gets one, a row without a
file goes away, a row that says something else than its file is written again, and a file that is
not whole, or not where it belongs, is dropped.

Listing and reading happen in a thread that may wait for the disk; what they found is settled in the
writer thread, in short jobs, and only where the file is still the one that was looked at: its own
change has done the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Final, NamedTuple, Self

from xxhash import xxh3_64_intdigest

from simplecache.errors import InvalidName
from simplecache.model import Key
from simplecache.store.blobs import (
    Corrupt,
    Meta,
    Unreadable,
    blob_id,
    open_blob,
    path_of,
)
from simplecache.store.health import is_shortage
from simplecache.store.index import Index, Row
from simplecache.store.notes import group_number, group_of
from simplecache.store.policies import MAIN, SMALL
from simplecache.store.usage import Usage

log = logging.getLogger(__name__)

STEPS: Final = 1 << 8
"""A walk goes through the shard's 4,096 directories by sixteen at a time."""
SLICE_MAX: Final = 512
"""Entries compared by one job of the writer thread: a few milliseconds. What is larger is cut into
sixteen slices, and again."""
CHUNK_ENTRIES: Final = 32
CHUNK_BYTES: Final = 64 << 20
"""Files looked at, and settled, together."""
PROBLEMS_MAX: Final = 20
DRIFT_BYTES: Final = 4096
DRIFT_PER: Final = 64 << 20
"""A file system may allocate a block of its own for each so many bytes of a file when it writes
them, after they were counted: such a difference is corrected and is no finding."""

_NAME = re.compile(r"[0-9a-f]{29}")


@dataclass(slots=True)
class Findings:
    """What a walk has seen, and what was wrong. All are counts, of files unless said otherwise."""

    entries: int = 0
    """Whole, and where they belong."""
    disk: int = 0
    """Their allocated bytes."""
    corrupt: int = 0
    unreadable: int = 0
    without_row: int = 0
    without_file: int = 0
    """Rows."""
    wrong_rows: int = 0
    """Rows that say something else than their file."""
    strays: int = 0
    """Leftovers of uploads, and whatever else is no object."""
    wrong_figures: int = 0
    """Tenants whose figures were not what their rows add up to."""
    index_faults: int = 0
    """Databases that were not whole."""
    problems: list[str] = field(default_factory=list)
    """The first few, in words."""

    def __iadd__(self, other: Findings) -> Self:
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.problems = (self.problems + other.problems)[:PROBLEMS_MAX]
        return self

    def note(self, what: str, problem: str) -> None:
        """Count one finding. Those that are many after a crash are not for the log."""
        if what not in {"without_row", "without_file", "wrong_rows"}:
            log.error("%s: %s", what, problem)
        setattr(self, what, getattr(self, what) + 1)
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)

    @property
    def total(self) -> int:
        """How much was wrong; 0: nothing."""
        return sum(getattr(self, name) for name in COUNTS if name not in {"entries", "disk"})


COUNTS: Final = tuple(f.name for f in fields(Findings) if f.name != "problems")

Look = Callable[[str], tuple[Meta, os.stat_result]]
"""Path -> what the file says of itself. Raises Corrupt, or the system's errors."""


def look_at_prefix(path: str) -> tuple[Meta, os.stat_result]:
    """The cheapest look: what stands before the body."""
    blob = open_blob(path, None)
    return blob.meta, os.fstat(blob.fd)


class _Fact(NamedTuple):
    """What a look at one file found."""

    ident: bytes
    stamp: int
    row: Row | None
    why: Exception | None


Change = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Hands:
    """How a walk gets things done."""

    read: Change
    """Run it where waiting for the disk is allowed."""
    change: Change
    """Run it where nothing else changes the shard (the writer thread)."""
    drop: Callable[[bytes, str], object]
    """In there: remove an id's file and row, and note by which rule."""
    mends: bool = True
    """False: count only."""


class Walker:
    """Compares the files of one shard with its rows, and mends what differs."""

    def __init__(self, objects: str, index: Index, usage: Usage, hands: Hands) -> None:
        self._objects = objects
        self._index = index
        self._usage = usage
        self._hands = hands

    async def walk(self, step: int, look: Look, *, is_deep: bool) -> Findings:
        """Compare the directories of one step.

        Args:
            step: of ``STEPS``.
            look: at a file.
            is_deep: at every file; otherwise only where row and file seem to differ.

        Raises:
            sqlite3.Error: the index does not tell what it has.
        """
        found = Findings()
        hands = self._hands
        files = await hands.read(partial(self._list_all, step, found))
        for first, last in _slices(step, files):
            part = {ident: s for ident, s in files.items() if first <= _slot(ident) <= last}
            suspects, lost = await hands.change(partial(self._compare, first, last, part))
            for idents in _chunks(lost, {}):
                await hands.change(partial(self._settle_lost, idents, found))
            for idents in _chunks(list(part) if is_deep else suspects, part):
                facts = await hands.read(partial(self._look, look, idents, part))
                await hands.change(partial(self._settle, facts, found))
        return found

    # -- reading ---------------------------------------------------------------------------

    def _list_all(self, step: int, found: Findings) -> dict[bytes, os.stat_result]:
        """Each object file's status by id."""
        files: dict[bytes, os.stat_result] = {}
        for number in range(step << 4, (step + 1) << 4):
            prefix = f"{number:03x}"
            path = f"{self._objects}/{prefix}"
            try:
                self._list(path, prefix, files, found)
            except FileNotFoundError:
                continue
            except NotADirectoryError:
                self.take_stray(path, found)
            except OSError as error:
                found.note("unreadable", f"{path}: {error.strerror}")
        return files

    def _list(
        self, path: str, prefix: str, files: dict[bytes, os.stat_result], found: Findings
    ) -> None:
        with os.scandir(path) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        ident = bytes.fromhex(prefix + entry.name)
                        files[ident] = entry.stat(follow_symlinks=False)
                else:
                    self.take_stray(entry.path, found)

    def take_stray(self, path: str, found: Findings) -> None:
        """Note, and remove, what is no object."""
        found.note("strays", f"{path}: is no object")
        if self._hands.mends:
            remove_stray(path)

    def _look(
        self, look: Look, idents: Sequence[bytes], files: Mapping[bytes, os.stat_result]
    ) -> list[_Fact]:
        facts = (self._look_at(look, ident, stamp_of(files[ident])) for ident in idents)
        return [fact for fact in facts if fact is not None]

    def _look_at(self, look: Look, ident: bytes, stamp: int) -> _Fact | None:
        path = path_of(self._objects, ident)
        try:
            meta, status = look(path)
            key = Key.from_target(meta.target)
            if blob_id(meta.target) != ident:
                raise Corrupt(f"the file holds {meta.target!r}, which belongs elsewhere")
        except FileNotFoundError:
            return None
        except (Corrupt, InvalidName) as error:
            return _Fact(ident, stamp, None, error)
        except OSError as error:
            if is_shortage(error):
                return None
            return _Fact(ident, stamp, None, Unreadable(f"the disk failed: {error.strerror}"))
        return _Fact(ident, stamp_of(status), row_of(key.bucket, meta, status), None)

    # -- settling, in the writer thread ----------------------------------------------------

    def _compare(
        self, first: int, last: int, files: Mapping[bytes, os.stat_result]
    ) -> tuple[list[bytes], list[bytes]]:
        """Ids of files that deserve a look, and of rows whose file was not listed."""
        rows = self._index.between(first, last)
        self._usage.count(first, last, rows.values())
        suspects = []
        for ident, status in files.items():
            row = rows.pop(ident, None)
            if row is None or row.stamp != stamp_of(status) or row.disk != disk_of(status):
                suspects.append(ident)
        return suspects, list(rows)

    def _settle_lost(self, idents: Iterable[bytes], found: Findings) -> None:
        for ident in idents:
            path = path_of(self._objects, ident)
            row = self._index.get(ident)
            if row is None or not _is_gone(path):
                continue
            found.note("without_file", f"{row.target!r} has a row and no file")
            if self._hands.mends:
                self._usage.replace(row, None)
                self._index.delete(ident)

    def _settle(self, facts: Iterable[_Fact], found: Findings) -> None:
        for fact in facts:
            path = path_of(self._objects, fact.ident)
            try:
                status = os.stat(path)
            except OSError:
                continue
            if stamp_of(status) != fact.stamp:
                continue
            if fact.row is not None:
                self._settle_row(fact.row, status, found)
                continue
            is_unreadable = isinstance(fact.why, Unreadable)
            found.note("unreadable" if is_unreadable else "corrupt", f"{path}: {fact.why}")
            if self._hands.mends:
                try:
                    self._hands.drop(fact.ident, "unreadable" if is_unreadable else "corrupt")
                except OSError as error:
                    log.error("%s cannot be removed: %s", path, error.strerror)

    def _settle_row(self, row: Row, status: os.stat_result, found: Findings) -> None:
        found.entries += 1
        found.disk += disk_of(status)
        old = self._index.get(row.id)
        queue = old.queue if old is not None and old.queue in {MAIN, SMALL} else MAIN
        is_in_line = old is not None and 0 < old.seq <= self._index.seq
        row = row._replace(disk=disk_of(status), queue=queue, seq=old.seq if is_in_line else 0)  # type: ignore[union-attr]
        if row == old:
            return
        if old is None:
            found.note("without_row", f"{row.target!r} has a file and no row")
        elif row._replace(disk=old.disk) != old or _has_drifted(row, old):
            found.note("wrong_rows", f"{row.target!r} has a row that does not fit its file")
        if self._hands.mends:
            row = row if row.seq else row._replace(seq=self._index.next_seq())
            self._usage.replace(old, row)
            self._index.put(row)


async def reconcile(walker: Walker, usage: Usage, change: Change) -> Findings:
    """Compare all rows with the files, at no more than half a thread's time.

    Raises:
        sqlite3.Error: the index failed meanwhile; there is a doubt, and it is to be done again.
    """
    found = Findings()
    await change(usage.begin_recount)
    for step in range(STEPS):
        began = time.monotonic()
        found += await walker.walk(step, look_at_prefix, is_deep=False)
        await asyncio.sleep(min(0.1, time.monotonic() - began))
    found.wrong_figures += len(await change(usage.end_recount))
    return found


def stamp_of(status: os.stat_result) -> int:
    """Tells one version of a file from another; also two within a tick of the kernel's clock."""
    text = b"%d %d %d" % (status.st_mtime_ns, status.st_ino, status.st_size)
    return xxh3_64_intdigest(text) >> 1


def disk_of(status: os.stat_result) -> int:
    """A file's allocated bytes."""
    return status.st_blocks * 512


def row_of(
    bucket: str, meta: Meta, status: os.stat_result, *, queue: int = MAIN, seq: int = 0
) -> Row:
    """The row of an object file."""
    return Row(
        id=blob_id(meta.target),
        bucket=bucket,
        namespace=meta.namespace,
        target=meta.target,
        size=meta.size,
        disk=disk_of(status),
        stamp=stamp_of(status),
        created_s=meta.created_ms // 1000,
        expires_s=-(-meta.expires_ms // 1000),
        grp=group_number(group_of(meta.target)),
        queue=queue,
        seq=seq,
    )


def remove_stray(path: str) -> None:
    """Remove a file or a directory that is no object's."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except OSError as error:
        log.error("%s cannot be removed: %s", path, error.strerror)


def _has_drifted(row: Row, old: Row) -> bool:
    return abs(row.disk - old.disk) > DRIFT_BYTES * (1 + row.size // DRIFT_PER)


def _is_gone(path: str) -> bool:
    """For sure: a directory that cannot be read is no proof."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _slot(ident: bytes) -> int:
    return ident[0] << 8 | ident[1]


def _slices(step: int, files: Collection[bytes]) -> list[tuple[int, int]]:
    """The step's range of ids by their first two bytes, cut so that no slice has too many files."""
    first = step << 8
    if len(files) <= SLICE_MAX:
        return [(first, first + 255)]
    width = 16 if len(files) <= 16 * SLICE_MAX else 1
    return [(at, at + width - 1) for at in range(first, first + 256, width)]


def _chunks(
    idents: Sequence[bytes], files: Mapping[bytes, os.stat_result]
) -> Iterator[list[bytes]]:
    """Cut a list so that no part has too many entries or bytes."""
    chunk: list[bytes] = []
    size = 0
    for ident in idents:
        chunk.append(ident)
        size += files[ident].st_size if ident in files else 0
        if len(chunk) >= CHUNK_ENTRIES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
