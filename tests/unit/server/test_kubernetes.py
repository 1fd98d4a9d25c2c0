"""Mode kubernetes in a shard: the two reviewers, the home, and what becomes of faults."""

import asyncio
import contextlib
import json
import time

import pytest

from cluster import objects
from fakes.kube import FakeApiserver
from fakes.tokens import Signer, make_claims, make_rsa
from simplecache.errors import InvalidConfig, ReviewUnavailable, Unauthenticated
from simplecache.kube.api import KubeApi
from simplecache.model import Caller
from simplecache.server import kubernetes as module
from simplecache.server.kubernetes import TTL, KubernetesAuthenticator, KubernetesSettings
from simplecache.server.peers import Peer

KEY = "k" * 32


class Stage:
    """An apiserver with one pod, and shards that ask each other without sockets."""

    def __init__(self, fake, api, folder):
        self.fake, self.api, self.folder = fake, api, folder
        self.shards = {}
        self.is_down = set()

    def shard(self, name, **settings):
        kubeconfig = self.folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(kubeconfig_of(self.fake.config.server)))
        key = self.folder / "key"
        key.write_text(KEY)
        shard = KubernetesAuthenticator(
            KubernetesSettings(kubeconfig=str(kubeconfig), peer_key=str(key), **settings), name
        )
        self.shards[name] = shard
        for each in self.shards.values():
            each.peers._peers = tuple(Peer(other, "10.0.0.1", 1) for other in self.shards)
            each.peers._ask = self._ask
        return shard

    async def _ask(self, home, token):
        if home.name in self.is_down:
            raise ConnectionRefusedError(home.name)
        try:
            return await self.shards[home.name].home.review(token)
        except Unauthenticated as error:
            return module.Refusal(str(error))

    def reviews(self):
        return self.fake.count_calls("POST", "/tokenreviews")

    async def token(self, name="worker"):
        pod = await objects.make_pod(self.api, "prj-a", name)
        return await objects.take_token(self.api, "prj-a", pod=pod)


def kubeconfig_of(server):
    return {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c"}}],
    }


def staged(scenario, folder):
    async def act():
        async with FakeApiserver() as fake, KubeApi(fake.config) as api:
            await objects.make_account(api, "prj-a")
            stage = Stage(fake, api, folder)
            try:
                await scenario(stage)
            finally:
                for shard in stage.shards.values():
                    await shard.close()

    asyncio.run(act())


def bearer(token):
    return b"Bearer " + token.encode()


def test_a_token_is_reviewed_once_for_all_shards(tmp_path):
    async def scenario(stage):
        for name in "abcde":
            stage.shard(f"{name}/0")
        tokens = [await stage.token(f"w{n}") for n in range(8)]
        for _ in range(3):
            callers = await asyncio.gather(
                *(
                    shard.authenticate(bearer(token))
                    for token in tokens
                    for shard in stage.shards.values()
                )
            )
        assert {c.namespace for c in callers} == {"prj-a"}
        assert stage.reviews() == len(tokens)
        assert sum(counted(s, "scs_apiserver_reviews_total") for s in stage.shards.values()) == 8

    staged(scenario, tmp_path)


def counted(shard, name, **labels):
    return sum(v for n, found, v in shard.counts() if n == name and labels.items() <= found.items())


def test_when_the_home_is_down_a_shard_asks_by_itself(tmp_path):
    async def scenario(stage):
        one, _ = stage.shard("a/0"), stage.shard("b/0")
        stage.is_down = {"b/0"}
        tokens = [await stage.token(f"w{n}") for n in range(8)]
        for token in tokens:
            assert await one.authenticate(bearer(token)) == Caller("prj-a", one_of(token))
        failed = counted(one, "scs_peer_failures_total")
        assert 0 < failed == counted(one, "scs_peer_asks_total") < 8
        assert stage.reviews() == 8

    def one_of(token):
        return module.parse_token(token).claims["kubernetes.io"]["pod"]["name"]

    staged(scenario, tmp_path)


