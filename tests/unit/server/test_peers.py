"""What shards say to one another about tokens: sealed, tied to its question, and never needed."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import web

from simplecache.errors import ReviewUnavailable, Unauthenticated
from simplecache.kube.verdicts import Refusal
from simplecache.model import Caller
from simplecache.server import peers as module
from simplecache.server.peers import Peer, Peers, seal, unseal

KEY = b"k" * 32
OTHER_KEY = b"o" * 32
POD = Caller("prj-a", "worker")
SHARDS = [{"name": f"node-{n}/0", "address": "127.0.0.1", "port": 1} for n in range(5)]


# -- seals --------------------------------------------------------------------------------------


def test_what_is_sealed_is_unsealed():
    assert unseal(KEY, "ask", seal(KEY, "ask", {"token": "t", "nonce": "é"})) == {
        "token": "t",
        "nonce": "é",
    }


@pytest.mark.parametrize(
    "body",
    [
        seal(OTHER_KEY, "ask", {"token": "t"}),
        seal(KEY, "answer", {"token": "t"}),
        seal(KEY, "ask", {"token": "t"}).replace(b'\\"t\\"', b'\\"u\\"'),
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 30_000,
        b'{"content": "{}"}',
        b'{"content": "{}", "mac": 7}',
        b'{"content": {}, "mac": ""}',
        '{"content": "{}", "mac": "é"}'.encode(),
        b'{"content": "\\ud800", "mac": "\\ud800"}',
        b'{"content": "{}", "mac": "\\ud800"}',
    ],
    ids=range(15),
)
def test_what_is_not_sealed_for_this_is_refused(body):
    with pytest.raises(ValueError):
        unseal(KEY, "ask", body)


# -- homes --------------------------------------------------------------------------------------


def known(own_name, names, key=KEY):
    peers = Peers(own_name, "http://nowhere", key)
    peers._peers = tuple(Peer(name, "127.0.0.1", 1) for name in names)
    return peers


def test_all_shards_agree_on_a_tokens_home():
    names = [f"node-{n}/{s}" for n in range(4) for s in range(2)]
    views = {name: known(name, names if n % 2 else names[::-1]) for n, name in enumerate(names)}
    homes = {}
    for number in range(400):
        token = f"token-{number}"
        found = {
            (home.name if home else own) for own, p in views.items() for home in [p.home(token)]
        }
        assert len(found) == 1
        homes.setdefault(found.pop(), []).append(token)
    assert homes.keys() == set(names)
    assert max(map(len, homes.values())) < 3 * 400 / len(names)


def test_a_shard_that_leaves_moves_only_its_own_tokens():
    names = [f"node-{n}/0" for n in range(5)]
    before, after = known("x", names), known("x", names[1:])
    for number in range(200):
        was, now = before.home(f"t{number}"), after.home(f"t{number}")
        assert was.name in {now.name, names[0]}


def test_without_a_key_or_a_directory_every_token_is_at_home_here():
    assert known("a/0", ["a/0", "b/0"], key=None).home("t") is None
    assert known("a/0", []).home("t") is None


# -- questions and answers ----------------------------------------------------------------------


async def review(_):
    return POD


def test_only_a_peers_question_is_answered():
    async def scenario():
        peers = Peers("a/0", None, KEY)
        for body in (b"{}", seal(OTHER_KEY, "ask", {"token": "t", "nonce": "n"})):
            with pytest.raises(Unauthenticated, match="not a peer's question"):
                await peers.answer(body, review)
        with pytest.raises(Unauthenticated, match="no peers"):
            await Peers("a/0", None, None).answer(seal(KEY, "ask", {}), review)
        answer = await peers.answer(seal(KEY, "ask", {"token": "t", "nonce": "n"}), review)
        assert unseal(KEY, "answer", answer) == {
            "nonce": "n",
            "namespace": "prj-a",
            "pod": "worker",
        }

    asyncio.run(scenario())


def test_a_sealed_question_of_another_version_does_no_harm():
    async def scenario():
        answer = await Peers("a/0", None, KEY).answer(seal(KEY, "ask", {}), review)
        assert unseal(KEY, "answer", answer)["nonce"] is None

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def serving(routes):
    """A server of a few (method, path, handler); yields its URL and port."""
    app = web.Application()
    for method, path, handler in routes:
        app.router.add_route(method, path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield port
    finally:
        await runner.cleanup()


class Home:
    """A shard that answers as it is told."""

    def __init__(self):
        self.peers = Peers("b/0", None, KEY)
        self.review = review
        self.seen = []
        self.forge = None

    async def handle(self, request):
        body = await request.read()
        self.seen.append(body)
        if self.forge is not None:
            return self.forge(body)
        return web.Response(body=await self.peers.answer(body, self.review))


@contextlib.asynccontextmanager
async def asking():
    """A shard with a home to ask."""
    home = Home()
    async with serving([("POST", "/v1/review", home.handle)]) as port:
        peers = Peers("a/0", "http://127.0.0.1:9", KEY)
        await peers.start()
        try:
            yield peers, Peer("b/0", "127.0.0.1", port), home
        finally:
            await peers.close()


def test_a_verdict_arrives_as_it_was_given():
    async def refuse(_):
        raise Unauthenticated("the pod is gone")

    async def scenario():
        async with asking() as (peers, at, home):
            assert await peers.ask(at, "t") == POD
            home.review = refuse
            assert await peers.ask(at, "t") == Refusal("the pod is gone")
            assert (peers.asked, peers.failed) == (2, 0)

    asyncio.run(scenario())


def test_an_answer_to_an_earlier_question_is_not_taken():
    """A recorded answer, played again for another token."""

    async def scenario():
        async with asking() as (peers, at, home):
            recorded = await home.peers.answer(
                seal(KEY, "ask", {"token": "t", "nonce": "n"}), review
            )
            home.forge = lambda _: web.Response(body=recorded)
            with pytest.raises(ValueError, match="another question"):
                await peers.ask(at, "u")
            assert peers.failed == 1

    asyncio.run(scenario())


def nonce_of(question):
    return json.loads(json.loads(question)["content"])["nonce"]


@pytest.mark.parametrize(
    "forge",
    [
        lambda q: web.Response(body=q),
        lambda q: web.Response(body=b"{}"),
        lambda q: web.Response(body=b"x" * (1 << 20)),
        lambda q: web.Response(
            body=seal(OTHER_KEY, "answer", {"nonce": nonce_of(q), "namespace": "a", "pod": None})
        ),
        lambda q: web.Response(body=seal(KEY, "answer", {"nonce": nonce_of(q)})),
        lambda q: web.Response(
            body=seal(KEY, "answer", {"nonce": nonce_of(q), "namespace": 7, "pod": None})
        ),
        lambda q: web.Response(body=seal(KEY, "answer", {"namespace": "a", "pod": None})),
    ],
    ids=["echo", "bare", "huge", "key", "empty", "types", "nonce"],
)
def test_a_forged_answer_is_not_taken(forge):
    async def scenario():
        async with asking() as (peers, at, home):
            home.forge = forge
            with pytest.raises(ValueError):
                await peers.ask(at, "t")
            assert peers.failed == 1

    asyncio.run(scenario())


def test_a_home_that_says_no_or_nothing_is_a_failure(monkeypatch):
    monkeypatch.setattr(module, "ASK_TIMEOUT_S", 0.2)

    async def hang(_):
        await asyncio.sleep(0.5)

    async def scenario():
        async with asking() as (peers, at, home):
            home.forge = lambda _: web.Response(status=503)
            with pytest.raises(ReviewUnavailable, match="503"):
                await peers.ask(at, "t")
            home.forge = lambda _: web.Response(status=302)
            with pytest.raises(ReviewUnavailable, match="302"):
                await peers.ask(at, "t")
            home.forge, home.review = None, hang
            with pytest.raises(TimeoutError):
                await peers.ask(at, "t")
            with pytest.raises(OSError):
                await peers.ask(Peer("c/0", "127.0.0.1", 9), "t")
            assert peers.failed == 4

    asyncio.run(scenario())


def test_a_home_that_is_not_found_has_the_list_read_again(monkeypatch):
    monkeypatch.setattr(module, "POLL_FIRST_S", 0.05)
    monkeypatch.setattr(module.random, "uniform", lambda *_: 1000.0)  # it would wait for long
    asked = []

    async def directory(_):
        asked.append(1)
        return web.json_response({"shards": SHARDS})

    async def scenario():
        async with serving([("GET", "/v1/endpoints", directory)]) as port:
            peers = Peers("a/0", f"http://127.0.0.1:{port}", KEY)
            await peers.start()
            async with asyncio.timeout(20):
                while len(asked) < 2:
                    await asyncio.sleep(0.01)
                before = len(asked)
                with pytest.raises(OSError):
                    await peers.ask(Peer("b/0", "127.0.0.1", 9), "t")
                while len(asked) == before:
                    await asyncio.sleep(0.01)
            await peers.close()

    asyncio.run(scenario())


# -- the directory ------------------------------------------------------------------------------


def test_the_directory_is_followed_and_what_is_broken_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "POLL_FIRST_S", 0.02)
    many = [{"name": f"node-{n}/0", "address": "10.0.0.1", "port": n + 1} for n in range(20_000)]
    answers = [
        lambda: web.Response(status=503),
        lambda: web.Response(body=b"not JSON"),
        lambda: web.json_response({"shards": SHARDS}, headers={"ETag": '"1"'}),
        lambda: web.json_response({"shards": [{"name": 1}]}),
        lambda: web.json_response([]),
        lambda: web.json_response({"shards": many}, headers={"ETag": '"2"'}),
        lambda: web.Response(status=304),
    ]
    asked, seen = [], []

    async def directory(request):
        seen.append(len(peers._peers))
        asked.append(request.headers.get("If-None-Match"))
        return answers[min(len(asked), len(answers)) - 1]()

    async def scenario():
        nonlocal peers
        async with serving([("GET", "/v1/endpoints", directory)]) as port:
            peers = Peers("node-0/0", f"http://127.0.0.1:{port}", KEY)
            await peers.start()
            async with asyncio.timeout(20):
                while len(asked) < len(answers) + 1:
                    await asyncio.sleep(0.01)
            await peers.close()

    peers = None
    asyncio.run(scenario())
    assert seen[:8] == [0, 0, 0, 5, 5, 5, 20_000, 20_000]
    assert asked[2:7] == [None, '"1"', '"1"', '"1"', '"2"']
