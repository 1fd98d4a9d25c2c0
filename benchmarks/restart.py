"""How long a shard takes to serve again: after a clean stop, after a kill, without its index.

    python benchmarks/restart.py DIRECTORY [--entries 1000000] [--body 1000]

It writes real object files (a million of them take a few minutes and 4 KiB each), lets the shard
index them, and measures, each time with cold caches where it may drop them (root):

* **serves**: from the start of the constructor until a GET is answered;
* **reconciled**: until files and rows are known to agree, and PUTs' and GETs' latency meanwhile;
* **checked**: a whole round of the scrubber, as `scs check --ops` asks for.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import time
from pathlib import Path

import uvloop

from simplecache.model import Bucket, Key
from simplecache.store.blobs import BlobWriter, Meta, blob_id, path_of
from simplecache.store.store import Store

BUCKETS = {"aaa": Bucket("aaa", True, None, (), None)}


def target(number):
    return Key("aaa", b"data/%d/%d" % (number % 1000, number)).target


def fill(directory, entries, body):
    objects = directory / "objects"
    for number in range(1 << 12):
        (objects / f"{number:03x}").mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for number in range(entries):
        name = target(number)
        path = Path(path_of(str(objects), blob_id(name)))
        if path.exists():
            continue
        writer = BlobWriter(path, Meta(name, 0, 1_700_000_000_000, b""))
        writer.write(os.urandom(body))
        writer.finish()
    print(f"{entries} files written in {time.monotonic() - began:.0f} s", flush=True)


def drop_caches():
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "cold"
    return "warm"


async def put(store, number, body):
    key = Key("aaa", b"new/%d" % number)
    upload = store.begin(key, length=len(body))
    await upload.write(body)
    await upload.commit()


async def get(store, number):
    name = target(number)
    try:
        blob = store.find_now(name)
    except BlockingIOError:
        blob = await store.find(name)
    assert blob is not None
    await store.in_thread(blob.read)


async def start(directory, entries, what):
    caches = drop_caches()
    began = time.monotonic()
    store = Store(directory)
    store.configure(BUCKETS)
    opened = time.monotonic() - began
    await get(store, entries // 2)
    print(
        f"{what} ({caches}): serves after {time.monotonic() - began:.2f} s, "
        f"opened after {opened:.2f} s, {store.usage.entries} entries known",
        flush=True,
    )
    return store


async def watch(store, entries, condition):
    """PUT and GET until ``condition``; how long each took."""
    began, puts, gets, number = time.monotonic(), [], [], 0
    while not condition():
        store.tick()
        at = time.monotonic()
        await put(store, number, b"x" * 1000)
        puts.append(time.monotonic() - at)
        at = time.monotonic()
        await get(store, number * 7919 % entries)
        gets.append(time.monotonic() - at)
        number += 1
        await asyncio.sleep(0.01)
    for name, times in (("PUT", puts), ("GET", gets)):
        times.sort()
        print(f"    {name} meanwhile: median {1000 * statistics.median(times):.1f} ms, "
              f"p99 {1000 * times[int(0.99 * len(times))]:.1f} ms, "
              f"longest {1000 * times[-1]:.1f} ms of {len(times)}", flush=True)  # fmt: skip
    return time.monotonic() - began


async def measure(directory, entries):
    sys.setswitchinterval(0.0005)

    def is_agreed():
        return store.is_reconciled and store._index.is_clean

    (directory / "index.db").unlink(missing_ok=True)
    store = await start(directory, entries, "without index")
    print(f"    reconciled after {await watch(store, entries, is_agreed):.0f} s", flush=True)
    await store.close()

    store = await start(directory, entries, "after a clean stop")
    await store.close()

    store = await start(directory, entries, "clean stop, again")
    store._index.doubt("as after a kill")
    store._index.doubts = 0
    await store.close()

    store = await start(directory, entries, "after a kill")
    print(f"    reconciled after {await watch(store, entries, is_agreed):.0f} s", flush=True)
    blocks = sum(
        entry.stat().st_blocks * 512
        for path in (directory / "objects").iterdir()
        for entry in os.scandir(path)
    )
    print(f"    accounting {store.usage.total_disk}, du {blocks}", flush=True)
    store.scrubber.start_check()
    seconds = await watch(store, entries, lambda: store.scrubber.check["state"] == "done")
    found = store.scrubber.check["found"]
    print(f"    checked after {seconds:.0f} s: {found['entries']} entries", flush=True)
    await store.close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--body", type=int, default=1000)
    args = parser.parse_args()
    fill(args.directory, args.entries, args.body)
    uvloop.run(measure(args.directory, args.entries))


if __name__ == "__main__":
    main()
