"""The scrubber: rot is found, nothing wrong is served, the page cache stays as it was."""

import asyncio
import os
import random
import sqlite3

import pytest
from storage_faults import blocks_of, flip_bit, object_files
from storage_node import Node, make_body, until

from simplecache.store import repair, scrub
from simplecache.store.blobs import BLOCK_BYTES, blob_id, path_of
from simplecache.store.index import Index

SIZES = [1, 700, 3000, 5000, 70_000, 300_000, BLOCK_BYTES + 5, 3 * BLOCK_BYTES]


async def fill(node, count, bucket="aaa"):
    bodies = {f"{bucket}/d{i % 7}/{i}": make_body(i, SIZES[i % len(SIZES)]) for i in range(count)}
    for name, body in bodies.items():
        assert await node.put(name, body) == 201
    return bodies


def test_flipped_bits_in_files_are_all_found_and_never_served(tmp_path):
    async def story():
        async with Node(tmp_path / "s") as node:
            bodies = await fill(node, 200)
            rng = random.Random(1)
            rotten = rng.sample(object_files(tmp_path / "s"), 100)
            for path in rotten:
                flip_bit(path, rng)
            some = rng.sample(sorted(bodies), 40)
            misses = 0
            for name in some:  # before a scrub: by whoever asks
                try:
                    body = await node.get(name)
                except asyncio.IncompleteReadError:  # found in the middle of a large body
                    misses += 1
                    continue
                misses += body is None
                assert body in {None, bodies[name]}
            before = node.store.corrupt_found
            found = await node.checked()
            assert before + found["corrupt"] == 100
            assert misses == before > 0
            assert len(object_files(tmp_path / "s")) == 100
            for name, body in bodies.items():
                assert await node.get(name) in {None, body}
            assert node.store.corrupt_found == 100
            again = await node.checked()
            assert again["entries"] == 100
            assert (
                sum(again[kind] for kind in repair.COUNTS if kind not in {"entries", "disk"}) == 0
            )
            assert node.store.usage.total_disk == blocks_of(tmp_path / "s")
            gone = {name for name in bodies if await node.get(name) is None}.pop()
            _, fields, _ = await node.ask("GET", f"/v1/objects/{gone}", SCS_Why="yes")
            assert "did not match their sums" in fields["scs-why"]

    asyncio.run(story())


def rot_row(db, ident, column, rng, first_bit=0):
    """Flip a bit of a value in place, as a sector does: through SQL, so that the tree stays whole."""
    (value,) = db.execute(f"SELECT {column} FROM entry WHERE id = ?", (ident,)).fetchone()
    if isinstance(value, int):
        new = value ^ 1 << rng.randrange(first_bit, 40)
    else:
        raw = bytearray(value.encode() if isinstance(value, str) else value or b"\0")
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(5)
        new = raw.decode() if isinstance(value, str) else bytes(raw)
    db.execute(f"UPDATE entry SET {column} = ? WHERE id = ?", (new, ident))


def test_flipped_bits_in_rows_are_all_found_and_put_right(tmp_path):
    columns = ["id", "bucket", "namespace", "target", "size", "disk", "stamp", "created_s",
               "expires_s", "grp"]  # fmt: skip

    async def story():
        async with Node(tmp_path / "s") as node:
            bodies = await fill(node, 200)
            await node.store._writer.run(node.store._index.flush)
            usage = dict(node.store.usage.by_tenant())
            rng = random.Random(2)
            db = sqlite3.connect(tmp_path / "s/index.db", isolation_level=None)
            idents = [row[0] for row in db.execute("SELECT id FROM entry ORDER BY id")]
            for number, ident in enumerate(rng.sample(idents, 100)):
                column = columns[number % len(columns)]
                if column == "namespace":
                    db.execute("UPDATE entry SET namespace = 'x' WHERE id = ?", (ident,))
                elif column == "disk":  # a single block may be the file system's own doing
                    rot_row(db, ident, column, rng, first_bit=13)
                elif column == "expires_s":  # in the past, the entry would go at once: a miss
                    rot_row(db, ident, column, rng, first_bit=32)
                else:
                    rot_row(db, ident, column, rng)
            db.close()
            found = await node.checked()
            # A row whose id rotted is a row without a file and a file without a row.
            assert found["without_row"] == found["without_file"] == 10
            assert found["wrong_rows"] == 90
            for name, body in bodies.items():
                assert await node.get(name) == body
            again = await node.checked()
            assert (again["entries"], again["wrong_rows"], again["wrong_figures"]) == (200, 0, 0)
            assert dict(node.store.usage.by_tenant()) == usage

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_in_the_database_file_are_found(tmp_path, seed):
    async def story():
        async with Node(tmp_path / "s") as node:
            bodies = await fill(node, 120)
        rng = random.Random(seed)
        database = tmp_path / "s/index.db"
        for _ in range(20):
            flip_bit(database, rng)
        async with Node(tmp_path / "s") as node:
            await node.checked()
            for name, body in bodies.items():
                assert await node.get(name) == body
            again = await node.checked()
            assert again["entries"] == 120
            assert (
                sum(again[kind] for kind in repair.COUNTS if kind not in {"entries", "disk"}) == 0
            )
            assert node.store.usage.total_disk == blocks_of(tmp_path / "s")

    asyncio.run(story())


