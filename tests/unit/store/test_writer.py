"""The one thread that changes a shard: order, results, errors, and its end."""

import asyncio
import threading

import pytest

from simplecache.store.index import Index
from simplecache.store.writer import BATCH_MAX, Writer


@pytest.fixture
def index(tmp_path):
    return Index(tmp_path / "index.db")


def run(index, story):
    """Run ``story(writer)`` on a loop; the writer is stopped in the end."""

    async def main():
        writer = Writer(index, asyncio.get_running_loop(), index.close)
        try:
            return await asyncio.wait_for(story(writer), 20)
        finally:
            await asyncio.get_running_loop().run_in_executor(None, writer.stop)

    return asyncio.run(main())


def test_functions_run_in_order_in_one_thread(index):
    done, threads = [], set()

    def note(number):
        threads.add(threading.current_thread().name)
        done.append(number)
        return number

    async def story(writer):
        futures = [writer.run(lambda n=n: note(n)) for n in range(3 * BATCH_MAX)]
        return await asyncio.gather(*futures)

    assert run(index, story) == done == list(range(3 * BATCH_MAX))
    assert threads == {"writer"}


def test_an_error_goes_to_who_awaits_and_to_nobody_else(index):
    async def story(writer):
        bad, good = writer.run(lambda: 1 / 0), writer.run(lambda: "good")
        with pytest.raises(ZeroDivisionError):
            await bad
        return await good

    assert run(index, story) == "good"


def test_a_posted_error_is_logged_and_the_thread_lives(index, caplog):
    async def story(writer):
        writer.post(lambda: 1 / 0)
        return await writer.run(lambda: "alive")

    assert run(index, story) == "alive"
    assert "a posted change failed" in caplog.text


def test_who_gave_up_waiting_is_not_told(index):
    gate, done = threading.Event(), []

    async def story(writer):
        writer.post(gate.wait)
        given_up = writer.run(lambda: done.append("changed"))
        given_up.cancel()
        gate.set()
        return await writer.run(lambda: list(done))

    assert run(index, story) == ["changed"], "what was posted is done nevertheless"


def test_the_end_does_what_was_posted_first(index):
    gate, done = threading.Event(), []

    async def story(writer):
        writer.post(gate.wait)
        for number in range(1000):
            writer.post(lambda n=number: done.append(n))
        assert writer.backlog > 0
        gate.set()

    run(index, story)
    assert done == list(range(1000))


def test_the_index_is_flushed_between(index):
    flushed = threading.Event()
    real = index.flush

    def flush():
        flushed.set()
        return real()

    index.flush = flush

    async def story(writer):
        assert await asyncio.to_thread(flushed.wait, 10)

    run(index, story)
