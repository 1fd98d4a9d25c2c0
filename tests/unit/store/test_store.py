"""The store: against a dictionary, against crashes between any two steps, against failing disks."""

import asyncio
import contextlib
import errno
import hashlib
import itertools
import os
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_harness import (
    Stores,
    get,
    object_files,
    put,
    take_image,
    target_of,
    temporary_files,
    usage_of_files,
    writer_idle,
)  # fmt: skip

from simplecache.errors import (
    DataDirError,
    DigestMismatch,
    DiskError,
    DiskFull,
    Overloaded,
    PreconditionFailed,
    Refused,
    TooLarge,
)  # fmt: skip
from simplecache.model import Key
from simplecache.store import capacity as capacity_module
from simplecache.store import store as store_module
from simplecache.store.blobs import BLOCK_BYTES, Corrupt
from simplecache.store.health import Health
from simplecache.store.store import Store
from simplecache.store.upload import CHUNK_BYTES, Condition

MIB = 1 << 20
NAMES = (b"a", b"b", b"a/../b", b"what?1")


class StoreMachine(RuleBasedStateMachine):
    """Whatever is done to the store, it says what a dictionary would."""

    def __init__(self):
        super().__init__()
        self.root = tempfile.TemporaryDirectory()
        self.stores = Stores()
        self.images = itertools.count()
        self.model = {}

    @initialize(open_max=st.sampled_from([1, 100]))
    def begin(self, open_max):
        self.open_max = open_max
        self.store = self.stores.open(Path(self.root.name) / "shard", open_max=open_max)

    names = st.sampled_from(NAMES)
    sizes = st.sampled_from([0, 1, 4096, 300_000, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * MIB])
    seeds = st.integers(0, 255)
    namespaces = st.sampled_from(["", "prj-a", "prj-b"])

    def body(self, size, seed):
        return bytes([seed]) * size

    @rule(name=names, size=sizes, seed=seeds, namespace=namespaces, pieces=st.integers(1, 4))
    def put(self, name, size, seed, namespace, pieces):
        body = self.body(size, seed)
        meta = self.stores.run(put(self.store, name, body, pieces=pieces, namespace=namespace))
        assert meta.size == size
        self.model[name] = (body, meta)

    @rule(name=names, seed=seeds, wanted=st.sampled_from(["absent", "any", "same", "other"]))
    def put_if(self, name, seed, wanted):
        present = self.model.get(name)
        etags = {
            "absent": None, "any": frozenset(), "other": frozenset([b"other" * 3 + b"!"]),
            "same": frozenset([present[1].etag if present else b"x" * 16]),
        }[wanted]  # fmt: skip
        allowed = {
            "absent": present is None, "any": present is not None,
            "same": present is not None, "other": False,
        }[wanted]  # fmt: skip
        body = self.body(1000, seed)
        try:
            meta = self.stores.run(put(self.store, name, body, condition=Condition(etags)))
        except PreconditionFailed:
            assert not allowed
        else:
            assert allowed
            self.model[name] = (body, meta)

    @rule(name=names)
    def delete(self, name):
        existed = self.stores.run(self.store.delete(target_of(name)))
        assert existed == (self.model.pop(name, None) is not None)

    @rule(name=names)
    def get(self, name):
        present = self.model.get(name)
        assert self.stores.run(get(self.store, name)) == (present and present[0])
        meta = self.stores.run(self.store.meta(target_of(name)))
        assert meta == (present and present[1])

    @rule(name=names, size=sizes, fault=st.sampled_from(["gone", "digest", "limit"]))
    def give_up(self, name, size, fault):
        async def story():
            digests = [(hashlib.md5(), b"wrong")] if fault == "digest" else []
            upload = self.store.begin(Key("bkt", name), length=None, digests=digests)
            try:
                await upload.write(bytes(size))
                if fault == "limit":
                    upload.reserve(1 << 40)
                if fault == "digest":
                    await upload.commit()
            except DigestMismatch:
                assert fault == "digest"
            except TooLarge:
                assert fault == "limit"
            finally:
                await upload.abort()

        self.stores.run(story())

    @rule(name=names, seeds=st.lists(seeds, min_size=2, max_size=4, unique=True), size=sizes)
    def put_at_the_same_time(self, name, seeds, size):
        bodies = [self.body(size, seed) for seed in seeds]

        async def story():
            return await asyncio.gather(*(put(self.store, name, body, pieces=2) for body in bodies))

        metas = self.stores.run(story())
        found = self.stores.run(get(self.store, name))
        assert found in bodies
        self.model[name] = (found, metas[bodies.index(found)])
        self.model[name] = (found, self.stores.run(self.store.meta(target_of(name))))

    @rule(name=names)
    def drop_what_has_rotted(self, name):
        if name not in self.model:
            return
        self.stores.run(get(self.store, name))
        blob = self.store._open[target_of(name)]
        self.store.drop(target_of(name), Corrupt("a test says so"), blob)
        del blob
        self.stores.run(writer_idle(self.store, int))
        del self.model[name]

    @rule(name=names)
    def drop_what_is_well(self, name):
        """It was replaced since it was found to be bad: the new one stays."""
        self.store.drop(target_of(name), Corrupt("a test says so"))
        self.stores.run(writer_idle(self.store, int))

    @rule()
    def reopen(self):
        was_reconciled = self.store.is_reconciled
        self.stores.close(self.store)
        self.store = self.stores.open(self.store.directory, open_max=self.open_max)
        assert self.store.is_reconciled or not was_reconciled

    @rule(flushed=st.booleans())
    def crash(self, flushed):
        if flushed:
            self.stores.run(writer_idle(self.store, self.store._index.flush))
        image = Path(self.root.name) / f"image-{next(self.images)}"
        self.store = self.stores.crash(self.store, image, open_max=self.open_max)
        was_used = any((image / "objects").iterdir())
        assert self.store.is_reconciled != was_used

    @precondition(lambda self: hasattr(self, "store"))
    @invariant()
    def nothing_is_left_over(self):
        assert self.store.reserved_bytes == 0
        assert len(object_files(self.store)) == len(self.model)
        assert not temporary_files(self.store)

    @precondition(lambda self: hasattr(self, "store") and self.store.is_reconciled)
    @invariant()
    def the_accounting_is_that_of_the_files(self):
        assert self.store.usage.snapshot() == usage_of_files(self.store)

    def teardown(self):
        if hasattr(self, "store"):
            self.stores.reconciled(self.store)
            self.the_accounting_is_that_of_the_files()
            for name in NAMES:
                self.get(name)
            self.reopen()
            self.the_accounting_is_that_of_the_files()
        self.stores.shut_down()
        self.root.cleanup()


StoreMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestAgainstADictionary = StoreMachine.TestCase


class Hooks:
    """Calls a function before (and after) each rename, write and unlink of the process."""

    NAMES = ("rename", "pwrite", "unlink")

    def __init__(self, monkeypatch, hook, *, after=True):
        self.is_on, self.after = False, after
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), name, hook))

    def _wrap(self, real, name, hook):
        def call(*arguments, **options):
            if not self.is_on:
                return real(*arguments, **options)
            hook(name)
            result = real(*arguments, **options)
            if self.after:
                hook(name)
            return result

        return call


OLD, NEW = b"old" * 1000, b"new" * 500_000


async def replace_small(store):
    await put(store, b"x", b"new" * 100)


async def replace_large(store):
    await put(store, b"x", NEW, pieces=20)


async def put_new(store):
    await put(store, b"y", NEW, pieces=20)


async def delete(store):
    await store.delete(target_of(b"x"))


async def give_up(store):
    upload = store.begin(Key("bkt", b"x"), length=None)
    await upload.write(NEW)
    await upload.abort()


async def fail_the_digest(store):
    with contextlib.suppress(DigestMismatch):
        await put(store, b"x", NEW, digests=[(hashlib.md5(), b"wrong")])


STORIES = (replace_small, replace_large, put_new, delete, give_up, fail_the_digest)
POSSIBLE = {
    replace_small: {b"x": {OLD, b"new" * 100}, b"y": {None}},
    replace_large: {b"x": {OLD, NEW}, b"y": {None}},
    put_new: {b"x": {OLD}, b"y": {None, NEW}},
    delete: {b"x": {OLD, None}, b"y": {None}},
    give_up: {b"x": {OLD}, b"y": {None}},
    fail_the_digest: {b"x": {OLD}, b"y": {None}},
}


