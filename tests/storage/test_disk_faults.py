"""Disks that fail, run full, or go read-only; descriptors that run out: what a client sees."""

import asyncio
import contextlib
import errno
import itertools
import os
import resource
import subprocess

import pytest
from storage_faults import FailingDisk, blocks_of, object_files
from storage_node import Node, exchange, make_body, until

from simplecache.server import observe
from simplecache.store import health
from simplecache.store.blobs import BLOCK_BYTES, blob_id, path_of
from simplecache.store.health import ERRORS_MAX, PROBE_FIRST_S, RELAPSE_S, WINDOW_S, Health

EIO = OSError(errno.EIO, "Input/output error")
EROFS = OSError(errno.EROFS, "Read-only file system")


@pytest.fixture
def quick_probes(monkeypatch):
    monkeypatch.setattr(health, "PROBE_FIRST_S", 0.2)
    monkeypatch.setattr(health, "PROBE_MAX_S", 0.4)


def is_at(path):
    """Whether a call's first argument is a descriptor of ``path``."""

    def applies(fd, *_):
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/self/fd/{fd}") == path
        return False

    return applies


@pytest.mark.parametrize("size", [3000, 300_000, 2 * BLOCK_BYTES])
def test_a_bad_sector_is_one_miss_and_the_entry_is_dropped(tmp_path, monkeypatch, size):
    async def story():
        async with Node(tmp_path / "s") as node:
            for name in ("bad", "good"):
                assert await node.put(f"aaa/{name}", make_body(name, size)) == 201
            path = path_of(str(tmp_path / "s/objects"), blob_id(b"/v1/objects/aaa/bad"))
            node.store._open.clear()
            disk = FailingDisk(monkeypatch, "preadv", "pread", applies=is_at(path))
            if size <= BLOCK_BYTES:
                assert await node.get("aaa/bad") is None
            else:  # its head was sent when the body turned out to be unreadable
                disk.is_failing = False
                assert (await node.ask("HEAD", "/v1/objects/aaa/bad"))[0] == 200
                disk.is_failing = True
                with pytest.raises(asyncio.IncompleteReadError):
                    await node.get("aaa/bad")
                assert await node.get("aaa/bad") is None
            assert disk.failures > 0
            await until(lambda: not os.path.exists(path))
            assert await node.get("aaa/good") == make_body("good", size)
            assert await node.ready() == 200
            _, fields, _ = await node.ask("HEAD", "/v1/objects/aaa/bad", SCS_Why="yes")
            assert "the disk could not read it" in fields["scs-why"]
            assert node.store.disk.health.errors["EIO"] == 1
            assert node.store.usage.total_disk == blocks_of(tmp_path / "s")
            assert await node.put("aaa/bad", b"again") == 201  # another place on the disk

    asyncio.run(story())


def test_a_disk_that_fails_again_and_again_is_on_probation_until_it_works(
    tmp_path, monkeypatch, quick_probes
):
    async def story():
        async with Node(tmp_path / "s") as node:
            assert await node.put("aaa/old", b"old") == 201
            disk = FailingDisk(monkeypatch, "pwrite")
            for _ in range(ERRORS_MAX):
                assert await node.ready() == 200
                assert await node.put("aaa/new", b"new") == (503, "disk-error")
            await until(lambda: not node.server.is_ready)
            assert await node.ready() == 503
            # Now a PUT is refused before its body is sent, and without the disk being asked.
            before = disk.failures
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writer.write(
                b"PUT /v1/objects/aaa/new HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
                b"Expect: 100-continue\r\n\r\n"
            )
            assert (await reader.readline()).split()[1] == b"503"
            writer.close()
            assert disk.failures - before <= 1  # a probe
            assert await node.get("aaa/old") == b"old"
            assert await node.get("aaa/new") is None
            samples = {name: value for name, _, value in observe.samples(node.server)}
            assert samples["scs_probation"] == 1
            assert samples["scs_disk_errors_total"] >= ERRORS_MAX
            await until(lambda: disk.failures - before >= 2)  # probes go on
            disk.is_failing = False
            await until(lambda: node.server.is_ready)
            assert await node.ready() == 200
            assert await node.put("aaa/new", b"new") == 201
            assert not list((tmp_path / "s/tmp").iterdir())

    asyncio.run(story())


