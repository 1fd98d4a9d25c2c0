"""The SQLite index of one shard: what management must know of its entries.

The files are the truth; a row is only how eviction, quota and accounting see them without opening
each. So a lost row is repaired from its file, and no request waits for SQLite.

Theory: one thread owns the connection (``writer.py``). Changes gather in memory, last one for an id
wins, and go to the database in one transaction a moment later, together with the figures that they
add up to. A database that cannot be written for now (locked, full, read-only) keeps its changes
waiting, within a bound. One that is corrupt, gone or replaced is made anew at once; whenever rows
may have been lost there is a **doubt**, and ``repair.py`` compares them with the files again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from simplecache.errors import DataDirError

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 3
PENDING_MAX: Final = 200_000
"""Changes that wait for a database that can't be written; about 100 MiB at the very most."""

TOMBSTONES_MAX: Final = 100_000
"""Entries that are gone and whose end is still known; the oldest are forgotten first."""
LOCK_WAIT_S: Final = 0.02
"""The writer thread waits at most so long for another program's lock: PUTs wait for it."""
RENEW_FIRST_S: Final = 1.0
RENEW_MAX_S: Final = 60.0
"""Between two attempts to make the index anew, doubled each time: on a disk that fails, or with a
program that damages it again and again."""

_PASSING: Final = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip
"""Errors that say nothing against the database's contents."""

