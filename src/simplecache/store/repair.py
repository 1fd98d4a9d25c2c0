"""Making rows and files agree after a crash, while the shard serves.

It goes directory by directory, each as one job of the writer thread: nothing else changes the
shard in between, so what it compares cannot move. Files win: one without its row (or with that of
a version before it) gets one, a row without a file goes away.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import Protocol

from simplecache.errors import InvalidName
from simplecache.model import Key
from simplecache.store.blobs import Corrupt, blob_id, open_blob
from simplecache.store.index import Index, Row
from simplecache.store.writer import Writer

log = logging.getLogger(__name__)


class _Usage(Protocol):
    def replace(self, old: Row | None, new: Row | None) -> None: ...


async def reconcile(objects: str, writer: Writer, index: Index, usage: _Usage) -> tuple[int, int]:
    """Compare every directory of ``objects`` with the index; (rows written, rows removed)."""
    written = removed = 0
    for number in range(1 << 12):
        prefix = f"{number:03x}"
        more, fewer = await writer.run(partial(_reconcile, objects, prefix, index, usage))
        written, removed = written + more, removed + fewer
    return written, removed


def _reconcile(objects: str, prefix: str, index: Index, usage: _Usage) -> tuple[int, int]:
    rows = index.with_prefix(prefix)
    written = 0
    for name, stamp in _files(f"{objects}/{prefix}"):
        old = rows.pop(prefix + name, None)
        if old is not None and old.stamp == stamp:
            continue
        new = _row_of(f"{objects}/{prefix}/{name}", prefix + name)
        usage.replace(old, new)
        if new is not None:
            index.put(new)
            written += 1
        elif old is not None:
            index.delete(old.id)
    for lost in rows.values():
        usage.replace(lost, None)
        index.delete(lost.id)
    return written, len(rows)


def _files(directory: str) -> list[tuple[str, int]]:
    """(name, mtime in ns) of each file."""
    try:
        with os.scandir(directory) as entries:
            return [(entry.name, entry.stat().st_mtime_ns) for entry in entries]
    except FileNotFoundError:
        return []


def _row_of(path: str, name: str) -> Row | None:
    """The row that a file asks for; a file that says nothing credible is removed."""
    try:
        blob = open_blob(path, None)
    except OSError as error:  # a bad sector, or no file at all: it is a miss when it is asked for
        log.error("%s: %s; left alone", path, error)
        return None
    except Corrupt as error:
        _remove(path, error)
        return None
    try:
        key = Key.from_target(blob.meta.target)
        if blob_id(blob.meta.target).hex() != name:
            raise Corrupt(f"the file holds {blob.meta.target!r}, which belongs elsewhere")
    except (Corrupt, InvalidName) as error:
        _remove(path, error)
        return None
    status = os.fstat(blob.fd)
    return Row(
        bytes.fromhex(name), key.bucket, blob.meta.namespace, blob.meta.target, blob.size,
        status.st_blocks * 512, status.st_mtime_ns, blob.meta.created_ms // 1000, int(time.time()),
    )  # fmt: skip


def _remove(path: str, why: Exception) -> None:
    log.error("%s: %s; removed", path, why)
    os.unlink(path)
