"""Who is answered how often, on real sockets. Counted in requests, not in time: load cannot break it."""

import asyncio
import statistics

import pytest
from shard_harness import get, run

CONNECTIONS = 64


class Loop(asyncio.Protocol):
    """Asks again as soon as it is answered."""

    def __init__(self, request, answer_bytes, on_answer):
        self.request, self.answer_bytes, self.on_answer = request, answer_bytes, on_answer
        self.got = 0

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        self.got += len(data)
        while self.got >= self.answer_bytes:
            self.got -= self.answer_bytes
            self.on_answer()
            self.transport.write(self.request)

    def stop(self):
        self.transport.abort()


async def answer_bytes(port, request):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"Content-Length" in line
    )
    await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    return len(head) + length


async def race(shard, sizes, wanted, connections):
    """Runs until ``modest`` has ``wanted`` answers; greedy answers between each two of them."""
    port = await shard.listen()
    loop = asyncio.get_running_loop()
    counts = dict.fromkeys(sizes, 0)
    between, last, done = [], [0], loop.create_future()
    protocols = []

    def note(name):
        counts[name] += 1
        if name == "modest":
            between.append(counts["greedy"] - last[0])
            last[0] = counts["greedy"]
            if counts["modest"] == wanted and not done.done():
                done.set_result(None)

    for name, size in sizes.items():
        await shard.put(name, "o", b"x" * size)
    whole = {name: await answer_bytes(port, get(name)) for name in sizes}
    for name in sizes:
        for _ in range(connections[name]):
            protocol = Loop(get(name), whole[name], lambda name=name: note(name))
            await loop.create_connection(lambda protocol=protocol: protocol, "127.0.0.1", port)
            protocols.append(protocol)
    await asyncio.wait_for(done, 120)
    for protocol in protocols:
        protocol.stop()
    for server in shard.server.sockets:
        server.close()
    return between[10:]


def between(directory, *, is_fair, sizes=None, wanted=300):
    sizes = sizes or {"greedy": 4096, "modest": 4096}
    connections = {"greedy": CONNECTIONS, "modest": 1}
    return run(lambda shard: race(shard, sizes, wanted, connections), directory, is_fair=is_fair)


def test_one_connection_beside_sixty_four_waits_for_a_few_requests_only(tmp_path):
    fair = between(tmp_path / "on", is_fair=True)
    unfair = between(tmp_path / "off", is_fair=False)
    assert statistics.median(unfair) >= CONNECTIONS - 4
    assert statistics.median(fair) <= CONNECTIONS / 3
    assert sorted(fair)[int(0.99 * len(fair))] <= CONNECTIONS


def test_large_bodies_of_another_do_not_stand_in_the_way(tmp_path):
    """The greedy one's 4 MiB come by sendfile, a piece a turn."""
    sizes = {"greedy": 4 << 20, "modest": 4096}
    fair = between(tmp_path / "on", is_fair=True, sizes=sizes, wanted=100)
    assert statistics.median(fair) <= 4


@pytest.mark.parametrize("weight", [1, 3])
def test_both_saturating_share_by_weight_and_not_by_connections(tmp_path, weight):
    async def story(shard):
        connections = {"greedy": 60, "modest": 20}
        sizes = {"greedy": 4096, "modest": 4096}
        return await race(shard, sizes, 4000, connections)

    config = {"modest": {"Weight": weight}}
    counts = run(story, tmp_path, config=config)
    assert len(counts) / sum(counts) == pytest.approx(weight, rel=0.35)
