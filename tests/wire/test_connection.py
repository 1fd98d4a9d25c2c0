"""One connection: order, pauses, patience and its end, without sockets and without waiting."""

import asyncio
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_harness import ask, put, put_head, statuses_of, until

from simplecache.server.connection import BODY_WINDOW_BYTES, INBOX_MAX_BYTES, WRITE_HIGH_BYTES
from simplecache.store.blobs import BlobWriter

KIB, MIB = 1 << 10, 1 << 20

CHUNKED = (
    put_head(b"c", None, b"Transfer-Encoding: chunked")
    + b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX: y\r\n\r\n"
)
TRANSCRIPT = (
    put(b"a", b"first"), ask(b"GET", b"a"), ask(b"GET", b"a"), b"\r\n", ask(b"HEAD", b"a"),
    CHUNKED, ask(b"GET", b"c", b"Range: bytes=6-"), put(b"a", b""), ask(b"GET", b"a"),
    ask(b"POST", b"a", b"Content-Length: 3") + b"abc", ask(b"GET", b"missing"),
    b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n", ask(b"GET", b"c", b"If-None-Match: *"),
    ask(b"GET", b"c", b"Content-Length: 4") + b"GET ", ask(b"GET", b"c"),
    ask(b"GET", b"c", b"Connection: keep-alive", version=b"1.0"),
    put(b"big", b"b" * (300 * KIB)),
    ask(b"DELETE", b"a"), ask(b"DELETE", b"a"), ask(b"GET", b"a"), ask(b"DELETE", b"c"),
    ask(b"GET", b"c", b"Connection: close"),
)  # fmt: skip
WANTED = [
    201, 200, 200, 200, 201, 206, 201, 200, 405, 404, 404, 304, 200, 200, 200, 201, 204, 404, 404,
    204, 404,
]  # fmt: skip


HEADS = (4,)
"""Where in the transcript the HEAD is."""


async def play(world, pieces):
    peer = world.peer()
    for piece in pieces:
        peer.feed(piece)
        await asyncio.sleep(0)
    await peer.settle()
    output = peer.output
    peer.end_sending()
    await peer.settle()
    assert peer.transport.is_closed
    return output