class TestCrashes:
    @pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
    @pytest.mark.parametrize("flushed", [True, False])
    def test_a_crash_between_any_two_steps(  # noqa: PLR0917
        self, stores, store, tmp_path, monkeypatch, story, flushed
    ):
        stores.run(put(store, b"x", OLD))
        if flushed:
            stores.run(writer_idle(store, store._index.flush))
        images, lock = [], threading.Lock()

        def hook(_):
            with lock:
                hooks.is_on = False
                image = tmp_path / f"image-{len(images)}"
                take_image(store.directory, image)
                images.append(image)
                hooks.is_on = True

        hooks = Hooks(monkeypatch, hook)
        hooks.is_on = True
        stores.run(story(store))
        hooks.is_on = False
        assert len(images) >= 2
        results = {name: set() for name in (b"x", b"y")}
        for image in images:
            after = stores.open(image)
            assert not temporary_files(after)
            for name, possible in POSSIBLE[story].items():
                found = stores.run(get(after, name))
                assert found in possible
                results[name].add(found)
            stores.reconciled(after)
            assert after.usage.snapshot() == usage_of_files(after)
            stores.run(put(after, b"x", b"later"))
            assert stores.run(get(after, b"x")) == b"later"
            stores.close(after)
        assert results == POSSIBLE[story], "each outcome was seen"

    def test_what_a_crash_left_is_removed_at_the_start(self, stores, store):
        directory = store.directory
        stores.close(store)
        for name in ("1-1", "probe", "whatever"):
            (directory / "tmp" / name).write_bytes(b"x" * 1000)
        store = stores.open(directory)
        assert not temporary_files(store)

    def test_a_row_without_its_file_and_a_file_without_its_row(self, stores, store):
        for name in (b"a", b"b", b"c"):
            stores.run(put(store, name, name * 1000))
        stores.close(store)
        lost, *_ = object_files(store)
        lost.unlink()
        index = store.directory / "index.db"
        index.unlink()
        store = stores.open(store.directory)
        stores.reconciled(store)
        assert store.is_reconciled
        assert store.usage.snapshot() == usage_of_files(store)
        assert sum(entries for entries, _, _ in store.usage.snapshot().values()) == 2

    def test_files_that_say_nothing_credible_are_removed(self, stores, store, caplog):
        stores.run(put(store, b"good", b"good"))
        stores.close(store)
        (good,) = object_files(store)
        for place, content in (
            ("000/" + "0" * 29, b"noise"),
            ("fff/" + "f" * 29, good.read_bytes()),
            ("abc/short", b""),
        ):
            path = store.directory / "objects" / place
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        (store.directory / "objects" / "abc" / "a-directory").mkdir()
        (store.directory / "index.db").unlink()
        store = stores.open(store.directory)
        stores.reconciled(store)
        assert object_files(store) == [good]
        assert stores.run(get(store, b"good")) == b"good"
        for place in ("000/" + "0" * 29, "fff/" + "f" * 29, "abc/short", "abc/a-directory"):
            assert f"/objects/{place}: " in caplog.text, "each is told"
        assert store.usage.snapshot() == {("bkt", ""): (1, 4, good.stat().st_blocks * 512)}

    def test_a_close_before_the_repair_is_done_means_again(self, stores, store, tmp_path):
        stores.run(put(store, b"x", b"x"))
        again = stores.crash(store, tmp_path / "image")
        assert not again.is_reconciled
        stores.close(again)
        again = stores.open(tmp_path / "image")
        assert not again.is_reconciled
        stores.reconciled(again)
        stores.close(again)
        assert stores.open(tmp_path / "image").is_reconciled

    def test_it_serves_while_it_repairs(self, stores, store, tmp_path):
        for number in range(50):
            stores.run(put(store, b"%d" % number, b"x"))
        again = stores.crash(store, tmp_path / "image")

        async def story():
            for number in range(50):
                assert await get(again, b"%d" % number) == b"x"
                await put(again, b"%d" % number, b"yy", namespace="prj-a")
                if number % 3 == 0:
                    await again.delete(target_of(b"%d" % number))
            await again._repair

        stores.run(story())
        assert again.usage.snapshot() == usage_of_files(again)


