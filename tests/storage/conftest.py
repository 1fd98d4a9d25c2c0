"""Fixtures of the tests of storage management."""

import asyncio
import contextlib

import pytest
from storage_harness import Shard


@pytest.fixture
def run():
    """Run a coroutine function with shards that are closed at the end."""

    def run(story):
        async def main():
            opened = []

            def open_shard(*args, **options):
                opened.append(Shard(*args, **options))
                return opened[-1]

            try:
                return await story(open_shard)
            finally:
                for shard in opened:
                    with contextlib.suppress(OSError):
                        await shard.store.close()

        return asyncio.run(main())

    return run
