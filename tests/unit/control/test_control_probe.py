"""Probes against servers that answer well, badly, slowly or not at all."""

import asyncio
import socket

import pytest

from simplecache.control.membership import Outcome
from simplecache.control.probe import Prober
from simplecache.control.shards import Shard

READY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request with the next of ``answers``, the last one for ever.

    None: silence. After b"" the connection is closed.
    """

    def __init__(self, *answers):
        self.answers = list(answers)
        self.connections = 0
        self.requests = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.shard = Shard("n/0", "", "127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    continue
                if not answer:
                    return
                writer.write(answer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


async def outcomes(server, rounds=1, **options):
    prober = Prober(**{"timeout_s": 0.2} | options)
    try:
        return [(await prober.probe_all({server.shard}))[server.shard] for _ in range(rounds)]
    finally:
        prober.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (READY, Outcome.READY),
        (b"HTTP/1.0 200 OK\r\n\r\n", Outcome.READY),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Outcome.READY),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", Outcome.READY),
        (b"HTTP/1.1 503 Draining\r\nContent-Length: 0\r\n\r\n", Outcome.UNREADY),
        (b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n", Outcome.UNREADY),
        (b"HTTP/2 200\r\n\r\n", Outcome.SILENT),
        (b"HTTP/1.1 abc\r\n\r\n", Outcome.SILENT),
        (b"x" * 100_000, Outcome.SILENT),
        (b"", Outcome.SILENT),
        (None, Outcome.SILENT),
    ],
)
def test_what_an_answer_means(answer, outcome):
    async def scenario():
        async with Server(answer) as server:
            assert await outcomes(server) == [outcome]
            assert server.requests[0].startswith(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:")

    asyncio.run(scenario())


def test_one_connection_serves_many_rounds():
    async def scenario():
        async with Server(READY) as server:
            assert await outcomes(server, 5) == [Outcome.READY] * 5
            assert server.connections == 1

    asyncio.run(scenario())


def test_a_connection_that_was_closed_meanwhile_is_no_failure():
    async def scenario():
        async with Server(READY, b"", READY) as server:
            assert await outcomes(server, 3) == [Outcome.READY] * 3
            assert server.connections == 2

    asyncio.run(scenario())


def test_a_refused_connection_is_told_from_silence():
    async def scenario():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
            shard = Shard("n/0", "", "127.0.0.1", taken.getsockname()[1])
            prober = Prober()
            assert await prober.probe_all({shard}) == {shard: Outcome.REFUSED}

    asyncio.run(scenario())


def test_a_shard_that_is_no_longer_probed_loses_its_connection_and_rounds_are_bounded():
    async def scenario():
        async with Server(READY) as one, Server(READY) as other:
            prober = Prober(concurrency=1)
            both = {one.shard, other.shard}
            assert set((await prober.probe_all(both)).values()) == {Outcome.READY}
            assert await prober.probe_all({one.shard}) == {one.shard: Outcome.READY}
            assert set(prober._kept) == {one.shard.endpoint}
            prober.close()
            await asyncio.sleep(0)

    asyncio.run(scenario())