def test_files_without_rows_and_rows_without_files_are_found_online(tmp_path):
    async def story():
        async with Node(tmp_path / "s") as node:
            await fill(node, 50)
            files = object_files(tmp_path / "s")
            for path in files[:5]:
                path.unlink()
            moved = files[5].with_name("0" * 29)  # bears a name that belongs elsewhere
            files[5].rename(moved)
            (tmp_path / "s/objects/000").mkdir(exist_ok=True)
            (tmp_path / "s/objects/000/notes.txt").write_text("a stray")
            for path in files[6:9]:
                node.store._index.delete(bytes.fromhex(path.parent.name + path.name))
            found = await node.checked()
            assert (found["without_file"], found["without_row"]) == (6, 3)
            assert (found["corrupt"], found["strays"]) == (1, 1)
            assert found["wrong_figures"] == 1  # the three were counted twice until the end
            assert node.store.usage.entries == 44 == len(object_files(tmp_path / "s"))

    asyncio.run(story())


def test_miscounted_tenants_are_put_right(tmp_path):
    async def story():
        async with Node(tmp_path / "s") as node:
            await fill(node, 30)
            node.store.usage._ledger.tenants["aaa", ""][2] += 12_345
            node.store.usage._ledger.disk += 12_345
            found = await node.checked()
            assert found["wrong_figures"] == 1
            assert node.store.usage.total_disk == blocks_of(tmp_path / "s")

    asyncio.run(story())


def test_a_round_goes_on_while_entries_come_and_go(tmp_path):
    async def story():
        async with Node(tmp_path / "s") as node:
            bodies = await fill(node, 60)
            names = sorted(bodies)
            checking = asyncio.ensure_future(node.checked())
            rng = random.Random(3)
            while not checking.done():
                name = rng.choice(names)
                if rng.random() < 0.3:
                    await node.ask("DELETE", f"/v1/objects/{name}")
                else:
                    bodies[name] = make_body(rng.random(), rng.choice([100, 9000, 300_000]))
                    assert await node.put(name, bodies[name]) == 201
            found = checking.result()
            assert (
                sum(found[kind] for kind in repair.COUNTS if kind not in {"entries", "disk"}) == 0
            )
            assert node.store.usage.total_disk == blocks_of(tmp_path / "s")

    asyncio.run(story())


def test_the_budget_is_kept_and_the_place_is_remembered(tmp_path):
    async def story():
        async with Node(tmp_path / "s") as node:
            for i in range(64):
                await node.put(f"aaa/{i}", make_body(i, 100_000))
        async with Node(tmp_path / "s", scrub_rate=2_000_000) as node:
            scrubber = node.store.scrubber
            await until(lambda: scrubber.scrubbed_bytes > 0)
            begun, at = asyncio.get_running_loop().time(), scrubber.scrubbed_bytes
            await asyncio.sleep(1.0)
            elapsed = asyncio.get_running_loop().time() - begun
            assert 0.5 < (scrubber.scrubbed_bytes - at) / elapsed / 2_000_000 < 1.3
            scrubber._noted_at = 0
            await until(lambda: scrubber._noted_at > 0)
        async with Node(tmp_path / "s") as node:
            place = node.store._index.noted("scrub")
            assert 0 < int(place) < repair.STEPS

    asyncio.run(story())


def test_hot_pages_stay_and_cold_ones_are_given_back(tmp_path):
    async def story():
        async with Node(tmp_path / "s") as node:
            if not node.store.disk.nowait:
                pytest.skip("this file system has no RWF_NOWAIT")
            for name, size in (("hot", 50_000), ("cold", 50_000), ("big", 3 * BLOCK_BYTES)):
                await node.put(f"aaa/{name}", make_body(name, size))
            node.store._open.clear()
            os.sync()
            paths = {
                name: path_of(str(tmp_path / "s/objects"), blob_id(b"/v1/objects/aaa/" + name))
                for name in (b"hot", b"cold", b"big")
            }
            for name in (b"cold", b"big"):
                drop_pages(paths[name])
            if is_cached(paths[b"cold"]) or not is_cached(paths[b"hot"]):
                pytest.skip("this file system keeps its own pages")
            found = await node.checked()
            assert found["entries"] == 3
            assert is_cached(paths[b"hot"])
            assert not is_cached(paths[b"cold"])
            assert not is_cached(paths[b"big"])
            assert not is_cached(paths[b"big"], 2 * BLOCK_BYTES)

    asyncio.run(story())


def drop_pages(path):
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def is_cached(path, at=20_000):
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        return os.preadv(fd, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def test_two_versions_within_a_tick_of_the_clock_are_told_apart(tmp_path):
    """A crash between rename and row leaves the old row beside the new file."""
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(b"x")
        os.utime(path, ns=(1, 1))
    assert repair.stamp_of(one.stat()) != repair.stamp_of(two.stat())
    assert repair.stamp_of(one.stat()) == repair.stamp_of(one.stat()) < 1 << 63


def test_a_round_over_nothing_ends_and_does_not_spin(tmp_path):
    async def story():
        async with Node(tmp_path / "s", scrub_rate=1 << 30) as node:
            await until(lambda: node.store.scrubber.rounds == 1)
            await asyncio.sleep(0.2)
            assert node.store.scrubber.rounds == 1
            assert scrub.ROUND_MIN_S > 60
            assert (await node.checked())["entries"] == 0

    asyncio.run(story())


def test_an_index_of_the_future_is_made_anew(tmp_path):
    path = tmp_path / "index.db"
    Index(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()
    index = Index(path)
    assert "version 99" in index.fault
    assert not index.is_clean
    index.close()
