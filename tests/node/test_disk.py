"""Disks that are full, files that rot: never a wrong byte, never a leak."""

import contextlib
import os
import resource
import subprocess

import pytest
from harness import count_descriptors, make_chunks, make_head, make_name, noise, until

MIB = 1 << 20
FILE_LIMIT = 3 * MIB


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))


class TestFileSizeLimit:
    """RLIMIT_FSIZE: the kernel refuses to write, as a full disk does, in the middle of a file."""

    def test_an_upload_that_cannot_be_written_is_507(self, make_node):
        node = make_node(preexec=limit_file_size).start()
        fits, large = noise(2 * MIB), noise(8 * MIB)
        assert node.put("x", fits).status == 201
        before = count_descriptors(node.pids[0])
        for number in range(10):
            with node.wire() as wire:
                if number % 2:
                    wire.send(make_head("PUT", make_name("x"), "Transfer-Encoding: chunked"))
                    wire.send_all_you_can(make_chunks(large, MIB))
                else:
                    wire.send(make_head("PUT", make_name("x"), body=large))
                    wire.send_all_you_can(large)
                got = wire.response()
                assert (got.status, got.word) == (507, "disk-full")
                assert got.fields["retry-after"] == "5"
            assert node.get("x").body == fits
        until(lambda: not node.temporary_files(), "no temporary file")
        until(lambda: count_descriptors(node.pids[0]) <= before + 1, "no descriptor")
        assert node.put("y", b"small ones still fit").status == 201
        assert node.stop() == 0
        assert "Traceback" not in node.text_of_log()

    def test_small_uploads_leave_nothing_behind_either(self, make_node):
        """They are written in one go at the very end, in the thread that renames."""

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

        node = make_node(preexec=limit).start()
        assert node.put("x", b"old").status == 201
        before = count_descriptors(node.pids[0])
        for _ in range(20):
            got = node.put("x", noise(400_000))
            assert (got.status, got.word) == (507, "disk-full")
        assert node.get("x").body == b"old"
        until(lambda: not node.temporary_files(), "no temporary file")
        until(lambda: count_descriptors(node.pids[0]) <= before + 1, "no descriptor")

    def test_an_index_that_cannot_grow_does_not_stop_the_cache(self, make_node):
        """SQLite's files are under the same limit: objects are served, and found after a restart."""

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

        node = make_node(preexec=limit).start()
        bodies = {f"object-{number}-{'n' * 400}": noise(50, number) for number in range(300)}
        with node.wire() as wire:
            for name, body in bodies.items():
                assert wire.request("PUT", make_name(name), body=body).status == 201
            for name, body in bodies.items():
                assert wire.request("GET", make_name(name)).body == body
        node.stop()
        node.preexec = None
        node.start()
        for name, body in bodies.items():
            assert node.get(name).body == body
        until(lambda: node.metric("scs_entries", bucket="public") == len(bodies), "all counted")


class TestSmallDisk:
    @pytest.fixture
    def disk(self, tmp_path):
        """A file system of 100 MiB where we may mount one; else the limit stands for it."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = (
            os.geteuid() == 0
            and not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=100m", "scs-test", disk], capture_output=True
            ).returncode
        )
        yield disk, mounted
        if mounted:
            subprocess.run(["umount", "-l", disk], check=True)

    def test_a_full_disk_is_said_before_the_body(self, make_node, disk):
        directory, is_mounted = disk
        node = make_node(data=directory, preexec=None if is_mounted else limit_file_size).start()
        fits = noise(2 * MIB)
        assert node.put("x", fits).status == 201
        assert node.get("x").body == fits
        assert node.put("small", noise(5000)).status == 201
        assert node.get("small").body == noise(5000)
        with node.wire() as wire:
            lines = (f"Content-Length: {90 * MIB}", "Expect: 100-continue")
            wire.send(make_head("PUT", make_name("x"), *lines))
            got = wire.response()
            if got.status == 100:
                assert not is_mounted
                wire.send_all_you_can(bytes(90 * MIB))
                got = wire.response()
            assert (got.status, got.word) == (507, "disk-full")
        with node.wire() as wire:
            wire.send(make_head("PUT", make_name("x"), "Transfer-Encoding: chunked"))
            wire.send_all_you_can(make_chunks(bytes(90 * MIB), MIB))
            got = wire.response()
            assert (got.status, got.word) == (507, "disk-full")
        assert node.get("x").body == fits
        until(lambda: not node.temporary_files(), "no temporary file")
        assert node.metric("scs_limit_bytes") > node.metric("scs_used_bytes")
        assert node.stop() == 0
        assert "Traceback" not in node.text_of_log()

    def test_room_that_is_announced_is_not_given_twice(self, make_node, disk):
        directory, is_mounted = disk
        node = make_node(data=directory, preexec=None if is_mounted else limit_file_size).start()
        size = 20 * MIB if is_mounted else 2 * MIB
        with node.wire() as first:
            head = make_head(
                "PUT", make_name("a"), f"Content-Length: {size}", "Expect: 100-continue"
            )
            first.send(head)
            assert first.response().status == 100
            if is_mounted:
                assert node.put("b", noise(size)).status == 507
            first.send(noise(size))
            assert first.response().status == 201
        assert node.get("a").body == noise(size)


def flip(path, at):
    """Change one bit, as a bad sector would: the time of the last change stays as it was."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def wait_for_miss(node, name):
    """A large object is dropped when the rot is met, which is after its head was sent."""

    def is_missing():
        try:
            return node.get(name).status == 404
        except ConnectionError:
            return False

    until(is_missing, "the object is a miss", 5)


