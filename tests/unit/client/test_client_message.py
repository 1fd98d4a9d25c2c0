"""The message layer: names, requests, and responses cut in every possible way."""

import itertools
import pickle
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplecache.client import message
from simplecache.client.message import (
    Head,
    Mark,
    ResponseReader,
    escape_name,
    make_chunk,
    make_key,
    make_request,
)
from simplecache.errors import InvalidName, Malformed
from simplecache.model import Key


class TestNames:
    @pytest.mark.parametrize(
        ("name", "spelling"),
        [
            ("apple", b"apple"),
            ("s3://host/b/k", b"s3://host/b/k"),
            ("file://tmp/a (1)+b,c;d=e@f!$&'*~.jpg", b"file://tmp/a%20(1)+b,c;d=e@f!$&'*~.jpg"),
            ("100%.jpg", b"100%25.jpg"),
            ("what?1#2", b"what%3F1%232"),
            ('<">[\\]^`{|}', b"%3C%22%3E%5B%5C%5D%5E%60%7B%7C%7D"),
            ("りんご", b"%E3%82%8A%E3%82%93%E3%81%94"),
            ("a\udcffb", b"a%FFb"),
            ("x/../y//z/.", b"x/../y//z/."),
        ],
    )
    def test_one_spelling(self, name, spelling):
        assert escape_name(name) == spelling
        assert make_key(f"bkt/{name}") == Key("bkt", spelling)

    @given(st.text(min_size=1, max_size=200).filter(lambda s: not re.search("[\ud800-\udfff]", s)))
    def test_no_two_names_share_a_spelling(self, name):
        spelling = escape_name(name)
        assert unquote_to_bytes(spelling) == name.encode()
        assert all(hexes.isupper() or hexes.isdigit() for hexes in re.findall(rb"%(..)", spelling))
        Key("bkt", spelling)

    def test_a_key_is_sent_as_it_is(self):
        key = Key("bkt", b"100%?x[1]")
        assert make_key(key) is key

    @pytest.mark.parametrize("key", ["apple", "", "bkt/", "/apple", "Bkt/apple", "bkt/\ud800"])
    def test_illegal(self, key):
        with pytest.raises(InvalidName):
            make_key(key)


class TestRequests:
    def test_target_is_untouched(self):
        target = b'/v1/objects/bkt/a//../%2f?q="x"'
        assert make_request("GET", target, "h:1", [("Range", "bytes=0-1")]) == (
            b"GET " + target + b" HTTP/1.1\r\nHost: h:1\r\nRange: bytes=0-1\r\n\r\n"
        )

    @pytest.mark.parametrize("value", ["", " a", "a\r\nX: y", "a\0", "é"])
    def test_a_value_cannot_smuggle(self, value):
        with pytest.raises(Malformed, match="Content-Type"):
            make_request("PUT", b"/x", "h", [("Content-Type", value)])

    def test_chunk(self):
        assert make_chunk(memoryview(b"x" * 26)) == b"1a\r\n" + b"x" * 26 + b"\r\n"


def play(methods, pieces, *, end=False):
    """Feed ``pieces``: the events (neighbouring bytes joined), and the error if there was one."""
    reader = ResponseReader()
    for method in methods:
        reader.expect(method)
    events = []
    try:
        for piece in [*pieces, b""] if end else pieces:
            reader.feed(piece)
            while (event := reader.next_event()) is not Mark.NEED_DATA:
                if isinstance(event, bytes) and events and isinstance(events[-1], bytes):
                    events[-1] += event
                else:
                    events.append(event)
    except Malformed as error:
        return events, error
    return events, None


