"""The SQLite index of one shard: what management must know of its entries.

The files are the truth; a row is only how eviction, quota and accounting see them without opening
each. So a lost row is repaired from its file, and no request waits for SQLite.

Theory: one thread owns the connection (``writer.py``). Changes gather in memory, last one for an id
wins, and go to the database in one transaction a moment later. A database that cannot be written
for now (locked, full) keeps its changes waiting, within a bound; past it they are dropped, and
the next start rebuilds the index.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
PENDING_MAX: Final = 200_000
"""Changes that wait for a database that can't be written; about 100 MiB at the very most."""

_SCHEMA: Final = """
CREATE TABLE entry (
  id BLOB PRIMARY KEY,       -- blob_id(target), 16 bytes
  bucket TEXT NOT NULL,
  namespace TEXT NOT NULL,   -- who put it; '' for anonymous
  target BLOB NOT NULL,
  size INTEGER NOT NULL,     -- body, bytes
  disk INTEGER NOT NULL,     -- allocated for the file, bytes
  stamp INTEGER NOT NULL,    -- the file's mtime, ns: tells a replaced file from the row's own
  created_s INTEGER NOT NULL,
  accessed_s INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Row(NamedTuple):
    """One entry as the index knows it."""

    id: bytes
    bucket: str
    namespace: str
    target: bytes
    size: int
    disk: int
    stamp: int
    created_s: int
    accessed_s: int


class Index:
    """The connection and the changes on their way to it. Owned by one thread after construction."""

    def __init__(self, path: Path) -> None:
        """Open, or make anew when the file is missing, corrupt or of another version."""
        self.path = path
        self._pending: dict[bytes, Row | None] = {}
        self._db, self.is_clean = self._open()
        """``is_clean``: the rows are known to match the files."""
        self._set_clean(clean=False)

    def _open(self) -> tuple[sqlite3.Connection, bool]:
        """A usable connection, and whether its rows are known to match the files."""
        try:
            db = self._connect()
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == SCHEMA_VERSION:
                db.execute("SELECT id FROM entry LIMIT 1").fetchall()
                row = db.execute("SELECT value FROM state WHERE key = 'clean'").fetchone()
                return db, row is not None and row[0] == "1"
            fresh = version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchall()
            db.close()
            if not fresh:
                log.warning(
                    "%s: index of version %d is made anew from the files", self.path, version
                )
        except sqlite3.DatabaseError as error:
            log.warning(
                "%s: index is unusable (%s) and is made anew from the files", self.path, error
            )
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        db = self._connect()
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        return db, False

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=0.5)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")  # a lost row is found again from its file
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        return db

    def put(self, row: Row) -> None:
        """Note a new or replaced entry."""
        self._pending[row.id] = row

    def delete(self, ident: bytes) -> None:
        """Note that an entry is gone."""
        self._pending[ident] = None

    @property
    def pending(self) -> int:
        """Changes that are not in the database yet."""
        return len(self._pending)

    def flush(self) -> bool:
        """Bring the gathered changes into the database; False when it refuses for now."""
        if not self._pending:
            return True
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [row for row in self._pending.values() if row is not None],
                )
                self._db.executemany(
                    "DELETE FROM entry WHERE id = ?",
                    [(ident,) for ident, row in self._pending.items() if row is None],
                )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            log.warning("%s: %d changes wait: %s", self.path, len(self._pending), error)
            if len(self._pending) > PENDING_MAX:
                log.error("%s: too many changes wait; the index will be rebuilt", self.path)
                self._pending.clear()
                self.is_clean = False
            return False
        self._pending.clear()
        return True

    def get(self, ident: bytes) -> Row | None:
        """An entry's row, with changes that are still on their way."""
        if ident in self._pending:
            return self._pending[ident]
        try:
            row = self._db.execute("SELECT * FROM entry WHERE id = ?", (ident,)).fetchone()
        except sqlite3.Error as error:  # the file is changed already: that must not fail now
            log.warning("%s: %s; the index will be rebuilt", self.path, error)
            self.is_clean = False
            return None
        return None if row is None else Row._make(row)

    def with_prefix(self, prefix: str) -> dict[str, Row]:
        """Rows by hexadecimal id, of those ids that begin with ``prefix`` (three digits)."""
        low = bytes.fromhex(f"{prefix}0")
        high = bytes((low[0], low[1] | 0x0F)) + b"\xff" * 14
        rows = {
            row[0].hex(): Row._make(row)
            for row in self._db.execute("SELECT * FROM entry WHERE id BETWEEN ? AND ?", (low, high))
        }
        for ident, row in self._pending.items():
            if ident.hex().startswith(prefix):
                if row is None:
                    rows.pop(ident.hex(), None)
                else:
                    rows[ident.hex()] = row
        return rows

    def usage(self) -> Iterable[tuple[str, str, int, int, int]]:
        """(bucket, namespace, entries, body bytes, allocated bytes) of each tenant."""
        return self._db.execute(
            "SELECT bucket, namespace, count(*), sum(size), sum(disk) FROM entry GROUP BY 1, 2"
        ).fetchall()

    def close(self) -> None:
        """Flush, note whether the rows are known to match the files, and close."""
        if self.flush():
            self._set_clean(clean=self.is_clean)
        self._db.close()

    def _set_clean(self, *, clean: bool) -> None:
        try:
            self._db.execute("INSERT OR REPLACE INTO state VALUES ('clean', ?)", (str(int(clean)),))
        except sqlite3.Error as error:
            log.warning("%s: %s", self.path, error)
