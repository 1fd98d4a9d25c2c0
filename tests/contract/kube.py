"""What ``simplecache.kube`` promises on any apiserver: run on the fake and on the real one.

A subclass gives ``cluster`` as an async context manager that yields something with ``config``,
``take_down``, ``bring_up``, ``compact`` and ``lose``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import pytest

from cluster import objects
from fakes.tokens import Signer, make_claims, make_rsa
from simplecache.errors import ReviewUnavailable, Unauthenticated
from simplecache.kube.api import KubeApi
from simplecache.kube.config import KubeConfig
from simplecache.kube.jwks import DISCOVERY_PATH, KeyCheck
from simplecache.kube.review import ApiReview, TokenReviewer
from simplecache.kube.tokens import parse_token
from simplecache.kube.verdicts import Ttl
from simplecache.kube.watch import Reflector, Timing

QUICK = Timing(pause_min_s=0.02, pause_max_s=0.5, page_objects=2)
SHORT = Ttl(good_s=1.0, bad_s=0.2, stale_s=30.0)
PATIENCE_S = 30.0
APISERVER_CACHE_S = 10.0
"""How long an apiserver itself remembers a good token."""


class Cluster(Protocol):
    @property
    def config(self) -> KubeConfig: ...
    async def take_down(self) -> None: ...
    async def bring_up(self) -> None: ...
    async def compact(self) -> None: ...
    async def lose(self, namespace: str, plural: str, name: str) -> None: ...


class Scene:
    """A namespace of one's own in a cluster, and a client."""

    def __init__(self, cluster: Cluster, api: KubeApi, namespace: str) -> None:
        self.cluster = cluster
        self.api = api
        self.namespace = namespace

    @contextlib.asynccontextmanager
    async def reflecting(self, **arguments: Any) -> AsyncIterator[Reflector[str]]:
        """A running, synced reflector of the namespace's pods, each reduced to its IP or "-"."""
        arguments = {"project": pod_ip, "timing": QUICK} | arguments
        reflector = Reflector(self.api, objects.pods_path(self.namespace), **arguments)
        task = asyncio.create_task(reflector.run())
        try:
            await asyncio.wait_for(reflector.wait_synced(), PATIENCE_S)
            yield reflector
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def pod(self, name: str, **arguments: Any) -> dict[str, Any]:
        return await objects.make_pod(self.api, self.namespace, name, **arguments)

    async def ready(self, name: str, ip: str) -> None:
        await objects.set_pod_ready(self.api, self.namespace, name, ip)

    async def delete(self, name: str, plural: str = "pods") -> None:
        await objects.delete_now(self.api, self.namespace, plural, name)

    async def bound_token(self, name: str = "worker") -> str:
        """A token as a training pod has it."""
        pod = await self.pod(name)
        return await objects.take_token(self.api, self.namespace, pod=pod)

    def reviewer(self, *, check: bool = True, ttl: Ttl = SHORT, **arguments: Any) -> TokenReviewer:
        ask = ApiReview(self.api, audience=objects.AUDIENCE, **arguments)
        precheck = KeyCheck(self.api, objects.AUDIENCE).check if check else None
        return TokenReviewer(ask, precheck=precheck, ttl=ttl)


def pod_ip(pod: dict[str, Any]) -> str:
    return pod.get("status", {}).get("podIP") or "-"


