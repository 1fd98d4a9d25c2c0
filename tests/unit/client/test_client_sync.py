"""The blocking client against servers that lie, stall, break off and die between requests."""

import gzip
import io
import itertools
import logging
import os
import pickle
import re
import socket
import threading
import time
import traceback

import peers
import pytest

from simplecache import errors
from simplecache.client import exchange
from simplecache.client.connection import StaleConnection
from simplecache.client.pool import IDLE_MAX, parse_url
from simplecache.client.sync import Client
from simplecache.errors import CacheFault
from simplecache.model import Key

MIB = 1 << 20
BIG = bytes(range(256)) * (12 * MIB // 256)
"""More than the buffers of a loopback connection hold."""


def strict(server, **settings):
    return Client(server.url, fail_open=False, **{"timeout_s": 5, **settings})


def serve(body=b"hello", times=1000):
    """A play: answer GETs with ``body``."""

    def play(peer):
        for _ in range(times):
            if not peer.read_head():
                return
            peer.answer(200, body)

    return play


def say(*parts, end="close"):
    """A play: read one request, send ``parts`` whatever was asked, and end."""

    def play(peer):
        peer.read_head()
        peer.send(*parts)
        if end == "reset":
            peer.reset()
        elif end == "stay":
            peer.wait_for_end()

    return play


OK = b"HTTP/1.1 200 OK\r\n"

LIES = {
    "nothing": say(),
    "reset": say(end="reset"),
    "cut head": say(OK),
    "cut body": say(OK, b"Content-Length: 10\r\n\r\n12345"),
    "cut body, reset": say(OK, b"Content-Length: 10\r\n\r\n12345", end="reset"),
    "cut chunk": say(OK, b"Transfer-Encoding: chunked\r\n\r\n6\r\n12345"),
    "no last chunk": say(OK, b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"),
    "long body": say(OK, b"Content-Length: 5\r\n\r\n1234567890", end="stay"),
    "two answers": say((OK + b"Content-Length: 5\r\n\r\n12345") * 2, end="stay"),
    "no length": say(OK, b"\r\n12345"),
    "no size": say(OK, b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n", end="stay"),
    "garbage": say(b"\0\1\2\3\4\5\6\7" * 9, end="stay"),
    "another protocol": say(b"SSH-2.0-OpenSSH_9.6\r\n", end="stay"),
    "large header": say(OK, b"A: b\r\n" * 10_000, end="stay"),
    "silence": say(end="stay"),
    "half a head": say(OK, b"Content-Le", end="stay"),
    "half a body": say(OK, b"Content-Length: 10\r\n\r\n12345", end="stay"),
    "redirect": say(b"HTTP/1.1 302 X\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", end="stay"),
    "another's 404": say(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n", end="stay"),
    "another's 503": say(b"HTTP/1.1 503 X\r\nContent-Length: 3\r\n\r\nno!", end="stay"),
    "partial": say(b"HTTP/1.1 206 X\r\nContent-Length: 2\r\n\r\nab", end="stay"),
    "created": say(b"HTTP/1.1 201 X\r\nContent-Length: 0\r\n\r\n", end="stay"),
    "no content": say(b"HTTP/1.1 204 X\r\n\r\n", end="stay"),
    "not modified": say(b"HTTP/1.1 304 X\r\n\r\n", end="stay"),
}


class TestLies:
    @pytest.mark.parametrize("lie", LIES)
    def test_a_lie_is_a_fault(self, scripted, lie):
        server = scripted(LIES[lie])
        with strict(server, timeout_s=0.2) as client, pytest.raises(CacheFault):
            client.get("bkt/apple")
        assert server.connections == 1
        assert client.stats.faults == 1
        assert client.stats.hits == 0

    @pytest.mark.parametrize("lie", LIES)
    def test_a_lie_is_a_counted_miss(self, scripted, lie, caplog):
        server = scripted(LIES[lie])
        with Client(server.url, timeout_s=0.2) as client:
            assert client.get("bkt/apple") is None
            assert client.get("bkt/apple") is None
        assert client.stats.faults == 2
        assert client.stats.fault_kinds == {"CacheFault": 2}
        assert client.stats.misses == client.stats.hits == 0
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("lie", sorted(LIES.keys() - {"created"}))
    def test_a_lie_about_a_put_is_a_fault(self, scripted, lie):
        server = scripted(LIES[lie])
        with strict(server, timeout_s=0.2) as client, pytest.raises(CacheFault):
            client.put("bkt/apple", b"red")
        assert server.connections == 1
        assert client.stats.stored == 0

    @pytest.mark.parametrize("lie", sorted(LIES.keys() - {"no content"}))
    def test_a_lie_about_a_delete_is_a_fault(self, scripted, lie):
        server = scripted(LIES[lie])
        with strict(server, timeout_s=0.2) as client, pytest.raises(CacheFault):
            client.delete("bkt/apple")

    @pytest.mark.parametrize(
        "told",
        [
            b"206 X\r\nContent-Length: 4",
            b"206 X\r\nContent-Length: 4\r\nContent-Range: bytes 2-5/*",
            b"206 X\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/100",
            b"206 X\r\nContent-Length: 4\r\nContent-Range: bytes 2-6/100",
            b"206 X\r\nContent-Length: 4\r\nContent-Range: bytes 2-5/5",
            b"206 X\r\nContent-Length: 3\r\nContent-Range: bytes 2-4/100",
            b"200 X\r\nContent-Length: 4",
            b"416 X\r\nContent-Length: 4",
        ],
    )
    def test_another_part_is_a_fault(self, scripted, told):
        server = scripted(say(b"HTTP/1.1 ", told, b"\r\n\r\nabcd", end="stay"))
        with strict(server) as client, pytest.raises(CacheFault):
            client.get_range("bkt/apple", 2, 6)

    def test_a_header_that_drips_has_one_timeout(self, scripted):
        stop = threading.Event()

        def drip(peer):
            peer.read_head()
            for byte in itertools.cycle(b"HTTP/1.1 200 OK\r\nA: b\r\n" + b"C: d\r\n" * 100):
                if stop.wait(0.02):
                    return
                peer.send(bytes([byte]))

        server = scripted(drip)
        began_s = time.monotonic()
        with strict(server, timeout_s=0.2) as client, pytest.raises(CacheFault, match=r"0\.2 s"):
            client.get("bkt/apple")
        stop.set()
        server.errors.clear()
        assert time.monotonic() - began_s < 2

    def test_a_slow_steady_body_is_well(self, scripted):
        pause = threading.Event()

        def play(peer):
            peer.read_head()
            peer.send(OK, b"Content-Length: 8\r\n\r\n")
            for _ in range(8):
                pause.wait(0.1)
                peer.send(b"x")

        with strict(scripted(play), timeout_s=0.5) as client:
            assert client.get("bkt/apple") == b"x" * 8

    def test_nobody_listens(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(CacheFault, match=r"cannot connect to 127\.0\.0\.1:.*refused"):
            Client(url, fail_open=False).get("bkt/apple")
        client = Client(url)
        assert client.get("bkt/apple") is None
        assert client.get_range("bkt/apple", 1, 2) is None
        assert client.head("bkt/apple") is None
        assert client.put("bkt/apple", b"x") is False
        assert client.delete("bkt/apple") is False
        with client.get_stream("bkt/apple") as stream:
            assert stream is None
        assert client.stats.faults == 6

    def test_an_unknown_host(self):
        with pytest.raises(CacheFault, match="cannot connect"):
            Client("http://no-such-host.invalid", fail_open=False).get("bkt/apple")


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "word", "kind"),
        [
            (401, b"unauthenticated", errors.Unauthenticated),
            (403, b"forbidden", errors.Forbidden),
            (404, b"no-bucket", errors.NoSuchBucket),
            (413, b"too-large", errors.TooLarge),
            (412, b"precondition", errors.PreconditionFailed),
            (400, b"digest", errors.DigestMismatch),
            (429, b"throttled", errors.Throttled),
            (503, b"draining", errors.Draining),
            (503, b"review-unavailable", errors.ReviewUnavailable),
            (507, b"disk-full", errors.DiskFull),
            (503, b"disk-error", errors.DiskError),
            (400, b"malformed", errors.Refused),
            (404, b"no-route", errors.Refused),
            (499, b"a-word-of-the-future", errors.Refused),
        ],
    )
    def test_each_word_has_its_class(self, scripted, status, word, kind):
        def play(peer):
            while peer.read_head():
                body = b'{"detail": "because of \\u001b[31m reasons"}'
                peer.answer(status, body, b"SCS-Error: " + word, b"Retry-After: 7")

        server = scripted(play)
        with strict(server) as client:
            for ask in (client.get, client.delete, lambda key: client.put(key, b"x")):
                with pytest.raises(kind, match=r"^because of \?\[31m reasons$") as caught:
                    ask("bkt/apple")
                assert type(caught.value) is kind
                if isinstance(caught.value, errors.Unavailable):
                    assert caught.value.retry_after_s == 7
        assert server.connections == 1

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[" * 50_000,
            b'{"detail": 5}',
            b'["x"]',
            b"\xff\xfe",
            b'{"detail": "' + b"x" * 60_000 + b'"}',
            b"y" * 200_000,
        ],
    )
    def test_a_strange_problem_is_still_the_error(self, scripted, body):
        fields = b"HTTP/1.1 403 X\r\nSCS-Error: forbidden\r\nContent-Length: %d\r\n\r\n" % len(body)
        server = scripted(say(fields, body, end="stay"))
        with strict(server) as client, pytest.raises(errors.Forbidden) as caught:
            client.get("bkt/apple")
        assert len(str(caught.value)) <= 500
        server.errors.clear()  # of 200 kB not all was read

    def test_a_problem_that_is_cut_is_still_the_error(self, scripted):
        server = scripted(
            say(
                b"HTTP/1.1 403 X\r\nSCS-Error: forbidden\r\nContent-Length: 9\r\n\r\n{", end="reset"
            )
        )
        with strict(server) as client, pytest.raises(errors.Forbidden):
            client.get("bkt/apple")

    def test_a_caller_s_mistake_never_fails_open(self, scripted):
        client = Client(scripted(serve()).url)
        for call in (
            lambda: client.get("no-slash"),
            lambda: client.get(Key("bkt", b"x y")),
            lambda: client.get_range("bkt/apple", 2, 2),
            lambda: client.put("bkt/apple", b"x", content_type="a\r\nb: c"),
            lambda: client.put("bkt/apple", b"abc", length=2),
        ):
            with pytest.raises(ValueError):
                call()
        with pytest.raises(TypeError):
            client.put("bkt/apple", "text")
        assert client.stats.faults == 0

    def test_faults_are_logged_once_in_30_s(self, scripted, caplog, monkeypatch):
        client = Client(scripted(say()).url)
        for _ in range(5):
            client.get("bkt/apple")
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        monkeypatch.setattr(client, "_next_log_s", 0.0)
        client.get("bkt/apple")
        assert "(6 so far)" in caplog.text


class TestConnections:
    def test_they_are_kept(self, scripted):
        server = scripted(serve())
        with strict(server) as client:
            for _ in range(20):
                assert client.get("bkt/apple") == b"hello"
        assert server.connections == 1

    def test_the_request_is_exact(self, scripted):
        heads = []

        def play(peer):
            heads.append(peer.read_head())
            peer.answer(200, b"x")

        with strict(scripted(play), token="secret") as client:
            client.get(Key("bkt", b"a//b?x=%2f[1]"))
        assert re.fullmatch(
            rb"GET /v1/objects/bkt/a//b\?x=%2f\[1\] HTTP/1\.1\r\nHost: 127\.0\.0\.1:\d+\r\n"
            rb"User-Agent: simplecache/[\d.]+\r\nAccept-Encoding: identity\r\n"
            rb"Authorization: Bearer secret",
            heads[0],
        )

    def test_connection_close_is_heard(self, scripted):
        def play(peer):
            peer.read_head()
            peer.answer(200, b"hello", b"Connection: close")
            peer.wait_for_end()

        server = scripted(play)
        with strict(server) as client:
            assert client.get("bkt/apple") == client.get("bkt/apple") == b"hello"
        assert server.connections == 2
        assert client.stats.repeats == 0

    def test_one_that_ended_while_idle_is_not_used(self, scripted):
        ended = threading.Event()

        def once(peer):
            serve(times=1)(peer)
            peer.sock.close()
            ended.set()

        server = scripted(once, serve())
        with strict(server) as client:
            client.get("bkt/apple")
            assert ended.wait(10)
            assert client.get("bkt/apple") == b"hello"
        assert client.stats.repeats == 0

    @pytest.mark.parametrize("end", ["close", "reset"])
    @pytest.mark.parametrize("method", ["get", "head", "delete", "get_range"])
    def test_a_stale_one_is_met_by_one_repetition(self, scripted, end, method):
        def first(peer):
            serve(times=1)(peer)
            say(end=end)(peer)

        def second(peer):
            assert peer.read_head().startswith(b"DELETE" if method == "delete" else b"")
            status = {"get": 200, "head": 200, "delete": 204, "get_range": 206}[method]
            if method == "delete":
                peer.send(b"HTTP/1.1 204 X\r\n\r\n")
            elif method == "head":
                peer.send(OK, b"Content-Length: 5\r\n\r\n")
            else:
                peer.answer(status, b"h", b"Content-Range: bytes 0-0/1")

        server = scripted(first, second)
        with strict(server) as client:
            client.get("bkt/apple")
            assert getattr(client, method)("bkt/apple", *((0, 1) if method == "get_range" else ()))
        assert server.connections == 2
        assert client.stats.repeats == 1

    def test_a_stale_one_twice_is_a_fault(self, scripted):
        def first(peer):
            serve(times=1)(peer)
            peer.read_head()

        server = scripted(first, say())
        with strict(server) as client:
            client.get("bkt/apple")
            with pytest.raises(CacheFault) as caught:
                client.get("bkt/apple")
        assert not isinstance(caught.value, StaleConnection)
        assert server.connections == 2

    def test_one_that_answered_a_byte_is_not_stale(self, scripted):
        def first(peer):
            serve(times=1)(peer)
            say(b"H")(peer)

        server = scripted(first)
        with strict(server) as client:
            client.get("bkt/apple")
            with pytest.raises(CacheFault):
                client.get("bkt/apple")
        assert server.connections == 1

    def test_threads_share_a_client(self, node):
        for i in range(40):
            node.objects[f"/v1/objects/public/{i}"] = (b"%d" % i * (1 + 1000 * i), "x/y")
        found = []
        with Client(node.url, fail_open=False) as client:

            def work():
                found.extend(
                    client.get(f"public/{i}") == b"%d" % i * (1 + 1000 * i) for i in range(40)
                )

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == [True] * 320
        assert client.stats.hits == 320

    def test_few_are_kept(self, scripted):
        client = strict(scripted(serve()))
        streams = [client.get_stream("bkt/apple") for _ in range(IDLE_MAX + 5)]
        opened = [stream.__enter__() for stream in streams]
        assert {b"".join(stream) for stream in opened} == {b"hello"}
        for stream in streams:
            stream.__exit__(None, None, None)
        assert repr(client._pool).endswith(f"idle={IDLE_MAX}>")
        client.close()
        assert repr(client._pool).endswith("idle=0>")

    def test_an_old_one_is_not_trusted(self, scripted, monkeypatch):
        server = scripted(serve())
        with strict(server) as client:
            client.get("bkt/apple")
            (connection,) = client._pool._idle[os.getpid()]
            connection.idle_since_s -= 301
            assert client.get("bkt/apple") == b"hello"
        assert server.connections == 2


def in_child(function):
    """Whether ``function`` ran well in a forked child."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:  # noqa: BLE001  the child must not go on as a test run
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


class TestProcesses:
    def test_a_child_uses_its_own_connections(self, scripted):
        server = scripted(serve())
        with strict(server) as client:
            assert client.get("bkt/apple") == b"hello"

            def child():
                assert client.get("bkt/apple") == b"hello"
                assert client.get("bkt/apple") == b"hello"
                assert list(client._pool._idle) == [os.getpid()]
                client.close()

            assert in_child(child)
            assert server.connections == 2
            assert client.get("bkt/apple") == b"hello"
            assert server.connections == 2
            assert client.stats.hits == 2

    def test_a_child_forked_among_threads_is_not_stuck(self, node):
        node.objects["/v1/objects/public/x"] = (b"x", "x/y")
        stop = threading.Event()
        with Client(node.url, fail_open=False) as client:

            def work():
                while not stop.is_set():
                    client.get("public/x")

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            try:
                assert all(in_child(lambda: client.get("public/x") == b"x") for _ in range(5))
            finally:
                stop.set()
                for thread in threads:
                    thread.join()

    def test_a_stream_stays_with_its_process(self, scripted):
        def play(peer):
            peer.read_head()
            peer.send(OK, b"Content-Length: 10\r\n\r\n12345")
            peer.read_head()
            peer.send(b"67890")

        server = scripted(play)
        with strict(server) as client, client.get_stream("bkt/apple") as stream:
            pieces = iter(stream)
            assert next(pieces) == b"12345"

            def child():
                with pytest.raises(CacheFault, match="process"):
                    next(pieces)

            assert in_child(child)
            stream._exchange._connection._sock.send(b"\r\n\r\n")
            assert next(pieces) == b"67890"
            assert list(pieces) == []

    def test_a_child_does_not_keep_a_parent_s_connection(self, scripted):
        server = scripted(serve())
        with strict(server) as client:
            stack = client.get_stream("bkt/apple")
            assert b"".join(stack.__enter__()) == b"hello"

            def child():
                stack.__exit__(None, None, None)
                assert not client._pool._idle.get(os.getpid())

            assert in_child(child)
            stack.__exit__(None, None, None)
            assert client.get("bkt/apple") == b"hello"
        assert server.connections == 1

    def test_pickled(self, scripted, tmp_path):
        (tmp_path / "token").write_text("secret\n")
        server = scripted(serve())
        with Client(
            server.url, token_file=tmp_path / "token", timeout_s=3, fail_open=False
        ) as client:
            client.get("bkt/apple")
            copy = pickle.loads(pickle.dumps(client))
            assert copy.stats.hits == 0
            assert copy.get("bkt/apple") == b"hello"
            assert copy._settings == client._settings
            copy.close()
        assert server.connections == 2


class TestStreams:
    def test_pieces(self, node):
        node.objects["/v1/objects/public/big"] = (BIG, "a/b")
        with strict(node) as client, client.get_stream("public/big") as stream:
            assert stream.length_bytes == stream.stat.size_bytes == len(BIG)
            assert stream.stat.content_type == "a/b"
            sizes, whole = [], bytearray()
            for piece in stream:
                sizes.append(len(piece))
                whole += piece
        assert whole == BIG
        assert max(sizes) <= 256 * 1024
        assert client.stats.hits == 1
        assert client.stats.read_bytes == len(BIG)

    def test_a_torn_stream_raises_even_if_the_client_fails_open(self, scripted):
        server = scripted(say(OK, b"Content-Length: 10\r\n\r\n12345"))
        with Client(server.url) as client, client.get_stream("bkt/apple") as stream:
            pieces = iter(stream)
            assert next(pieces) == b"12345"
            with pytest.raises(CacheFault, match="5 bytes before its end"):
                next(pieces)
        assert client.stats.faults == 1
        assert client.stats.hits == 0

    def test_leaving_early_ends_the_connection(self, scripted):
        def play(peer):
            peer.read_head()
            peer.send(OK, b"Content-Length: 10\r\n\r\n12345")
            peer.wait_for_end()

        server = scripted(play)
        with strict(server) as client:
            with client.get_stream("bkt/apple") as stream:
                assert next(iter(stream)) == b"12345"
            with pytest.raises(ZeroDivisionError), client.get_stream("bkt/apple"):
                _ = 1 / 0
        assert server.connections == 2
        assert client.stats.faults == 0


def collect(bodies, status=201, *fields, consent=True):
    """A play: take PUTs, append each body to ``bodies``, answer ``status``."""

    def play(peer):
        while head := peer.read_head():
            if b"Expect: 100-continue" in head and consent:
                peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            if length:
                body = peer.read(int(length[1]))
            else:
                assert b"Transfer-Encoding: chunked" in head
                body = b""
                while size := int(_read_line(peer), 16):
                    body += peer.read(size)
                    assert _read_line(peer) == b""
                assert _read_line(peer) == b""
            bodies.append((head, body))
            peer.answer(status, b"", *fields)

    return play


def _read_line(peer):
    line = b""
    while not line.endswith(b"\r\n"):
        line += peer.read(1)
    return line[:-2]


class Pipe(io.RawIOBase):
    """A file that can't be rewound."""

    def __init__(self, data):
        self._file = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._file.readinto(memoryview(buffer)[:100_000])


SOURCES = {
    "bytes": lambda data: data,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "array": lambda data: memoryview(data).cast("B"),
    "file": io.BytesIO,
    "pipe": lambda data: io.BufferedReader(Pipe(data)),
    "raw pipe": Pipe,
    "iterable": lambda data: iter([data[:10], b"", data[10:]]),
    "list": lambda data: [data[:10], b"", data[10:]],
}


class TestPut:
    @pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 3 * MIB + 7])
    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("with_length", [False, True])
    def test_every_source(self, scripted, source, size, with_length):
        bodies = []
        data = BIG[:size]
        with strict(scripted(collect(bodies))) as client:
            for _ in range(2):
                length = size if with_length else None
                assert client.put("bkt/x", SOURCES[source](data), length=length) is True
        assert [body for _, body in bodies] == [data, data]
        head = bodies[0][0]
        knows = with_length or source not in {"pipe", "raw pipe", "iterable", "list"}
        assert (b"Content-Length: %d" % size in head) == knows
        assert (b"Transfer-Encoding: chunked" in head) == (not knows)
        assert (b"Expect: 100-continue" in head) == (not knows or size > MIB)
        assert client.stats.stored == 2
        assert client.stats.written_bytes == 2 * size

    def test_fields(self, scripted):
        bodies = []
        with strict(scripted(collect(bodies))) as client:
            client.put("bkt/x", b"", content_type="text/plain; x=y", if_absent=True)
        assert b"Content-Type: text/plain; x=y\r\nIf-None-Match: *\r\n" in bodies[0][0]

    def test_a_file_from_where_it_stands(self, scripted):
        bodies = []
        with strict(scripted(collect(bodies))) as client:
            file = io.BytesIO(b"0123456789")
            file.seek(4)
            client.put("bkt/x", file)
            file.seek(4)
            client.put("bkt/x", file, length=3)
        assert [body for _, body in bodies] == [b"456789", b"456"]

    def test_a_decompressor_gives_what_it_decompresses(self, scripted, tmp_path):
        with gzip.open(tmp_path / "x.gz", "wb") as file:
            file.write(BIG)
        bodies = []
        with strict(scripted(collect(bodies))) as client, gzip.open(tmp_path / "x.gz") as file:
            assert client.put("bkt/x", file)
        assert bodies[0][1] == BIG

    @pytest.mark.parametrize("data", [io.StringIO("x"), ["x"], [1], "x"])
    def test_what_is_no_bytes(self, scripted, data):
        server = scripted(collect([]))
        with Client(server.url) as client, pytest.raises(TypeError, match=r"bytes|encode"):
            client.put("bkt/x", data, length=1)

    def test_if_absent(self, scripted):
        with strict(scripted(collect([], 412, b"SCS-Error: precondition"))) as client:
            assert client.put("bkt/x", b"a", if_absent=True) is False
            with pytest.raises(errors.PreconditionFailed):
                client.put("bkt/x", b"a")
        assert client.stats.faults == 1

    def test_without_consent_the_body_comes_after_a_while(self, scripted, monkeypatch):
        monkeypatch.setattr(exchange, "CONSENT_WAIT_S", 0.05)
        bodies = []
        with strict(scripted(collect(bodies, consent=False))) as client:
            assert client.put("bkt/x", BIG)
        assert bodies[0][1] == BIG

    def test_late_consent_is_no_answer(self, scripted, monkeypatch):
        monkeypatch.setattr(exchange, "CONSENT_WAIT_S", 0.05)

        def play(peer):
            peer.read_head()
            body = peer.read(MIB)
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            body += peer.read(len(BIG) - MIB)
            peer.answer(201)
            assert body == BIG
            peer.wait_for_end()

        with strict(scripted(play)) as client:
            assert client.put("bkt/x", BIG)

    @pytest.mark.parametrize("end", ["stay", "close", "reset"])
    def test_a_refusal_comes_before_the_body(self, scripted, end):
        refusal = (
            b'HTTP/1.1 413 X\r\nSCS-Error: too-large\r\nContent-Length: 16\r\n\r\n{"detail": "big"}'
        )

        def play(peer):
            peer.read_head()
            peer.send(refusal[:-17], b'{"detail":"big"}')
            if end == "stay":
                assert peer.sock.recv(1) == b""
            elif end == "reset":
                peer.reset()

        def pieces():
            pytest.fail("the body was touched")
            yield b""

        server = scripted(play)
        with strict(server) as client:
            for data in (BIG, pieces()):
                with pytest.raises(errors.TooLarge, match=r"^big$"):
                    client.put("bkt/x", data)

    @pytest.mark.parametrize("end", ["stay", "close", "reset"])
    @pytest.mark.parametrize("taken", [0, 3 * MIB])
    def test_a_refusal_in_the_middle_of_the_body_is_read(self, scripted, end, taken):
        def play(peer):
            peer.read_head()
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            peer.read(taken)
            fields = b"SCS-Error: too-large", b"Connection: close"
            peer.answer(413, b'{"detail": "too big"}', *fields)
            if end == "stay":
                peer.wait_for_end()
            elif end == "reset":
                peer.reset()

        began_s = time.monotonic()
        with strict(scripted(play), timeout_s=20) as client:
            with pytest.raises(errors.TooLarge, match="too big"):
                client.put("bkt/x", BIG)
            with pytest.raises(errors.TooLarge, match="too big"):
                client.put("bkt/x", iter([BIG, BIG, BIG]))
        assert time.monotonic() - began_s < 10

    def test_created_before_the_body_is_no_success(self, scripted):
        def play(peer):
            peer.read_head()
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            peer.answer(201)
            peer.wait_for_end()

        with strict(scripted(play)) as client, pytest.raises(CacheFault, match="before it had"):
            client.put("bkt/x", iter([BIG, BIG]))
        assert client.stats.stored == 0

    def test_nobody_takes_the_body(self, scripted):
        stop = threading.Event()

        def play(peer):
            peer.read_head()
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            stop.wait(20)

        with strict(scripted(play), timeout_s=0.2) as client:
            with pytest.raises(CacheFault, match="took no bytes"):
                client.put("bkt/x", BIG)
            stop.set()

    @pytest.mark.parametrize("source", ["bytes", "file", "pipe", "list"])
    @pytest.mark.parametrize("size", [1000, 2 * MIB])
    @pytest.mark.parametrize("end", ["close", "reset"])
    def test_a_stale_connection_before_the_body(self, scripted, source, size, end):
        bodies = []

        def first(peer):
            serve(times=1)(peer)
            say(end=end)(peer)

        server = scripted(first, collect(bodies))
        with strict(server) as client:
            client.get("bkt/x")
            length = None if source == "pipe" else size
            assert client.put("bkt/x", SOURCES[source](BIG[:size]), length=length)
        assert [body for _, body in bodies] == [BIG[:size]]
        assert client.stats.repeats == 1
        assert server.connections == 2

    @pytest.mark.parametrize("source", ["pipe", "iterable"])
    def test_a_body_that_was_begun_is_not_sent_again(self, scripted, source):
        def first(peer):
            serve(times=1)(peer)
            peer.read_head()
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            peer.read(10)
            peer.reset()

        server = scripted(first, collect([]))
        with strict(server) as client:
            client.get("bkt/x")
            with pytest.raises(CacheFault):
                client.put("bkt/x", SOURCES[source](BIG))
        assert server.connections == 1

    @pytest.mark.parametrize("source", ["pipe", "iterable"])
    def test_nor_after_no_consent_came(self, scripted, source, monkeypatch):
        monkeypatch.setattr(exchange, "CONSENT_WAIT_S", 0.05)

        def first(peer):
            serve(times=1)(peer)
            peer.read_head()
            peer.read(10)
            peer.reset()

        server = scripted(first, collect([]))
        with strict(server) as client:
            client.get("bkt/x")
            with pytest.raises(StaleConnection):
                client.put("bkt/x", SOURCES[source](BIG))
        assert server.connections == 1

    def test_nor_on_a_new_connection(self, scripted):
        server = scripted(say())
        with strict(server) as client, pytest.raises(CacheFault):
            client.put("bkt/x", b"abc")
        assert server.connections == 1

    @pytest.mark.parametrize("given", [MIB, 2 * MIB, 4 * MIB])
    def test_a_wrong_length_ends_the_request(self, scripted, given):
        taken = []

        def play(peer):
            head = peer.read_head()
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            taken.append((head, peer.read(4 * MIB)))

        server = scripted(play)
        with (
            Client(server.url) as client,
            pytest.raises(errors.Malformed, match=r"length|promised"),
        ):
            client.put("bkt/x", iter([BIG[:given]] * 1), length=3 * MIB)
        server.__exit__()
        assert all(len(body) <= 3 * MIB for _, body in taken)
        assert client.stats.stored == 0

    def test_a_source_s_own_error_is_the_caller_s(self, scripted):
        def pieces():
            yield BIG[:MIB]
            raise OSError(5, "the disk is gone")

        def play(peer):
            peer.read_head()
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            peer.wait_for_end()

        with Client(scripted(play).url) as client, pytest.raises(OSError, match="the disk is gone"):
            client.put("bkt/x", pieces())