def test_a_read_only_remount_is_told_at_once_and_reads_go_on(tmp_path, monkeypatch, quick_probes):
    async def story():
        async with Node(tmp_path / "s") as node:
            body = make_body("x", 5000)
            assert await node.put("aaa/x", body) == 201
            disk = FailingDisk(
                monkeypatch, "open", "rename", "unlink", "mkdir", error=errno.EROFS,
                applies=lambda path, *args: str(path).startswith(str(tmp_path))
                and not (args and isinstance(args[0], int) and args[0] & 3 == os.O_RDONLY),
            )  # fmt: skip
            assert await node.put("aaa/y", b"y") == (503, "disk-error")
            await until(lambda: not node.server.is_ready)
            status, fields, _ = await node.ask("DELETE", "/v1/objects/aaa/x")
            assert (status, fields["scs-error"]) == (503, "disk-error")
            assert await node.get("aaa/x") == body
            disk.is_failing = False
            await until(lambda: node.server.is_ready)
            assert await node.put("aaa/y", b"y") == 201

    asyncio.run(story())


def test_what_cannot_be_removed_does_not_make_the_shard_spin(tmp_path, monkeypatch):
    async def story():
        async with Node(tmp_path / "s", capacity_bytes=4 << 20) as node:
            for i in range(600):
                status = await node.put(f"aaa/{i}", make_body(i, 3000))
                if status != 201:
                    break
            disk = FailingDisk(
                monkeypatch, "unlink", applies=lambda path, *_: "/objects/" in str(path)
            )
            node.store.capacity_bytes = 2 << 20
            await asyncio.sleep(1)
            assert 0 < disk.failures < 1000  # at most a step for each tick
            disk.is_failing = False
            await until(lambda: node.store.level.used <= 2 << 20)
            assert node.store.usage.total_disk == blocks_of(tmp_path / "s")

    asyncio.run(story())


def test_metrics_and_ticks_survive_a_disk_that_says_nothing(tmp_path, monkeypatch):
    async def story():
        async with Node(tmp_path / "s") as node:
            assert await node.put("aaa/x", b"x") == 201
            disk = FailingDisk(monkeypatch, "statvfs")
            assert await node.put("aaa/y", b"y") == (503, "disk-error")
            await asyncio.sleep(0.3)
            assert "scs_used_bytes" not in {name for name, _, _ in observe.samples(node.server)}
            assert await node.get("aaa/x") == b"x"
            disk.is_failing = False
            await until(lambda: node.server.is_ready or node.store.disk.health.take_probe(1e12))

    asyncio.run(story())


def test_a_full_disk_is_507_and_reads_go_on(tmp_path, monkeypatch):
    async def story():
        async with Node(tmp_path / "s") as node:
            assert await node.put("aaa/x", b"x") == 201
            disk = FailingDisk(monkeypatch, "pwrite", error=errno.ENOSPC)
            for size in (10, 3 * BLOCK_BYTES):
                assert await node.put("aaa/y", bytes(size)) == (507, "disk-full")
            assert await node.get("aaa/x") == b"x"
            assert await node.ready() == 200
            assert not node.store.disk.health.errors
            disk.is_failing = False
            assert await node.put("aaa/y", b"y") == 201
            assert not list((tmp_path / "s/tmp").iterdir())

    asyncio.run(story())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 80 MiB, of which 64 are never used."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_on_a_disk_that_others_fill_puts_are_refused_and_gets_go_on(small_disk):
    async def story():
        async with Node(small_disk / "s") as node:
            body = make_body("x", 1 << 20)
            assert await node.put("aaa/x", body) == 201
            (small_disk / "others").write_bytes(bytes(14 << 20))
            assert await node.put("aaa/huge", bytes(8 << 20)) == (507, "disk-full")
            assert await node.get("aaa/x") in {body, None}
            (small_disk / "others").unlink()
            assert await node.put("aaa/y", body) == 201
            assert await node.get("aaa/y") == body

    asyncio.run(story())


