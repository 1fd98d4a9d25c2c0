"""The reviewer with a review that the test plays, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp import web

from fakes.kube import FakeApiserver
from fakes.tokens import Signer, make_claims, make_rsa
from simplecache.errors import ReviewUnavailable, Unauthenticated
from simplecache.kube.api import KubeApi
from simplecache.kube.judge import Outcome
from simplecache.kube.jwks import KEYS_PATH, REFETCH_S, REFRESH_S, KeyCheck
from simplecache.kube.review import ApiReview, Limits, TokenReviewer
from simplecache.kube.tokens import TOKEN_MAX_BYTES
from simplecache.kube.verdicts import Refusal, Ttl
from simplecache.model import Caller

POD = Caller("prj-a", "worker")
TTL = Ttl(good_s=60, bad_s=10, stale_s=600, jitter=0)
SIGNER = Signer(make_rsa(), "key-1")


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Stage:
    """A reviewer, its clock, and what the next reviews say."""

    def __init__(self, **arguments) -> None:
        self.clock = Clock()
        self.says: Outcome | Exception = POD
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None
        arguments = {"ttl": TTL} | arguments
        self.reviewer = TokenReviewer(
            self._ask, clock=self.clock, wall_clock=lambda: self.clock.now + 1e9, **arguments
        )

    async def _ask(self, token: str) -> Outcome:
        self.asked.append(token)
        if self.gate:
            await self.gate.wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    def away(self, retry_after_s: int = 1) -> None:
        self.says = ReviewUnavailable("apiserver away")
        self.says.retry_after_s = retry_after_s

    async def review(self, token: str = "t") -> Caller:
        caller = await self.reviewer.review(token)
        await asyncio.sleep(0)  # let a review ahead of time begin
        await asyncio.sleep(0)
        return caller


def run(scenario):
    asyncio.run(scenario())


def test_a_review_counts_for_its_time_to_live_and_no_longer():
    async def scenario():
        stage = Stage()
        for _ in range(3):
            assert await stage.review() == POD
        stage.clock.now += 60
        assert await stage.review() == POD
        assert len(stage.asked) == 2

    run(scenario)


def test_a_caller_in_use_is_reviewed_ahead_of_time_and_once():
    async def scenario():
        stage = Stage()
        await stage.review()
        stage.clock.now += 48  # 80 %
        stage.gate = asyncio.Event()
        for _ in range(5):
            assert await stage.review() == POD
        assert len(stage.asked) == 2
        stage.gate.set()
        await asyncio.sleep(0.01)
        stage.clock.now += 40  # past the first review's end
        await stage.review()
        assert len(stage.asked) == 2

    run(scenario)


def test_a_review_ahead_of_time_can_end_a_caller():
    async def scenario():
        stage = Stage()
        await stage.review()
        stage.clock.now += 48
        stage.says = Refusal("its pod is gone")
        await stage.review()
        await asyncio.sleep(0.01)
        with pytest.raises(Unauthenticated, match="pod is gone"):
            await stage.review()
        assert len(stage.asked) == 2

    run(scenario)


def test_a_refusal_is_remembered_for_a_short_time():
    async def scenario():
        stage = Stage()
        stage.says = Refusal("no")
        for _ in range(3):
            with pytest.raises(Unauthenticated):
                await stage.review()
        assert len(stage.asked) == 1
        stage.clock.now += 10
        stage.says = POD
        assert await stage.review() == POD

    run(scenario)


def test_requests_with_one_token_share_a_review():
    async def scenario():
        stage = Stage()
        await asyncio.gather(*(stage.review() for _ in range(100)))
        assert len(stage.asked) == 1

    run(scenario)


def test_a_request_that_goes_away_does_not_end_the_review_of_others():
    async def scenario():
        stage = Stage()
        stage.gate = asyncio.Event()
        first, second = (asyncio.create_task(stage.review()) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        stage.gate.set()
        assert await second == POD
        assert len(stage.asked) == 1

    run(scenario)


def test_reviews_in_flight_and_in_the_queue_are_bounded():
    async def scenario():
        stage = Stage(limits=Limits(in_flight=2, queued=5))
        stage.gate = asyncio.Event()
        waiting = [asyncio.create_task(stage.review(str(number))) for number in range(5)]
        await asyncio.sleep(0.01)
        assert len(stage.asked) == 2
        with pytest.raises(ReviewUnavailable, match="too many"):
            await stage.review("one more")
        stage.gate.set()
        assert await asyncio.gather(*waiting) == [POD] * 5

    run(scenario)


def test_in_need_an_old_review_counts_until_its_bound():
    async def scenario():
        stage = Stage()
        await stage.review()
        stage.away()
        stage.clock.now += 599
        assert await stage.review() == POD
        assert stage.reviewer.counts.stale == 1
        stage.clock.now += 1
        with pytest.raises(ReviewUnavailable):
            await stage.review()

    run(scenario)


def test_an_old_review_does_not_outlive_the_token():
    async def scenario():
        stage = Stage()
        token = SIGNER.sign(
            make_claims("i", now=stage.clock.now + 1e9) | {"exp": stage.clock.now + 1e9 + 100}
        )
        await stage.review(token)
        stage.away()
        stage.clock.now += 99
        assert await stage.review(token) == POD
        stage.clock.now += 1
        with pytest.raises(ReviewUnavailable):
            await stage.review(token)

    run(scenario)


def test_a_fresh_review_wins_over_need():
    async def scenario():
        stage = Stage()
        await stage.review()
        stage.clock.now += 100
        stage.says = Refusal("gone")
        with pytest.raises(Unauthenticated):
            await stage.review()

    run(scenario)


def test_a_slow_apiserver_delays_the_known_little_and_the_unknown_boundedly():
    async def scenario():
        stage = Stage(limits=Limits(wait_s=0.1, stale_wait_s=0.02))
        await stage.review("known")
        stage.clock.now += 100
        stage.gate = asyncio.Event()
        assert await stage.review("known") == POD
        with pytest.raises(ReviewUnavailable, match="no review within"):
            await stage.review("unknown")
        stage.gate.set()
        await asyncio.sleep(0.01)
        asked = len(stage.asked)
        assert await stage.review("unknown") == POD  # the late answer was kept
        assert len(stage.asked) == asked

    run(scenario)


def test_after_a_fault_nothing_is_asked_for_longer_and_longer():
    async def scenario():
        stage = Stage()
        stage.away()
        for pause_s in (1, 2, 4, 8, 8):
            for _ in range(10):
                with pytest.raises(ReviewUnavailable):
                    await stage.review()
            asked = len(stage.asked)
            stage.clock.now += pause_s - 0.01
            with pytest.raises(ReviewUnavailable) as caught:
                await stage.review()
            assert caught.value.retry_after_s == 1
            assert len(stage.asked) == asked
            stage.clock.now += 0.02
        stage.says = POD
        assert await stage.review() == POD
        stage.clock.now += 600
        stage.away()
        with pytest.raises(ReviewUnavailable):
            await stage.review("other")
        stage.clock.now += 1.01
        stage.says = POD
        assert await stage.review("other") == POD

    run(scenario)


def test_the_apiservers_wish_to_be_left_alone_is_kept_and_passed_on():
    async def scenario():
        stage = Stage()
        stage.away(retry_after_s=20)
        with pytest.raises(ReviewUnavailable) as caught:
            await stage.review()
        assert caught.value.retry_after_s == 20
        stage.says = POD
        stage.clock.now += 15
        with pytest.raises(ReviewUnavailable) as caught:
            await stage.review()
        assert caught.value.retry_after_s == 5
        stage.clock.now += 5
        assert await stage.review() == POD

    run(scenario)


def test_a_fault_is_not_remembered_as_a_refusal():
    async def scenario():
        stage = Stage()
        stage.away()
        with pytest.raises(ReviewUnavailable):
            await stage.review()
        stage.clock.now += 2
        stage.says = POD
        assert await stage.review() == POD

    run(scenario)


def test_what_the_local_check_refuses_is_neither_asked_nor_remembered():
    async def scenario():
        async def check(_):
            return Refusal("forged")

        stage = Stage(precheck=check)
        for number in range(100):
            with pytest.raises(Unauthenticated, match="forged"):
                await stage.review(str(number))
        assert not stage.asked
        assert repr(stage.reviewer) == "<TokenReviewer: 0 remembered, 0 in flight>"

    run(scenario)


@pytest.mark.parametrize("token", ["", "x", "." * 9999, "\x00\xff", "\udcff", "é" * 100])
def test_odd_tokens_are_just_tokens(token):
    async def scenario():
        stage = Stage()
        stage.says = Refusal("no")
        with pytest.raises(Unauthenticated):
            await stage.review(token)

    run(scenario)


def test_a_huge_token_is_not_even_hashed():
    async def scenario():
        stage = Stage()
        with pytest.raises(Unauthenticated):
            await stage.review("x" * (TOKEN_MAX_BYTES + 1))
        assert not stage.asked

    run(scenario)


def test_closing_answers_who_waits():
    async def scenario():
        stage = Stage()
        stage.gate = asyncio.Event()
        waiting = asyncio.create_task(stage.review())
        await asyncio.sleep(0.01)
        await stage.reviewer.close()
        with pytest.raises(ReviewUnavailable, match="stopping"):
            await waiting

    run(scenario)


def test_tokens_are_in_no_log_error_or_state(caplog):
    caplog.set_level(logging.DEBUG)
    secret = SIGNER.sign(make_claims("issuer"))

    async def scenario():
        async with FakeApiserver() as fake, KubeApi(fake.config) as api:
            checked = TokenReviewer(
                ApiReview(api, audience="scs"), precheck=KeyCheck(api, "scs").check
            )
            unchecked = TokenReviewer(ApiReview(api, audience="scs"))
            for reviewer in (checked, unchecked):
                with pytest.raises(Unauthenticated) as refused:
                    await reviewer.review(secret)
                assert secret not in str(refused.value)
            fake.answer_next("/tokenreviews", lambda: web.Response(text=secret, status=500))
            with pytest.raises(ReviewUnavailable) as away:
                await unchecked.review(secret + "A")
            assert secret not in str(away.value)
            for part in secret.split("."):
                assert part not in repr(vars(unchecked))

    run(scenario)
    assert secret.split(".")[2] not in caplog.text


class CutAnswer(web.StreamResponse):
    async def prepare(self, request):
        self.content_length = 1000
        await super().prepare(request)
        await self.write(b'{"kind": "TokenReview", "status": {"authenticated": true')
        request.transport.abort()


LIES = {
    "not json": web.Response,
    "cut": CutAnswer,
    "wrong kind": lambda: web.json_response({"kind": "Status", "status": "Success"}),
    "no status": lambda: web.json_response({"kind": "TokenReview", "spec": {"token": "t"}}),
    "another token's": lambda: web.json_response(
        {"kind": "TokenReview", "spec": {"token": "u"}, "status": {"authenticated": True}}
    ),
    "huge": lambda: web.Response(body=b"x" * (5 << 20)),
    "error": lambda: web.json_response({"message": "boom"}, status=500),
    "forbidden": lambda: web.json_response({"message": "rbac"}, status=403),
    "redirect": lambda: web.Response(status=307, headers={"Location": "/elsewhere"}),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_an_answer_that_lies_lets_nobody_in_and_is_not_remembered(lie):
    async def scenario():
        async with FakeApiserver() as fake, KubeApi(fake.config) as api:
            reviewer = TokenReviewer(ApiReview(api, audience="scs"))
            fake.answer_next("/tokenreviews", lie)
            fake.answer_next("/tokenreviews", lie)
            with pytest.raises(ReviewUnavailable):
                await reviewer.review("t")
            assert repr(reviewer).startswith("<TokenReviewer: 0 remembered")

    run(scenario)


def test_429_is_passed_on_with_its_wait():
    async def scenario():
        async with FakeApiserver() as fake, KubeApi(fake.config) as api:
            busy = lambda: web.json_response({}, status=429, headers={"Retry-After": "7"})  # noqa: E731
            fake.answer_next("/tokenreviews", busy)
            with pytest.raises(ReviewUnavailable) as caught:
                await ApiReview(api, audience="scs")("t")
            assert caught.value.retry_after_s == 7

    run(scenario)


# -- keys ------------------------------------------------------------------------------------


class KeyStage:
    def __init__(self, fake: FakeApiserver, api: KubeApi) -> None:
        self.fake = fake
        self.clock = Clock()
        self.check = KeyCheck(api, "scs", clock=self.clock, wall_clock=lambda: 1.8e9)

    def token(self, signer: Signer, **claims) -> str:
        return signer.sign(make_claims("https://fake.test", now=1.8e9) | claims)

    def reads(self) -> int:
        return self.fake.count_calls("GET", KEYS_PATH)


def with_keys(scenario):
    async def act():
        async with FakeApiserver() as fake, KubeApi(fake.config) as api:
            stage = KeyStage(fake, api)
            await scenario(stage)
            await stage.check.close()

    asyncio.run(act())


def test_keys_are_read_once_for_many_tokens():
    async def scenario(stage: KeyStage):
        tokens = [stage.token(stage.fake.signers[0], jti=str(number)) for number in range(20)]
        checked = await asyncio.gather(*(stage.check.check(token) for token in tokens))
        assert not any(isinstance(result, Refusal) for result in checked)
        assert stage.reads() == 1

    with_keys(scenario)


def test_a_rotated_key_is_found_at_once_and_made_up_ones_are_not_looked_for():
    async def scenario(stage: KeyStage):
        await stage.check.check(stage.token(stage.fake.signers[0]))
        new = Signer(make_rsa(), "key-2")
        stage.fake.signers.append(new)
        stage.clock.now += REFETCH_S
        assert not isinstance(await stage.check.check(stage.token(new)), Refusal)
        assert stage.reads() == 2
        for number in range(200):
            made_up = stage.token(Signer(new.key, f"made-up-{number}"))
            assert isinstance(await stage.check.check(made_up), Refusal)
        assert stage.reads() == 2
        stage.clock.now += REFETCH_S
        for number in range(200):
            await stage.check.check(stage.token(Signer(new.key, f"made-up-{number}")))
        assert stage.reads() == 3

    with_keys(scenario)


def test_a_withdrawn_key_goes_with_the_next_refresh():
    async def scenario(stage: KeyStage):
        old = stage.fake.signers[0]
        await stage.check.check(stage.token(old))
        stage.fake.signers = [Signer(make_rsa(), "key-2")]
        stage.clock.now += REFRESH_S
        await stage.check.check(stage.token(old))  # starts the refresh, waits for nothing
        await asyncio.gather(stage.check._fetching)
        assert isinstance(await stage.check.check(stage.token(old)), Refusal)

    with_keys(scenario)


def test_keys_outlast_an_outage_but_do_not_begin_in_one():
    async def scenario(stage: KeyStage):
        token = stage.token(stage.fake.signers[0])
        await stage.fake.stop()
        for _ in range(5):
            with pytest.raises(ReviewUnavailable, match="keys cannot be read"):
                await stage.check.check(token)
        assert stage.check.fetches_total == 1
        await stage.fake.start()
        stage.clock.now += 1
        assert not isinstance(await stage.check.check(token), Refusal)
        await stage.fake.stop()
        stage.clock.now += 10 * REFRESH_S
        assert not isinstance(await stage.check.check(token), Refusal)

    with_keys(scenario)


@pytest.mark.parametrize("answer", [web.Response, lambda: web.json_response({"keys": []})])
def test_keys_that_make_no_sense_do_not_replace_good_ones(answer):
    async def scenario(stage: KeyStage):
        token = stage.token(stage.fake.signers[0])
        await stage.check.check(token)
        stage.clock.now += REFRESH_S
        stage.fake.answer_next(KEYS_PATH, answer)
        await stage.check.check(token)
        await asyncio.gather(stage.check._fetching)
        assert not isinstance(await stage.check.check(token), Refusal)

    with_keys(scenario)
