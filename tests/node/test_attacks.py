"""Bytes that mean harm, or merely come from broken clients: a clear answer, and life goes on."""

import socket
import time
from pathlib import Path

import pytest
from harness import (
    TOKEN_A,
    Node,
    Wire,
    count_descriptors,
    is_alive,
    make_chunks,
    make_head,
    make_name,
    noise,
    snapshot,
    until,
)  # fmt: skip

LIMIT = 4 << 20
FLAGS = (
    "--max-object-size", "4Mi", "--header-timeout", "1", "--body-timeout", "1",
    "--max-connections", "200", "--max-uploads", "8",
)  # fmt: skip


@pytest.fixture(scope="module")
def target_node(tmp_path_factory):
    """A node with small limits; whatever is done to it, it ends unharmed and nothing else is."""
    root = tmp_path_factory.mktemp("attacked")
    (root / "outside.txt").write_text("not yours")
    (root / "outside").mkdir()
    node = Node(root / "node", flags=FLAGS)
    try:
        node.start()
        before = snapshot(root, node.data)
        before.pop("node/log")
        pid = node.pids[0]
        yield node
        assert is_alive(pid), "the shard died"
        after = snapshot(root, node.data)
        after.pop("node/log")
        assert after == before, "something outside the data directory was touched"
        assert {path.name for path in node.data.glob("shard-00/*")} <= {
            "LOCK", "index.db", "index.db-shm", "index.db-wal", "objects", "tmp",
        }  # fmt: skip
        assert all(len(p.parent.name) == 3 and len(p.name) == 29 for p in node.object_files())
        assert node.stop() == 0
        assert not node.temporary_files()
        assert "Traceback" not in node.text_of_log()
    finally:
        node.close()


@pytest.fixture
def node(target_node):
    """The node, which serves as before when the test is over."""
    yield target_node
    target_node.hang_up()
    assert target_node.put("after", b"still alive").status == 201
    assert target_node.get("after").body == b"still alive"
    until(lambda: target_node.metric("scs_uploads") == 0, "the end of all uploads")
    until(lambda: not target_node.temporary_files(), "no temporary file")


