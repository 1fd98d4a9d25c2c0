"""The index: rows that come back, and a database that refuses, is broken or is another version."""

import sqlite3

import pytest

from simplecache.store import index as index_module
from simplecache.store.index import Index, Row
from simplecache.store.usage import Usage


def make_row(number, *, bucket="public", namespace="", size=10, target=None):
    ident = number.to_bytes(2, "big") + bytes(14)
    return Row(
        ident, bucket, namespace, target or b"t%d" % number, size, 4096, number, 1, 0, 7, 1, number
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.db"


@pytest.fixture
def index(path):
    index = Index(path)
    yield index
    index._db.close()


class Refusing:
    """A connection whose statements fail: on a full disk, or as ``code`` says."""

    def __init__(self, db, *words, code=sqlite3.SQLITE_FULL):
        self.db, self.words, self.code = db, words, code

    def execute(self, sql, *arguments):
        if any(word in sql for word in self.words):
            error = sqlite3.OperationalError("a test says so")
            error.sqlite_errorcode = self.code
            raise error
        return self.db.execute(sql, *arguments)

    def __getattr__(self, name):
        return getattr(self.db, name)


class TestRows:
    def test_rows_are_there_before_and_after_the_transaction(self, index):
        row = make_row(1)
        index.put(row)
        assert index.get(row.id) == row
        assert index.pending == 1
        assert index.flush()
        assert index.pending == 0
        assert index.get(row.id) == row
        index.delete(row.id)
        assert index.get(row.id) is None
        assert index.flush()
        assert index.get(row.id) is None

    def test_the_last_change_wins(self, index):
        for size in (1, 2, 3):
            index.put(make_row(1, size=size))
        index.flush()
        assert index.get(make_row(1).id).size == 3
        index.delete(make_row(1).id)
        index.put(make_row(1, size=4))
        index.flush()
        assert index.get(make_row(1).id).size == 4

    def test_rows_of_a_range_of_ids(self, index):
        rows = {
            number: make_row(number) for number in (0x0000, 0x000F, 0x0010, 0xABC0, 0xABCF, 0xABD0)
        }
        for number in (0x0000, 0x0010, 0xABC0, 0xABD0):
            index.put(rows[number])
        index.flush()
        for number in (0x000F, 0xABCF):
            index.put(rows[number])
        index.delete(rows[0xABC0].id)
        changed = rows[0xABD0]._replace(size=11)
        index.put(changed)

        def found(first, last):
            by_id = index.between(first, last)
            assert all(ident == row.id for ident, row in by_id.items())
            return set(by_id.values())

        assert found(0x0000, 0x000F) == {rows[0x0000], rows[0x000F]}
        assert found(0x0010, 0x001F) == {rows[0x0010]}
        assert found(0x0010, 0x0010) == {rows[0x0010]}
        assert found(0xABC0, 0xABCF) == {rows[0xABCF]}
        assert found(0xABD0, 0xABDF) == {changed}, "the latest"
        assert found(0xFFF0, 0xFFFF) == set()

    def test_all_ids_of_a_range_and_no_other(self, index):
        for number in range(0x0FF0, 0x1020):
            for tail in (b"\0", b"\xff"):
                index.put(make_row(number)._replace(id=number.to_bytes(2, "big") + tail * 14))
        pending = index.between(0x0FF0, 0x0FFF)
        index.flush()
        assert index.between(0x0FF0, 0x0FFF) == pending
        assert len(pending) == 32
        assert {ident[:2] for ident in pending} == {
            n.to_bytes(2, "big") for n in range(0x0FF0, 0x1000)
        }
        assert len(index.between(0x1000, 0x100F)) == 32
        assert len(index.between(0x0000, 0xFFFF)) == 96

    def test_a_range_that_cannot_be_read_is_an_error_and_a_doubt(self, index):
        index.put(make_row(1))
        index.is_clean, real = True, index._db
        index._db = Refusing(real, "SELECT")
        with pytest.raises(sqlite3.Error):
            index.between(0, 0xFFFF)
        assert (index.is_clean, index.doubts) == (False, 1)
        index._db = real

    def test_usage_by_tenant_is_saved_with_the_rows(self, index):
        usage = index.ledger = Usage([])
        for number, tenant in enumerate([("a", ""), ("a", "n"), ("a", "n"), ("b", "n")]):
            row = make_row(number, bucket=tenant[0], namespace=tenant[1], size=number)
            index.put(row)
            usage.replace(None, row)
        assert index.usage() == []
        index.flush()
        assert sorted(index.usage()) == [
            ("a", "", 1, 0, 4096, 0), ("a", "n", 2, 3, 8192, 0), ("b", "n", 1, 3, 4096, 0),
        ]  # fmt: skip
        gone = make_row(3, bucket="b", namespace="n", size=3)
        index.delete(gone.id)
        usage.replace(gone, None)
        real, index._db = index._db, Refusing(index._db, "COMMIT")
        assert not index.flush()
        index._db = real
        assert len(index.usage()) == 3, "with the rows or not at all"
        assert index.flush()
        assert sorted(index.usage()) == [("a", "", 1, 0, 4096, 0), ("a", "n", 2, 3, 8192, 0)]


class TestOpening:
    def test_clean_only_after_a_close(self, path):
        index = Index(path)
        assert not index.is_clean
        index.is_clean = True
        index.close()
        index = Index(path)
        assert index.is_clean
        index._db.close()  # as if killed
        index = Index(path)
        assert not index.is_clean
        index._db.close()

    @pytest.mark.parametrize(
        "content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 4000]
    )
    def test_a_broken_file_is_made_anew(self, path, content):
        path.write_bytes(content)
        index = Index(path)
        assert not index.is_clean
        index.put(make_row(1))
        assert index.flush()
        index._db.close()

    def test_damage_in_the_middle_is_made_anew_or_survived(self, path):
        index = Index(path)
        for number in range(2000):
            index.put(make_row(number))
        index.flush()
        index._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        index.close()
        content = bytearray(path.read_bytes())
        content[4096:8192] = b"\xaa" * 4096
        path.write_bytes(content)
        index = Index(path)
        index.put(make_row(1))
        index.flush()
        index._db.close()

    def test_another_version_is_made_anew(self, path):
        index = Index(path)
        index.put(make_row(1))
        index.is_clean = True
        index.close()
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 99")
        db.close()
        index = Index(path)
        assert not index.is_clean
        assert index.get(make_row(1).id) is None
        index._db.close()


class TestRefusal:
    def test_changes_wait_for_a_database_that_refuses(self, index):
        real = index._db
        index._db = Refusing(real, "BEGIN")
        index.put(make_row(1))
        assert not index.flush()
        assert index.get(make_row(1).id) == make_row(1)
        assert index.pending == 1
        index._db = real
        assert index.flush()
        assert index.get(make_row(1).id) == make_row(1)

    def test_a_transaction_that_fails_at_its_end_is_rolled_back(self, index):
        real = index._db
        index._db = Refusing(real, "COMMIT")
        index.put(make_row(1))
        assert not index.flush()
        index._db = real
        assert real.execute("SELECT count(*) FROM entry").fetchone() == (0,)
        assert index.flush()
        assert real.execute("SELECT count(*) FROM entry").fetchone() == (1,)

    @pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT])
    def test_one_that_is_broken_is_made_anew_with_what_waits(self, index, code):
        index.put(make_row(1))
        assert index.flush()
        index.is_clean = True
        index._db = Refusing(index._db, "COMMIT", code=code)
        index.put(make_row(2))
        assert not index.flush()
        assert index.flush()
        assert list(index.between(0, 0xFFFF)) == [make_row(2).id]
        assert index.pending == 0
        assert not index.is_clean, "row 1 is to be found again"
        assert index.doubts >= 1

    def test_changes_that_wait_are_bounded(self, index, monkeypatch):
        monkeypatch.setattr(index_module, "PENDING_MAX", 5)
        real = index._db
        index._db = Refusing(real, "BEGIN")
        index.is_clean = True
        for number in range(6):
            index.put(make_row(number))
        assert not index.flush()
        assert index.pending == 0
        assert not index.is_clean, "the next start rebuilds it"
        index._db = real

    def test_a_row_that_cannot_be_read_is_no_row(self, index):
        real = index._db
        index._db = Refusing(real, "SELECT")
        index.is_clean = True
        assert index.get(make_row(1).id) is None
        assert not index.is_clean
        index._db = real

    def test_closing_what_refuses_says_not_clean(self, path):
        index = Index(path)
        index.is_clean = True
        real = index._db
        index._db = Refusing(real, "BEGIN")
        index.put(make_row(1))
        index.close()
        index = Index(path)
        assert not index.is_clean
        index._db.close()