class TestTokens:
    def test_a_renewed_token_is_used_after_a_401(self, node, tmp_path):
        file = tmp_path / "token"
        file.write_text("old-token\n")
        before = file.stat()
        node.tokens = {"old-token"}
        with strict(node, token_file=file) as client:
            assert client.put("private/x", b"1")
            # Written in place within one tick of the clock: nothing seems changed.
            with file.open("r+") as opened:
                opened.write("new-token\n")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            node.tokens = {"new-token"}
            assert client.get("private/x") == b"1"
            assert client.stats.repeats == 1
            assert client.put("private/x", iter([b"2", b"3"]))
            assert client.get("private/x") == b"23"
            assert client.stats.repeats == 1

    @pytest.mark.parametrize("data", [b"2", BIG])
    def test_a_put_is_repeated_with_a_renewed_token(self, node, tmp_path, data):
        file = tmp_path / "token"
        file.write_text("old-token")
        with strict(node, token_file=file) as client:
            client._token_file.read()
            before = file.stat()
            file.write_text("new-token")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            node.tokens = {"new-token"}
            assert client.put("private/x", data)
            assert client.get("private/x") == data
            assert client.stats.repeats == 1

    def test_the_same_token_is_not_tried_twice(self, node, tmp_path):
        (tmp_path / "token").write_text("bad-token")
        client = strict(node, token_file=tmp_path / "token")
        with client, pytest.raises(errors.Unauthenticated, match="not known"):
            client.get("private/x")
        assert len(node.asked) == 1

    def test_no_token_and_another_s(self, node):
        with strict(node) as client, pytest.raises(errors.Unauthenticated):
            client.get("private/x")
        with strict(node, token="other-token") as client:
            with pytest.raises(errors.Forbidden, match='"other" may not'):
                client.get("private/x")
            with pytest.raises(errors.Forbidden):
                client.put("private/x", BIG)

    def test_a_missing_file(self, node, tmp_path):
        settings = {"token_file": tmp_path / "none"}
        with strict(node, **settings) as client, pytest.raises(errors.InvalidConfig, match="none"):
            client.get("private/x")
        with Client(node.url, **settings) as client:
            assert client.get("private/x") is None
            assert client.stats.fault_kinds == {"InvalidConfig": 1}
        assert node.asked == []


