"""Capacity, quotas, fairness in space, life and death of entries: on the product's own store."""

import random

import pytest
from storage_harness import bucket, du

from simplecache.errors import DiskFull

BODY = b"x" * 3000
"""With its description it takes one block of 4 KiB."""
BLOCK = 4096
MI = 1 << 20


def names(bucket_name, count, directory="d"):
    return [f"{bucket_name}/{directory}/{i}" for i in range(count)]


def room_for(objects):
    """Capacity for so many objects: with directories of 4 KiB each, of which there may be 4,096."""
    return objects * BLOCK


async def fill(shard, wanted, namespace=""):
    for number, name in enumerate(wanted):
        await shard.read_through(name, BODY, namespace)
        if number % 200 == 0:
            await shard.settle()
    await shard.settle()


def test_a_shard_stays_below_its_capacity_and_counts_what_du_counts(run, tmp_path):
    async def story(open_shard):
        shard = open_shard(tmp_path / "s", 64 * MI, [bucket("aaa", eviction="fifo")])
        for number, name in enumerate(names("aaa", 2000)):
            await shard.put(name, BODY * 20)
            assert shard.store.usage.total_disk <= 64 * MI
            if number % 100 == 0:
                shard.store._measure()
        await shard.settle()
        assert shard.store.usage.entries > 700
        shard.store._index.flush()
        shard.store._measure()
        return shard.store.level.used, du(tmp_path / "s")

    used, counted = run(story)
    assert used <= 64 * MI
    assert used == counted


def test_after_a_crash_the_accounting_is_what_du_says_to_the_block(run, tmp_path):
    async def crash(open_shard):
        shard = open_shard(tmp_path / "s", 1 << 40, [bucket("aaa")])
        for number, name in enumerate(names("aaa", 500)):
            await shard.put(name, BODY * (1 + number % 4))
        shard.store._index.is_clean = False

    async def restart(open_shard):
        shard = open_shard(tmp_path / "s", 1 << 40, [bucket("aaa")])
        await shard.store._repair
        return shard.store.usage.total_disk

    run(crash)
    index = sum(p.stat().st_size for p in tmp_path.glob("s/index.db"))
    assert index
    assert run(restart) == sum(
        path.stat().st_blocks * 512 for path in tmp_path.glob("s/objects/*/*")
    )