async def tick(store):
    """As the shard does once a second."""
    store.tick()


def count_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def wait_for_descriptors(bound):
    """A thread may hold on to the last thing it did for a moment."""
    end = time.monotonic() + 5
    while count_descriptors() > bound:
        assert time.monotonic() < end, "descriptors leak"
        time.sleep(0.001)


class TestFailingDisks:
    @pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EFBIG])
    def test_an_error_at_any_step(self, stores, store, monkeypatch, story, error):
        stores.reconciled(store)
        step, failed = 0, True
        while failed:  # until the story is told without reaching the step that fails
            step += 1
            stores.run(store.delete(target_of(b"y")))
            stores.run(put(store, b"x", OLD))
            calls, failed_at = itertools.count(1), []

            def hook(name, calls=calls, failed_at=failed_at, step=step):
                if next(calls) == step:
                    failed_at.append(name)
                    raise OSError(error, os.strerror(error))

            with monkeypatch.context() as patch:
                hooks = Hooks(patch, hook, after=False)
                before = count_descriptors()
                store.disk.health = Health()  # a few of these errors are probation
                hooks.is_on = True
                try:
                    stores.run(story(store))
                except DiskFull:
                    assert error in {errno.ENOSPC, errno.EFBIG}
                    assert failed_at
                except DiskError:
                    assert error == errno.EIO or failed_at == ["unlink"]
                finally:
                    hooks.is_on = False
            failed = bool(failed_at)
            is_counted = failed and error == errno.EIO
            assert store.disk.health.errors == ({"EIO": 1} if is_counted else {})
            for name, possible in POSSIBLE[story].items():
                assert stores.run(get(store, name)) in possible
            store._open.clear()
            wait_for_descriptors(before)
            assert store.reserved_bytes == 0
            if failed_at != ["unlink"]:
                assert not temporary_files(store)
            assert store.usage.snapshot() == usage_of_files(store)
            for leftover in (store.directory / "tmp").iterdir():
                leftover.unlink()
        assert step >= 2

    @pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL])
    @pytest.mark.parametrize("restarts", [True, False])
    def test_an_index_that_fails_after_the_rename_loses_no_object(
        self, stores, store, code, restarts
    ):
        class Broken:
            in_transaction = False

            def execute(self, *_):
                error = sqlite3.OperationalError("I/O error")
                error.sqlite_errorcode = code
                raise error

            def close(self):
                pass

        stores.run(put(store, b"before", b"flushed"))
        stores.run(writer_idle(store, store._index.flush))
        real, store._index._db = store._index._db, Broken()
        try:
            stores.run(put(store, b"x", b"body"))
            assert stores.run(get(store, b"x")) == b"body"
            is_renewed = code == sqlite3.SQLITE_IOERR
            assert stores.run(writer_idle(store, store._index.flush)) == is_renewed
        finally:
            if is_renewed:
                real.close()
            else:
                store._index._db = real
        assert not store._index.is_clean
        if restarts:
            stores.close(store)
            store = stores.open(store.directory)
        else:
            stores.run(tick(store))
        assert not store.is_reconciled
        stores.reconciled(store)
        assert store.usage.snapshot() == usage_of_files(store)
        assert store.usage.entries == 2

    def test_an_index_that_fails_while_it_is_repaired(
        self, stores, store, tmp_path, monkeypatch, caplog
    ):
        stores.run(put(store, b"x", b"body"))
        store = stores.crash(store, tmp_path / "image")
        is_broken = threading.Event()

        def between(*_):
            is_broken.set()
            raise sqlite3.OperationalError("I/O error")

        async def story():
            with monkeypatch.context() as patch:
                patch.setattr(store._index, "between", between)
                assert await asyncio.to_thread(is_broken.wait, 20)
                await writer_idle(store, int)
                await asyncio.sleep(0)
                assert "I/O error" in caplog.text
                assert not store.is_reconciled
                assert await get(store, b"x") == b"body"

        stores.run(story())
        stores.close(store)
        store = stores.open(store.directory)
        assert not store.is_reconciled

        monkeypatch.setattr(store_module, "DOUBT_RETRY_S", 0.01)
        is_broken.clear()

        async def recover():
            with monkeypatch.context() as patch:
                patch.setattr(store._index, "between", between)
                assert await asyncio.to_thread(is_broken.wait, 20)

        stores.run(recover())
        stores.reconciled(store)
        assert store.usage.snapshot() == usage_of_files(store)

    def test_a_disk_that_does_not_say_what_is_free(self, stores, store, monkeypatch):
        def statvfs(_):
            raise OSError(errno.EIO, "I/O error")

        monkeypatch.setattr(os, "statvfs", statvfs)
        with pytest.raises(DiskError):
            stores.run(put(store, b"x", b"body"))

    @pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
    def test_an_entry_that_cannot_be_opened_is_a_miss_and_goes(
        self, stores, store, monkeypatch, error
    ):
        for name in (b"x", b"y"):
            stores.run(put(store, name, b"body"))

        def broken(*_):
            raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patch:
            patch.setattr(store_module, "open_blob", broken)
            assert stores.run(get(store, b"x")) is None
            stores.run(writer_idle(store, int))
        assert stores.run(get(store, b"x")) is None, "it never comes back"
        assert stores.run(get(store, b"y")) == b"body", "it costs what it hit, and no more"
        assert store.disk.health.errors[errno.errorcode[error]] >= 1
        assert store.corrupt_found >= 1
        assert len(object_files(store)) == 1
        assert store.usage.snapshot() == usage_of_files(store)

    def test_an_error_that_has_passed_costs_no_entry(self, stores, store, monkeypatch):
        stores.run(put(store, b"x", b"body"))
        gate = threading.Event()
        store._writer.post(lambda: gate.wait(20))

        def broken(*_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(store_module, "open_blob", broken)
            assert stores.run(get(store, b"x")) is None, "no wrong answer, no error"
        gate.set()
        stores.run(writer_idle(store, int))
        assert stores.run(get(store, b"x")) == b"body"

    def test_short_of_descriptors_is_no_miss(self, stores, store, monkeypatch):
        for number in range(100):
            stores.run(put(store, b"%d" % number, b"body"))
            stores.run(get(store, b"%d" % number))
        stores.run(put(store, b"x", b"body"))

        def broken(*_):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        assert len(store._open) == 100
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "open_blob", broken)
            with pytest.raises(Overloaded):
                stores.run(get(store, b"x"))
        assert len(store._open) == 50, "open files are given up for it"
        assert not store.disk.health.errors, "it says nothing against the disk"
        assert store.corrupt_found == 0
        stores.run(writer_idle(store, int))
        assert stores.run(get(store, b"x")) == b"body"
        assert len(object_files(store)) == 101

    def test_no_room(self, stores, store, monkeypatch):
        monkeypatch.setattr(capacity_module, "FREE_FLOOR_BYTES", 1 << 60)
        with pytest.raises(DiskFull):
            stores.run(put(store, b"x", b"body"))
        with pytest.raises(DiskFull):
            stores.run(put(store, b"x", b"body" * MIB, length=None, pieces=8))
        assert store.reserved_bytes == 0
        assert stores.run(put(store, b"x", b"")).size == 0, "an empty object needs no room"

    def test_the_largest_object(self, stores, tmp_path):
        store = stores.open(tmp_path / "small", object_max_bytes=1000)
        assert stores.run(put(store, b"x", bytes(1000))).size == 1000
        for length in (1001, None):
            with pytest.raises(TooLarge):
                stores.run(put(store, b"x", bytes(1001), length=length))
        assert len(stores.run(get(store, b"x"))) == 1000