class TestRot:
    @pytest.mark.parametrize("size", [1, 4096, 256 << 10])
    def test_a_small_object_that_rotted_is_a_miss(self, node, name, size):
        node.put(name, noise(size))
        assert node.get(name).status == 200
        flip(node.file_of(name), -1)
        for verb in ("GET", "GET", "HEAD"):
            got = node.request(verb, make_name(name))
            assert (got.status, got.word) == (404, "miss")
        until(lambda: not node.file_of(name).exists(), "the file is dropped")
        assert node.put(name, b"again").status == 201
        assert node.get(name).body == b"again"

    def test_a_range_of_a_small_object_that_rotted_is_a_miss(self, node, name):
        node.put(name, noise(4096))
        flip(node.file_of(name), -1)
        assert node.get(name, "Range: bytes=0-9").status == 404

    def test_the_prefix_of_a_file_that_nobody_has_open(self, make_node):
        node = make_node().start()
        bodies = {f"object-{number}": noise(1000, number) for number in range(20)}
        for name, body in bodies.items():
            node.put(name, body)
        node.stop()
        for number, name in enumerate(bodies):
            flip(node.file_of(name), number * 7)
        node.start()
        assert [node.get(name).status for name in bodies] == [404] * 20
        until(lambda: not node.object_files(), "all are dropped")
        assert node.metric("scs_corrupt_total") == 20

    @pytest.mark.parametrize("block", [0, 1, 3])
    def test_a_large_object_that_rotted_is_cut_before_the_wrong_byte(self, make_node, block):
        node = make_node().start()
        body = noise(4 * MIB)
        node.put("x", body)
        assert node.put("y", body).status == 201
        node.stop()  # a block that was sent before is checked again when it left the page cache
        path = node.file_of("x")
        flip(path, path.stat().st_size - 8 * 4 - len(body) + block * MIB + 5)
        node.start()
        with node.wire() as wire:
            wire.send(make_head("GET", make_name("x")))
            wire.read_head()
            got = wire.read_to_end()
        assert len(got) <= block * MIB
        assert got == body[: len(got)]
        wait_for_miss(node, "x")
        until(lambda: not path.exists(), "the file is dropped")
        assert node.get("y").body == body

    def test_a_file_that_was_written_to_is_checked_again(self, node, name):
        body = noise(2 * MIB)
        node.put(name, body)
        assert node.get(name).body == body
        path = node.file_of(name)
        with path.open("r+b") as file:
            file.seek(MIB)
            file.write(b"scribble")
        with node.wire() as wire:
            wire.send(make_head("GET", make_name(name)))
            wire.read_head()
            got = wire.read_to_end()
        assert len(got) < len(body)
        assert got == body[: len(got)]
        wait_for_miss(node, name)

    @pytest.mark.parametrize("size", [1000, 2 * MIB])
    def test_a_file_that_was_cut(self, node, name, size):
        node.put(name, noise(size))
        node.get(name)
        os.truncate(node.file_of(name), size // 2)
        with node.wire() as wire, contextlib.suppress(ConnectionError):
            assert wire.request("GET", make_name(name)).status == 404
        wait_for_miss(node, name)

    def test_a_file_that_is_cut_while_it_is_sent(self, node, name):
        body = noise(16 * MIB)
        node.put(name, body)
        with node.wire() as wire:
            wire.send(make_head("GET", make_name(name)))
            wire.read_head()
            os.truncate(node.file_of(name), MIB)
            got = wire.read_to_end()
        assert len(got) < len(body)
        assert got == body[: len(got)]
        wait_for_miss(node, name)

    def test_a_file_of_another_name(self, node, name):
        node.put(name, b"mine")
        other = node.file_of(name + "-other")
        other.parent.mkdir(exist_ok=True)
        node.file_of(name).rename(other)
        assert node.get(name + "-other").status == 404
        until(lambda: not other.exists(), "the misplaced file is dropped")
