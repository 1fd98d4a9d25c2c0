"""The file format: what was written comes back, and what was changed is found out."""

import contextlib
import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from simplecache.store import blobs
from simplecache.store.blobs import (
    BLOCK_BYTES,
    PREFIX_MAX_BYTES,
    BlobWriter,
    Corrupt,
    Meta,
    blob_id,
    block_count,
    decode,
    file_bytes,
    open_blob,
)  # fmt: skip

TARGET = b"/v1/objects/public/x"

metas = st.builds(
    Meta,
    target=st.binary(min_size=1, max_size=4096 + 76),
    size=st.just(0),
    created_ms=st.integers(0, 2**63),
    etag=st.just(bytes(16)),
    namespace=st.text("abc-", max_size=63),
    content_type=st.binary(max_size=256),
    content_encoding=st.binary(max_size=64),
    expires_ms=st.integers(0, 2**63),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "blob"


def count_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def write_two_blocks(writer):
    for _ in range(2):
        writer.write(bytes(BLOCK_BYTES))
    writer.finish()


@contextlib.contextmanager
def temporary():
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "blob"


def make_file(path, body, cuts=(), meta=None):
    writer = BlobWriter(path, meta or Meta(TARGET, 0, 1, b""))
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        writer.write(body[start:end])
    return writer.finish()


def read_all(path, target=TARGET):
    """The body, by the way that its size takes, all of it checked."""
    blob = open_blob(str(path), target)
    if block_count(blob.size) == 1:
        blob.verify(0)
        return bytes(blob.read())
    for block in range(block_count(blob.size)):
        blob.verify(block)
    return os.pread(blob.fd, blob.size, blob.body_at)


class TestRoundTrip:
    @settings(deadline=None)
    @given(metas, st.binary(max_size=5000), st.data())
    def test_whatever_is_written_comes_back(self, meta, body, data):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
        with temporary() as path:
            written = make_file(path, body, cuts, meta)
            blob = open_blob(str(path), meta.target)
            assert blob.meta == written
            assert (blob.size, blob.body_at) == (len(body), written.body_at)
            assert written == Meta(
                meta.target, len(body), meta.created_ms, xxh3_128_digest(body), meta.namespace,
                meta.content_type, meta.content_encoding, meta.expires_ms,
            )  # fmt: skip
            assert bytes(blob.read()) == body
            assert path.stat().st_size == file_bytes(written)

    @pytest.mark.parametrize("blocks", [0, 1, 2, 3])
    @pytest.mark.parametrize("more", [-1, 0, 1])
    @pytest.mark.parametrize("piece", [BLOCK_BYTES, 300_000, 3 * BLOCK_BYTES + 1])
    def test_sizes_around_a_block(self, path, blocks, more, piece):
        size = max(0, blocks * BLOCK_BYTES + more)
        body = os.urandom(size)
        meta = make_file(path, body, range(piece, size, piece))
        assert read_all(path) == body
        assert path.stat().st_size == file_bytes(meta)
        assert block_count(size) == max(1, blocks + (more > 0))

    @settings(deadline=None)
    @given(metas)
    def test_the_prefix_fits_where_it_is_looked_for(self, meta):
        encoded = meta.encode(7)
        assert len(encoded) == meta.body_at <= PREFIX_MAX_BYTES
        assert decode(encoded + b"more")[0] == meta

    def test_pieces_of_any_kind(self, path):
        writer = BlobWriter(path, Meta(TARGET, 0, 1, b""))
        for piece in (b"bytes ", bytearray(b"bytearray "), memoryview(b"memoryview")):
            writer.write(piece)
        writer.finish()
        assert read_all(path) == b"bytes bytearray memoryview"

    def test_equal_bodies_have_equal_etags(self, path):
        first = make_file(path, b"a" * 3_000_000, [1, 2_000_000])
        path.unlink()
        assert make_file(path, b"a" * 3_000_000).etag == first.etag


class TestDamage:
    def is_found_out(self, path):
        try:
            read_all(path)
        except Corrupt:
            return True
        return False

    def flip(self, path, byte, bit):
        with path.open("r+b") as file:
            file.seek(byte)
            old = file.read(1)[0]
            file.seek(byte)
            file.write(bytes([old ^ (1 << bit)]))

    @pytest.mark.parametrize("size", [0, 1, 300])
    def test_every_single_bit_of_a_small_file(self, path, size):
        make_file(path, os.urandom(size))
        for byte in range(path.stat().st_size):
            for bit in range(8):
                self.flip(path, byte, bit)
                assert self.is_found_out(path), f"byte {byte}, bit {bit}"
                self.flip(path, byte, bit)
        assert not self.is_found_out(path)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_any_single_bit_of_a_large_file(self, data):
        with temporary() as path:
            size = data.draw(st.sampled_from([BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 99]))
            make_file(path, os.urandom(size))
            length = path.stat().st_size
            byte = data.draw(
                st.integers(0, length - 1)
                | st.integers(0, 120)
                | st.integers(length - 24, length - 1)
            )
            self.flip(path, byte, data.draw(st.integers(0, 7)))
            assert self.is_found_out(path)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2_500_000), st.integers(0, 2_600_000))
    @example(0, 0)
    @example(BLOCK_BYTES + 1, 0)
    @example(300, 96)
    def test_any_other_length(self, size, length):
        with temporary() as path:
            make_file(path, bytes(size))
            if length == path.stat().st_size:
                return
            os.truncate(path, length)
            assert self.is_found_out(path)

    def test_a_file_of_another_name(self, path):
        make_file(path, b"x")
        with pytest.raises(Corrupt, match="holds"):
            open_blob(str(path), TARGET + b"y")
        assert open_blob(str(path), None).meta.target == TARGET

    @pytest.mark.parametrize("content", [b"", b"x", b"\0" * 5000, b"SCSblob\x02" + b"\0" * 200])
    def test_files_that_are_none(self, path, content):
        path.write_bytes(content)
        with pytest.raises(Corrupt):
            open_blob(str(path), TARGET)

    @settings(deadline=None)
    @given(st.binary(max_size=300))
    def test_a_prefix_of_noise(self, noise):
        with pytest.raises(Corrupt):
            decode(noise)
        with pytest.raises(Corrupt):
            decode(blobs.MAGIC + noise)

    def test_rot_while_it_is_open(self, path):
        make_file(path, b"a" * 1000)
        blob = open_blob(str(path), TARGET)
        assert bytes(blob.read_now()) == b"a" * 1000
        self.flip(path, blob.body_at + 500, 0)
        for read in (blob.read_now, blob.read):
            with pytest.raises(Corrupt):
                read()

    def test_a_block_is_checked_again_when_the_file_was_touched(self, path):
        make_file(path, b"a" * (2 * BLOCK_BYTES))
        blob = open_blob(str(path), TARGET)
        blob.verify(1)
        blob.check_untouched()
        assert blob.is_ready(1)
        assert not blob.is_ready(0)
        self.flip(path, blob.body_at + BLOCK_BYTES, 0)
        os.utime(path, (1, 1))
        blob.check_untouched()
        assert not blob.is_ready(1)
        with pytest.raises(Corrupt):
            blob.verify(1)


