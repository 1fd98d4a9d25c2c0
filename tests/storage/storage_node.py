"""A shard as its clients see it: a store, a handler and a server on one loop, asked over HTTP."""

import asyncio
import contextlib
import random
import time

from simplecache.model import Bucket
from simplecache.server.authenticate import OpenAuthenticator
from simplecache.server.connection import Limits
from simplecache.server.handle import Handler
from simplecache.server.serve import Server
from simplecache.store.store import Store

BUCKETS = {name: Bucket(name, True, None, (), None, eviction="fifo") for name in ("aaa", "bbb")}


class Node:
    """One shard that serves on a port of its own."""

    def __init__(self, directory, **options):
        options.setdefault("capacity_bytes", 1 << 40)
        self.store = Store(directory, **options)
        self.handler = Handler(self.store, OpenAuthenticator())
        self.handler.configure(BUCKETS)
        self.server = Server(self.handler, Limits())
        self.port = 0

    async def __aenter__(self):
        self.port = await self.server.listen("127.0.0.1", 0)
        self.server.is_started = self.server.is_ready = True
        self.ticking = asyncio.ensure_future(self._tick())
        return self

    async def _tick(self):
        while True:
            await asyncio.sleep(0.1)
            self.server.tick()

    async def __aexit__(self, *_):
        self.ticking.cancel()
        await self.server.drain(delay_s=0, grace_s=1)
        with contextlib.suppress(OSError):
            await self.store.close()

    async def ask(self, verb, target, body=None, **fields):
        """(status, fields, body) of one request on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            return await exchange(reader, writer, verb, target, body, **fields)
        finally:
            writer.close()

    async def put(self, name, body):
        status, fields, _ = await self.ask("PUT", f"/v1/objects/{name}", body)
        return status if status == 201 else (status, fields["scs-error"])

    async def get(self, name):
        """The body, None for a miss, or (status, error word)."""
        status, fields, body = await self.ask("GET", f"/v1/objects/{name}")
        if status == 200:
            return body
        return None if status == 404 else (status, fields["scs-error"])

    async def ready(self):
        status, _, _ = await self.ask("GET", "/readyz")
        return status

    async def checked(self):
        """A whole round of the scrubber; what it found."""
        scrubber = self.store.scrubber
        await self.reconciled()
        scrubber.start_check()
        await until(lambda: scrubber.check["state"] == "done")
        return scrubber.check["found"]

    async def reconciled(self):
        await until(lambda: self.store.is_reconciled and self.store._index.is_clean)


async def exchange(reader, writer, verb, target, body=None, **fields):
    lines = [f"{verb} {target} HTTP/1.1", "Host: cache"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    found = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    length = int(found.get("content-length", 0))
    status = int(head[0].split()[1])
    content = await reader.readexactly(length) if verb != "HEAD" and status != 304 else b""
    return status, found, content


async def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


def make_body(name, size):
    return random.Random(name).randbytes(size)
