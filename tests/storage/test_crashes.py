"""A store against a dict, with crashes between any two system calls.

Whatever happens, a get is a whole version that was put last (or, when a crash interrupted a change,
the one before), or a miss; and once rows and files were compared, the accounting is what ``du`` says.
More steps: SCS_STATEFUL_EXAMPLES=1000.
"""

import asyncio
import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from storage_faults import Crash, DyingProcess, blocks_of, flip_bit, object_files, read_all

from simplecache.errors import DiskFull
from simplecache.model import Bucket, Key
from simplecache.store import repair, scrub
from simplecache.store import store as store_module
from simplecache.store.blobs import Corrupt, blob_id
from simplecache.store.store import Store

EXAMPLES = int(os.environ.get("SCS_STATEFUL_EXAMPLES", "40"))
KEYS = [Key(bucket, name) for bucket in ("aaa", "bbb") for name in (b"x/1", b"x/2", b"y/3")]
SIZES = [0, 1, 3000, 9000, 40_000, (1 << 20) + 17]
STEPS = {blob_id(key.target)[0] for key in KEYS}

keys = st.sampled_from(KEYS)
deaths = st.none() | st.tuples(st.integers(0, 12), st.sampled_from(["before", "middle", "after"]))


def make_body(key, version, size):
    """A body that no other version has."""
    return random.Random(f"{key}{version}").randbytes(size)


def make_buckets(quota):
    return {
        name: Bucket(name, True, quota if name == "aaa" else None, (), None, eviction=policy)
        for name, policy in (("aaa", "fifo"), ("bbb", "steady"))
    }


async def never(*_):
    await asyncio.Event().wait()