class TestTheSystemsWhims:
    def test_a_short_write_is_continued(self, path, monkeypatch):
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
        make_file(path, b"a longer body than seven bytes" * 10)
        monkeypatch.undo()
        assert read_all(path) == b"a longer body than seven bytes" * 10

    @pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EAGAIN, errno.EINVAL])
    def test_a_file_system_that_does_not_know_nowait(self, path, monkeypatch, error):
        """As tmpfs on many kernels: the caller goes to the thread, and gets the body there."""
        make_file(path, b"body")
        blob = open_blob(str(path), TARGET)
        real = os.preadv

        def preadv(fd, buffers, at, flags=0):
            if flags & os.RWF_NOWAIT:
                raise OSError(error, os.strerror(error))
            return real(fd, buffers, at, flags)

        monkeypatch.setattr(os, "preadv", preadv)
        with pytest.raises(BlockingIOError):
            blob.read_now()
        assert blob.read() == b"body"

    def test_part_of_a_body_in_the_page_cache_is_not_enough(self, path, monkeypatch):
        make_file(path, b"body")
        blob = open_blob(str(path), TARGET)
        monkeypatch.setattr(os, "preadv", lambda *_: 2)
        with pytest.raises(BlockingIOError):
            blob.read_now()

    @pytest.mark.parametrize("step", range(1, 5))
    def test_a_write_that_fails_leaves_nothing(self, path, monkeypatch, step):
        real, steps = os.pwrite, []

        def pwrite(*arguments):
            steps.append(1)
            if len(steps) == step:
                raise OSError(errno.ENOSPC, "full")
            return real(*arguments)

        before = count_descriptors()
        monkeypatch.setattr(os, "pwrite", pwrite)
        writer = BlobWriter(path, Meta(TARGET, 0, 1, b""))
        with pytest.raises(OSError, match="full"):
            write_two_blocks(writer)
        writer.discard()
        writer.discard()
        assert not path.exists()
        assert count_descriptors() == before

    def test_an_existing_temporary_file_is_not_overwritten(self, path):
        path.write_bytes(b"somebody's")
        with pytest.raises(FileExistsError):
            BlobWriter(path, Meta(TARGET, 0, 1, b""))

    def test_descriptors_are_closed(self, path):
        make_file(path, b"x")
        before = count_descriptors()
        blobs_open = [open_blob(str(path), TARGET) for _ in range(10)]
        assert count_descriptors() == before + 10
        del blobs_open
        for _ in range(10):
            with pytest.raises(Corrupt):
                open_blob(str(path), b"other")
        assert count_descriptors() == before


def test_an_id_is_of_the_whole_target():
    idents = {blob_id(b"/v1/objects/bkt/" + name) for name in (b"a", b"A", b"a/", b"%61", b"a?")}
    assert len(idents) == 5
    assert {len(ident) for ident in idents} == {16}
