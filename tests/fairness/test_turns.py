"""Turns on the wire: order, mixed tenants, bounds, deaths. A real shard, without sockets."""

import asyncio

import pytest
from shard_harness import Peer, get, run

from simplecache.server.connection import INBOX_MAX_BYTES

BODY = b"b" * 4096


async def crowd(shard, count=40):
    """Connections of the greedy one, each with a request; most of them wait."""
    peers = [Peer(shard) for _ in range(count)]
    for peer in peers:
        peer.send(get("greedy"))
    assert shard.fair.waiting
    return peers


def test_pipelined_requests_of_several_tenants_are_answered_in_their_order(tmp_path):
    async def story(shard):
        for bucket in ("greedy", "modest", "third"):
            await shard.put(bucket, "o", BODY)
        await shard.compete()
        peers = await crowd(shard)
        mixed = Peer(shard)
        whose = ["greedy", "modest", "third", "greedy", "modest"] * 8
        for number, name in enumerate(whose):
            kind = (
                get(name),
                get(name, "missing"),
                get(name, "o", "HEAD"),
                get(name, "o", "PATCH"),
            )
            mixed.send(kind[number % 4])
        await mixed.answers(len(whose))
        assert mixed.statuses == [200, 404, 200, 405] * 10
        for peer in peers:
            assert await peer.answers(1) == [200]
        assert shard.fair.waiting == 0

    run(story, tmp_path)


def test_requests_that_come_byte_by_byte(tmp_path):
    async def story(shard):
        await shard.put("greedy", "o", BODY)
        await shard.compete()
        await crowd(shard)
        peer = Peer(shard)
        for byte in get("greedy") + get("modest", "missing") + get("greedy", "missing"):
            peer.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert await peer.answers(3) == [200, 404, 404]

    run(story, tmp_path)


def test_an_upload_and_a_read_of_it_beside_competition(tmp_path):
    async def story(shard):
        await shard.put("greedy", "o", BODY)
        await shard.compete()
        peers = await crowd(shard)
        body = bytes(range(256)) * 1000
        writer = Peer(shard)
        writer.send(get("modest", "new", "PUT", extra=f"Content-Length: {len(body)}\r\n"))
        for at in range(0, len(body), 9_000):
            writer.send(body[at : at + 9_000])
            for peer in peers:
                peer.send(get("greedy"))
            await asyncio.sleep(0)
        writer.send(get("modest", "new", extra="Range: bytes=100-299\r\n"))
        assert await writer.answers(2) == [201, 206]
        assert bytes(writer.transport.sent).endswith(body[100:300])
        for peer in peers:
            await peer.answers(10)

    run(story, tmp_path)


def test_a_dead_connection_leaves_the_line_and_the_others_are_answered(tmp_path):
    async def story(shard):
        await shard.put("greedy", "o", BODY)
        await shard.compete()
        peers = await crowd(shard, 100)
        before = shard.fair.waiting
        dead = [peer for peer in peers if peer.connection.is_in_line][::2]
        for peer in dead:
            peer.lose()
        assert shard.fair.waiting == before - len(dead)
        for peer in peers:
            if peer not in dead:
                await peer.answers(1)
        assert all(not peer.transport.sent for peer in dead)
        assert shard.fair.waiting == 0

    run(story, tmp_path)


def test_a_task_that_waits_between_two_pieces_of_an_upload_can_die(tmp_path):
    async def story(shard):
        await shard.put("greedy", "o", BODY)
        await shard.compete()
        writer = Peer(shard)
        writer.send(get("greedy", "new", "PUT", extra="Content-Length: 1000000\r\n"))
        for _ in range(20):
            await crowd(shard)
            writer.send(b"x" * 40_000)
            await asyncio.sleep(0)
        writer.lose()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if not shard.fair.waiting and not shard.handler.uploads:
                break
        assert shard.fair.waiting == 0
        assert shard.handler.uploads == 0

    run(story, tmp_path)


def test_a_client_that_ends_its_side_while_it_waits_is_still_answered(tmp_path):
    async def story(shard):
        await shard.put("greedy", "o", BODY)
        await shard.compete()
        await crowd(shard)
        peer = Peer(shard)
        peer.send(get("greedy") + get("modest", "missing"))
        assert peer.connection.is_in_line
        assert peer.connection.is_busy  # a drain waits for it
        assert peer.connection.eof_received()
        assert await peer.answers(2) == [200, 404]
        await asyncio.sleep(0.01)
        assert peer.transport.closing or peer.transport.has_sent_eof

    run(story, tmp_path)


def test_what_a_connection_in_line_may_send_is_bounded(tmp_path):
    async def story(shard):
        await shard.put("greedy", "o", BODY)
        await shard.compete()
        await crowd(shard)
        peer, sent, request = Peer(shard), 0, get("greedy")
        while peer.transport.is_reading:
            peer.send(request)
            sent += 1
        assert len(peer.connection._inbox) <= INBOX_MAX_BYTES + len(request)
        for _ in range(500):
            peer.send(request)
            sent += 1
        assert await peer.answers(sent) == [200] * sent

    run(story, tmp_path)


