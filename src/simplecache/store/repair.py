"""Making rows and files agree after a crash, while the shard serves.

It goes directory by directory, each as one job of the writer thread: nothing else changes the
shard in between, so what it compares cannot move. Files win: one without its row (or with that of
a version before it) gets one, a row without a file goes away.
"""

from __future__ import annotations

import logging
import os
from functools import partial

from simplecache.errors import InvalidName
from simplecache.model import Key
from simplecache.store.blobs import Corrupt, Meta, blob_id, open_blob
from simplecache.store.index import Index, Row
from simplecache.store.notes import group_number, group_of
from simplecache.store.policies import MAIN
from simplecache.store.usage import Usage
from simplecache.store.writer import Writer

log = logging.getLogger(__name__)


async def reconcile(objects: str, writer: Writer, index: Index, usage: Usage) -> tuple[int, int]:
    """Compare every directory of ``objects`` with the index; (rows written, rows removed)."""
    written = removed = 0
    for number in range(1 << 12):
        prefix = f"{number:03x}"
        more, fewer = await writer.run(partial(_reconcile, objects, prefix, index, usage))
        written, removed = written + more, removed + fewer
    return written, removed


def _reconcile(objects: str, prefix: str, index: Index, usage: Usage) -> tuple[int, int]:
    rows = index.with_prefix(prefix)
    written = 0
    for name, stamp in _files(f"{objects}/{prefix}"):
        old = rows.pop(prefix + name, None)
        if old is not None and old.stamp == stamp:
            continue
        new = _row_of(f"{objects}/{prefix}/{name}", prefix + name, index)
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


def _row_of(path: str, name: str, index: Index) -> Row | None:
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
    return row_of(key.bucket, blob.meta, os.fstat(blob.fd), index)


def row_of(bucket: str, meta: Meta, status: os.stat_result, index: Index, queue: int = MAIN) -> Row:
    """The row of an object file."""
    return Row(
        id=blob_id(meta.target),
        bucket=bucket,
        namespace=meta.namespace,
        target=meta.target,
        size=meta.size,
        disk=status.st_blocks * 512,
        stamp=status.st_mtime_ns,
        created_s=meta.created_ms // 1000,
        expires_s=-(-meta.expires_ms // 1000),
        grp=group_number(group_of(meta.target)),
        queue=queue,
        seq=index.next_seq(),
    )


def _remove(path: str, why: Exception) -> None:
    log.error("%s: %s; removed", path, why)
    os.unlink(path)
