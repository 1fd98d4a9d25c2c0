"""``POST /v1/review``: another shard's question, as bytes."""

import pytest
from wire_harness import World, put, statuses_of

from simplecache.errors import ReviewUnavailable, Unauthenticated
from simplecache.server.handle import QUESTION_MAX_BYTES


def review(body):
    head = b"POST /v1/review HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


async def echo(question):
    return b"<" + question + b">"


def test_a_question_has_its_answer_and_the_connection_goes_on(world):
    world.handler.answer_peer = echo
    peer = world.peer()
    answers = world.run(peer.ask(review(b"one"), put(b"a", b"x"), review(b"two")))
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert b"\r\n\r\n<one>" in answers
    assert b"\r\n\r\n<two>" in answers
    assert world.handler.counters.responses() == {("POST", 200): 2, ("PUT", 201): 1}


@pytest.mark.parametrize(
    ("error", "status"), [(Unauthenticated("no peer"), 401), (ReviewUnavailable("away"), 503)]
)
def test_no_answer_is_a_status(world, error, status):
    async def fail(_):
        raise error

    world.handler.answer_peer = fail
    peer = world.peer()
    assert statuses_of(world.run(peer.ask(review(b"two")))) == [status]


def test_a_question_has_a_bound(world):
    world.handler.answer_peer = echo
    peer = world.peer()
    assert statuses_of(world.run(peer.ask(review(b"x" * (QUESTION_MAX_BYTES + 1))))) == [413]


def test_in_other_modes_there_is_no_such_path(world):
    peer = world.peer()
    assert statuses_of(world.run(peer.ask(review(b"one")))) == [404]


@pytest.mark.parametrize("verb", [b"GET", b"PUT", b"DELETE"])
def test_it_is_asked_by_post_alone(world, verb):
    world.handler.answer_peer = echo
    peer = world.peer()
    assert statuses_of(
        world.run(
            peer.ask(b"%b /v1/review HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % verb)
        )
    ) == [404]
