"""A shard without sockets: connections on transports that do exactly what a test says.

``World`` is a shard's parts on one loop; ``Peer`` is one client's connection to it, whose
transport takes bytes or does not. Time passes only by ``tick``.
"""

import asyncio
import socket

from simplecache.config import Bucket
from simplecache.server.authenticate import OpenAuthenticator
from simplecache.server.connection import Connection, Limits
from simplecache.server.handle import Handler
from simplecache.server.serve import Server
from simplecache.store.store import Store

BUCKETS = {"public": Bucket("public", True, None, (), None)}


async def until(condition):
    """Let the loop go round until something holds; the world's own time limit stands around it."""
    while not condition():
        await asyncio.sleep(0)


class FakeTransport(asyncio.Transport):
    """Takes what is written at once, or, when it is stuck, keeps it as a full socket would."""

    def __init__(self):
        super().__init__()
        self.protocol = None
        self.output = bytearray()
        self.waiting = bytearray()
        self.is_stuck = False
        self.is_paused = False
        self.is_reading = True
        self.has_ended = False
        self.is_closed = False
        self.was_aborted = False
        self.high = self.low = 64 << 10

    def write(self, data):
        assert not self.has_ended, "written after the end"
        if not self.is_closed:
            stuck = self.is_stuck or self.waiting
            (self.waiting if stuck else self.output).extend(data)
            self._check_high()

    def writelines(self, pieces):
        self.write(b"".join(bytes(piece) for piece in pieces))

    def set_write_buffer_limits(self, high=None, low=None):
        self.high = high
        self.low = high // 4 if low is None else low
        self._check_high()

    def get_write_buffer_size(self):
        return len(self.waiting)

    def _check_high(self):
        if len(self.waiting) > self.high and not self.is_paused:
            self.is_paused = True
            self.protocol.pause_writing()

    def take(self, size):
        """The peer reads ``size`` of the bytes that wait."""
        self.output += self.waiting[:size]
        del self.waiting[:size]
        if self.is_paused and len(self.waiting) <= self.low:
            self.is_paused = False
            self.protocol.resume_writing()
        if self.is_closed and not self.waiting:
            self._lose()

    def pause_reading(self):
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self):
        assert not self.is_reading
        self.is_reading = True

    def is_closing(self):
        return self.is_closed

    def write_eof(self):
        self.has_ended = True

    def close(self):
        if not self.is_closed:
            self.is_closed = True
            if not self.waiting:
                asyncio.get_running_loop().call_soon(self._lose)

    def abort(self):
        self.was_aborted = True
        if not self.is_closed or self.waiting:
            self.is_closed = True
            self.waiting.clear()
            asyncio.get_running_loop().call_soon(self._lose)

    def _lose(self):
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connection_lost(None)


class Peer:
    """One client's end of a connection on a fake transport."""

    def __init__(self, server):
        self.transport = FakeTransport()
        self.connection = Connection(server)
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)

    @property
    def output(self):
        return bytes(self.transport.output)

    def feed(self, *parts):
        """Bytes arrive, whether or not reading is paused: what is read already still comes."""
        self.connection.data_received(b"".join(parts))

    async def feed_gently(self, data, size=16 << 10):
        """Bytes arrive as from a socket: only while they are read. Returns what did not."""
        for at in range(0, len(data), size):
            if not self.transport.is_reading:
                return data[at:]
            self.feed(data[at : at + size])
            await asyncio.sleep(0)
        return b""

    def end_sending(self):
        if not self.connection.eof_received():
            self.transport.close()

    async def settle(self):
        """Until nothing more happens without the peer, the disk or the clock."""
        for _ in range(3):
            while self.connection._task is not None and self.transport.protocol is not None:
                await asyncio.wait({self.connection._task})
            await asyncio.sleep(0)

    async def ask(self, *parts):
        """Feed, settle, and take what was answered."""
        self.feed(*parts)
        await self.settle()
        return self.answers()

    def answers(self):
        output = self.output
        self.transport.output.clear()
        return output

    def statuses(self):
        return statuses_of(self.answers())


def statuses_of(output, without_body=()):
    """The statuses of responses that follow each other.

    Args:
        output: their bytes.
        without_body: the places (from 1) of answers to a HEAD.
    """
    found, at = [], 0
    while at < len(output):
        end = output.index(b"\r\n\r\n", at)
        lines = output[at:end].split(b"\r\n")
        status = int(lines[0].split(b" ")[1])
        found.append(status)
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
        at = end + 4
        if status not in {100, 204, 304} and len(found) not in without_body:
            at += int(fields.get(b"content-length", 0))
    assert at == len(output), "the last body is not whole"
    return found


class World:
    """A shard's parts on one loop, with a clock that stands."""

    def __init__(self, directory, **limits):
        self.loop = asyncio.new_event_loop()

        async def make():
            return Store(directory, clock=lambda: 1_000_000.0)

        self.store = self.run(make())
        self.handler = Handler(self.store, OpenAuthenticator())
        self.handler.configure(BUCKETS)
        self.server = Server(self.handler, Limits(**limits))
        self.server.is_ready = True

    def run(self, awaitable):
        async def bounded():
            async with asyncio.timeout(30):
                return await awaitable

        return self.loop.run_until_complete(bounded())

    def peer(self):
        return Peer(self.server)

    async def pair(self):
        """A connection on a real pair of sockets; returns the client's end."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        await self.loop.create_connection(lambda: Connection(self.server), sock=ours)
        return theirs

    def tick(self, seconds=1):
        for _ in range(seconds):
            for connection in tuple(self.server.connections):
                connection.tick()

    async def _hang_up(self):
        tasks = [c._task for c in self.server.connections if c._task is not None]
        for connection in tuple(self.server.connections):
            connection._transport.abort()
        await until(lambda: not self.server.connections)
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self):
        self.run(self._hang_up())
        self.run(self.store.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()


def put_head(name, size, *lines):
    rows = [b"PUT /v1/objects/public/%b HTTP/1.1" % name, b"Host: x", *lines]
    rows += [b"Content-Length: %d" % size] if size is not None else []
    return b"\r\n".join(rows) + b"\r\n\r\n"


def put(name, body, *lines):
    return put_head(name, len(body), *lines) + body


def ask(verb, name, *lines, version=b"1.1"):
    rows = [b"%b /v1/objects/public/%b HTTP/%b" % (verb, name, version), b"Host: x", *lines]
    return b"\r\n".join(rows) + b"\r\n\r\n"
