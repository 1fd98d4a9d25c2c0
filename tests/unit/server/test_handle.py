"""Requests as stories: the status table, conditions, ranges, digests, without a connection."""

import asyncio
import hashlib
from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplecache import errors
from simplecache.config import Bucket, parse_tokens
from simplecache.errors import Refused
from simplecache.model import Key
from simplecache.server import handle
from simplecache.server.authenticate import OpenAuthenticator, StaticAuthenticator
from simplecache.server.fair import Tenant
from simplecache.server.handle import STATUS, FileAnswer, Handler, Request
from simplecache.server.wire import parse_headers
from simplecache.store.blobs import Corrupt
from simplecache.store.store import Store

MIB = 1 << 20
TOKEN = "a-token-that-is-long"
BUCKETS = {
    "public": Bucket("public", True, None, (), None),
    "private": Bucket("private", False, None, ("a",), ("a",)),
}


class World:
    """A handler on a store, and requests to it."""

    def __init__(self, directory, **options):
        self.loop = asyncio.new_event_loop()

        async def make():
            return Store(directory)

        self.store = self.run(make())
        tokens = parse_tokens({"Token": [{"Token": TOKEN, "Namespace": "a"}]})
        self.handler = Handler(self.store, StaticAuthenticator(tokens), **options)
        self.handler.configure(BUCKETS)

    def run(self, awaitable):
        async def bounded():
            async with asyncio.timeout(20):
                return await awaitable

        return self.loop.run_until_complete(bounded())

    def close(self):
        self.run(self.store.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()

    def request(self, verb, name=b"x", *lines, bucket="public", pieces=()):
        async def body():
            for piece in pieces:
                yield piece

        block = b"".join(b"\r\n" + line for line in (b"Host: cache", *lines))
        request = Request(verb, Key(bucket, name), parse_headers(block), body())
        return self.run(self.handler.respond(request))

    def put(self, name, body, *lines, **options):
        length = b"Content-Length: %d" % len(body)
        return self.request(b"PUT", name, length, *lines, pieces=[body], **options)

    def get_now(self, name, authorization=None, bucket="public"):
        target = Key(bucket, name).target
        answer = self.handler.get_now(target, bucket.encode(), authorization)
        if isinstance(answer, Tenant):  # whose turn it is not yet: here nobody competes
            answer.credit = 100
            answer = self.handler.get_now(target, bucket.encode(), authorization)
        return answer


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "shard")
    yield world
    world.close()


@pytest.fixture(scope="module")
def ten_bytes(tmp_path_factory):
    """A world with one object, for many examples."""
    world = World(tmp_path_factory.mktemp("ten-bytes") / "shard")
    world.put(b"x", b"0123456789")
    yield world
    world.close()


def status_of(answer):
    first = answer.head if isinstance(answer, FileAnswer) else answer
    first = first[0] if isinstance(first, tuple) else first
    return int(first.split(b" ", 2)[1])


def body_of(answer):
    if isinstance(answer, tuple):
        return bytes(answer[1])
    return answer.partition(b"\r\n\r\n")[2]


def field_of(answer, name):
    text = answer.head if isinstance(answer, FileAnswer) else answer
    text = text[0] if isinstance(text, tuple) else text
    for line in text.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        key, _, value = line.partition(b": ")
        if key.lower() == name:
            return value
    return None


def leaves(cls):
    children = cls.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [cls]


class TestStatus:
    def test_each_leaf_of_the_tree_has_its_row_and_nothing_else_has(self):
        wanted = {leaf for leaf in leaves(Refused) if leaf.__module__ == errors.__name__}
        assert set(STATUS) == wanted

    @pytest.mark.parametrize("error", STATUS, ids=lambda error: error.__name__)
    def test_each_error_becomes_its_answer(self, world, monkeypatch, error):
        async def fail(*_, reads):
            raise error("a sentence")

        monkeypatch.setattr(world.handler, "_admit", fail)
        answer = world.request(b"GET")
        status, word = STATUS[error]
        assert status_of(answer) == status
        assert field_of(answer, b"scs-error") == word.encode()
        assert b"a sentence" in body_of(answer)
        retry = field_of(answer, b"retry-after")
        assert (retry is not None) == issubclass(error, errors.Unavailable)
        assert (field_of(answer, b"www-authenticate") is not None) == (status == 401)
        assert world.handler.counters.responses()["GET", status] == 1

    def test_head_has_the_head_of_the_error_alone(self, world):
        answer = world.request(b"HEAD")
        assert status_of(answer) == 404
        assert body_of(answer) == b""
        assert int(field_of(answer, b"content-length")) > 0