class TestReservation:
    def test_what_was_written_is_reserved_no_longer(self, stores, store):
        """The file system counts it already; counted twice, a disk would be full at half."""

        async def story():
            upload = store.begin(Key("bkt", b"x"), length=8 * MIB)
            assert store.reserved_bytes == 8 * MIB
            for _ in range(8):
                await upload.write(bytes(MIB))
            await upload._settle()
            assert store.reserved_bytes <= CHUNK_BYTES
            await upload.commit()
            assert store.reserved_bytes == 0
            await upload.abort()
            assert store.reserved_bytes == 0

        stores.run(story())

    def test_an_unknown_length_is_reserved_as_it_comes(self, stores, store):
        async def story():
            upload = store.begin(Key("bkt", b"x"), length=None)
            assert store.reserved_bytes == 0
            for _ in range(30):
                await upload.write(bytes(300_000))
            assert 0 < store.reserved_bytes <= 4 * CHUNK_BYTES
            await upload.abort()
            assert store.reserved_bytes == 0

        stores.run(story())

    def test_two_uploads_do_not_get_the_same_room(self, stores, store, monkeypatch):
        free = store.level.free
        monkeypatch.setattr(capacity_module, "FREE_FLOOR_BYTES", free - 10 * MIB)

        async def story():
            upload = store.begin(Key("bkt", b"x"), length=8 * MIB)
            with pytest.raises(DiskFull):
                store.begin(Key("bkt", b"y"), length=8 * MIB)
            await upload.abort()
            await store.begin(Key("bkt", b"y"), length=1 * MIB).abort()

        stores.run(story())