_SCHEMA: Final = """
CREATE TABLE entry (
  id BLOB PRIMARY KEY,       -- blob_id(target), 16 bytes
  bucket TEXT NOT NULL,
  namespace TEXT NOT NULL,   -- who put it; '' for anonymous
  target BLOB NOT NULL,
  size INTEGER NOT NULL,     -- body, bytes
  disk INTEGER NOT NULL,     -- allocated for the file, bytes
  stamp INTEGER NOT NULL,    -- of the file (repair.stamp_of): tells a replaced one from the row's
  created_s INTEGER NOT NULL,
  expires_s INTEGER NOT NULL,  -- 0: never
  grp INTEGER NOT NULL,      -- hash of the target's directory
  queue INTEGER NOT NULL,    -- of the eviction policy: 0 on probation, 1 else
  seq INTEGER NOT NULL       -- order in the queue
) WITHOUT ROWID;
CREATE INDEX entry_by_seq ON entry (bucket, namespace, queue, seq);
CREATE INDEX entry_by_group ON entry (bucket, namespace, grp);
CREATE INDEX entry_by_expiry ON entry (expires_s) WHERE expires_s > 0;
CREATE TABLE usage (         -- what the rows of each tenant add up to
  bucket TEXT NOT NULL,
  namespace TEXT NOT NULL,
  entries INTEGER NOT NULL,
  size INTEGER NOT NULL,
  disk INTEGER NOT NULL,
  small INTEGER NOT NULL,    -- of disk, in queue 0
  PRIMARY KEY (bucket, namespace)
) WITHOUT ROWID;
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


_ROW_TYPES: Final = (bytes, str, str, bytes, *(int,) * 8)

TenantFigures = tuple[str, str, int, int, int, int]
"""Bucket, namespace, entries, body bytes, allocated bytes, those of queue 0."""


class Tombstone(NamedTuple):
    """How an entry ended, or why an object was not taken."""

    id: bytes
    at_s: int
    rule: str
    favour: str


class Ledger(Protocol):
    """Who counts the rows (``usage.Usage``)."""

    def unsaved(self) -> list[TenantFigures]:
        """The figures that changed since :meth:`saved`."""

    def saved(self) -> None:
        """They are in the database."""

    def lost(self) -> None:
        """Rows may have been lost."""

    def begin_anew(self, rows: Iterable[Row]) -> None:
        """All are lost, but for ``rows``."""


class Index:
    """The connection and the changes on their way to it. Owned by one thread after construction."""

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        """Open, or make anew when the file is missing, corrupt or of another version.

        Args:
            path: the database.
            is_read_only: change nothing; an index that cannot be used is taken for empty.

        Raises:
            DataDirError: it cannot be made.
        """
        self.path = path
        self.ledger: Ledger | None = None
        self.doubts = 0
        """How often rows may have been lost."""
        self.fault = ""
        """Why it was made anew at the start; empty: it was not."""
        self._is_read_only = is_read_only
        self._is_broken = False
        self._renew_at, self._renew_pause_s = 0.0, RENEW_FIRST_S
        self._pending: dict[bytes, Row | None] = {}
        self._tombstones: dict[bytes, Tombstone] = {}
        self._notes: dict[str, str] = {}
        self._db, state = self._open()
        self._identity = _identity(path)
        self.is_clean = state.get("clean") == "1"
        """The rows are known to match the files."""
        self._tombstone_count = int(state.get("tombstones", 0))
        self._state = state
        self.seq = max(int(state.get("seq", 0)), int(time.time() * 1000) << 16)
        """The last that was given out. Larger than any before, also when the clock went back."""
        if not is_read_only:
            self._set_state({"clean": "0"})

    # -- opening and renewing --------------------------------------------------------------

    def _open(self) -> tuple[sqlite3.Connection, dict[str, str]]:
        """A usable connection, and the state that was saved."""
        if self.path.exists():
            try:
                return self._open_known()
            except (sqlite3.Error, ValueError) as error:
                self.fault = str(error)
                log.warning("%s is of no use: %s", self.path, error)
        if self._is_read_only:
            db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            db.executescript(_SCHEMA)
            return db, {}
        try:
            return self._make(), {}
        except (sqlite3.Error, OSError) as error:
            raise DataDirError(f"{self.path}: {error}") from error

    def _open_known(self) -> tuple[sqlite3.Connection, dict[str, str]]:
        db = self._connect()
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                raise sqlite3.DatabaseError(f"it is of version {version}, not {SCHEMA_VERSION}")
            db.execute("SELECT id FROM entry LIMIT 1").fetchall()
            db.execute("SELECT id FROM tombstone LIMIT 1").fetchall()
            db.execute("SELECT bucket FROM usage LIMIT 1").fetchall()
            state = dict(db.execute("SELECT key, value FROM state"))
            int(state.get("tombstones", 0)) + int(state.get("seq", 0))
        except BaseException:
            db.close()
            raise
        return db, state

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=LOCK_WAIT_S
        )
        if self._is_read_only:
            db.execute("PRAGMA query_only = ON")
            return db
        db.execute("PRAGMA synchronous = OFF")  # a lost row is found again from its file
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 1000")
        db.execute("PRAGMA journal_size_limit = 8388608")
        return db

    def _make(self) -> sqlite3.Connection:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        db = self._connect()
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        return db

    def doubt(self, why: object, *, is_broken: bool = False) -> None:
        """Rows may have been lost, or may be wrong; ``is_broken``: so may the database."""
        log.warning("%s: %s", self.path, why)
        self._is_broken |= is_broken
        self.is_clean = False
        self.doubts += 1
        if self.ledger is not None:
            self.ledger.lost()

    def _failed(self, error: sqlite3.Error) -> None:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        self.doubt(error, is_broken=code & 0xFF not in _PASSING)

    def _is_usable(self) -> bool:
        """Whether there is a database to write to; makes it anew if it must be."""
        if not self._is_broken:
            with contextlib.suppress(OSError):
                if _identity(self.path) != self._identity:
                    self.doubt("the file was removed or replaced", is_broken=True)
        return not self._is_broken or self._renew()

    def _renew(self) -> bool:
        now_s = time.monotonic()
        if now_s < self._renew_at:
            return False
        if now_s - self._renew_at > 10 * RENEW_MAX_S:
            self._renew_pause_s = RENEW_FIRST_S
        self._renew_at = now_s + self._renew_pause_s
        self._renew_pause_s = min(RENEW_MAX_S, 2 * self._renew_pause_s)
        try:
            self._db.close()
            self._db = self._make()
            self._identity = _identity(self.path)
        except (sqlite3.Error, OSError) as error:
            log.error("%s cannot be made anew: %s", self.path, error)
            return False
        log.warning("%s was made anew; its rows come back from the files", self.path)
        self._is_broken = False
        self._tombstone_count = 0
        if self.ledger is not None:
            self.ledger.begin_anew(row for row in self._pending.values() if row is not None)
        return True

    # -- changing --------------------------------------------------------------------------

    def next_seq(self) -> int:
        """Larger than any before, also over a restart."""
        self.seq += 1
        return self.seq

    def bury(self, tombstone: Tombstone) -> None:
        """Note how an entry ended."""
        self._tombstones[tombstone.id] = tombstone

    def put(self, row: Row) -> None:
        """Note a new or replaced entry."""
        self._pending[row.id] = row

    def delete(self, ident: bytes) -> None:
        """Note that an entry is gone."""
        self._pending[ident] = None

    def note(self, key: str, value: str) -> None:
        """Keep a word over restarts."""
        self._notes[key] = value

    def noted(self, key: str) -> str:
        """What was kept; empty for nothing."""
        return self._notes.get(key) or self._state.get(key, "")

    @property
    def pending(self) -> int:
        """Changes that are not in the database yet."""
        return len(self._pending)

    def flush(self) -> bool:
        """Bring the gathered changes into the database; False when it refuses for now."""
        if not self._is_usable():
            self._limit_pending()
            return False
        has_figures = self.ledger is not None and bool(self.ledger.unsaved())
        if not (self._pending or self._tombstones or self._notes or has_figures):
            return True
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._write()
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            log.warning("%s: %d changes wait: %s", self.path, len(self._pending), error)
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _PASSING:
                self._failed(error)
            self._limit_pending()
            return False
        if self.ledger is not None:
            self.ledger.saved()
        self._state.update(self._notes)
        for gathered in (self._pending, self._tombstones, self._notes):
            gathered.clear()
        return True

    def _limit_pending(self) -> None:
        if len(self._pending) + len(self._tombstones) > PENDING_MAX:
            self._pending.clear()
            self._tombstones.clear()
            self.doubt("too many changes wait; they are given up")

    def _write(self) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [row for row in self._pending.values() if row is not None],
        )
        self._db.executemany(
            "DELETE FROM entry WHERE id = ?",
            [(ident,) for ident, row in self._pending.items() if row is None],
        )
        if self.ledger is not None:
            figures = self.ledger.unsaved()
            self._db.executemany(
                "INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?, ?, ?)",
                [tenant for tenant in figures if tenant[2]],
            )
            self._db.executemany(
                "DELETE FROM usage WHERE bucket = ? AND namespace = ?",
                [tenant[:2] for tenant in figures if not tenant[2]],
            )
        self._write_tombstones()
        state = self._notes | {"seq": str(self.seq), "tombstones": str(self._tombstone_count)}
        self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", list(state.items()))

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

    def close(self) -> None:
        """Flush, note whether the rows are known to match the files, and close."""
        if not self._is_read_only and self.flush():
            self._set_state({"clean": str(int(self.is_clean))})
        self._db.close()

    def _set_state(self, state: dict[str, str]) -> None:
        try:
            self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", list(state.items()))
        except sqlite3.Error as error:
            log.warning("%s: %s", self.path, error)

    # -- asking ----------------------------------------------------------------------------

    def get(self, ident: bytes) -> Row | None:
        """An entry's row, with changes that are still on their way."""
        if ident in self._pending:
            return self._pending[ident]
        rows = self.select("FROM entry WHERE id = ?", (ident,))
        return rows[0] if rows else None

    def tombstone(self, ident: bytes) -> Tombstone | None:
        """How an entry ended, if it is remembered."""
        found = self._tombstones.get(ident)
        if found is None:
            rows = self._select("SELECT * FROM tombstone WHERE id = ?", (ident,))
            found = Tombstone._make(rows[0]) if rows else None
        return found

    def select(self, where: str, values: Sequence[Any]) -> list[Row]:
        """Rows that the database holds: call :meth:`flush` first to see the latest.

        What a database that fails does not tell is a doubt, not an error: what is asked for has
        been done to the files already, or can be done later.
        """
        return [Row._make(row) for row in self._select(f"SELECT * {where}", values, _ROW_TYPES)]

    def _select(
        self, statement: str, values: Sequence[Any], types: tuple[type, ...] | None = None
    ) -> list[Any]:
        try:
            return self._select_or_fail(statement, values, types)
        except sqlite3.Error:
            return []

    def _select_or_fail(
        self, statement: str, values: Sequence[Any], types: tuple[type, ...] | None
    ) -> list[Any]:
        try:
            rows = self._db.execute(statement, values).fetchall()
            if types is not None and any(tuple(map(type, row)) != types for row in rows):
                raise sqlite3.DatabaseError("a row has rotted")
        except sqlite3.Error as error:
            self._failed(error)
            raise
        return rows

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

    def between(self, first: int, last: int) -> dict[bytes, Row]:
        """All rows by id, of ids whose first two bytes are in a range; also those on their way.

        Raises:
            sqlite3.Error: the database does not tell; there is a doubt now.
        """
        low, high = first.to_bytes(2, "big"), last.to_bytes(2, "big")
        found = self._select_or_fail(
            "SELECT * FROM entry WHERE id BETWEEN ? AND ?",
            (low + bytes(14), high + b"\xff" * 14),
            _ROW_TYPES,
        )
        rows = {row[0]: Row._make(row) for row in found}
        for ident, row in self._pending.items():
            if low <= ident[:2] <= high:
                if row is None:
                    rows.pop(ident, None)
                else:
                    rows[ident] = row
        return rows

    def usage(self) -> Iterable[TenantFigures]:
        """What the rows of each tenant add up to, as it was saved with them."""
        types = (str, str, int, int, int, int)
        return [tuple(row) for row in self._select("SELECT * FROM usage", (), types)]


def find_rot(path: Path, is_over: Callable[[], bool]) -> str:
    """What is wrong with a database, over a connection of its own; empty: nothing.

    Blocks for as long as it takes to read all of it, or until ``is_over`` says so.
    """
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=LOCK_WAIT_S)) as db:
            db.set_progress_handler(is_over, 100_000)
            db.execute("PRAGMA query_only = ON")
            found = [row[0] for row in db.execute("PRAGMA integrity_check(3)")]
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        return "" if code & 0xFF in _PASSING else str(error)
    return "" if found == ["ok"] else "; ".join(found)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