def test_a_scan_does_not_wipe_another_teams_hot_set(run, tmp_path):
    """A loops over a hot set of 40 % of the capacity; B scans ten times the capacity once."""

    async def story(open_shard):
        shard = open_shard(tmp_path / "s", room_for(5000), [bucket("aaa"), bucket("bbb")])
        overhead = 4 * 4096 * 1024 // BLOCK  # directories
        hot = names("aaa", int(0.4 * (5000 - overhead // 4)))
        await fill(shard, hot)
        order = random.Random(1)
        scan = iter(names("bbb", 20_000))
        shard.hits = shard.asked = 0
        hits = 0
        for _ in range(4):
            order.shuffle(hot)
            for number, name in enumerate(hot):
                hits += await shard.get(name) is not None
                for _ in range(3):
                    once = next(scan, None)
                    if once is not None:
                        await shard.read_through(once, BODY)
                if number % 100 == 0:
                    await shard.settle()
        assert next(scan, "over") != "never"
        return hits / (4 * len(hot))

    assert run(story) >= 0.95


@pytest.mark.parametrize(("weight", "expected"), [(3, 0.75), (1, 0.5)])
def test_two_greedy_buckets_share_the_room_by_their_weights(run, tmp_path, weight, expected):
    async def story(open_shard):
        shard = open_shard(
            tmp_path / "s", room_for(5000), [bucket("aaa", weight=weight), bucket("bbb")]
        )
        for number in range(9000):
            await shard.read_through(f"aaa/{number % 50}/{number}", BODY)
            await shard.read_through(f"bbb/{number % 50}/{number}", BODY)
            if number % 100 == 0:
                await shard.settle()
        await shard.settle()
        return shard.disk("aaa") / (shard.disk("aaa") + shard.disk("bbb"))

    assert abs(run(story) - expected) <= 0.05


def test_an_idle_bucket_gives_its_room_only_as_others_need_it(run, tmp_path):
    async def story(open_shard):
        shard = open_shard(tmp_path / "s", room_for(5000), [bucket("aaa"), bucket("bbb")])
        await fill(shard, names("aaa", 9000))
        alone = shard.disk("aaa")
        await fill(shard, names("bbb", 300))
        assert shard.disk("bbb") == 300 * BLOCK
        assert shard.disk("aaa") >= alone - 600 * BLOCK

    run(story)


def test_in_a_bucket_the_namespaces_share_too(run, tmp_path):
    async def story(open_shard):
        shard = open_shard(tmp_path / "s", 1 << 40, [bucket("aaa", quota=1000 * BLOCK)])
        for number in range(3000):
            await shard.put(f"aaa/one/{number}", BODY, "ns-one")
        for number in range(3000):
            await shard.get(f"aaa/two/{number}")
            await shard.get(f"aaa/two/{number}")
            await shard.get(f"aaa/two/{number}")
            await shard.put(f"aaa/two/{number}", BODY, "ns-two")
            if number % 100 == 0:
                await shard.settle()
        used = shard.store.usage.by_tenant()
        assert sum(used.values()) <= 1000 * BLOCK
        return used["aaa", "ns-two"] / sum(used.values())

    assert abs(run(story) - 0.5) < 0.1


def test_a_quota_is_kept_by_evicting_the_buckets_own(run, tmp_path):
    async def story(open_shard):
        buckets = [bucket("aaa", quota=100 * BLOCK, eviction="fifo"), bucket("bbb")]
        shard = open_shard(tmp_path / "s", 1 << 40, buckets)
        await fill(shard, names("bbb", 50))
        await fill(shard, names("aaa", 500))
        assert shard.disk("aaa") <= 100 * BLOCK
        assert shard.disk("aaa") >= 90 * BLOCK
        assert shard.disk("bbb") == 50 * BLOCK
        # Lowered: acts at the next configuration.
        shard.store.configure({b.name: b for b in [bucket("aaa", quota=10 * BLOCK), bucket("bbb")]})
        await shard.settle()
        assert shard.disk("aaa") <= 10 * BLOCK

    run(story)


def test_a_quota_is_divided_by_the_shards_part_of_the_ring(run, tmp_path):
    async def story(open_shard):
        shard = open_shard(tmp_path / "s", 1 << 40, [bucket("aaa", quota=1000 * BLOCK)])
        await fill(shard, names("aaa", 500))
        for _ in range(5):
            assert shard.disk("aaa") == 500 * BLOCK
            shard.store.set_ring_share(0.2)
        await shard.settle()
        assert shard.disk("aaa") <= 200 * BLOCK

    run(story)


def test_a_removed_bucket_goes_away_in_the_background(run, tmp_path):
    async def story(open_shard):
        shard = open_shard(tmp_path / "s", 1 << 40, [bucket("aaa"), bucket("bbb")])
        await fill(shard, names("aaa", 100) + names("bbb", 100))
        shard.store.configure({"bbb": bucket("bbb")})
        await shard.settle()
        assert (shard.disk("aaa"), shard.disk("bbb")) == (0, 100 * BLOCK)
        assert not list(tmp_path.glob("s/objects/*/*"))[100:]

    run(story)


def test_a_pinned_bucket_is_not_evicted_by_others(run, tmp_path):
    async def story(open_shard):
        shard = open_shard(
            tmp_path / "s", room_for(5000), [bucket("pin", is_pinned=True), bucket("bbb")]
        )
        await fill(shard, names("pin", 600))
        await fill(shard, names("bbb", 8000))
        assert shard.disk("pin") == 600 * BLOCK

    run(story)


def test_what_can_never_fit_is_refused_and_wipes_nothing(run, tmp_path):
    async def story(open_shard):
        shard = open_shard(tmp_path / "s", 1 << 40, [bucket("aaa", quota=50 * BLOCK)])
        await fill(shard, names("aaa", 40))
        with pytest.raises(DiskFull, match="more than this shard may ever hold"):
            await shard.put("aaa/huge", b"x" * 60 * BLOCK)
        assert shard.disk("aaa") == 40 * BLOCK

    run(story)


def test_entries_end_at_their_time(run, tmp_path):
    now = [1_000_000.0]

    async def story(open_shard):
        shard = open_shard(tmp_path / "s", 1 << 40, [bucket("aaa")], lambda: now[0])
        await shard.put("aaa/short", BODY, ttl_s=10)
        await shard.put("aaa/long", BODY, ttl_s=1000)
        await shard.put("aaa/ever", BODY)
        now[0] += 9
        await shard.settle()
        assert await shard.get("aaa/short") == BODY
        now[0] += 2
        await shard.settle()
        assert await shard.get("aaa/short") is None
        assert await shard.get("aaa/long") == BODY
        assert shard.store.usage.entries == 2
        # The clock jumps back a day: nothing comes back, nothing else goes.
        now[0] -= 86_400
        await shard.settle()
        assert await shard.get("aaa/short") is None
        assert await shard.get("aaa/ever") == BODY

    run(story)


def test_a_purge_takes_what_begins_with_a_prefix(run, tmp_path):
    async def story(open_shard):
        shard = open_shard(tmp_path / "s", 1 << 40, [bucket("aaa"), bucket("bbb")])
        await fill(shard, names("aaa", 300, "v1") + names("aaa", 30, "v2") + names("bbb", 10, "v1"))
        assert await shard.store.purge("aaa", b"/v1/objects/aaa/v1/") == 300
        assert shard.disk("aaa") == 30 * BLOCK
        assert await shard.store.purge("aaa", b"/v1/objects/aaa/") == 30
        assert await shard.get("bbb/v1/3") == BODY

    run(story)


def test_why_tells_what_became_of_an_object(run, tmp_path):
    from simplecache.model import Key

    now = [1_000_000.0]

    async def story(open_shard):
        buckets = [bucket("aaa", quota=10 * BLOCK, eviction="fifo"), bucket("bbb")]
        shard = open_shard(tmp_path / "s", 1 << 40, buckets, lambda: now[0])

        async def why(name):
            return await shard.store.why(Key("aaa" if "/" not in name else "bbb", name.encode()))

        assert "never put here" in await why("x")
        for number in range(40):
            await shard.put(f"aaa/{number}", BODY, "team")
            await shard.settle()
        now[0] += 300
        assert 'it is here: 3000 bytes, put 5 minutes ago by namespace "team"' in await why("39")
        assert "it was evicted because its bucket was above its quota 5 minutes ago" in await why(
            "0"
        )
        await shard.store.delete(Key("aaa", b"39").target)
        assert "it was deleted 0 s ago" in await why("39")
        await shard.put("bbb/a/b", BODY, ttl_s=5)
        now[0] += 100
        assert "it expired 95 s ago" in await why("a/b")
        await shard.settle()
        assert "it expired" in await why("a/b")
        await shard.put("bbb/a/c", BODY)
        await shard.store.purge("bbb", b"/v1/objects/bbb/a/")
        assert "it was purged" in await why("a/c")

    run(story)


def test_a_full_shard_says_so_before_the_upload(run, tmp_path):
    async def story(open_shard):
        shard = open_shard(tmp_path / "s", room_for(5000), [bucket("aaa")])
        wanted = names("aaa", 9000)
        await fill(shard, wanted)
        assert shard.store.is_full
        kept = shard.store.usage.entries
        refused = [n for n in wanted if await shard.get(n) is None][:50]
        assert len(refused) == 50
        assert not any([await shard.put(name, BODY) for name in refused])
        assert shard.store.usage.entries == kept
        from simplecache.model import Key

        key = Key("aaa", refused[0].removeprefix("aaa/").encode())
        assert not shard.store.would_admit(key.target)
        assert "put but not kept" in await shard.store.why(key)

    run(story)


def test_an_old_data_set_gives_way_to_a_new_one(run, tmp_path):
    async def story(open_shard):
        shard = open_shard(tmp_path / "s", room_for(5000), [bucket("aaa")])
        order = random.Random(3)
        old, new = names("aaa", 2000, "old"), names("aaa", 2000, "new")
        for data_set in (old, old, new, new):
            order.shuffle(data_set)
            shard.hits = shard.asked = 0
            for number, name in enumerate(data_set):
                await shard.read_through(name, BODY)
                if number % 50 == 0:
                    await shard.settle()
        last = shard.ratio()
        assert last >= 0.3  # of what was read a moment ago for the second time
        return last

    run(story)