class TestBodies:
    @pytest.mark.parametrize("sent", [0, 1, 5_000, 1 << 20, (2 << 20) - 1])
    @pytest.mark.parametrize("how", ["half-close", "reset", "close"])
    def test_a_truncated_body_stores_nothing(self, node, name, sent, how):
        body = noise(2 << 20)
        node.put(name, b"old")
        wire = node.wire()
        wire.send(make_head("PUT", make_name(name), body=body), body[:sent])
        if how == "half-close":
            wire.end_sending()
            got = wire.response()
            assert (got.status, got.word) == (400, "malformed")
        elif how == "reset":
            wire.reset()
        wire.sock.close()
        until(lambda: node.metric("scs_uploads") == 0, "the upload's end")
        assert node.get(name).body == b"old"

    @pytest.mark.parametrize("cut", [0, 1, 3, 10, 1000, 1008, -2, -1])
    def test_a_truncated_chunked_body_stores_nothing(self, node, name, cut):
        with node.wire() as wire:
            chunks = make_chunks(noise(3000))
            wire.send(make_head("PUT", make_name(name), "Transfer-Encoding: chunked"), chunks[:cut])
            wire.end_sending()
            assert wire.response().status == 400
        assert node.get(name).status == 404

    def test_what_comes_beyond_the_declared_length_is_no_part_of_it(self, node, name):
        with node.wire() as wire:
            wire.send(
                make_head("PUT", make_name(name), body=b"12345"), b"12345678 and more\r\n\r\n"
            )
            assert wire.response().status == 201
            after = wire.response()
            assert (after.status, after.fields["connection"]) == (400, "close")
        assert node.get(name).body == b"12345"

    @pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 10 * LIMIT, 1 << 62, 9999999999999999999])
    @pytest.mark.parametrize("expects", [False, True])
    def test_the_largest_object(self, node, name, size, expects):
        with node.wire() as wire:
            lines = [f"Content-Length: {size}"] + ["Expect: 100-continue"] * expects
            wire.send(make_head("PUT", make_name(name), *lines))
            if size <= LIMIT:
                body = noise(size)
                if expects:
                    assert wire.response().status == 100
                wire.send(body)
                assert wire.response().status == 201
                assert wire.request("GET", make_name(name)).body == body
            else:
                if not expects:
                    wire.send_all_you_can(bytes(2 * LIMIT))
                got = wire.response()
                assert (got.status, got.word) == (413, "too-large")
                assert node.get(name).status == 404

    def test_a_chunked_body_above_the_limit(self, node, name):
        with node.wire() as wire:
            wire.send(make_head("PUT", make_name(name), "Transfer-Encoding: chunked"))
            wire.send_all_you_can(make_chunks(bytes(LIMIT + 1), 1 << 20))
            got = wire.response()
            assert (got.status, got.word) == (413, "too-large")
        assert node.get(name).status == 404

    @pytest.mark.parametrize(
        "chunks",
        [b"x\r\n", b"-1\r\n", b"0x5\r\nabcde\r\n", b" 5\r\nabcde\r\n0\r\n\r\n", b"5\nabcde\n0\n\n",
         b"5\r\nabcdef\r\n0\r\n\r\n", b"5\r\nabcde0\r\n\r\n", b"ffffffffffffffffff\r\n", b"\r\n",
         b"5;" + b"a" * 2000 + b"\r\n", b"5\r\r\nabcde\r\n", b"5\r\nabcde\n0\r\n\r\n",
         b"0\r\n" + b"a: b\r\n" * 3000 + b"\r\n", b"a" * 2000, b"5;\x00\r\nabcde\r\n0\r\n\r\n"],
    )  # fmt: skip
    def test_what_is_not_the_chunked_coding(self, node, name, chunks):
        with node.wire() as wire:
            wire.send(make_head("PUT", make_name(name), "Transfer-Encoding: chunked"), chunks)
            got = wire.response()
            assert (got.status, got.word) == (400, "malformed")
            assert got.fields["connection"] == "close"
        assert node.get(name).status == 404

    def test_tiny_chunks_are_taken_in_time(self, node, name):
        body = noise(1 << 20)
        with node.wire() as wire:
            wire.send(make_head("PUT", make_name(name), "Transfer-Encoding: chunked"))
            wire.send(make_chunks(body, 2))
            assert wire.response().status == 201
        assert node.get(name).body == body

    def test_uploads_at_the_same_time_are_bounded(self, node, name):
        wires = [node.wire() for _ in range(8)]
        for number, wire in enumerate(wires):
            head = make_head(
                "PUT", make_name(f"{name}-{number}"), "Expect: 100-continue", body=b"abc"
            )
            wire.send(head)
            assert wire.response().status == 100
        got = node.put(name, b"one too many")
        assert (got.status, got.word) == (503, "overloaded")
        assert got.fields["retry-after"] == "1"
        for wire in wires:
            wire.send(b"abc")
            assert wire.response().status == 201
        assert node.put(name, b"now it fits").status == 201


