"""Many clients on one object, and a shard that is being compared with its index."""

import asyncio
import os
import random
import time

import pytest
from storage_node import Node, exchange, make_body

from simplecache.store import repair
from simplecache.store.blobs import BLOCK_BYTES

SECONDS = float(os.environ.get("SCS_CONCURRENT_S", "5"))


@pytest.mark.parametrize("sizes", [[0, 1, 500, 3000, 70_000], [100, 2 * BLOCK_BYTES + 9]])
def test_every_read_is_one_whole_version(tmp_path, sizes):
    """32 clients replace, read and read in parts; some evictions in between."""
    versions = [make_body(i, sizes[i % len(sizes)]) for i in range(40)]
    known = set(versions)
    counts = {"read": 0, "put": 0, "miss": 0, "cut": 0}

    async def client(node, number, deadline):
        rng = random.Random(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        target = "/v1/objects/aaa/one"
        while time.monotonic() < deadline:
            dice = rng.random()
            if dice < 0.25:
                version = rng.choice(versions)
                status, _, _ = await exchange(reader, writer, "PUT", target, version)
                assert status == 201
                counts["put"] += 1
            elif dice < 0.27:
                await exchange(reader, writer, "DELETE", target)
            elif dice < 0.3:
                node.store._writer.post(lambda: node.store.evictor.step(1))
            else:
                fields = {"Range": "bytes=10-"} if dice < 0.4 else {}
                status, found, body = await exchange(reader, writer, "GET", target, **fields)
                if status == 206:
                    total = int(found["content-range"].rpartition("/")[2])
                    assert any(v[10:] == body for v in known if len(v) == total)
                elif status == 200:
                    assert body in known
                    counts["read"] += 1
                else:
                    assert status in {404, 416}
                    counts["miss"] += 1
        writer.close()

    async def story():
        async with Node(tmp_path / "s") as node:
            deadline = time.monotonic() + SECONDS / 2
            await asyncio.gather(*(client(node, n, deadline) for n in range(32)))
            assert node.store.corrupt_found == 0
            found = await node.checked()
            assert not any(found[k] for k in repair.COUNTS if k not in {"entries", "disk"})

    asyncio.run(story())
    assert counts["read"] > 50
    assert counts["put"] > 20


def test_no_job_of_a_comparison_is_long(tmp_path, monkeypatch):
    """What the writer thread does at once is bounded, so that a PUT does not wait behind it."""
    monkeypatch.setattr(repair, "SLICE_MAX", 64)
    rows, facts = [], []
    compare, settle = repair.Walker._compare, repair.Walker._settle

    def counting_compare(self, first, last, files):
        rows.append(len(files))
        return compare(self, first, last, files)

    def counting_settle(self, some, found):
        facts.append(len(some))
        return settle(self, some, found)

    monkeypatch.setattr(repair.Walker, "_compare", counting_compare)
    monkeypatch.setattr(repair.Walker, "_settle", counting_settle)

    async def story():
        async with Node(tmp_path / "s") as node:
            for i in range(300):
                (tmp_path / f"s/objects/00{i % 16:x}").mkdir(exist_ok=True)
                (tmp_path / f"s/objects/00{i % 16:x}/{i:029x}").write_bytes(b"rot")
            found = await node.checked()
            assert found["corrupt"] == 300
            assert 0 < max(rows) <= 2 * 64
            assert 0 < max(facts) <= repair.CHUNK_ENTRIES

    asyncio.run(story())