class TestOldAndNew:
    """What is open is remembered: never longer than it is true."""

    def gate(self, store):
        """Hold the writer thread up until the returned event is set."""
        gate = threading.Event()
        store._writer.post(lambda: gate.wait(20))
        return gate

    @pytest.mark.parametrize("change", ["put", "delete"])
    def test_a_change_whose_client_is_gone(self, stores, store, change):
        async def story():
            await put(store, b"x", b"old")
            gate = self.gate(store)
            if change == "put":
                task = asyncio.ensure_future(put(store, b"x", b"new"))
            else:
                task = asyncio.ensure_future(store.delete(target_of(b"x")))
            for _ in range(5):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await get(store, b"x") == b"old", "not yet"
            gate.set()
            await writer_idle(store, int)
            assert await get(store, b"x") == (b"new" if change == "put" else None)
            assert store.reserved_bytes == 0

        stores.run(story())
        assert store.usage.snapshot() == usage_of_files(store)

    def test_a_slow_open_of_the_old_version_is_not_remembered(self, stores, store, monkeypatch):
        gate, is_open = threading.Event(), threading.Event()
        real = store_module.open_blob

        def slow(*arguments):
            blob = real(*arguments)
            is_open.set()
            gate.wait(20)
            return blob

        async def story():
            await put(store, b"x", b"old")
            with monkeypatch.context() as patch:
                patch.setattr(store_module, "open_blob", slow)
                finding = asyncio.ensure_future(store.find(target_of(b"x")))
                await asyncio.to_thread(is_open.wait, 20)
            await put(store, b"x", b"new")
            gate.set()
            assert (await finding).read() == b"old"
            assert await get(store, b"x") == b"new"

        stores.run(story())

    def test_rot_of_an_old_version_does_not_drop_the_new(self, stores, store):
        async def story():
            await put(store, b"x", b"old")
            await get(store, b"x")
            old = store._open[target_of(b"x")]
            await put(store, b"x", b"new")
            await get(store, b"x")
            store.drop(target_of(b"x"), Corrupt("met while it was still being sent"), old)
            await writer_idle(store, int)
            assert await get(store, b"x") == b"new"

        stores.run(story())

    def test_a_condition_is_checked_when_it_becomes_visible(self, stores, store):
        """Of two at the same time one wins, though both looked before and found nothing."""

        async def story():
            absent = Condition(None)
            results = await asyncio.gather(
                *(put(store, b"x", b"%d" % number, condition=absent) for number in range(10)),
                return_exceptions=True,
            )
            winners = [result for result in results if not isinstance(result, Exception)]
            assert len(winners) == 1
            assert all(isinstance(r, PreconditionFailed) for r in results if r not in winners)

        stores.run(story())
        assert not temporary_files(store)

    def test_open_files_are_bounded(self, stores, tmp_path):
        store = stores.open(tmp_path / "few", open_max=3)
        for number in range(20):
            stores.run(put(store, b"%d" % number, b"%d" % number))
        before = count_descriptors()
        for number in range(20):
            assert stores.run(get(store, b"%d" % number)) == b"%d" % number
        wait_for_descriptors(before + 3)