class TestHeads:
    def test_a_header_of_4_mib(self, node):
        with node.wire() as wire:
            wire.send(b"GET /v1/objects/public/x HTTP/1.1\r\nHost: x\r\n")
            wire.send_all_you_can(b"X-Long: " + b"a" * (4 << 20) + b"\r\n\r\n")
            got = wire.response()
            assert (got.status, got.word) == (431, "too-large")
            assert got.fields["connection"] == "close"

    def test_a_request_line_of_100_kib(self, node):
        for line in (b"GET /v1/objects/public/" + b"a" * (100 << 10), b"A" * (100 << 10)):
            with node.wire() as wire:
                wire.send_all_you_can(line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                got = wire.response()
                assert (got.status, got.word) == (414, "too-large")

    def test_many_fields(self, node, name):
        node.put(name, b"x")
        for count, wanted in ((90, 200), (101, 431), (500, 431)):
            lines = [f"X-{number}: 1" for number in range(count)]
            assert node.get(name, *lines).status == wanted

    def test_a_header_just_below_and_above_the_limit(self, node, name):
        node.put(name, b"x")
        for size, wanted in ((32_000, 200), (33_000, 431)):
            got = node.get(name, "X-Long: " + "a" * (size - 200))
            assert got.status == wanted

    def test_many_large_distinct_headers_are_not_remembered(self, node, name):
        node.put(name, b"x")
        with node.wire() as wire:
            for number in range(300):
                field = f"X-{number}: " + "a" * 20_000
                assert wire.request("GET", make_name(name), field).body == b"x"


class TestSmuggling:
    SECRET = b"smuggled"

    @pytest.mark.parametrize(
        "fields",
        [
            b"Content-Length: 5\r\nContent-Length: 5",
            b"Content-Length: 5\r\nContent-Length: 60",
            b"Content-Length: 5, 5",
            b"Content-Length: 60\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nContent-Length: 60",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: chunked, gzip",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding: \x0bchunked",
            b'Transfer-Encoding: "chunked"',
            b"Transfer-Encoding: chunked;q=1",
            b"Transfer-Encoding:",
            b"Transfer-Encoding : chunked",
            b"Transfer-Encoding\t: chunked",
            b"Content-Length : 5",
            b" Content-Length: 5",
            b"X: y\r\n Content-Length: 5",
            b"X: y\r\n\tfolded",
            b"X: y\nContent-Length: 5",
            b"X: y\rContent-Length: 5",
            b"Content-Length: 5\n",
            b"Content-Length: +5",
            b"Content-Length: -5",
            b"Content-Length: 0x5",
            b"Content-Length: 5 5",
            b"Content-Length: 5.0",
            b"Content-Length: ",
            b"Content-Length: 99999999999999999999",
            b"X: a\x00b",
            b"X\x00: a",
            b": a",
            b"X y: a",
            b"X(: a",
            b"no colon",
        ],
    )
    @pytest.mark.parametrize("verb", ["PUT", "GET"])
    def test_a_request_of_doubtful_length_ends_the_connection(self, node, verb, fields):
        inner = make_head("PUT", make_name(self.SECRET), body=b"x") + b"x"
        with node.wire() as wire:
            wire.send(b"%b /v1/objects/public/outer HTTP/1.1\r\nHost: x\r\n" % verb.encode())
            wire.send(fields, b"\r\n\r\n")
            wire.send_all_you_can(b"0\r\n\r\n" + inner)
            got = wire.response()
            assert got.status in {400, 501}
            assert got.fields["connection"] == "close"
            assert wire.read_to_end() == b"", "what came after was taken for a request"
        assert node.get(self.SECRET).status == 404
        assert node.get("outer").status == 404

    @pytest.mark.parametrize(
        "text",
        [
            b"GET /v1/objects/public/after HTTP/1.1\nHost: x\n\n",
            b"GET /v1/objects/public/after HTTP/1.1\r\nHost: x\n\r\n",
            b"GET /v1/objects/public/after HTTP/1.1\r\nHost: x\r\n\n",
            b"GET /v1/objects/public/after HTTP/1.1\nHost: x\r\n\r\n",
            b"GET /v1/objects/public/after HTTP/1.1\r\n\nHost: x\r\n\r\n",
            b"\nGET /v1/objects/public/after HTTP/1.1\r\nHost: x\r\n\r\n",
        ],
    )
    def test_bare_line_feeds_are_refused(self, node, text):
        with node.wire() as wire:
            wire.send(text)
            got = wire.response()
            assert (got.status, got.word) == (400, "malformed")
            assert wire.read_to_end() == b""

    def test_a_body_on_a_get_is_not_the_next_request(self, node, name):
        node.put(name, b"x")
        inner = make_head("DELETE", make_name(name))
        with node.wire() as wire:
            for _ in range(2):  # the header block is remembered: the second way must not differ
                wire.send(make_head("GET", make_name(name), body=inner), inner)
                assert wire.response().body == b"x"
            assert wire.request("GET", make_name(name)).body == b"x"

    def test_http_10_has_no_chunked_coding(self, node, name):
        with node.wire() as wire:
            wire.send(b"PUT /v1/objects/public/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert wire.response().status == 400

    def test_an_upgrade_is_not_offered(self, node, name):
        node.put(name, b"x")
        fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        with node.wire() as wire:
            for _ in range(2):
                assert wire.request("GET", make_name(name), *fields).body == b"x"


class TestPaths:
    DOTS = (
        "..", "../..", "../../../../etc/passwd", "/etc/passwd", "//etc/passwd", "./.", "...//",
        "%2e%2e", "%2e%2e/%2e%2e/%2e%2e/outside.txt", "..%2f..%2f..%2foutside.txt", "%2e%2e%2f",
        "..%5c..%5coutside.txt", "..\\..\\outside.txt", "%252e%252e%252foutside.txt", "..%00",
        "..%c0%af..%c0%afoutside.txt", "%c0%ae%c0%ae/", "..;/..;/outside.txt", "....//....//",
        "..%u2216..", "%uff0e%uff0e/", "~root/x", "tmp/probe", "../tmp/x", "../index.db",
        "../../node.json", "LOCK", "con", "a/../../../../../../../../../tmp/scs-escape",
    )  # fmt: skip

    def test_dots_in_every_encoding_are_only_names(self, node):
        """The fixture compares all that lies outside the data directory before and after."""
        with node.wire() as wire:
            for number, dots in enumerate(self.DOTS):
                for target in (make_name(dots), make_name("x/" + dots)):
                    body = target + b"%d" % number
                    assert wire.request("PUT", target, body=body).status == 201
                    assert wire.request("GET", target).body == body
            for dots in self.DOTS:
                assert wire.request("DELETE", make_name(dots)).status == 204
                assert wire.request("GET", make_name(dots)).status == 404
        assert not Path("/tmp/scs-escape").exists()

    @pytest.mark.parametrize(
        "target",
        [b"/v1/objects/../../outside.txt", b"/../../../../etc/passwd", b"/v1/objects/..%2f..%2f/x",
         b"/v1/objects/.../x", b"/v1/objects/%2e%2e/x", b"/readyz/../../etc/passwd", b"/%2e%2e/",
         b"/v1/objects/public/../../../etc/passwd", b"file:///etc/passwd", b"http://x/../etc"],
    )  # fmt: skip
    def test_dots_elsewhere_lead_nowhere(self, node, target):
        with node.wire() as wire:
            for verb in ("GET", "DELETE"):
                got = wire.request(verb, target)
                assert got.status in {400, 404}
                assert b"root:" not in got.body


class TestClientsThatLeave:
    def test_in_the_middle_of_a_get(self, node, name):
        body = noise(LIMIT)
        node.put(name, body)
        before = count_descriptors(node.pids[0])
        for number in range(20):
            wire = Wire(node.addresses[0])
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.send(make_head("GET", make_name(name)))
            wire.read_head()
            wire.read(1000 * number)
            wire.reset() if number % 2 else wire.sock.close()
        until(lambda: count_descriptors(node.pids[0]) <= before + 1, "all descriptors closed")
        assert node.get(name).body == body

    def test_in_the_middle_of_a_put(self, node, name):
        node.put(name, b"old")
        before = count_descriptors(node.pids[0])
        for number in range(20):
            wire = Wire(node.addresses[0])
            wire.send(make_head("PUT", make_name(name), f"Content-Length: {LIMIT}"))
            wire.send(noise(200_000 * number))
            wire.reset() if number % 2 else wire.sock.close()
        until(lambda: count_descriptors(node.pids[0]) <= before + 1, "all descriptors closed")
        assert node.get(name).body == b"old"

    def test_in_the_middle_of_a_delete(self, node, name):
        """What was asked for happens or not, and is seen in the same way ever after."""
        for _ in range(20):
            node.put(name, b"x")
            node.get(name)
            wire = Wire(node.addresses[0])
            wire.send(make_head("DELETE", make_name(name)))
            wire.reset()
            until(lambda: node.metric("scs_connections") == 0, "the connection's end")
            until(
                lambda: (node.get(name).status == 200) == node.file_of(name).exists(),
                "answers and files agree", 5,
            )  # fmt: skip

    def test_before_the_first_byte(self, node):
        wires = [Wire(node.addresses[0]) for _ in range(100)]
        for wire in wires:
            wire.reset()


class TestSlowness:
    def test_slow_headers_and_bodies_are_cut(self, node, name):
        """All at once, with real time; the limits are one second here."""
        silent_head, slow_head, silent_body, slow_chunks = wires = [node.wire() for _ in range(4)]
        silent_head.send(b"GET /v1/objects/public/x HT")
        slow_head.send(b"GET /v1/objects/public/x HTTP/1.1\r\n")
        silent_body.send(make_head("PUT", make_name(name), body=b"x" * 10), b"123")
        slow_chunks.send(make_head("PUT", make_name(name), "Transfer-Encoding: chunked"))
        began = time.monotonic()
        try:
            while any(wire.is_silent() for wire in wires):
                assert time.monotonic() - began < 10
                slow_head.send_all_you_can(b"X: y\r\n")
                slow_chunks.send_all_you_can(b"1\r\nx\r\n")
                time.sleep(0.05)
        finally:
            answers = [wire.response() for wire in wires]
        assert [(got.status, got.word) for got in answers] == [(408, "timeout")] * 4
        assert all(got.fields["connection"] == "close" for got in answers)
        assert node.get(name).status == 404

    def test_connections_are_bounded(self, node, name):
        node.put(name, b"x")
        until(lambda: node.metric("scs_connections") == 0, "the end of others' connections")
        wires = [Wire(node.addresses[0]) for _ in range(200)]
        try:
            assert wires[-1].request("GET", make_name(name)).body == b"x"
            with Wire(node.addresses[0]) as wire:
                got = wire.response()
                assert (got.status, got.word) == (503, "overloaded")
                assert got.fields["retry-after"] == "1"
                assert wire.read_to_end() == b""
            assert wires[0].request("GET", make_name(name)).body == b"x"
        finally:
            for wire in wires:
                wire.sock.close()
        until(lambda: node.metric("scs_connections") == 0, "the end of all connections")

    def test_a_reader_that_stops_holds_up_only_itself(self, node, name):
        body = noise(LIMIT)
        node.put(name, body)
        small = name + "-small"
        node.put(small, noise(100_000))
        stuck = [node.wire() for _ in range(20)]
        for number, wire in enumerate(stuck):
            if number % 2:
                wire.send(make_head("GET", make_name(name)) * 10)
            else:
                wire.send(make_head("GET", make_name(small)) * 100)
        for _ in range(20):
            assert node.get(name).body == body
        for wire in stuck[:4]:
            for _ in range(10):
                assert len(wire.response().body) in {100_000, LIMIT}
        for wire in stuck:
            wire.sock.close()


class TestRandomBytes:
    def test_noise_of_all_kinds(self, node):
        samples = [noise(50_000, seed) for seed in range(10)]
        samples += [
            make_head("GET", make_name("x"), token=TOKEN_A)[:-seed] for seed in range(1, 40)
        ]
        for sample in samples:
            with node.wire() as wire:
                wire.send_all_you_can(sample)
                wire.end_sending()
                said = wire.read_to_end()
                assert not said or said.startswith(b"HTTP/1.1 4")
