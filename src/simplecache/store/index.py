"""The SQLite index of one shard: what management must know of its entries.

The files are the truth; a row is only how eviction, quota and accounting see them without opening
each. So a lost row is repaired from its file, and no request waits for SQLite.

Theory: one thread owns the connection (``writer.py``). Changes gather in memory, last one for an id
wins, and go to the database in one transaction a moment later. A database that cannot be written
for now (locked, full) keeps its changes waiting, within a bound; past it they are dropped, and
the next start rebuilds the index.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 2
PENDING_MAX: Final = 200_000
"""Changes that wait for a database that can't be written; about 100 MiB at the very most."""

TOMBSTONES_MAX: Final = 100_000
"""Entries that are gone and whose end is still known; the oldest are forgotten first."""

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
  expires_s INTEGER NOT NULL,  -- 0: never
  grp INTEGER NOT NULL,      -- hash of the target's directory
  queue INTEGER NOT NULL,    -- of the eviction policy: 0 on probation, 1 else
  seq INTEGER NOT NULL       -- order in the queue
) WITHOUT ROWID;
CREATE INDEX entry_by_seq ON entry (bucket, namespace, queue, seq);
CREATE INDEX entry_by_group ON entry (bucket, namespace, grp);
CREATE INDEX entry_by_expiry ON entry (expires_s) WHERE expires_s > 0;
CREATE TABLE tombstone (
  id BLOB PRIMARY KEY,
  at_s INTEGER NOT NULL,
  rule TEXT NOT NULL,        -- why it went, or was not taken
  favour TEXT NOT NULL       -- the bucket for which room was made; '' for none
) WITHOUT ROWID;
CREATE INDEX tombstone_by_age ON tombstone (at_s);
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
    expires_s: int
    grp: int
    queue: int
    seq: int


class Tombstone(NamedTuple):
    """How an entry ended, or why an object was not taken."""

    id: bytes
    at_s: int
    rule: str
    favour: str


class Index:
    """The connection and the changes on their way to it. Owned by one thread after construction."""

    def __init__(self, path: Path) -> None:
        """Open, or make anew when the file is missing, corrupt or of another version."""
        self.path = path
        self._pending: dict[bytes, Row | None] = {}
        self._db, self.is_clean = self._open()
        """``is_clean``: the rows are known to match the files."""
        self._set_clean(clean=False)
        self._tombstones: dict[bytes, Tombstone] = {}
        self._tombstone_count = self._db.execute("SELECT count(*) FROM tombstone").fetchone()[0]
        newest = self._db.execute("SELECT max(seq) FROM entry").fetchone()[0]
        self._seq = max(newest or 0, int(time.time() * 1000) << 16)

    def next_seq(self) -> int:
        """Larger than any before, also over a restart."""
        self._seq += 1
        return self._seq

    def bury(self, tombstone: Tombstone) -> None:
        """Note how an entry ended."""
        self._tombstones[tombstone.id] = tombstone

    def tombstone(self, ident: bytes) -> Tombstone | None:
        """How an entry ended, if it is remembered."""
        found = self._tombstones.get(ident)
        if found is None:
            rows = self._select("SELECT * FROM tombstone WHERE id = ?", (ident,))
            found = Tombstone._make(rows[0]) if rows else None
        return found

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
        db.execute("PRAGMA wal_autocheckpoint = 1000")
        db.execute("PRAGMA journal_size_limit = 8388608")
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
        if not self._pending and not self._tombstones:
            return True
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [row for row in self._pending.values() if row is not None],
                )
                self._db.executemany(
                    "DELETE FROM entry WHERE id = ?",
                    [(ident,) for ident, row in self._pending.items() if row is None],
                )
                self._write_tombstones()
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            log.warning("%s: %d changes wait: %s", self.path, len(self._pending), error)
            if len(self._pending) + len(self._tombstones) > PENDING_MAX:
                log.error("%s: too many changes wait; the index will be rebuilt", self.path)
                self._pending.clear()
                self._tombstones.clear()
                self.is_clean = False
            return False
        self._pending.clear()
        self._tombstones.clear()
        return True

    def _write_tombstones(self) -> None:
        if self._tombstones:
            self._db.executemany(
                "INSERT OR REPLACE INTO tombstone VALUES (?, ?, ?, ?)", self._tombstones.values()
            )
            self._tombstone_count += len(self._tombstones)
        if self._tombstone_count > 1.1 * TOMBSTONES_MAX:
            self._db.execute(
                "DELETE FROM tombstone WHERE id IN "
                "(SELECT id FROM tombstone ORDER BY at_s DESC LIMIT -1 OFFSET ?)",
                (TOMBSTONES_MAX,),
            )
            self._tombstone_count = TOMBSTONES_MAX

    def get(self, ident: bytes) -> Row | None:
        """An entry's row, with changes that are still on their way."""
        if ident in self._pending:
            return self._pending[ident]
        rows = self.select("FROM entry WHERE id = ?", (ident,))
        return rows[0] if rows else None

    def select(self, where: str, values: Sequence[Any]) -> list[Row]:
        """Rows that the database holds: call :meth:`flush` first to see the latest."""
        return [Row._make(row) for row in self._select(f"SELECT * {where}", values)]

    def _select(self, statement: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:  # what is asked has been done to the files already
            log.warning("%s: %s; the index will be rebuilt", self.path, error)
            self.is_clean = False
            return []

    def expired(self, now_s: int, count: int) -> list[Row]:
        """Up to ``count`` entries whose time is over."""
        return self.select(
            "FROM entry WHERE expires_s > 0 AND expires_s <= ? ORDER BY expires_s LIMIT ?",
            (now_s, count),
        )

    def with_target_prefix(self, bucket: str, prefix: bytes, count: int) -> list[Row]:
        """Up to ``count`` entries of a bucket whose target begins with ``prefix``."""
        return self.select(
            "FROM entry WHERE bucket = ? AND substr(target, 1, ?) = ? LIMIT ?",
            (bucket, len(prefix), prefix, count),
        )

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

    def usage(self) -> Iterable[tuple[str, str, int, int, int, int]]:
        """Each tenant's bucket, namespace, entries, body bytes, allocated bytes, those in queue 0.

        Kept in the state of a clean index: counting a million rows takes a second.
        """
        if self.is_clean:
            rows = self._select("SELECT value FROM state WHERE key = 'usage'", ())
            if rows and rows[0][0] != "null":
                return [tuple(tenant) for tenant in json.loads(rows[0][0])]
        return self._select(
            "SELECT bucket, namespace, count(*), sum(size), sum(disk), "
            "sum(disk * (queue = 0)) FROM entry GROUP BY 1, 2",
            (),
        )

    def close(self, usage: Iterable[tuple[str, str, int, int, int, int]] | None = None) -> None:
        """Flush, note whether the rows are known to match the files, and close.

        Args:
            usage: what the rows add up to, for the next start; None: it is to count them.
        """
        if self.flush():
            self._set_state("usage", json.dumps(None if usage is None else list(usage)))
            self._set_clean(clean=self.is_clean)
        self._db.close()

    def _set_clean(self, *, clean: bool) -> None:
        self._set_state("clean", str(int(clean)))

    def _set_state(self, key: str, value: str) -> None:
        try:
            self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))
        except sqlite3.Error as error:
            log.warning("%s: %s", self.path, error)
