"""Heads, bodies and answers as bytes: limits, framing, and the shapes that smuggling needs."""

import json

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplecache.server import wire
from simplecache.server.wire import (
    HEADERS_MAX,
    MEMO_BLOCK_MAX_BYTES,
    MEMO_BLOCKS,
    ChunkedBody,
    HeaderMemo,
    LengthBody,
    ProtocolError,
    head,
    parse_headers,
    problem,
    with_fields,
)  # fmt: skip

HOST = b"\r\nHost: cache"


def parse(*lines):
    return parse_headers(HOST + b"".join(b"\r\n" + line for line in lines))


def refuse(*lines, status=400):
    with pytest.raises(ProtocolError) as caught:
        parse(*lines)
    assert caught.value.status == status
    return caught.value


class TestHeaders:
    def test_a_plain_block(self):
        headers = parse(b"Accept-Encoding: identity", b"Authorization: Bearer abc")
        assert headers.is_plain
        assert headers.authorization == b"Bearer abc"
        assert headers.length is None
        assert headers.has_host
        assert not any((headers.is_chunked, headers.expects_continue, headers.wants_close))
        assert headers.values == {}

    @pytest.mark.parametrize(
        ("line", "is_plain"),
        [
            (b"Range: bytes=0-1", False), (b"If-None-Match: *", False), (b"If-Match: *", False),
            (b"Content-Length: 5", False), (b"Content-Length: 0", True), (b"Connection: close", False),
            (b"Transfer-Encoding: chunked", False), (b"Expect: 100-continue", False),
            (b"Connection: keep-alive", True), (b"Content-Type: a/b", True), (b"X: y", True),
            (b"Connection: foo, Close", False),
        ],
    )  # fmt: skip
    def test_what_is_plain(self, line, is_plain):
        assert parse(line).is_plain == is_plain
        assert not parse_headers(b"\r\n" + line).is_plain, "without a Host nothing is"

    def test_fields_by_any_case_and_space(self):
        headers = parse(b"RANGE:bytes=0-1\t ", b"cOnTeNt-LeNgTh:   12  ", b'if-match: "a"')
        assert headers.values == {b"range": b"bytes=0-1", b"if-match": b'"a"'}
        assert headers.length == 12

    def test_connection_tokens_gather(self):
        headers = parse(b"Connection: a, keep-alive", b"Connection: ,CLOSE ,")
        assert headers.wants_close
        assert headers.wants_keep_alive

    @pytest.mark.parametrize(
        "name",
        [b"Host", b"Authorization", b"Content-Length", b"Range", b"If-Match", b"If-None-Match",
         b"Content-Type", b"Content-Digest", b"Content-MD5", b"If-Range", b"Content-Range"],
    )  # fmt: skip
    def test_fields_that_stand_once(self, name):
        refuse(name + b": 1", name + b": 1")

    def test_two_expectations(self):
        refuse(b"Expect: gold", b"Expect: 100-continue")

    def test_limits_of_the_number_of_fields(self):
        lines = [b"X-%d: 1" % number for number in range(HEADERS_MAX)]
        parse(*lines[:-1])
        refuse(*lines, status=431)

    @pytest.mark.parametrize("value", [b"5", b"0", b"0005", b"9" * 19])
    def test_lengths(self, value):
        try:
            assert parse(b"Content-Length: " + value).length == int(value)
        except ProtocolError as error:  # llhttp counts in 64 bits
            assert (value, error.status) == (b"9" * 19, 400)  # noqa: PT017

    @pytest.mark.parametrize(
        "value", [b"", b"-1", b"+1", b"1.0", b"0x1", b"1 1", b"1,1", b"9" * 20, b"\xb2"]
    )
    def test_what_is_no_length(self, value):
        refuse(b"Content-Length: " + value)

    @pytest.mark.parametrize(
        "lines",
        [
            [b"Content-Length: 1", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: chunked", b"Content-Length: 1"],
            [b"Content-Length: 1", b"Content-Length: 1"],
            [b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"],
            [b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: gzip, chunked"],
            [b"Transfer-Encoding: chunked, identity"],
            [b"Transfer-Encoding: xchunked"],
            [b"Transfer-Encoding: chunked\x0b"],
            [b"Transfer-Encoding:"],
            [b"Transfer-Encoding : chunked"],
        ],
    )
    def test_lengths_that_two_readers_may_see_differently(self, lines):
        with pytest.raises(ProtocolError) as caught:
            parse(*lines)
        assert caught.value.status in {400, 501}

    @pytest.mark.parametrize("coding", [b"gzip", b"identity", b"deflate"])
    def test_other_codings_are_not_implemented(self, coding):
        refuse(b"Transfer-Encoding: " + coding, status=501)

    def test_chunked_in_any_case(self):
        assert parse(b"Transfer-Encoding: ChUnKeD").is_chunked

    @pytest.mark.parametrize(
        "block",
        [
            b"\r\nHost: x\nX: y", b"\nHost: x", b"\r\nHost: x\rX: y", b"\r\nHost: x\r", b"\r\n X: y",
            b"\r\nX: y\r\n z", b"\r\nX: y\r\n\tz", b"\r\nX", b"\r\n: y", b"\r\nX y: z",
            b"\r\nX: \x00", b"\r\nX\x7f: y", b"\r\nX: y\x01", b"\r\n\xe9: y",
        ],
    )  # fmt: skip
    def test_lines_that_are_no_fields(self, block):
        with pytest.raises(ProtocolError) as caught:
            parse_headers(block)
        assert caught.value.status == 400

    def test_an_upgrade_is_ignored_and_its_length_is_not(self):
        headers = parse(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 7")
        assert headers.length == 7

    @settings(deadline=None)
    @given(st.lists(st.binary(max_size=40), max_size=6))
    def test_whatever_it_is_the_answer_is_headers_or_a_refusal(self, lines):
        block = HOST + b"".join(b"\r\n" + line for line in lines)
        try:
            headers = parse_headers(block)
        except ProtocolError as error:
            assert 400 <= error.status < 600  # noqa: PT017 - either is right
        else:
            assert not (headers.is_chunked and headers.length is not None)

    @settings(deadline=None)
    @given(st.binary(max_size=60))
    def test_what_is_taken_has_no_line_end_of_another_kind(self, noise):
        try:
            parse_headers(HOST + b"\r\nX: " + noise)
        except ProtocolError:
            return
        assert noise.count(b"\n") == noise.count(b"\r") == noise.count(b"\r\n")


class TestMemo:
    def test_a_block_is_judged_once(self):
        memo = HeaderMemo()
        assert memo.get(HOST) is None
        parsed = memo.parse(HOST)
        assert memo.get(HOST) is parsed
        assert memo.misses == 1

    def test_what_is_refused_is_not_remembered(self):
        memo = HeaderMemo()
        for _ in range(2):
            with pytest.raises(ProtocolError):
                memo.parse(HOST + b"\r\nbroken")
        assert memo.get(HOST + b"\r\nbroken") is None

    def test_it_is_bounded_in_number_and_size(self):
        memo = HeaderMemo()
        for number in range(2 * MEMO_BLOCKS + 5):
            memo.parse(HOST + b"\r\nX: %d" % number)
        assert len(memo._blocks) <= MEMO_BLOCKS
        large = HOST + b"\r\nX: " + b"a" * MEMO_BLOCK_MAX_BYTES
        assert memo.parse(large).is_plain
        assert memo.get(large) is None


def feed(body, data, cuts=()):
    """Feed in pieces; the body that came and what is left over, or None if it was refused."""
    parts = []
    try:
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            parts += body.feed(data[start:end])
    except ProtocolError:
        return None
    return b"".join(parts), body.rest


def by_httptools(data):
    """The same by llhttp, as an oracle."""

    class Seen:
        body = b""
        is_complete = False

        def on_body(self, data):
            if not self.is_complete:
                self.body += data

        def on_message_complete(self):
            self.is_complete = True

    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        parser.feed_data(data)
    except httptools.HttpParserError:
        if not seen.is_complete:  # what comes after the body is another request, and its own affair
            return None
    return seen.body, seen.is_complete


hexes = st.sampled_from(["%x", "%X", "0%x", "000%x"])
extensions = st.sampled_from([b"", b"", b"", b";a", b";a=b", b';a="b c"', b";a=b;c=d"])
trailers = st.sampled_from([b"", b"", b"X: y\r\n", b"X: y\r\nZ: a b\r\n"])
chunks = st.lists(st.tuples(st.binary(min_size=1, max_size=60), hexes, extensions), max_size=6)


def encode(parts, extension, trailer):
    coded = b"".join(
        (form % len(data)).encode() + more + b"\r\n" + data + b"\r\n" for data, form, more in parts
    )
    return coded + b"0" + extension + b"\r\n" + trailer + b"\r\n"


class TestChunked:
    @settings(deadline=None)
    @given(chunks, extensions, trailers, st.binary(max_size=20), st.data())
    def test_any_split_of_the_bytes_gives_the_same(self, parts, extension, trailer, rest, data):
        coded = encode(parts, extension, trailer) + rest
        cuts = sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=8)))
        wanted = b"".join(part for part, _, _ in parts)
        assert feed(ChunkedBody(), coded) == (wanted, rest)
        assert feed(ChunkedBody(), coded, cuts) == (wanted, rest)
        assert feed(ChunkedBody(), coded, range(1, len(coded))) == (wanted, rest)
        assert by_httptools(coded) == (wanted, True)

    @settings(max_examples=300, deadline=None)
    @given(chunks, extensions, trailers, st.data())
    def test_where_bytes_are_changed_it_never_reads_another_body_than_llhttp(
        self, parts, extension, trailer, data
    ):
        coded = bytearray(encode(parts, extension, trailer))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(coded) - 1))
            change = data.draw(st.sampled_from(["set", "cut", "add"]))
            byte = data.draw(st.sampled_from(b"\r\n 0159afx;:\t\x00\xff"))
            if change == "set":
                coded[at] = byte
            elif change == "cut" and len(coded) > 1:
                del coded[at]
            else:
                coded.insert(at, byte)
        coded = bytes(coded)
        body = ChunkedBody()
        ours, theirs = feed(body, coded), by_httptools(coded)
        if ours is not None and ours[1] is not None:
            if theirs is not None and theirs[1]:
                assert ours[0] == theirs[0]
            else:
                assert b";" in coded or body._trailers, "we are laxer only in what is ignored"
        cuts = sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=5)))
        assert feed(ChunkedBody(), coded, cuts) == ours

    @settings(deadline=None)
    @given(st.lists(st.binary(max_size=50), max_size=10))
    def test_noise_is_refused_or_waits(self, pieces):
        body = ChunkedBody()
        try:
            for piece in pieces:
                body.feed(piece)
        except ProtocolError as error:
            assert error.status == 400  # noqa: PT017 - or it waits

    @pytest.mark.parametrize(
        "coded",
        [b"x", b"\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"1\n", b" 1\r\n", b"1 \r\n", b"1\t\r\n",
         b"1\r\nabc", b"1\r\na\n", b"g\r\n", b"1" * 16 + b"\r\n", b"1;\x00\r\n", b"1\rx\r\n",
         b"1_0\r\n", "\u0661\r\n".encode(), b"0\r\nX: y\n\r\n", b"0" * 1025, b"1;" + b"a" * 1024],
    )  # fmt: skip
    def test_shapes_that_are_refused(self, coded):
        body = ChunkedBody()
        with pytest.raises(ProtocolError):
            body.feed(coded + b"\r\n" if coded in {b"x", b"1;\x00"} else coded)

    def test_bounds(self):
        line = b"X-Trailer: %b\r\n" % (b"a" * 1000)
        assert feed(ChunkedBody(), b"0\r\n" + 7 * line + b"\r\n") == (b"", b"")
        assert feed(ChunkedBody(), b"0\r\n" + 9 * line + b"\r\n") is None
        assert feed(ChunkedBody(), b"0\r\n" + b"a" * 9000) is None

    def test_many_tiny_chunks_become_one_piece(self):
        body = ChunkedBody()
        pieces = body.feed(b"2\r\nab\r\n" * 30_000 + b"0\r\n\r\n")
        assert pieces == [b"ab" * 30_000]
        assert body.rest == b""

    def test_what_comes_after_the_end_is_kept(self):
        body = ChunkedBody()
        body.feed(b"0\r\n\r\nGET")
        assert body.feed(b" / HTTP") == []
        assert body.rest == b"GET / HTTP"
        assert body.remaining is None