class Crashes(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.shard = self.directory / "s"
        self.loop = asyncio.new_event_loop()
        self.process = DyingProcess(self.directory)
        self.process.__enter__()
        # The walks are rules of their own, so that a failure can be replayed.
        self.reconcile, store_module.reconcile = store_module.reconcile, never
        self.now = 1_000_000.0
        self.version = 0
        self.possible = {key: set() for key in KEYS}
        """Versions that a get may find."""
        self.bodies = {}
        self.held = []
        self.quota = None
        self.store = None
        self.open()

    def teardown(self):
        try:
            self.compare()
            self.kill()
        finally:
            self.process.__exit__()
            store_module.reconcile = self.reconcile
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.directory)

    # -- what a process does ---------------------------------------------------------------

    def run(self, function, *args):
        """Run in the process; whether it lived on. What a crash leaves is opened again."""
        try:
            result = self.loop.run_until_complete(self._settled(function, *args))
        except Crash:
            assert self.process.is_dead
            result = None
        if self.process.is_dead:
            self.kill()
            self.open()
            return False, None
        return True, result

    async def _settled(self, function, *args):
        """What was posted is done, too: the next step begins where this one has ended."""
        try:
            return await function(*args)
        finally:
            await self._in_writer(lambda: None)

    async def _start(self):
        self.store = Store(self.shard, capacity_bytes=1 << 40, clock=lambda: self.now)
        self.store.configure(make_buckets(self.quota))

    def open(self):
        while self.store is None:
            try:
                self.loop.run_until_complete(self._start())
            except Crash:
                self.store = None
                self.process.live()

    def kill(self):
        """Whatever was not on the disk is lost."""
        self.process.is_dead = True
        self.held.clear()
        if self.store is not None:
            store, self.store = self.store, None
            with contextlib.suppress(Crash):
                self.loop.run_until_complete(store.close())
        self.process.live()

    def die(self, death):
        if death is not None:
            self.process.die_after(*death)

    # -- rules -----------------------------------------------------------------------------

    @rule(key=keys, size=st.sampled_from(SIZES), death=deaths, is_announced=st.booleans())
    def put(self, key, size, death, is_announced):
        self.check(key)  # now the old version is open
        self.version += 1
        body = self.bodies[self.version] = make_body(key, self.version, size)
        before = self.possible[key]
        self.possible[key] = before | {self.version}
        self.die(death)
        lived, stored = self.run(self._put, key, body, is_announced)
        if lived:
            self.possible[key] = {self.version} if stored else before
        self.check(key)

    async def _put(self, key, body, is_announced):
        length = len(body) if is_announced else None
        try:
            if not await self.store.admits(key, "", length):
                return False
            upload = self.store.begin(key, length=length)
        except DiskFull:
            return False
        try:
            for at in range(0, len(body), 400_000):
                await upload.write(body[at : at + 400_000])
            await upload.commit()
        finally:
            await upload.abort()
        return True

    @rule(key=keys)
    def get(self, key):
        self.check(key)

    def check(self, key):
        _, body = self.run(self._get, key)
        if body is not None:
            versions = {v for v in self.possible[key] if self.bodies[v] == body}
            assert versions, f"{key} has {len(body)} bytes that nobody put there last"
            self.possible[key] = versions

    async def _find(self, key):
        try:
            return self.store.find_now(key.target)
        except BlockingIOError:
            return await self.store.find(key.target)

    async def _get(self, key):
        self.store.touched.append(key.target)
        blob = await self._find(key)
        if blob is None:
            return None
        try:
            return await self.store.in_thread(read_all, blob)
        except Corrupt as error:
            self.store.drop(key.target, error, blob)
            return None

    @rule(key=keys)
    def hold(self, key):
        """A slow reader: it has a version open, and reads it when that is long gone."""
        _, blob = self.run(self._find, key)
        if blob is not None:
            self.held.append((key, blob, set(self.possible[key])))

    @rule()
    def read_held(self):
        for _, blob, versions in self.held:
            with contextlib.suppress(Corrupt):
                assert read_all(blob) in [self.bodies[v] for v in versions]
        self.held.clear()

    @rule(key=keys, death=deaths)
    def delete(self, key, death):
        self.die(death)
        lived, _ = self.run(self._delete, key)
        if lived:
            self.possible[key] = set()
        self.check(key)

    async def _delete(self, key):
        return await self.store.delete(key.target)

    @rule(death=deaths)
    def write_index(self, death):
        self.die(death)
        self.run(self._in_writer, self.store._index.flush)

    async def _in_writer(self, function):
        return await self.store._writer.run(function)

    @rule(death=deaths, excess=st.integers(1, 100_000))
    def evict(self, death, excess):
        self.die(death)
        self.run(self._in_writer, lambda: self.store.evictor.step(excess))

    @rule(death=deaths, quota=st.none() | st.integers(1, 200_000))
    def configure(self, death, quota):
        self.quota = quota
        self.die(death)
        self.run(self._configure, make_buckets(quota))

    @rule(death=deaths)
    def remove_bucket(self, death):
        self.die(death)
        buckets = make_buckets(self.quota)
        del buckets["bbb"]
        lived, _ = self.run(self._configure, buckets)
        if lived:  # what has no row yet, after a crash, may still be there when the bucket is back
            self.run(self._configure, make_buckets(self.quota))

    async def _configure(self, buckets):
        self.store.configure(buckets)
        while self.store._evicting is not None and not self.store._evicting.done():
            await asyncio.wait([self.store._evicting])

    @rule(death=deaths, seconds=st.sampled_from([1, 1000, -86_400]))
    def time_goes_by(self, death, seconds):
        self.now += seconds
        self.die(death)
        self.run(self._tick)

    async def _tick(self):
        self.store.tick()
        await self._configure(make_buckets(self.quota))

    @rule(key=keys, count=st.integers(2, 4), death=deaths)
    def put_at_once(self, key, count, death):
        """Several clients put one object at the same time."""
        bodies = []
        for _ in range(count):
            self.version += 1
            body = make_body(key, self.version, 2000 * self.version % 50_000)
            bodies.append(body)
            self.bodies[self.version] = body
        mine = set(range(self.version - count + 1, self.version + 1))
        before = self.possible[key]
        self.possible[key] = before | mine
        self.die(death)
        lived, stored = self.run(self._put_all, key, bodies)
        if lived:
            kept = {v for v, is_stored in zip(sorted(mine), stored, strict=True) if is_stored}
            self.possible[key] = kept or before
        self.check(key)

    async def _put_all(self, key, bodies):
        puts = (self._put(key, body, True) for body in bodies)
        stored = await asyncio.gather(*puts, return_exceptions=True)
        for each in stored:
            if isinstance(each, BaseException):
                raise each
        return stored

    @rule()
    def stop_and_start(self):
        self.process.spare()
        store, self.store = self.store, None
        self.held.clear()
        self.loop.run_until_complete(store.close())
        self.open()

    @rule(death=deaths)
    def kill_and_start(self, death):
        self.kill()
        self.die(death)
        self.open()

    @rule(seed=st.integers(0, 1000))
    def rot(self, seed):
        files = object_files(self.shard)
        if files:
            flip_bit(random.Random(seed).choice(files), random.Random(seed))

    @rule(seed=st.integers(0, 1000))
    def lose_power(self, seed):
        """A page that was not written out is all zeros."""
        self.kill()
        files = object_files(self.shard)
        if files:
            path = random.Random(seed).choice(files)
            at = random.Random(seed).randrange(path.stat().st_size // 4096 + 1) * 4096
            length = min(4096, path.stat().st_size - at)
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes(length))
        self.open()

    @rule(death=deaths)
    def scrub(self, death):
        self.die(death)
        lived, _ = self.run(self._walk, self._look_whole)
        if lived:
            for path in object_files(self.shard):
                repair.look_at_prefix(str(path))

    def _look_whole(self, path):
        return scrub.GentleReader(self.store.disk.nowait, lambda *_: None).look(path)

    async def _walk(self, look=repair.look_at_prefix):
        for step in sorted(STEPS):
            await self.store._walker.walk(step, look, is_deep=look is not repair.look_at_prefix)

    @rule()
    def compare(self):
        """What a start after a crash does in the background; then all figures are exact."""
        self.process.spare()
        usage = self.store.usage
        usage.begin_recount()
        self.run(self._walk)
        for step in set(range(repair.STEPS)) - STEPS:
            usage.count(step << 8, step << 8 | 255, ())
        assert all(usage._counted)
        assert usage.end_recount() == []
        self.loop.run_until_complete(self._in_writer(self.store._index.flush))
        rows = self.store._index.between(0, 0xFFFF)
        files = object_files(self.shard)
        assert len(files) == len(rows) == usage.entries
        assert blocks_of(self.shard) == sum(r.disk for r in rows.values()) == usage.total_disk
        for path in files:
            with contextlib.suppress(Corrupt):  # rot that no scrub has seen yet
                meta, status = repair.look_at_prefix(str(path))
                row = rows[blob_id(meta.target)]
                same = repair.row_of(row.bucket, meta, status, queue=row.queue, seq=row.seq)
                assert row == same
        saved = {tuple(t[:2]): t[4] for t in self.store._index.usage()}
        assert saved == dict(usage.by_tenant())

    @invariant()
    def no_file_without_an_owner(self):
        assert self.store is None or not list((self.shard / "tmp").iterdir())


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(
    max_examples=EXAMPLES,
    print_blob=True,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