def test_waiting_in_line_is_not_the_clients_slowness(tmp_path):
    async def story(shard):
        await shard.put("greedy", "o", BODY)
        await shard.compete()
        await crowd(shard)
        peer = Peer(shard)
        peer.send(get("greedy"))
        for _ in range(100):
            peer.connection.tick()
        assert await peer.answers(1) == [200]

    run(story, tmp_path)


def test_a_probe_never_waits(tmp_path):
    async def story(shard):
        await shard.put("greedy", "o", BODY)
        await shard.compete()
        await crowd(shard)
        probe = Peer(shard)
        probe.send(b"GET /readyz HTTP/1.1\r\nHost: cache\r\n\r\n")
        assert not probe.connection.is_in_line
        await probe.answers(1)

    run(story, tmp_path)


def test_the_anonymous_compete_as_their_bucket_and_a_known_token_is_its_namespace(tmp_path):
    async def story(shard):
        anonymous = shard.handler.account("public", None)
        assert anonymous.tenant.name == "bucket public"
        for unknown in (b"Bearer nobody-knows-this-token", b"Basic x", b""):
            assert shard.handler.account("public", unknown).tenant is anonymous.tenant
        known = shard.handler.account("public", b"Bearer token-of-greedy-0123456789")
        assert (
            known.tenant
            is shard.handler.account("greedy", b"Bearer token-of-greedy-0123456789").tenant
        )
        assert shard.handler.account("no-such-bucket", None) is shard.handler.accounts.of_nothing

    run(story, tmp_path)


# -- caps ----------------------------------------------------------------------------------


def hits(statuses):
    return statuses.count(200)


def test_a_capped_bucket_answers_429_with_retry_after_and_goes_on(tmp_path):
    config = {"greedy": {"MaxRequestsPerSecond": 5}}

    async def story(shard):
        await shard.put("greedy", "o", BODY)
        peer = Peer(shard)
        for _ in range(20):
            peer.send(get("greedy"))
            await asyncio.sleep(0.001)
        statuses = await peer.answers(20)
        assert 5 <= hits(statuses) <= 7
        assert set(statuses) == {200, 429}
        answer = bytes(peer.transport.sent).rpartition(b"HTTP/1.1 429")[2]
        assert answer.startswith(b" Too Many Requests\r\nDate: ")
        assert b"\r\nSCS-Error: throttled\r\n" in answer
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert b'bucket \\"greedy\\" has used its 5 requests/s' in answer
        assert shard.handler.counters.responses()["GET", 429] == 20 - hits(statuses)
        other = Peer(shard)
        other.send(get("greedy", bucket="modest"))
        assert await other.answers(1) == [404]

    run(story, tmp_path, config=config)


@pytest.mark.parametrize(
    "request_line",
    [
        ("GET", "Range: bytes=0-1\r\n"),
        ("HEAD", ""),
        ("DELETE", ""),
        ("PUT", "Content-Length: 0\r\n"),
    ],
)
def test_every_verb_is_capped(tmp_path, request_line):
    verb, extra = request_line

    async def story(shard):
        await shard.put("greedy", "o", BODY)
        statuses = []
        for _ in range(6):
            peer = Peer(shard)
            peer.send(get("greedy", "o", verb, extra=extra))
            statuses += await peer.answers(1)
        assert statuses.count(429) in {3, 4, 5}

    run(story, tmp_path, config={"Namespace": [{"Name": "greedy", "MaxRequestsPerSecond": 1}]})


def test_an_upload_is_refused_before_its_body(tmp_path):
    async def story(shard):
        peer = Peer(shard)
        body = b"x" * 300_000
        peer.send(get("greedy", "n", "PUT", extra=f"Content-Length: {len(body)}\r\n") + body)
        assert await peer.answers(1) == [201]
        peer.send(
            get("greedy", "n", "PUT", extra="Expect: 100-continue\r\nContent-Length: 300000\r\n")
        )
        assert await peer.answers(2) == [201, 429]  # no 100 in between
        assert b"Retry-After: 2\r\n" in peer.transport.sent

    run(story, tmp_path, config={"greedy": {"MaxBytesPerSecond": 100_000}})


def test_who_may_not_read_costs_the_bucket_none_of_its_cap(tmp_path):
    async def story(shard):
        await shard.put("greedy", "o", BODY)
        stranger = Peer(shard)
        for _ in range(10):
            stranger.send(
                b"GET /v1/objects/greedy/o HTTP/1.1\r\nHost: c\r\n"
                b"Authorization: Bearer some-other-token-01\r\n\r\n"
            )
        assert await stranger.answers(10) == [401] * 10
        peer = Peer(shard)
        peer.send(get("greedy"))
        assert await peer.answers(1) == [200]

    run(story, tmp_path, config={"greedy": {"MaxRequestsPerSecond": 1}})