class TestHotWay:
    def test_only_what_is_small_open_and_there(self, world):
        world.put(b"small", b"s" * 1000)
        world.put(b"edge", b"e" * handle.INLINE_MAX_BYTES)
        world.put(b"large", b"l" * (handle.INLINE_MAX_BYTES + 1))
        line, rest, body = world.get_now(b"small")
        assert line.startswith(b"HTTP/1.1 200 OK\r\nDate: ")
        assert (line + rest).endswith(b"\r\n\r\n")
        assert body == b"s" * 1000
        assert world.get_now(b"edge")[2] == b"e" * handle.INLINE_MAX_BYTES
        assert world.get_now(b"large") is None
        assert b"".join(world.get_now(b"missing")).startswith(b"HTTP/1.1 404 ")
        assert world.get_now(b"x", bucket="unknown") is None

    def test_it_says_what_the_whole_story_says(self, world):
        world.put(b"small", b"body", b"Content-Type: a/b", b"Content-Encoding: zstd")
        hot = b"".join(bytes(piece) for piece in world.get_now(b"small"))
        text, body = world.request(b"GET", b"small")
        date = world.handler.date
        assert hot.replace(date, b"") == text + body
        missing = b"".join(world.get_now(b"missing")).replace(date, b"")
        assert missing == world.request(b"GET", b"missing")

    def test_a_caller_is_remembered_after_they_were_let_through(self, world):
        good, bad = b"Bearer " + TOKEN.encode(), b"Bearer other-token-here"
        world.put(b"x", b"secret", b"Authorization: " + good, bucket="private")
        for who in (None, good, bad):
            assert world.get_now(b"x", who, "private") is None
        world.request(b"GET", b"x", b"Authorization: " + good, bucket="private")
        assert world.get_now(b"x", good, "private")[2] == b"secret"
        for who in (None, bad):
            assert world.get_now(b"x", who, "private") is None
        world.handler.authenticator.tokens = parse_tokens({"Token": []})
        world.handler.tick(1)
        assert world.get_now(b"x", good, "private") is None

    def test_those_remembered_are_bounded(self, world, monkeypatch):
        monkeypatch.setattr(handle, "READERS_MAX", 3)
        monkeypatch.setattr(world.handler.authenticator, "authenticate", self.authenticate_anybody)
        for number in range(10):
            world.request(b"GET", b"x", b"Authorization: Bearer %d" % number, bucket="private")
        assert len(world.handler._buckets[b"private"].readers) <= 3

    @staticmethod
    async def authenticate_anybody(_):
        from simplecache.model import Caller

        return Caller("a")

    def test_what_has_rotted_is_a_miss(self, world, monkeypatch):
        world.put(b"x", b"body")
        world.get_now(b"x")
        blob = world.store._open[Key("public", b"x").target]

        class Rotten:
            size, expires_ms = 4, 0
            fd, meta = blob.fd, blob.meta

            def read_now(self):
                raise Corrupt("rotten")

        world.store._open[Key("public", b"x").target] = Rotten()
        assert b"".join(world.get_now(b"x")).startswith(b"HTTP/1.1 404 ")
        assert world.store.corrupt_found == 1
        world.run(world.store._writer.run(int))
        assert status_of(world.request(b"GET")) == 404

    def test_mode_none_opens_all(self, tmp_path):
        world = World(tmp_path / "shard")
        world.handler.authenticator = OpenAuthenticator()
        world.handler.configure(BUCKETS)
        try:
            assert status_of(world.put(b"x", b"y", bucket="private")) == 201
            assert world.get_now(b"x", None, "private")[2] == b"y"
        finally:
            world.close()


class TestRanges:
    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, 15) | st.just(None), st.integers(0, 15) | st.just(None))
    def test_a_range_is_what_a_slice_is(self, ten_bytes, first, last):
        text = b"Range: bytes=%b-%b" % tuple(b"" if n is None else b"%d" % n for n in (first, last))
        answer = ten_bytes.request(b"GET", b"x", text)
        body = b"0123456789"
        if first is None and last is None:
            wanted = (200, body)
        elif first is None:
            wanted = (206, body[-last:]) if last else (416, None)
        elif last is not None and last < first:
            wanted = (200, body)
        elif first >= len(body):
            wanted = (416, None)
        else:
            wanted = (206, body[first:] if last is None else body[first : last + 1])
        assert status_of(answer) == wanted[0]
        if wanted[1] is not None:
            assert body_of(answer) == wanted[1]
        if wanted[0] == 206:
            start = body.index(wanted[1])
            said = b"bytes %d-%d/10" % (start, start + len(wanted[1]) - 1)
            assert field_of(answer, b"content-range") == said

    @settings(deadline=None)
    @given(st.text("bytes=-,0123456789 ", max_size=25).map(str.encode))
    def test_whatever_it_is_the_answer_is_right(self, ten_bytes, text):
        answer = ten_bytes.request(b"GET", b"x", b"Range: " + text)
        assert status_of(answer) in {200, 206, 416}
        if status_of(answer) == 200:
            assert body_of(answer) == b"0123456789"

    def test_a_part_of_a_large_object(self, world):
        world.put(b"large", bytes(3 * MIB))
        answer = world.request(b"GET", b"large", b"Range: bytes=1048575-1048577")
        assert isinstance(answer, FileAnswer)
        assert (answer.start, answer.length) == (MIB - 1, 3)
        assert field_of(answer, b"content-length") == b"3"


