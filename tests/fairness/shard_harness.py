"""A whole shard in the test's own process: real store, handler and connections.

``Peer`` is a connection over a fake transport, for what must hold byte by byte; ``listen`` is the
real server on a real socket, whose clients live in the same event loop: so who is answered how
often between two answers of another does not depend on how busy the machine is.
"""

import asyncio
import contextlib

import uvloop

from simplecache.config import parse_buckets, parse_namespaces, parse_tokens
from simplecache.model import Key
from simplecache.server.authenticate import StaticAuthenticator
from simplecache.server.connection import Connection, Limits
from simplecache.server.handle import Handler
from simplecache.server.serve import Server
from simplecache.store.store import Store

NAMESPACES = ("greedy", "modest", "third")


def token(namespace):
    return f"token-of-{namespace}-0123456789"


def get(namespace, name="o", verb="GET", bucket=None, extra=""):
    """A request of a namespace, by default for its own bucket."""
    return (
        f"{verb} /v1/objects/{bucket or namespace}/{name} HTTP/1.1\r\nHost: cache\r\n"
        f"Authorization: Bearer {token(namespace)}\r\n{extra}\r\n"
    ).encode()


def run(story, directory, *, config=None, is_fair=True):
    """Run ``story(shard)`` on uvloop, as a shard runs."""

    async def main():
        shard = Shard(directory, config or {}, is_fair)
        try:
            return await story(shard)
        finally:
            with contextlib.suppress(OSError):
                await shard.store.close()

    return uvloop.run(main())


class Shard:
    def __init__(self, directory, config, is_fair):
        rows = [
            {"Name": n, "AllowNamespaces": list(NAMESPACES)} | config.get(n, {}) for n in NAMESPACES
        ]
        rows.append({"Name": "public", "Public": True})
        document = {"Bucket": rows, "Namespace": config.get("Namespace", [])}
        tokens = [{"Token": token(name), "Namespace": name} for name in NAMESPACES]
        self.store = Store(directory, capacity_bytes=1 << 30)
        authenticator = StaticAuthenticator(parse_tokens({"Token": tokens}))
        self.handler = Handler(self.store, authenticator, is_fair=is_fair)
        self.handler.configure(parse_buckets(document), parse_namespaces(document))
        self.server = Server(self.handler, Limits())
        self.server.is_ready = True
        self.fair = self.handler.turns.fair

    async def put(self, bucket, name, body):
        upload = self.store.begin(
            Key(bucket, name.encode()), length=len(body), namespace="", content_type=b"a/b"
        )
        await upload.write(body)
        await upload.commit()
        await upload.abort()

    async def compete(self):
        """Two tenants are there from now on, for as long as they count as competing."""
        for namespace in ("greedy", "modest"):
            peer = Peer(self)
            peer.send(get(namespace, "warm"))
            await peer.answers(1)
            peer.send(get(namespace, "warm"))
            await peer.answers(2)
        assert self.fair.is_contended

    async def listen(self):
        return await self.server.listen("127.0.0.1", 0)


class Peer:
    """A client over a fake transport."""

    def __init__(self, shard):
        self.transport = Transport()
        self.connection = Connection(shard.server)
        self.transport.connection = self.connection
        self.connection.connection_made(self.transport)

    def send(self, data):
        if self.transport.is_reading:
            self.connection.data_received(data)
        else:
            self.transport.held.append(data)

    def lose(self):
        self.transport.closing = True
        self.connection.connection_lost(None)

    @property
    def statuses(self):
        """Of the answers so far, bodies of which must not look like one."""
        return [
            int(part[:3]) for part in bytes(self.transport.sent).split(b"HTTP/1.1 ")[1:]
        ]  # fmt: skip

    async def answers(self, count):
        for _ in range(2000):
            if len(self.statuses) >= count:
                return self.statuses
            await asyncio.sleep(0.001)
        raise AssertionError(f"{len(self.statuses)} of {count} answers: {self.connection!r}")


class Transport:
    def __init__(self):
        self.sent = bytearray()
        self.held = []
        self.is_reading = True
        self.closing = False
        self.has_sent_eof = False

    def write(self, data):
        self.sent += data

    def writelines(self, pieces):
        self.sent += b"".join(pieces)

    def write_eof(self):
        self.has_sent_eof = True

    def set_write_buffer_limits(self, high):
        pass

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self.closing

    def pause_reading(self):
        self.is_reading = False

    def resume_reading(self):
        self.is_reading = True
        while self.held and self.is_reading:
            self.connection.data_received(self.held.pop(0))

    def close(self):
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    abort = close
