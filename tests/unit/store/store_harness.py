"""What the tests of the store share: a loop to run it on, and the story of a put and a get."""

import asyncio
import os
import shutil
from pathlib import Path

from simplecache.model import Key
from simplecache.store.blobs import block_count, open_blob
from simplecache.store.store import Store


class Stores:
    """Opens stores on one event loop, and closes what is still open."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self._open = []

    def run(self, awaitable):
        async def bounded():
            async with asyncio.timeout(30):
                return await awaitable

        return self.loop.run_until_complete(bounded())

    def open(self, directory, **options):
        async def make():
            return Store(Path(directory), **options)

        store = self.run(make())
        self._open.append(store)
        return store

    def close(self, store):
        self._open.remove(store)
        self.run(store.close())

    def reconciled(self, store):
        """Wait until rows and files agree. Nothing has to be done where nothing was ever stored."""
        if store._repair is not None:
            self.run(store._repair)
        assert store.is_reconciled
        assert store._index.is_clean

    def crash(self, store, image, **options):
        """Open what a kill -9 just now would have left, as another process would find it."""
        self.run(writer_idle(store, lambda: take_image(store.directory, image)))
        self.close(store)
        return self.open(image, **options)

    def shut_down(self):
        for store in tuple(self._open):
            self.close(store)
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()


async def writer_idle(store, function):
    """Run a function in the writer thread, where no change is half done."""
    return await store._writer.run(function)


def take_image(directory, image):
    """The directory as it is now: its object files themselves, and copies of what will change."""
    for name in ("objects", "tmp"):
        shutil.copytree(directory / name, Path(image) / name, copy_function=os.link)
    for path in directory.glob("index.db*"):
        shutil.copy2(path, Path(image) / path.name)


async def put(store, name, body, *, pieces=1, **options):
    """A whole PUT, as the handler tells it."""
    options.setdefault("length", len(body))
    upload = store.begin(Key("bkt", name), **options)
    try:
        size = max(1, -(-len(body) // pieces))
        for at in range(0, len(body), size):
            await upload.write(body[at : at + size])
        return await upload.commit()
    finally:
        await upload.abort()


async def get(store, name):
    """A whole GET: the bytes, each of them checked, or None."""
    target = Key("bkt", name).target
    try:
        blob = store.find_now(target)
    except BlockingIOError:
        blob = await store.find(target)
    if blob is None:
        return None
    for block in range(block_count(blob.size)):
        await store.in_thread(blob.verify, block)
    return os.pread(blob.fd, blob.size, blob.body_at)


def target_of(name):
    return Key("bkt", name).target


def temporary_files(store):
    return sorted(path.name for path in (store.directory / "tmp").iterdir())


def object_files(store):
    return sorted(path for path in (store.directory / "objects").glob("*/*"))


def usage_of_files(store):
    """What the accounting must say, by the files alone."""
    tenants = {}
    for path in object_files(store):
        blob = open_blob(str(path), None)
        bucket = Key.from_target(blob.meta.target).bucket
        tenant = tenants.setdefault((bucket, blob.meta.namespace), [0, 0, 0])
        tenant[0] += 1
        tenant[1] += blob.size
        tenant[2] += os.fstat(blob.fd).st_blocks * 512
    return {tenant: tuple(counts) for tenant, counts in tenants.items()}