class TestConditions:
    @pytest.mark.parametrize(
        ("line", "status"),
        [
            (b"If-None-Match: %b", 304), (b"If-None-Match: W/%b", 304), (b"If-None-Match: *", 304),
            (b'If-None-Match: "a", %b', 304), (b'If-None-Match: "a"', 200), (b"If-None-Match: x", 200),
            (b"If-Match: %b", 200), (b"If-Match: *", 200), (b'If-Match: "a", %b', 200),
            (b'If-Match: "a"', 412), (b"If-Match: W/%b", 412), (b"If-Match: x", 412),
        ],
    )  # fmt: skip
    def test_on_a_get(self, world, line, status):
        etag = field_of(world.put(b"x", b"body"), b"etag")
        line = line % etag if b"%b" in line else line
        for verb in (b"GET", b"HEAD"):
            assert status_of(world.request(verb, b"x", line)) == status

    def test_a_condition_stands_before_a_range(self, world):
        etag = field_of(world.put(b"x", b"body"), b"etag")
        answer = world.request(b"GET", b"x", b"Range: bytes=9-", b"If-None-Match: " + etag)
        assert status_of(answer) == 304

    @pytest.mark.parametrize(
        ("line", "status"),
        [
            (b"If-None-Match: *", 412), (b'If-None-Match: "a"', 400), (b"If-None-Match: %b", 400),
            (b"If-Match: *", 201), (b"If-Match: %b", 201), (b'If-Match: "a", %b', 201),
            (b'If-Match: "zz", %b', 201), (b'If-Match: "a"', 412), (b"If-Match: W/%b", 412),
            (b"If-Match: x", 400), (b'If-Match: ""', 412), (b'If-Match: "\xe9"', 412),
        ],
    )  # fmt: skip
    def test_on_a_put(self, world, line, status):
        etag = field_of(world.put(b"x", b"body"), b"etag")
        line = line.replace(b"%b", etag)
        assert status_of(world.put(b"x", b"new", line)) == status
        wanted = b"new" if status == 201 else b"body"
        assert body_of(world.request(b"GET", b"x")) == wanted


class TestDigests:
    def put(self, world, field):
        return world.put(b"x", b"abc", field)

    @given(st.text("shamd5-012=:,AaZz+/ ", max_size=40).map(str.encode))
    @settings(max_examples=200, deadline=None)
    def test_whatever_it_is_nothing_wrong_is_stored(self, tmp_path_factory, text):
        try:
            digests = handle._digests({b"content-digest": text})
        except handle.Refusal as error:
            assert error.status == 400  # noqa: PT017 - or they are digests
        else:
            assert all(len(want) == digest.digest_size for digest, want in digests)

    def test_all_that_are_known_are_checked(self, world):
        good = {
            name: b64encode(hashlib.new(algorithm, b"abc").digest())
            for name, algorithm in (("sha-256", "sha256"), ("sha-512", "sha512"), ("md5", "md5"))
        }
        field = b"Content-Digest: " + b", ".join(
            name.encode() + b"=:" + text + b":" for name, text in good.items()
        )
        assert status_of(self.put(world, field)) == 201
        assert status_of(self.put(world, field.replace(good["md5"], b64encode(bytes(16))))) == 400
        assert (
            field_of(self.put(world, b"Content-MD5: " + b64encode(bytes(16))), b"scs-error")
            == b"digest"
        )

    def test_an_answer_that_tells_both(self, world):
        answer = self.put(world, b"Content-MD5: " + b64encode(bytes(16)))
        assert hashlib.md5(b"abc").hexdigest().encode() in body_of(answer)


class TestUploads:
    def test_they_are_bounded(self, tmp_path):
        world = World(tmp_path / "shard", uploads_max=0)
        try:
            answer = world.put(b"x", b"body")
            assert field_of(answer, b"scs-error") == b"overloaded"
        finally:
            world.close()

    def test_a_body_that_fails_stores_nothing(self, world):
        async def body():
            yield b"some"
            raise errors.DiskError("in the middle")

        headers = parse_headers(b"\r\nHost: x\r\nTransfer-Encoding: chunked")
        request = Request(b"PUT", Key("public", b"x"), headers, body())
        assert status_of(world.run(world.handler.respond(request))) == 503
        assert world.handler.uploads == 0
        assert status_of(world.request(b"GET")) == 404
        assert not list((world.store.directory / "tmp").iterdir())

    def test_counters(self, world):
        world.put(b"x", b"12345")
        world.get_now(b"x")
        world.request(b"GET", b"x")
        world.request(b"GET", b"x", b"Range: bytes=0-1")
        world.request(b"HEAD", b"x")
        world.request(b"GET", b"missing")
        world.get_now(b"missing")
        counters = world.handler.counters
        assert (counters.hits + counters.hot_hits, counters.hit_bytes, counters.put_bytes) == (
            3,
            12,
            5,
        )
        assert counters.misses + counters.hot_misses == 2
        assert counters.responses() == {
            ("PUT", 201): 1, ("GET", 200): 2, ("GET", 206): 1, ("HEAD", 200): 1, ("GET", 404): 2,
        }  # fmt: skip