class TestSettings:
    @pytest.mark.parametrize(
        ("url", "host_field"),
        [
            ("http://cache.cache-service.svc", "cache.cache-service.svc"),
            ("http://cache:8080/", "cache:8080"),
            ("http://[::1]:81", "[::1]:81"),
            ("HTTP://Cache:80", "cache"),
        ],
    )
    def test_urls(self, url, host_field):
        assert str(parse_url(url)) == host_field

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "cache",
            "cache:8080",
            "https://cache",
            "http://",
            "http://cache/v1",
            "http://cache/?x",
            "http://cache/#x",
            "http://user@cache",
            "http://cache:x",
            "http://cache:70000",
            "http://a b",
            "http://[::1",
            "http://ä",
        ],
    )
    def test_refused_urls(self, url):
        with pytest.raises(errors.InvalidConfig, match="url"):
            Client(url)

    def test_tokens(self, tmp_path):
        with pytest.raises(errors.InvalidConfig, match="only one"):
            Client("http://h", token="x", token_file=tmp_path / "x")
        with pytest.raises(errors.InvalidConfig) as caught:
            Client("http://h", token="se cret")
        assert "cret" not in str(caught.value)

    def test_it_tells_its_state_without_its_secret(self):
        client = Client("http://h:1", token="secret")
        assert "<Client http://h:1" in repr(client)
        assert "secret" not in repr(client)

    def test_ipv6(self):
        if not socket.has_ipv6:
            pytest.skip("no IPv6 here")
        try:
            listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            pytest.skip("no IPv6 here")
        with listener:

            def accept():
                with listener.accept()[0] as sock:
                    serve()(peers.Peer(sock))

            thread = threading.Thread(target=accept)
            thread.start()
            with Client(f"http://[::1]:{listener.getsockname()[1]}", fail_open=False) as client:
                assert client.get("bkt/x") == b"hello"
            thread.join()

    @pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
    def test_every_wait_has_an_end(self, timeout_s):
        for name in ("timeout_s", "connect_timeout_s"):
            with pytest.raises(errors.InvalidConfig, match=name):
                Client("http://h", **{name: timeout_s})
