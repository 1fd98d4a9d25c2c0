"""An SQLite index that is locked, damaged, removed or replaced, and clocks that jump."""

import asyncio
import os
import random
import sqlite3
import time

import pytest
from storage_faults import blocks_of, object_files
from storage_node import Node, make_body, until

from simplecache.model import Key
from simplecache.store import index as index_module
from simplecache.store import repair
from simplecache.store.index import Index

LOCKED_S = float(os.environ.get("SCS_LOCKED_S", "3"))
FINDINGS = [kind for kind in repair.COUNTS if kind not in {"entries", "disk"}]


async def fill(node, count):
    bodies = {f"aaa/{i % 9}/{i}": make_body(i, 2000 + i % 7000) for i in range(count)}
    for name, body in bodies.items():
        assert await node.put(name, body) == 201
    return bodies


async def agree(node, directory):
    """Rows, files and figures are one."""
    await node.reconciled()
    await until(lambda: not node.store._index.pending)
    files = object_files(directory)
    rows = await node.store._writer.run(lambda: node.store._index.between(0, 0xFFFF))
    assert node.store.usage.entries == len(rows) == len(files)
    assert node.store.usage.total_disk == blocks_of(directory)
    found = await node.checked()
    assert not any(found[kind] for kind in FINDINGS)