class TestLength:
    @settings(deadline=None)
    @given(st.binary(max_size=200), st.integers(0, 200), st.data())
    def test_any_split_of_the_bytes_gives_the_same(self, data, length, draw):
        cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
        body = LengthBody(length)
        got = feed(body, data, cuts)
        if len(data) >= length:
            assert got == (data[:length], data[length:])
            assert body.remaining == 0
        else:
            assert got == (data, None)
            assert body.remaining == length - len(data)


class TestAnswers:
    def test_a_head(self):
        assert head(204) == b"HTTP/1.1 204 No Content\r\n\r\n"
        assert head(200, b"A: b\r\n", b"C: d\r\n") == b"HTTP/1.1 200 OK\r\nA: b\r\nC: d\r\n\r\n"

    def test_fields_are_added_behind_the_status_line(self):
        answer = head(200, b"A: b\r\n") + b"body\nbody"
        assert with_fields(answer, b"X: y\r\n", b"").startswith(b"HTTP/1.1 200 OK\r\nX: y\r\nA: b")
        assert with_fields(answer) == answer

    def test_a_problem(self):
        whole = problem(403, "forbidden", 'a "quoted" sentence \u2026 é', b"Retry-After: 1\r\n")
        text, _, body = whole.partition(b"\r\n\r\n")
        assert b"SCS-Error: forbidden" in text
        assert b"Retry-After: 1" in text
        assert b"Content-Length: %d" % len(body) in text
        document = json.loads(body)
        assert document["detail"] == 'a "quoted" sentence \u2026 é'
        assert (document["status"], document["title"]) == (403, "Forbidden")
        assert problem(403, "forbidden", "x", body=False).endswith(b"\r\n\r\n")

    def test_every_status_has_its_line(self):
        for status in (*range(200, 207), *range(400, 418), 429, 431, 500, 501, 503, 505, 507):
            assert head(status).startswith(b"HTTP/1.1 %d " % status)
        assert wire.CONTINUE == b"HTTP/1.1 100 Continue\r\n\r\n"