class TestUploads:
    def test_a_waiting_upload_gives_up_its_file(self, stores, store):
        async def story():
            upload = store.begin(Key("bkt", b"x"), length=None)
            await upload.write(bytes(3 * MIB))
            await upload._settle()
            assert len(temporary_files(store)) == 1
            await upload.abort()
            await upload.abort()
            assert not temporary_files(store)

        stores.run(story())

    def test_an_upload_cancelled_while_it_writes(self, stores, store):
        async def story():
            async def upload():
                await put(store, b"x", bytes(20 * MIB), pieces=20)

            for _ in range(10):
                task = asyncio.ensure_future(upload())
                await asyncio.sleep(0.001)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert store.reserved_bytes == 0

        stores.run(story())
        stores.run(writer_idle(store, int))
        assert not temporary_files(store)

    def test_many_tiny_pieces_do_not_pile_up_as_objects(self, stores, store):
        async def story():
            upload = store.begin(Key("bkt", b"x"), length=None)
            for _ in range(100_000):
                await upload.write(b"ab")
            assert isinstance(upload._buffer, bytearray)
            await upload.commit()
            assert await get(store, b"x") == b"ab" * 100_000

        stores.run(story())

    @pytest.mark.parametrize("name", ["md5", "sha256", "sha512"])
    def test_digests(self, stores, store, name):
        body = b"body" * 400_000
        good = hashlib.new(name, body).digest()
        stores.run(put(store, b"x", body, pieces=7, digests=[(hashlib.new(name), good)]))
        with pytest.raises(DigestMismatch, match=good.hex()):
            stores.run(put(store, b"x", body[1:], digests=[(hashlib.new(name), good)]))
        assert stores.run(get(store, b"x")) == body

    def test_errors_are_ours(self):
        for error in (DigestMismatch, DiskError, DiskFull, PreconditionFailed, TooLarge):
            assert issubclass(error, Refused)


class TestDirectories:
    def test_one_process_has_it(self, stores, store):
        with pytest.raises(DataDirError, match="in use by another process"):
            stores.open(store.directory)
        stores.close(store)
        stores.open(store.directory)

    def test_what_cannot_be_made(self, stores, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataDirError, match="file"):
            stores.open(tmp_path / "file")

    def test_the_clock_is_given(self, stores, tmp_path):
        times = [12.3456]
        store = stores.open(tmp_path / "shard", clock=lambda: times[-1])
        assert 12_345 <= stores.run(put(store, b"x", b"")).created_ms < 40_000
        times.append(1000.3456)
        assert stores.run(put(store, b"x", b"")).created_ms == 1_000_345
        times.append(12.3456)
        again = stores.run(put(store, b"x", b"")).created_ms
        assert 1_000_345 <= again < 1_040_000, "it never goes back"

    def test_names_are_no_paths(self, stores, store):
        for number, name in enumerate([b"..", b"../../x", b"/etc/passwd", b"%2e%2e", b"a" * 4096]):
            stores.run(put(store, name, b"%d" % number))
            assert stores.run(get(store, name)) == b"%d" % number
        assert {len(path.name) for path in object_files(store)} == {29}
        assert isinstance(store, Store)