async def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """Wait for a condition; how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.01)
    return time.monotonic() - began


async def reason_of(review: Awaitable[object]) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await review
    return str(caught.value)


class _Contract:
    def cluster(self) -> contextlib.AbstractAsyncContextManager[Cluster]:
        raise NotImplementedError

    @pytest.fixture
    def play(
        self, request: pytest.FixtureRequest
    ) -> Callable[[Callable[[Scene], Awaitable[None]]], None]:
        """Runs a scenario in a new event loop and a new namespace."""

        async def run(scenario: Callable[[Scene], Awaitable[None]]) -> None:
            async with self.cluster() as cluster, KubeApi(cluster.config) as api:
                namespace = await objects.make_namespace(api)
                await objects.make_account(api, namespace)
                await scenario(Scene(cluster, api, namespace))

        return lambda scenario: asyncio.run(run(scenario))


class ReflectorContract(_Contract):
    def test_shows_what_is_there_and_what_changes(self, play):
        async def scenario(scene: Scene) -> None:
            changes: list[Any] = []
            for name in ("a", "b", "c", "d", "e"):  # three pages
                await scene.pod(name)
            async with scene.reflecting(on_change=changes.extend) as mirror:
                key = scene.namespace + "/{}"
                assert set(mirror.objects) == {key.format(name) for name in "abcde"}
                await scene.pod("f")
                await until(lambda: key.format("f") in mirror.objects)
                await scene.ready("f", "127.0.0.9")
                await until(lambda: mirror.objects[key.format("f")] == "127.0.0.9")
                await scene.delete("f")
                await until(lambda: key.format("f") not in mirror.objects)
                assert [(c.old, c.new) for c in changes if c.key == key.format("f")] == [
                    (None, "-"),
                    ("-", "127.0.0.9"),
                    ("127.0.0.9", None),
                ]
                assert mirror.lists_total == 1
                assert mirror.faults_total == 0

        play(scenario)

    def test_an_empty_collection_is_synced_and_says_so(self, play):
        async def scenario(scene: Scene) -> None:
            told: list[Any] = []
            async with scene.reflecting(on_change=told.append) as mirror:
                assert mirror.synced
                assert not mirror.objects
                assert told == [[]]
                assert mirror.last_event_age_s is not None

        play(scenario)

    def test_follows_labels(self, play):
        async def scenario(scene: Scene) -> None:
            async with scene.reflecting(label_selector="app=cache") as mirror:
                await scene.pod("other", labels={"app": "job"})
                await scene.pod("cache", labels={"app": "cache"})
                await until(lambda: len(mirror.objects) == 1)
                assert list(mirror.objects) == [f"{scene.namespace}/cache"]

        play(scenario)

    def test_takes_up_a_watch_where_it_ended(self, play):
        async def scenario(scene: Scene) -> None:
            timing = Timing(pause_min_s=0.02, watch_min_s=1, watch_max_s=1)
            async with scene.reflecting(timing=timing) as mirror:
                for number in range(12):
                    await scene.pod(f"p{number}")
                    await asyncio.sleep(0.25)
                await until(lambda: len(mirror.objects) == 12)
                assert mirror.lists_total == 1
                assert mirror.faults_total == 0

        play(scenario)

    def test_an_outage_empties_nothing_and_loses_nothing(self, play):
        async def scenario(scene: Scene) -> None:
            await scene.pod("stays")
            async with scene.reflecting() as mirror:
                await scene.cluster.take_down()
                await until(lambda: mirror.faults_total >= 2)
                assert len(mirror.objects) == 1
                assert mirror.synced
                await scene.cluster.bring_up()
                await scene.pod("comes")
                await until(lambda: len(mirror.objects) == 2)
                await scene.delete("stays")
                await until(lambda: len(mirror.objects) == 1)

        play(scenario)

    def test_notices_after_a_compaction_what_it_never_saw(self, play):
        async def scenario(scene: Scene) -> None:
            for name in ("lost", "kept"):
                await scene.pod(name)
            changes: list[Any] = []
            async with scene.reflecting(on_change=changes.extend) as mirror:
                changes.clear()
                await scene.cluster.take_down()
                await scene.cluster.lose(scene.namespace, "pods", "lost")
                await scene.cluster.compact()
                await scene.cluster.bring_up()
                await until(lambda: len(mirror.objects) == 1)
                assert mirror.lists_total == 2
                assert [(c.key, c.new) for c in changes] == [(f"{scene.namespace}/lost", None)]

        play(scenario)

    def test_a_list_on_demand_is_a_new_one(self, play):
        async def scenario(scene: Scene) -> None:
            async with scene.reflecting() as mirror:
                await scene.pod("p")
                async with asyncio.timeout(PATIENCE_S):
                    await asyncio.gather(mirror.relist(), mirror.relist(), mirror.relist())
                assert len(mirror.objects) == 1
                assert mirror.lists_total == 2
                await scene.pod("q")  # and it watches on
                await until(lambda: len(mirror.objects) == 2)
                assert mirror.lists_total == 2

        play(scenario)


class ReviewContract(_Contract):
    def test_knows_a_training_pod(self, play):
        async def scenario(scene: Scene) -> None:
            token = await scene.bound_token()
            caller = await scene.reviewer().review(token)
            assert (caller.namespace, caller.pod) == (scene.namespace, "worker")

        play(scenario)

    @pytest.mark.parametrize("check", [True, False])
    def test_refuses_a_token_for_another_audience(self, play, check):
        async def scenario(scene: Scene) -> None:
            pod = await scene.pod("worker")
            token = await objects.take_token(scene.api, scene.namespace, audience="other", pod=pod)
            reason = await reason_of(scene.reviewer(check=check).review(token))
            assert ("audience" if check else "does not accept") in reason

        play(scenario)

    @pytest.mark.parametrize("check", [True, False])
    def test_refuses_a_forged_token(self, play, check):
        async def scenario(scene: Scene) -> None:
            good = parse_token(await scene.bound_token())
            forged = Signer(make_rsa(), good.key_id).sign(dict(good.claims))
            reason = await reason_of(scene.reviewer(check=check).review(forged))
            assert ("signature" if check else "does not accept") in reason

        play(scenario)

    def test_refuses_a_token_that_is_bound_to_no_pod(self, play):
        async def scenario(scene: Scene) -> None:
            token = await objects.take_token(scene.api, scene.namespace)
            assert "not bound to a pod" in await reason_of(scene.reviewer().review(token))
            lenient = scene.reviewer(require_pod_bound=False)
            assert (await lenient.review(token)).pod is None

        play(scenario)

    def test_a_deleted_pods_token_ends_with_the_time_to_live(self, play):
        async def scenario(scene: Scene) -> None:
            reviewer = scene.reviewer()
            token = await scene.bound_token()
            await reviewer.review(token)
            await scene.delete("worker")
            took_s = await _refused_after(reviewer, token)
            assert took_s <= SHORT.good_s + APISERVER_CACHE_S + 1

        play(scenario)

    def test_a_recreated_account_is_another_one(self, play):
        async def scenario(scene: Scene) -> None:
            reviewer = scene.reviewer()
            token = await scene.bound_token()
            await reviewer.review(token)
            await scene.delete("trainer", "serviceaccounts")
            await objects.make_account(scene.api, scene.namespace)
            took_s = await _refused_after(reviewer, token)
            assert took_s <= SHORT.good_s + APISERVER_CACHE_S + 1

        play(scenario)

    def test_forged_tokens_cost_the_apiserver_nothing(self, play):
        async def scenario(scene: Scene) -> None:
            reviewer = scene.reviewer(ttl=Ttl())
            good = await scene.bound_token()
            await reviewer.review(good)
            before = await objects.count_reviews(scene.api)
            head, claims, signature = good.split(".")
            spoilt = f"{head}.{claims}.AAA{{:04d}}{signature[7:]}"
            forged = [spoilt.format(number) for number in range(10_000)]
            for token in forged:
                with pytest.raises(Unauthenticated):
                    await reviewer.review(token)
            await reviewer.review(good)
            assert await objects.count_reviews(scene.api) == before
            assert reviewer.counts.forged == 10_000

        play(scenario)

    def test_many_requests_are_one_review(self, play):
        async def scenario(scene: Scene) -> None:
            reviewer = scene.reviewer(ttl=Ttl())
            tokens = [await scene.bound_token(f"worker-{number}") for number in range(20)]
            before = await objects.count_reviews(scene.api)
            await asyncio.gather(*(reviewer.review(token) for token in tokens * 50))
            for token in tokens * 50:
                await reviewer.review(token)
            assert await objects.count_reviews(scene.api) - before == len(tokens)

        play(scenario)

    def test_in_an_outage_the_known_stay_and_the_unknown_wait(self, play):
        async def scenario(scene: Scene) -> None:
            reviewer = scene.reviewer()
            known = await scene.bound_token("known")
            unknown = await scene.bound_token("unknown")
            await reviewer.review(known)
            await scene.cluster.take_down()
            await asyncio.sleep(SHORT.good_s + 0.1)
            assert (await reviewer.review(known)).pod == "known"
            assert reviewer.counts.stale == 1
            with pytest.raises(ReviewUnavailable):
                await reviewer.review(unknown)
            await scene.cluster.bring_up()

            async def recovered() -> None:
                while True:
                    with contextlib.suppress(ReviewUnavailable):
                        await reviewer.review(unknown)
                        return
                    await asyncio.sleep(0.1)

            await asyncio.wait_for(recovered(), PATIENCE_S)

        play(scenario)

    def test_an_ended_token_is_refused_without_a_review(self, play):
        async def scenario(scene: Scene) -> None:
            issuer = (await scene.api.get(DISCOVERY_PATH))["issuer"]
            token = self.sign(make_claims(issuer, now=time.time() - 3600))
            before = await objects.count_reviews(scene.api)
            assert "expired" in await reason_of(scene.reviewer().review(token))
            assert await objects.count_reviews(scene.api) == before
            assert "does not accept" in await reason_of(scene.reviewer(check=False).review(token))

        play(scenario)

    def sign(self, claims: dict[str, Any]) -> str:
        """Sign claims with the cluster's own key."""
        raise NotImplementedError


async def _refused_after(reviewer: TokenReviewer, token: str) -> float:
    began = time.monotonic()
    while time.monotonic() < began + PATIENCE_S:
        try:
            await reviewer.review(token)
        except Unauthenticated:
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    pytest.fail("the token is still good")