class TestSplits:
    def test_whole_and_byte_by_byte_are_the_same(self, world):
        whole = b"".join(TRANSCRIPT)
        first = world.run(play(world, [whole]))
        assert statuses_of(first, HEADS) == WANTED
        in_order = world.run(play(world, TRANSCRIPT))
        assert in_order == first
        at = whole.index(b"b" * 1000)  # but for the large body, which says nothing new
        pieces = [whole[i : i + 1] for i in range(at)]
        pieces += [whole[at : at + 300 * KIB]]
        pieces += [whole[i : i + 1] for i in range(at + 300 * KIB, len(whole))]
        assert world.run(play(world, pieces)) == first

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(0, sum(map(len, TRANSCRIPT))), max_size=12).map(sorted))
    def test_any_split_is_the_same(self, lasting_world, cuts):
        whole = b"".join(TRANSCRIPT)
        pieces = [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        output = lasting_world.run(play(lasting_world, pieces))
        assert statuses_of(output, HEADS) == WANTED

    @settings(max_examples=30, deadline=None)
    @given(st.permutations([put(b"%d" % n, b"x" * 9**n) for n in range(5)]))
    def test_answers_keep_the_order_of_their_requests(self, lasting_world, requests):
        async def story():
            peer = lasting_world.peer()
            names = [request.split(b" ")[1].rpartition(b"/")[2] for request in requests]
            peer.feed(*requests, *(ask(b"GET", name) for name in names))
            await peer.settle()
            output = peer.answers()
            peer.end_sending()
            return names, output

        names, output = lasting_world.run(story())
        assert statuses_of(output) == [201] * 5 + [200] * 5
        sizes = [int(part.split(b"\r\n")[0]) for part in output.split(b"Content-Length: ")[6:]]
        assert sizes == [9 ** int(name) for name in names]


class TestPauses:
    def hold_the_writer(self, world):
        gate = threading.Event()
        world.store._writer.post(lambda: gate.wait(20))
        return gate

    def test_requests_behind_a_slow_one_wait_within_a_bound(self, world):
        async def story():
            peer = world.peer()
            await peer.ask(put(b"x", b"body"))
            gate = self.hold_the_writer(world)
            peer.feed(put(b"slow", b"body"))
            requests = ask(b"GET", b"x") * 3000
            rest = await peer.feed_gently(requests)
            assert rest
            assert not peer.transport.is_reading
            assert len(requests) - len(rest) <= INBOX_MAX_BYTES + (16 << 10)
            assert peer.output == b""
            gate.set()
            while rest:
                await peer.settle()
                assert peer.transport.is_reading
                rest = await peer.feed_gently(rest)
            await peer.settle()
            assert peer.statuses() == [201] + [200] * 3000

        world.run(story())

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    def test_a_body_whose_head_ends_what_was_read_is_read_on(self, world, framing):
        """Reading was paused by the requests that waited; the last is a PUT, its body to come."""

        async def story():
            peer = world.peer()
            await peer.ask(put(b"x", b"body"))
            gate = self.hold_the_writer(world)
            peer.feed(put(b"slow", b"body"))
            await until(lambda: world.handler.uploads and world.store.backlog)  # its body is taken
            count = INBOX_MAX_BYTES // len(ask(b"GET", b"x")) + 2
            chunked = framing == "chunked"
            head = (
                put_head(b"y", None, b"Transfer-Encoding: chunked")
                if chunked
                else put_head(b"y", 100 * KIB)
            )
            peer.feed(ask(b"GET", b"x") * count, head, b"190" if chunked else b"")
            assert not peer.transport.is_reading
            gate.set()
            await until(lambda: peer.output.count(b"200 OK") == count)
            for _ in range(3):
                await asyncio.sleep(0)
            assert peer.transport.is_reading, "nobody would ever read the body"
            body = b"00\r\n" + b"b" * 0x19000 + b"\r\n0\r\n\r\n" if chunked else b"b" * 100 * KIB
            rest = await peer.feed_gently(body)
            while rest:
                await asyncio.sleep(0)
                rest = await peer.feed_gently(rest)
            await peer.settle()
            assert peer.statuses() == [201, *[200] * count, 201]

        world.run(story())

    def test_a_body_that_the_disk_does_not_take_is_not_read_on(self, world, monkeypatch):
        gate, real = threading.Event(), BlobWriter.write

        def write(self, data):
            gate.wait(20)
            real(self, data)

        monkeypatch.setattr(BlobWriter, "write", write)

        async def story():
            peer = world.peer()
            body = bytes(8 * MIB)
            peer.feed(put_head(b"x", len(body)))
            rest = await peer.feed_gently(body)
            for _ in range(20):
                rest = await peer.feed_gently(rest)
                await asyncio.sleep(0)
            assert not peer.transport.is_reading
            assert len(body) - len(rest) <= 3 * MIB + 64 * KIB
            gate.set()
            while rest:
                await asyncio.sleep(0)
                rest = await peer.feed_gently(rest)
            await peer.settle()
            assert peer.statuses() == [201]
            got = await peer.ask(ask(b"HEAD", b"x"))
            assert b"Content-Length: 8388608" in got

        world.run(story())

    def test_a_peer_that_does_not_read_gets_no_more_answers(self, world):
        async def story():
            peer = world.peer()
            await peer.ask(put(b"x", b"b" * 20_000), ask(b"GET", b"x"))
            peer.answers()
            peer.transport.is_stuck = True
            peer.feed(ask(b"GET", b"x") * 300)
            assert WRITE_HIGH_BYTES < len(peer.transport.waiting) < WRITE_HIGH_BYTES + 40_000
            rest = await peer.feed_gently(ask(b"GET", b"x") * 2000)
            assert not peer.transport.is_reading
            peer.transport.is_stuck = False
            while peer.transport.waiting or rest:
                peer.transport.take(50_000)
                rest = await peer.feed_gently(rest)
            await peer.settle()
            assert peer.statuses() == [200] * 2300
            assert peer.transport.is_reading

        world.run(story())

    def test_it_is_given_up_after_a_while(self, world):
        async def story():
            peer = world.peer()
            await peer.ask(put(b"x", b"b" * 100_000))
            peer.transport.is_stuck = True
            peer.feed(ask(b"GET", b"x") * 20)
            await peer.settle()
            world.tick(60)
            assert not peer.transport.is_closed
            peer.transport.take(len(peer.transport.waiting))
            world.tick(60)
            assert not peer.transport.was_aborted, "it took something"
            world.tick(2)
            assert peer.transport.was_aborted

        world.run(story())

    def test_a_large_answer_that_nobody_reads_is_given_up(self, world):
        async def story():
            peer = world.peer()
            await peer.ask(put(b"x", bytes(8 * MIB)))
            client = await world.pair()
            client.send(ask(b"GET", b"x"))
            (connection,) = [c for c in world.server.connections if c is not peer.connection]
            await until(lambda: connection._phase_now() == "send")
            world.tick(60)
            assert not connection._transport.is_closing()
            await world.loop.sock_recv(client, MIB)
            await asyncio.sleep(0.01)
            world.tick(2)
            await until(lambda: connection._phase_now() == "send")
            world.tick(62)
            assert connection._transport.is_closing()
            client.close()
            await until(lambda: connection not in world.server.connections)

        world.run(story())

    def test_a_large_answer_goes_by_sendfile_in_order(self, world):
        async def story():
            peer = world.peer()
            body = bytes(range(256)) * (12 * KIB)
            await peer.ask(put(b"big", body), put(b"small", b"small"))
            client = await world.pair()
            client.send((ask(b"GET", b"small") + ask(b"GET", b"big")) * 3 + ask(b"GET", b"small"))
            client.shutdown(socket.SHUT_WR)
            output = bytearray()
            while data := await world.loop.sock_recv(client, MIB):
                output += data
            client.close()
            assert statuses_of(bytes(output)) == [200] * 7
            assert output.count(body) == 3

        world.run(story())


class TestPatience:
    def test_a_header_must_be_whole_in_time(self, world):
        async def story():
            peer = world.peer()
            peer.feed(b"GET /v1/objects/public/x HTTP/1.1\r\n")
            world.tick()
            for _ in range(9):
                world.tick()
                peer.feed(b"X: y\r\n")
            assert peer.output == b""
            world.tick()
            assert peer.statuses() == [408]
            assert peer.transport.has_ended

        world.run(story())

    def test_each_request_has_its_own_time(self, world):
        async def story():
            peer = world.peer()
            text = ask(b"GET", b"x")
            for _ in range(10):
                peer.feed(text[:20])
                world.tick(9)
                assert statuses_of(await peer.ask(text[20:])) == [404]

        world.run(story())

    def test_a_body_must_make_progress(self, world):
        async def story():
            peer = world.peer()
            peer.feed(put_head(b"x", 10 * MIB))
            for _ in range(30):
                await asyncio.sleep(0)
                world.tick()
                peer.feed(b"x")
            assert peer.output == b""
            world.tick(2)
            await peer.settle()
            assert peer.statuses() == [408]
            assert peer.transport.has_ended
            assert world.handler.uploads == 0
            other = world.peer()
            assert statuses_of(await other.ask(ask(b"GET", b"x"))) == [404]

        world.run(story())

    def test_a_slow_and_steady_body_is_taken(self, world):
        async def story():
            peer = world.peer()
            body = b"b" * (BODY_WINDOW_BYTES + 1000) * 5
            peer.feed(put_head(b"x", len(body)))
            for part in range(5):
                at = part * (BODY_WINDOW_BYTES + 1000)
                peer.feed(body[at : at + BODY_WINDOW_BYTES + 1000])
                await asyncio.sleep(0)
                world.tick(29)
            await peer.settle()
            assert peer.statuses() == [201]

        world.run(story())

    def test_a_slow_disk_is_not_the_clients_fault(self, world):
        gate = threading.Event()
        world.store._writer.post(lambda: gate.wait(20))

        async def story():
            peer = world.peer()
            peer.feed(put(b"x", b"body"))
            await asyncio.sleep(0)
            world.tick(1000)
            assert peer.output == b""
            gate.set()
            await peer.settle()
            assert peer.statuses() == [201]

        world.run(story())

    def test_an_idle_connection_is_kept_and_then_closed(self, world):
        async def story():
            peer = world.peer()
            await peer.ask(ask(b"GET", b"x"))
            world.tick(330)
            assert not peer.transport.is_closed
            await peer.ask(ask(b"GET", b"x"))
            peer.feed(b"\r\n")  # an empty line is not a header that has begun
            world.tick(330)
            assert not peer.transport.is_closed
            world.tick(2)
            assert peer.transport.is_closed

        world.run(story())

    @pytest.mark.parametrize("field", ["header_timeout_s", "idle_timeout_s"])
    def test_the_limits_are_settings(self, make_world, field):
        world = make_world(**{field: 3})

        async def story():
            peer = world.peer()
            if field == "header_timeout_s":
                peer.feed(b"G")
            world.tick(5)
            await asyncio.sleep(0)
            assert peer.transport.is_closed or peer.transport.has_ended

        world.run(story())


class TestEnds:
    def test_an_answer_with_close_is_not_lost(self, world):
        """The rest of a refused body is read and thrown away for a moment."""

        async def story():
            peer = world.peer()
            peer.feed(
                b"PUT /v1/objects/unknown/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
            )
            await peer.settle()
            output = peer.answers()
            assert statuses_of(output) == [404]
            assert b"Connection: close" in output
            assert peer.transport.has_ended
            assert not peer.transport.is_closed
            for _ in range(10):
                peer.feed(bytes(MIB))
            assert peer.connection._inbox == b""
            world.tick(1)
            assert not peer.transport.is_closed
            world.tick(3)
            assert peer.transport.was_aborted

        world.run(story())

    def test_it_ends_when_the_peer_ends(self, world):
        async def story():
            peer = world.peer()
            await peer.ask(ask(b"GET", b"x", b"Connection: close"))
            assert peer.transport.has_ended
            peer.end_sending()
            assert peer.transport.is_closed

        world.run(story())

    @pytest.mark.parametrize("requests", [1, 5])
    def test_what_was_asked_before_the_end_is_answered(self, world, requests):
        async def story():
            peer = world.peer()
            peer.feed(put(b"x", b"body"), ask(b"GET", b"x") * requests, put(b"y", b"body"))
            peer.end_sending()
            await peer.settle()
            assert peer.statuses() == [201] + [200] * requests + [201]
            assert peer.transport.is_closed

        world.run(story())

    def test_a_peer_that_ended_and_reads_slowly_gets_all(self, world):
        async def story():
            peer = world.peer()
            await peer.ask(put(b"x", b"b" * 100_000), ask(b"GET", b"x"))
            peer.answers()
            peer.transport.is_stuck = True
            peer.feed(ask(b"GET", b"x") * 30)
            peer.end_sending()
            peer.transport.is_stuck = False
            while peer.transport.waiting:
                peer.transport.take(100_000)
            await peer.settle()
            assert peer.statuses() == [200] * 30
            assert peer.transport.is_closed

        world.run(story())

    def test_half_a_request_and_the_end(self, world):
        async def story():
            peer = world.peer()
            peer.feed(put(b"x", b"body"), ask(b"GET", b"x")[:-5])
            peer.end_sending()
            await peer.settle()
            assert peer.statuses() == [201]
            assert peer.transport.is_closed

        world.run(story())

    @pytest.mark.parametrize("sent", [0, 10, 3 * MIB])
    def test_a_peer_that_is_gone_leaves_nothing(self, world, sent):
        async def story():
            peer = world.peer()
            peer.feed(put_head(b"x", 8 * MIB))
            await peer.feed_gently(bytes(sent))
            task = peer.connection._task
            peer.transport.abort()
            await asyncio.wait({task})
            assert world.handler.uploads == 0
            assert world.store.reserved_bytes == 0
            assert not world.server.connections
            assert not list((world.store.directory / "tmp").iterdir())

        world.run(story())

    def test_too_many_connections(self, make_world):
        world = make_world(connections_max=2)

        async def story():
            first, _, third = [world.peer() for _ in range(3)]
            output = third.answers()
            assert statuses_of(output) == [503]
            assert b"Connection: close" in output
            third.feed(ask(b"GET", b"x"))
            assert third.output == b""
            world.tick(4)
            assert third.transport.was_aborted
            await asyncio.sleep(0)
            assert statuses_of(await first.ask(ask(b"GET", b"x"))) == [404]
            first.transport.abort()
            await asyncio.sleep(0)
            assert statuses_of(await world.peer().ask(ask(b"GET", b"x"))) == [404]

        world.run(story())

    def test_a_failure_of_ours_ends_the_connection_and_nothing_else(
        self, world, monkeypatch, caplog
    ):
        async def story():
            peer = world.peer()
            with monkeypatch.context() as patch:
                patch.setattr(world.handler, "respond", None)
                await peer.ask(put(b"x", b"body"))
            assert peer.transport.was_aborted
            assert "a request failed" in caplog.text
            assert statuses_of(await world.peer().ask(put(b"x", b"body"))) == [201]

        world.run(story())


class TestDrain:
    def test_idle_connections_end_with_the_drain(self, world):
        async def story():
            peer = world.peer()
            await peer.ask(put(b"x", b"body"), ask(b"GET", b"x"))
            peer.answers()
            draining = asyncio.ensure_future(world.server.drain(delay_s=0.05, grace_s=5))
            await asyncio.sleep(0)
            ready = world.peer()
            output = await ready.ask(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert statuses_of(output) == [503]
            assert not peer.transport.is_closed
            await draining
            assert peer.transport.is_closed
            assert peer.output == b""

        world.run(story())

    def test_answers_say_close_also_those_of_the_hot_way(self, world):
        async def story():
            peer = world.peer()
            await peer.ask(put(b"x", b"body"), ask(b"GET", b"x"))
            peer.answers()
            world.server.is_draining = True
            output = await peer.ask(ask(b"GET", b"x"))
            assert statuses_of(output) == [200]
            assert b"Connection: close" in output
            assert peer.transport.has_ended

        world.run(story())

    def test_what_runs_is_finished(self, world):
        async def story():
            peer = world.peer()
            peer.feed(put_head(b"x", 10), b"12345")
            draining = asyncio.ensure_future(world.server.drain(delay_s=0, grace_s=20))
            for _ in range(5):
                await asyncio.sleep(0)
            output = await peer.ask(b"67890")
            assert statuses_of(output) == [201]
            await draining

        world.run(story())

    def test_what_does_not_end_is_given_up_whole(self, world):
        async def story():
            peer = world.peer()
            peer.feed(put_head(b"x", 8 * MIB))
            await peer.feed_gently(bytes(3 * MIB))
            await world.server.drain(delay_s=0, grace_s=0.05)
            assert world.handler.uploads == 0
            assert not list((world.store.directory / "tmp").iterdir())
            assert peer.transport.is_closed

        world.run(story())


class TestFraming:
    def test_what_has_no_body(self, world):
        async def story():
            peer = world.peer()
            await peer.ask(put(b"x", b"body"))
            peer.answers()
            for text in (ask(b"HEAD", b"x"), ask(b"HEAD", b"y")):
                assert (await peer.ask(text)).endswith(b"\r\n\r\n")
            output = await peer.ask(ask(b"GET", b"x", b"If-None-Match: *"))
            assert output.startswith(b"HTTP/1.1 304 ")
            assert output.endswith(b"\r\n\r\n")
            output = await peer.ask(ask(b"DELETE", b"x"))
            assert b"content-length" not in output.lower()
            assert output.endswith(b"\r\n\r\n")

        world.run(story())

    @pytest.mark.parametrize(
        ("lines", "said", "closes"),
        [((), b"close", True), ((b"Connection: keep-alive",), b"keep-alive", False),
         ((b"Connection: keep-alive, close",), b"close", True)],
    )  # fmt: skip
    def test_http_10(self, world, lines, said, closes):
        async def story():
            peer = world.peer()
            output = await peer.ask(ask(b"GET", b"x", *lines, version=b"1.0"))
            assert b"Connection: %b\r\n" % said in output
            assert peer.transport.has_ended == closes

        world.run(story())

    def test_http_10_gets_no_continue(self, world):
        async def story():
            peer = world.peer()
            text = put_head(b"x", 4, b"Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
            peer.feed(text)
            await asyncio.sleep(0)
            assert peer.output == b""
            assert statuses_of(await peer.ask(b"body")) == [201]

        world.run(story())

    def test_continue_is_said_once_and_before_the_answer(self, world):
        async def story():
            peer = world.peer()
            peer.feed(put_head(b"x", 4, b"Expect: 100-continue"))
            await until(lambda: peer.output)
            assert peer.answers() == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert statuses_of(await peer.ask(b"body")) == [201]

        world.run(story())

    def test_a_header_block_is_judged_once(self, world):
        async def story():
            peer = world.peer()
            for number in range(50):
                await peer.ask(ask(b"GET", b"%d" % number))
            assert world.server.memo.misses == 1

        world.run(story())

    def test_a_connection_says_what_it_is(self, world):
        async def story():
            text = repr(world.peer().connection)
            assert text == "<Connection busy=False inbox=0 quiet_s=0 closing=False>"

        world.run(story())