def test_forged_tokens_reach_neither_home_nor_apiserver(tmp_path):
    async def scenario(stage):
        one, _ = stage.shard("a/0"), stage.shard("b/0")
        forger = Signer(make_rsa(), "key-1")
        good = await stage.token()
        head, payload, signature = good.split(".")
        for token in (
            forger.sign(make_claims("https://fake.test")),
            f"{head}.{payload}.{signature[:-8]}AAAAAAAA",
            "a.b.c",
            "x",
            "." * 5000,
            "\x00\xff",
            "t" * 100_000,
        ):
            with pytest.raises(Unauthenticated):
                await one.authenticate(b"Bearer " + token.encode("latin-1"))
        assert stage.reviews() == 0
        assert counted(one, "scs_peer_asks_total") == 0
        assert counted(one, "scs_reviews_total", outcome="forged") == 7

    staged(scenario, tmp_path)


def test_nobody_is_nobody_and_other_schemes_are_refused(tmp_path):
    async def scenario(stage):
        one = stage.shard("a/0")
        assert await one.authenticate(None) is None
        for field in (b"Basic dTpw", b"Bearer ", b"Bearer"):
            with pytest.raises(Unauthenticated):
                await one.authenticate(field)

    staged(scenario, tmp_path)


def test_the_hot_way_knows_a_caller_for_seconds_only(tmp_path, monkeypatch):
    async def scenario(stage):
        one = stage.shard("a/0")
        token = bearer(await stage.token())
        assert one.known(token) is None
        caller = await one.authenticate(token)
        assert one.known(token) == caller
        now = time.monotonic()
        monkeypatch.setattr(module.time, "monotonic", lambda: now + module.KNOWN_S)
        assert one.known(token) is None

    staged(scenario, tmp_path)


def test_nobody_is_known_past_their_tokens_end(tmp_path):
    async def scenario(stage):
        one = stage.shard("a/0")
        pod = await objects.make_pod(stage.api, "prj-a", "worker")
        token = await objects.take_token(stage.api, "prj-a", pod=pod, seconds=2)
        assert await one.authenticate(bearer(token))
        assert one.known(bearer(token))
        await asyncio.sleep(2.1)
        assert one.known(bearer(token)) is None
        with pytest.raises(Unauthenticated, match="expired"):
            await one.authenticate(bearer(token))

    staged(scenario, tmp_path)


def test_all_that_a_verdict_may_live_is_a_minute():
    assert 2 * TTL.good_s + module.KNOWN_S + 1 <= 60


def test_while_the_apiserver_is_away_the_known_go_on_and_others_wait(tmp_path):
    async def scenario(stage):
        one, _ = stage.shard("a/0"), stage.shard("b/0")
        known, unknown = await stage.token("w1"), await stage.token("w2")
        await one.authenticate(bearer(known))
        await stage.fake.stop()
        assert (await one.authenticate(bearer(known))).pod == "w1"
        with pytest.raises(ReviewUnavailable) as caught:
            await one.authenticate(bearer(unknown))
        assert caught.value.retry_after_s >= 1
        await stage.fake.start()
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(ReviewUnavailable):
                    assert (await one.authenticate(bearer(unknown))).pod == "w2"
                    return
                await asyncio.sleep(0.1)

    staged(scenario, tmp_path)


def test_tokens_without_a_pod_are_an_option(tmp_path):
    async def scenario(stage):
        strict, lax = stage.shard("a/0"), stage.shard("b/0", require_pod_bound=False)
        strict.peers._peers = lax.peers._peers = ()
        token = bearer(await objects.take_token(stage.api, "prj-a"))
        with pytest.raises(Unauthenticated, match="not bound to a pod"):
            await strict.authenticate(token)
        assert await lax.authenticate(token) == Caller("prj-a", None)

    staged(scenario, tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "No such file"), ("", "has 0 bytes"), ("short\n", "has 5 bytes; expected 16 to 4096")],
)
def test_a_peer_key_that_cannot_be_used_ends_the_start(tmp_path, content, text):
    key, kubeconfig = tmp_path / "key", tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(kubeconfig_of("http://127.0.0.1:9")))
    if content is not None:
        key.write_text(content)
    settings = KubernetesSettings(kubeconfig=str(kubeconfig), peer_key=str(key))
    with pytest.raises(InvalidConfig, match=text):
        KubernetesAuthenticator(settings, "a/0")


def test_outside_of_a_pod_a_kubeconfig_is_needed(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidConfig, match="not in a pod"):
        KubernetesAuthenticator(KubernetesSettings(), "a/0")
