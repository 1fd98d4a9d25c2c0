"""A shard's store on real files and a real SQLite, without sockets."""

import os

from simplecache.model import Bucket, Key
from simplecache.store.store import Store


def bucket(name, **options):
    return Bucket(name, True, options.pop("quota", None), (), None, **options)


class Shard:
    """A store with buckets, and the two things that its clients do."""

    def __init__(self, directory, capacity, buckets, clock=None):
        options = {} if clock is None else {"clock": clock}
        self.store = Store(directory, capacity_bytes=capacity, **options)
        self.store.configure({b.name: b for b in buckets})
        self.hits = self.asked = 0

    async def get(self, name):
        """As a GET does; the body, or None."""
        target = Key(*split(name)).target
        self.store.touched.append(target)
        self.asked += 1
        try:
            blob = self.store.find_now(target)
        except BlockingIOError:
            blob = await self.store.find(target)
        if blob is None:
            return None
        self.hits += 1
        return bytes(blob.read())

    async def put(self, name, body, namespace="", **options):
        """As a PUT does; whether the object was kept."""
        key = Key(*split(name))
        if not await self.store.admits(key, namespace, len(body)):
            return False
        upload = self.store.begin(key, length=len(body), namespace=namespace, **options)
        try:
            await upload.write(body)
            await upload.commit()
        finally:
            await upload.abort()
        return True

    async def read_through(self, name, body, namespace=""):
        """As a job does: get it, or put it."""
        if await self.get(name) is None:
            await self.put(name, body, namespace)

    async def settle(self):
        """Let notes be taken and what must go be gone: a second of idle time."""
        self.store.tick()
        evicting = self.store._evicting
        if evicting is not None:
            await evicting

    def ratio(self):
        ratio, self.hits, self.asked = self.hits / self.asked, 0, 0
        return ratio

    def disk(self, name):
        return sum(
            disk for (bucket, _), disk in self.store.usage.by_tenant().items() if bucket == name
        )


def split(name):
    bucket, _, rest = name.partition("/")
    return bucket, rest.encode()


def du(directory):
    """Allocated bytes below a directory, itself included, as ``du -s`` counts them."""
    total = os.stat(directory).st_blocks
    for root, directories, files in os.walk(directory):
        total += sum(os.lstat(os.path.join(root, name)).st_blocks for name in directories + files)
    return total * 512