def test_when_descriptors_run_out_open_files_are_given_up_and_requests_answered(tmp_path):
    async def story():
        async with Node(tmp_path / "s") as node:
            bodies = {f"aaa/{i}": make_body(i, 100 if i % 10 else 300_000) for i in range(300)}
            for name, body in bodies.items():
                assert await node.put(name, body) == 201
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            used = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 24, before[1]))
            try:
                for name, body in bodies.items():
                    target = f"/v1/objects/{name}"
                    status, _, found = await exchange(reader, writer, "GET", target)
                    assert (status, found) == (200, body)
                for name in sorted(bodies)[:50]:
                    target = f"/v1/objects/{name}"
                    assert (await exchange(reader, writer, "PUT", target, b"new"))[0] == 201
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
                writer.close()
            assert len(node.store._open) < 300
            assert not node.store.disk.health.errors
            assert await node.ready() == 200

    asyncio.run(story())


def test_when_there_is_no_descriptor_at_all_the_client_is_told_to_come_again(tmp_path, monkeypatch):
    async def story():
        async with Node(tmp_path / "s") as node:
            assert await node.put("aaa/x", b"x") == 201
            node.store._open.clear()
            disk = FailingDisk(monkeypatch, "open", error=errno.ENFILE)
            assert await node.get("aaa/x") == (503, "overloaded")
            assert await node.put("aaa/y", b"y") == (503, "overloaded")
            disk.is_failing = False
            assert await node.get("aaa/x") == b"x"
            assert await node.put("aaa/y", b"y") == 201

    asyncio.run(story())


def test_a_directory_that_was_taken_away_is_noticed(tmp_path, quick_probes):
    """As an unmounted disk: the directory is not the one that was locked any more."""

    async def story():
        async with Node(tmp_path / "s") as node:
            assert await node.put("aaa/x", b"x") == 201
            (tmp_path / "s").rename(tmp_path / "away")
            node.store._open.clear()
            assert await node.get("aaa/x") is None
            for _ in range(ERRORS_MAX):
                await node.put("aaa/y", b"y")
            await until(lambda: not node.server.is_ready)
            (tmp_path / "away").rename(tmp_path / "s")
            await until(lambda: node.server.is_ready)
            assert await node.get("aaa/x") == b"x"
            (tmp_path / "s").rename(tmp_path / "away")
            for part in ("objects", "tmp"):
                (tmp_path / "s" / part).mkdir(parents=True)
            (tmp_path / "s/LOCK").touch()
            node.store.disk.note(EROFS)
            await until(lambda: node.store.disk.is_displaced)
            assert len(object_files(tmp_path / "s")) == 0

    asyncio.run(story())


# -- the pure part -------------------------------------------------------------------------


def test_a_few_errors_over_a_long_time_are_no_reason():
    disk = Health()
    for i in range(50):
        disk.note(EIO, i * WINDOW_S / (ERRORS_MAX - 2))
    assert not disk.is_on_probation
    assert disk.errors["EIO"] == 50


def test_full_disks_and_short_descriptors_are_no_reason():
    disk = Health()
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
        for _ in range(20):
            disk.note(OSError(code, "x"), 0)
    assert not disk.is_on_probation
    assert not disk.errors


def test_probes_come_more_and_more_rarely_and_relapses_are_remembered():
    disk = Health()
    disk.note(EROFS, 0)
    probes = [t for t in range(300) if disk.take_probe(t)]
    assert probes[0] == PROBE_FIRST_S
    pauses = [b - a for a, b in itertools.pairwise(probes)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == health.PROBE_MAX_S
    disk.pass_probe(300)
    assert not disk.is_on_probation
    assert not disk.take_probe(10_000)
    disk.note(EROFS, 301)  # a relapse: the first probe is late
    assert not disk.take_probe(301 + 10 * PROBE_FIRST_S)
    assert disk.take_probe(301 + health.PROBE_MAX_S)
    disk.pass_probe(400)
    disk.note(EROFS, 400 + RELAPSE_S + 1)  # long ago
    assert disk.take_probe(400 + RELAPSE_S + 1 + PROBE_FIRST_S)