def cut(data, at):
    edges = [0, *sorted(i % (len(data) + 1) for i in at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


@dataclass
class Answer:
    method: str
    status: int
    body: bytes
    chunks: list[int] | None
    interims: list[int]

    @property
    def has_body(self):
        return self.method != "HEAD" and self.status not in (204, 304)

    def render(self):
        wire = b"".join(b"HTTP/1.1 %d Wait\r\nX: y\r\n\r\n" % n for n in self.interims)
        wire += b'HTTP/1.1 %d Some text\r\nETag:\t"x" \r\nA: 1\r\na: 2\r\n' % self.status
        if self.chunks is None:
            wire += b"Content-Length: %d\r\n\r\n" % len(self.body)
            return wire + (self.body if self.has_body else b"")
        wire += b"Transfer-Encoding: Chunked\r\n\r\n"
        if self.has_body:
            for piece in cut(self.body, self.chunks):
                wire += b"%X;a=b\r\n%b\r\n" % (len(piece), piece)
            wire += b"000\r\nTrailer: yes\r\n\r\n"
        return wire

    def events(self):
        events = [Mark.CONTINUE for n in self.interims if n == 100]
        headers = {"etag": '"x"', "a": "1, 2"}
        if self.chunks is None:
            headers["content-length"] = str(len(self.body))
        else:
            headers["transfer-encoding"] = "Chunked"
        length = None if self.chunks is not None else len(self.body)
        events.append(Head(self.status, headers, length, keep_alive=True))
        if self.has_body and self.body:
            events.append(self.body)
        return [*events, Mark.END]


answers = st.builds(
    Answer,
    method=st.sampled_from(["GET", "HEAD", "PUT"]),
    status=st.sampled_from([200, 201, 204, 206, 304, 404, 503]),
    body=st.binary(max_size=80) | st.just(b"HTTP/1.1 200 OK\r\n\r\n" * 3),
    chunks=st.none() | st.lists(st.integers(0, 100), max_size=5),
    interims=st.lists(st.sampled_from([100, 102, 103]), max_size=3),
)
cuts = st.lists(st.integers(0, 10_000), max_size=12)


class TestAnswers:
    @given(st.lists(answers, min_size=1, max_size=4), cuts)
    def test_any_split_gives_the_same(self, several, at):
        wire = b"".join(answer.render() for answer in several)
        methods = [answer.method for answer in several]
        expected = [event for answer in several for event in answer.events()]
        assert play(methods, [wire], end=True) == (expected, None)
        assert play(methods, cut(wire, at), end=True) == (expected, None)
        assert play(methods, [wire[i : i + 1] for i in range(len(wire))]) == (expected, None)

    @given(st.lists(answers, min_size=1, max_size=2), st.data())
    def test_a_cut_is_never_the_end(self, several, data):
        wire = b"".join(answer.render() for answer in several)
        methods = [answer.method for answer in several]
        kept = data.draw(st.integers(0, len(wire) - 1))
        events, error = play(methods, [wire[:kept]] if kept else [], end=True)
        assert error is not None
        assert events.count(Mark.END) < len(several)

    @given(st.lists(answers, min_size=1, max_size=2), st.binary(min_size=1), cuts)
    def test_bytes_to_spare_are_an_error_after_the_answer(self, several, spare, at):
        wire = b"".join(answer.render() for answer in several) + spare
        events, error = play([answer.method for answer in several], cut(wire, at))
        assert events == [event for answer in several for event in answer.events()]
        assert "beyond" in str(error)

    @given(answers, cuts, st.data())
    def test_damage_is_seen_alike_however_it_is_cut(self, answer, at, data):
        wire = bytearray(answer.render())
        for _ in range(data.draw(st.integers(1, 3))):
            wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
        whole, error = play([answer.method], [bytes(wire)], end=True)
        for pieces in (cut(bytes(wire), at), [bytes([byte]) for byte in wire]):
            again, error_again = play([answer.method], pieces, end=True)
            assert (again, error_again is None) == (whole, error is None)

    @given(st.binary(max_size=300), cuts)
    def test_noise_is_malformed(self, noise, at):
        events, error = play(["GET"], cut(noise, at), end=True)
        assert Mark.END not in events
        assert error is not None

    @pytest.mark.parametrize(
        "wire",
        [
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nthe whole rest",
            b"HTTP/1.1 503 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
            b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9,
        ],
    )
    def test_refused_heads(self, wire):
        for pieces in ([wire], [bytes([byte]) for byte in wire]):
            events, error = play(["GET"], pieces)
            assert error is not None
            assert set(events) <= {Mark.CONTINUE}

    @pytest.mark.parametrize(
        "body",
        [
            b"\r\n",
            b"x\r\n",
            b" 1\r\n",
            b"-1\r\n",
            b"0x1\r\n",
            b"1_0\r\n",
            b"1;\n\r\n",
            b"1" * 16 + b"\r\n",
            b"f" * 15 + b"\r\n",
            b"1;" + b"e" * 300,
            b"1\r\nab\r\n",
            b"1\r\na0\r\n\r\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\n" + b"A: b\r\n" * 6000,
        ],
    )
    def test_refused_chunks(self, body):
        wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
        for pieces in ([wire], [bytes([byte]) for byte in wire]):
            events, error = play(["GET"], pieces)
            assert error is not None
            assert Mark.END not in events

    @pytest.mark.parametrize("size", [1000, 64])
    def test_the_header_has_a_bound(self, size):
        start = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
        line = b"A: " + b"b" * (size - 5) + b"\r\n"
        for room in (-1, 0, 1):
            rest = message.HEADER_MAX_BYTES - len(start) - 2 + room
            lines = line * (rest // size)
            padding = b"P:" + b"p" * (rest - len(lines) - 4) + b"\r\n"
            wire = start + lines + padding + b"\r\n"
            assert len(wire) == message.HEADER_MAX_BYTES + room
            for pieces in ([wire], cut(wire, range(0, len(wire), 1000))):
                assert (play(["GET"], pieces)[1] is None) == (room <= 0)

    def test_an_endless_body_has_a_bound(self):
        reader = ResponseReader(body_max_bytes=10)
        reader.expect("GET")
        reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n6\r\n")
        assert isinstance(reader.next_event(), Head)
        assert reader.next_event() == b"123456"
        with pytest.raises(Malformed, match="more than 10 bytes"):
            reader.next_event()

    @pytest.mark.parametrize(
        ("version", "connection", "keep_alive"),
        [
            (b"1.1", b"", True),
            (b"1.1", b"Connection: keep-alive\r\n", True),
            (b"1.1", b"Connection: Close\r\n", False),
            (b"1.1", b"Connection: foo , close\r\n", False),
            (b"1.1", b"Connection: foo\r\nConnection: close\r\n", False),
            (b"1.0", b"", False),
            (b"1.0", b"Connection: keep-alive\r\n", False),
        ],
    )
    def test_keep_alive(self, version, connection, keep_alive):
        wire = b"HTTP/%b 200\r\nContent-Length: 0\r\n%b\r\n" % (version, connection)
        (head, _), error = play(["GET"], [wire])
        assert error is None
        assert head.keep_alive is keep_alive

    def test_a_large_piece_is_not_copied(self):
        reader = ResponseReader()
        reader.expect("GET")
        reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        assert isinstance(reader.next_event(), Head)
        assert reader.next_event() is Mark.NEED_DATA
        piece = b"x" * 1000
        reader.feed(piece)
        assert reader.next_event() is piece

    def test_bytes_before_any_request(self):
        assert play([], [b"HTTP/1.1 408 Timeout\r\n"])[1] is not None
        assert play([], [], end=True) == ([], None)

    def test_it_tells_its_state(self):
        reader = ResponseReader()
        reader.expect("GET")
        reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
        while reader.next_event() is not Mark.NEED_DATA:
            pass
        assert repr(reader) == "<ResponseReader _read_body awaited=1 waiting=0>"
        reader.feed(b"")
        with pytest.raises(Malformed, match="3 bytes before its end"):
            reader.next_event()

    def test_heads_are_values(self):
        head = Head(200, {"a": "b"}, 5, keep_alive=True)
        assert pickle.loads(pickle.dumps(head)) == head