def test_a_locked_database_stops_no_request(tmp_path):
    """Another program holds a lock for ten seconds (SCS_LOCKED_S)."""

    async def story():
        async with Node(tmp_path / "s") as node:
            bodies = await fill(node, 50)
            await until(lambda: not node.store._index.pending)
            other = sqlite3.connect(tmp_path / "s/index.db", isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            deadline, slowest, puts = time.monotonic() + LOCKED_S, 0.0, 0
            while time.monotonic() < deadline:
                began = time.monotonic()
                name = f"bbb/{puts}"
                assert await node.put(name, name.encode()) == 201
                assert await node.get(name) == name.encode()
                assert await node.get("aaa/3/3") == bodies["aaa/3/3"]
                slowest = max(slowest, time.monotonic() - began)
                puts += 1
                await asyncio.sleep(0.01)
            assert slowest < 0.5
            assert node.store._index.pending > 0
            other.execute("COMMIT")
            other.close()
            await until(lambda: not node.store._index.pending)
            assert node.store._index.doubts == 0
            await agree(node, tmp_path / "s")
            assert node.store.usage.entries == 50 + puts

    asyncio.run(story())


def test_changes_that_wait_too_long_are_given_up_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "PENDING_MAX", 20)

    async def story():
        async with Node(tmp_path / "s") as node:
            await fill(node, 10)
            await until(lambda: not node.store._index.pending)
            other = sqlite3.connect(tmp_path / "s/index.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            await fill(node, 60)
            await until(lambda: node.store._index.doubts > 0)
            other.execute("COMMIT")
            other.close()
            await agree(node, tmp_path / "s")
            assert node.store.usage.entries == 60

    asyncio.run(story())


def overwrite(path):
    """Damage all of a database but its first page."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(1).randbytes(max(0, size - 4096)))


def remove(path):
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def replace(path):
    """Another program's database, of another version, stands in its place."""
    remove(path)
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE entry (id); PRAGMA user_version = 77")
    db.close()


@pytest.mark.parametrize("harm", [overwrite, remove, replace])
def test_an_index_that_is_lost_while_the_shard_serves_is_made_anew(tmp_path, harm):
    async def story():
        async with Node(tmp_path / "s") as node:
            bodies = await fill(node, 200)
            await until(lambda: not node.store._index.pending)
            await node.store._writer.run(
                lambda: node.store._index._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            )
            harm(tmp_path / "s/index.db")
            more = await fill(node, 250)
            for name in random.Random(1).sample(sorted(bodies), 50):
                assert await node.get(name) == bodies[name]
            await node.checked()
            await until(lambda: node.store._index.doubts > 0)
            await agree(node, tmp_path / "s")
            assert node.store.usage.entries == 250
            for name, body in more.items():
                assert await node.get(name) == body
            assert "it is here" in await node.store.why(Key("aaa", b"3/3"))
        async with Node(tmp_path / "s") as node:
            assert node.store._index.is_clean
            assert node.store.usage.entries == 250

    asyncio.run(story())


@pytest.mark.parametrize("harm", [overwrite, remove, replace])
def test_an_index_that_is_no_good_at_the_start_is_rebuilt_while_the_shard_serves(tmp_path, harm):
    async def story():
        async with Node(tmp_path / "s") as node:
            bodies = await fill(node, 200)
        harm(tmp_path / "s/index.db")
        async with Node(tmp_path / "s") as node:
            for name, body in bodies.items():
                assert await node.get(name) == body  # at once
            await node.checked()
            await agree(node, tmp_path / "s")
            assert node.store.usage.entries == 200

    asyncio.run(story())


def test_a_rebuild_does_not_count_twice_and_lets_nothing_go(tmp_path):
    """A shard that is nearly full: figures that were too high would evict what is good."""

    async def story():
        async with Node(tmp_path / "s") as node:
            await fill(node, 300)
            node.store._measure()
            node.store.capacity_bytes = int(node.store.level.used * 1.2)
            await until(lambda: not node.store._index.pending)
            remove(tmp_path / "s/index.db")
            await until(lambda: node.store._index.doubts > 0)
            await agree(node, tmp_path / "s")
            assert node.store.usage.entries == 300
            assert not node.store.evictor.evicted

    asyncio.run(story())


def test_an_index_that_cannot_be_made_anew_waits_and_requests_go_on(tmp_path, monkeypatch):
    async def story():
        async with Node(tmp_path / "s") as node:
            await fill(node, 20)
            real = Index._make
            monkeypatch.setattr(Index, "_make", lambda _: (_ for _ in ()).throw(OSError(5, "EIO")))
            remove(tmp_path / "s/index.db")
            await until(lambda: node.store._index.doubts > 0)
            bodies = await fill(node, 40)
            for name, body in bodies.items():
                assert await node.get(name) == body
            monkeypatch.setattr(Index, "_make", real)
            await agree(node, tmp_path / "s")
            assert node.store.usage.entries == 40

    asyncio.run(story())


def test_a_clock_that_jumps_back_a_day_breaks_nothing(tmp_path):
    now = [1_700_000_000.0]

    def put(node, name, **options):
        return node.ask("PUT", f"/v1/objects/{name}", name.encode(), **options)

    async def story():
        async with Node(tmp_path / "s", clock=lambda: now[0]) as node:
            await put(node, "aaa/short", Cache_Control="max-age=10")
            await put(node, "aaa/long", Cache_Control="max-age=1000")
            await put(node, "aaa/ever")
            await put(node, "aaa/gone")
            await node.ask("DELETE", "/v1/objects/aaa/gone")
            seq = node.store._index.seq
            now[0] += 11
            node.store.tick()
            assert await node.get("aaa/short") is None
            now[0] -= 86_400
            node.store.tick()
            assert await node.get("aaa/short") is None  # within a process, time goes on
            assert await node.get("aaa/long") == b"aaa/long"
            await put(node, "aaa/new", Cache_Control="max-age=10")
            node.store.tick()
            assert await node.get("aaa/new") == b"aaa/new"
            assert "was deleted 11 s ago" in await node.store.why(Key("aaa", b"gone"))
        async with Node(tmp_path / "s", clock=lambda: now[0]) as node:
            assert node.store._index.seq > seq  # what comes now stands behind what came before
            await put(node, "aaa/last")
            rows = await node.store._writer.run(lambda: node.store._index.between(0, 0xFFFF))
            newest = max(rows.values(), key=lambda row: row.seq)
            assert newest.target.endswith(b"last")
            assert await node.get("aaa/ever") == b"aaa/ever"
            assert "was deleted" in await node.store.why(Key("aaa", b"gone"))
            assert "0 s ago" in await node.store.why(Key("aaa", b"last"))
            await agree(node, tmp_path / "s")

    asyncio.run(story())


def test_the_order_of_arrival_survives_a_clock_of_the_future(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module.time, "time", lambda: 4_000_000_000.0)
    index = Index(tmp_path / "index.db")
    index.note("x", "y")
    seq = index.next_seq()
    index.close()
    monkeypatch.undo()
    index = Index(tmp_path / "index.db")
    assert index.next_seq() > seq
    assert index.noted("x") == "y"
    index.close()


def test_the_start_does_not_look_at_every_row(tmp_path):
    """What SQLite has to do at a start does not grow with the entries."""
    steps = []
    for rows in (100, 20_000):
        path = tmp_path / f"{rows}.db"
        index = Index(path)
        for number in range(rows):
            ident = number.to_bytes(16, "big")
            index.put(
                index_module.Row(ident, "b", "n", ident, 1, 4096, 1, 1, 0, 1, 1, index.next_seq())
            )
        index.flush()
        index.is_clean = True
        index.close()
        counted = [0]
        real = sqlite3.connect

        def connect(*args, real=real, counted=counted, **options):
            db = real(*args, **options)
            db.set_progress_handler(lambda: counted.__setitem__(0, counted[0] + 1), 10)
            return db

        index_module.sqlite3.connect = connect
        try:
            index = Index(path)
            list(index.usage())
            index.close()
        finally:
            index_module.sqlite3.connect = real
        steps.append(counted[0])
    assert steps[1] < 2 * steps[0] + 100
