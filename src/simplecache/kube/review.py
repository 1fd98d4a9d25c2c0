"""Whose token is this? Kubernetes' TokenReview, asked as seldom as safety allows.

A request's token goes through up to four steps, each cheaper than the next:

1. **Remembered?** Reviews count for a while (``Ttl``), never past the token's own end.
2. **Forged?** The local check against the cluster's public keys. What it refuses is not remembered:
   checking again costs less than an entry, and garbage must not push anything out.
3. **Asked already?** Requests with the same token share one review.
4. **The review** itself, a bounded number at a time.

A caller in use is reviewed again ahead of time, so that nobody waits. When no review can be had, a
caller seen before may get in for ``Ttl.stale_s``; everybody else gets :class:`ReviewUnavailable`:
doubt never lets anyone in. After a failure, or when the apiserver asks for it, nothing is asked for
a moment and requests get their answer at once: waiting would cost a training job more than a miss.

Tokens are kept nowhere: what is remembered stands under an HMAC of the token, whose key is drawn
when the process starts.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import random
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from simplecache.errors import ApiFault, Malformed, ReviewUnavailable, Unauthenticated
from simplecache.kube.judge import Outcome, judge
from simplecache.kube.tokens import TOKEN_MAX_BYTES, Token, parse_token
from simplecache.kube.verdicts import DEFAULT_TTL, Refusal, Ttl, Verdicts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from simplecache.kube.api import KubeApi
    from simplecache.model import Caller

REVIEW_PATH: Final = "/apis/authentication.k8s.io/v1/tokenreviews"

REVIEW_TIMEOUT_S: Final = 10.0
"""A review may take this long and still be remembered."""

_log = logging.getLogger(__name__)


class ApiReview:
    """Asks the apiserver about one token.

    Args:
        api: who to ask. Our own service account needs ``create`` on ``tokenreviews``.
        audience: see :func:`judge`.
        require_pod_bound: see :func:`judge`.
    """

    def __init__(self, api: KubeApi, *, audience: str, require_pod_bound: bool = True) -> None:
        self._api = api
        self._audience = audience
        self._require_pod_bound = require_pod_bound

    async def __call__(self, token: str) -> Outcome:
        """The apiserver's word on a token.

        Raises:
            ReviewUnavailable: there is none, or it makes no sense.
        """
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = await self._api.call(
                "POST", REVIEW_PATH, body, timeout_s=REVIEW_TIMEOUT_S, repeatable=True
            )
            return judge(
                _status_of(answer, token),
                audience=self._audience,
                require_pod_bound=self._require_pod_bound,
            )
        except ApiFault as fault:
            raise _unavailable(str(fault), fault.retry_after_s or 1) from fault
        except Malformed as fault:
            raise _unavailable(f"POST {REVIEW_PATH}: {fault}") from fault


def _status_of(answer: dict[str, Any], token: str) -> object:
    """The status of a review, once it is sure that it speaks of this token."""
    spec = answer.get("spec")  # the question, which the apiserver sends back
    if (
        answer.get("kind") != "TokenReview"
        or not isinstance(spec, dict)
        or spec.get("token") != token
    ):
        raise Malformed("the answer is not a review of this token")
    return answer.get("status")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on work and waiting."""

    in_flight: int = 16
    """Reviews at the same time. An apiserver's priority and fairness gives all unprivileged service
    accounts some tens of seats together."""

    queued: int = 1024
    """Tokens that wait for their review; more get the answer that none can be had."""

    wait_s: float = 2.5
    """How long a request waits for a review. PFIO gives up after 3 s of silence."""

    stale_wait_s: float = 0.5
    """How long a request waits that could be answered from an old review."""

    pause_s: float = 1.0
    """After a failure nothing is asked for so long, and after each further one twice as long."""

    pause_max_s: float = 8.0
    """So long at most may recovery go unnoticed."""


@dataclass(slots=True)
class Counts:
    """What happened, for metrics. Each request counts once, in the first five."""

    remembered: int = 0
    forged: int = 0
    reviewed: int = 0
    stale: int = 0
    unavailable: int = 0
    asked: int = 0
    """Reviews that were asked for, ahead of time or not."""


class TokenReviewer:
    """Finds the caller behind a token. One event loop owns it.

    Args:
        ask: reviews one token; :class:`ApiReview` or another node that does it for all.
        precheck: the local check, :meth:`KeyCheck.check`. None: there is none.
        ttl: how long reviews count.
        limits: bounds.
        clock: monotonic seconds.
        wall_clock: seconds since the epoch, for the tokens' ends.
    """

    def __init__(  # noqa: PLR0913  only the first argument has no default
        self,
        ask: Callable[[str], Awaitable[Outcome]],
        *,
        precheck: Callable[[str], Awaitable[Token | Refusal]] | None = None,
        ttl: Ttl = DEFAULT_TTL,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._ask = ask
        self._precheck = precheck
        self._limits = limits
        self._clock = clock
        self._wall_clock = wall_clock
        self._verdicts = Verdicts(ttl)
        self._secret = secrets.token_bytes(32)
        self._flights: dict[bytes, asyncio.Task[Outcome]] = {}
        self._seats = asyncio.Semaphore(limits.in_flight)
        self._paused_until = float("-inf")
        self._pause_reason = ""
        self._next_pause_s = limits.pause_s
        self.counts = Counts()

    def __repr__(self) -> str:
        return f"<TokenReviewer: {len(self._verdicts)} remembered, {len(self._flights)} in flight>"

    async def review(self, token: str) -> Caller:
        """The caller whose token this is.

        Raises:
            Unauthenticated: the token is not good; the text says why.
            ReviewUnavailable: whether it is good cannot be found out now.
        """
        if len(token) > TOKEN_MAX_BYTES:
            self.counts.forged += 1
            raise Unauthenticated(f"the token has more than {TOKEN_MAX_BYTES} bytes")
        key = hmac.digest(self._secret, token.encode("utf-8", "surrogatepass"), hashlib.sha256)
        now = self._clock()
        seen = self._verdicts.caller(key, now)
        if seen is not None and now < seen.fresh_until:
            self.counts.remembered += 1
            if now >= seen.ahead_at and self._can_ask(now):
                self._fly(key, token, self._end_of(token))
            return seen.caller
        refusal = self._verdicts.refusal(key, now)
        if refusal is not None:
            self.counts.remembered += 1
            raise Unauthenticated(refusal.reason)
        try:
            wait_s = self._limits.wait_s if seen is None else self._limits.stale_wait_s
            outcome = await self._look(key, token, wait_s)
        except ReviewUnavailable:
            if seen is None or self._clock() >= seen.stale_until:
                self.counts.unavailable += 1
                raise
            self.counts.stale += 1
            return seen.caller
        if isinstance(outcome, Refusal):
            raise Unauthenticated(outcome.reason)
        return outcome

    async def close(self) -> None:
        """End the reviews that run; requests that wait for them get ReviewUnavailable."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _look(self, key: bytes, token: str, wait_s: float) -> Outcome:
        """Check and review a token that is not remembered."""
        if self._precheck is None:
            expires_at = self._end_of(token)
        else:
            checked = await self._precheck(token)
            if isinstance(checked, Refusal):
                self.counts.forged += 1
                return checked
            expires_at = self._on_our_clock(checked.expires_at)
        now = self._clock()
        if key not in self._flights:
            if now < self._paused_until:
                raise _unavailable(self._pause_reason, self._paused_until - now)
            if len(self._flights) >= self._limits.queued:
                raise _unavailable("too many tokens wait for their review")
        flight = self._fly(key, token, expires_at)
        done, _ = await asyncio.wait({flight}, timeout=wait_s)
        if not done:
            raise _unavailable(f"no review within {wait_s:g} s")
        if flight.cancelled():
            raise _unavailable("this node is stopping")
        outcome = flight.result()
        self.counts.reviewed += 1
        return outcome

    def _can_ask(self, now: float) -> bool:
        return now >= self._paused_until and len(self._flights) < self._limits.queued

    def _fly(self, key: bytes, token: str, expires_at: float | None) -> asyncio.Task[Outcome]:
        """The one review of this token that runs, or is started now."""
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._review(key, token, expires_at))
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._land(key, done))
        return flight

    def _land(self, key: bytes, flight: asyncio.Task[Outcome]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # seen: of a review ahead of time nobody else looks at it

    async def _review(self, key: bytes, token: str, expires_at: float | None) -> Outcome:
        async with self._seats:
            now = self._clock()
            if now < self._paused_until:  # while this one stood in the queue
                raise _unavailable(self._pause_reason, self._paused_until - now)
            self.counts.asked += 1
            try:
                outcome = await self._ask(token)
            except ReviewUnavailable as fault:
                self._pause(fault)
                raise
            self._next_pause_s = self._limits.pause_s
        luck = random.random()  # noqa: S311  spreads load, guards nothing
        self._verdicts.record(key, outcome, now, expires_at=expires_at, luck=luck)
        return outcome

    def _pause(self, fault: ReviewUnavailable) -> None:
        now = self._clock()
        if now < self._paused_until:  # another review failed a moment ago
            return
        pause_s = max(self._next_pause_s, fault.retry_after_s)
        self._next_pause_s = min(self._next_pause_s * 2, self._limits.pause_max_s)
        self._paused_until = now + pause_s
        self._pause_reason = str(fault)
        _log.warning("no token reviews for %.0f s: %s", pause_s, fault)

    def _end_of(self, token: str) -> float | None:
        """When a token ends that is trusted or about to be reviewed, on our own clock."""
        try:
            return self._on_our_clock(parse_token(token).expires_at)
        except Malformed:  # an authenticator other than Kubernetes' own may know such tokens
            return None

    def _on_our_clock(self, epoch_s: float | None) -> float | None:
        return None if epoch_s is None else self._clock() + epoch_s - self._wall_clock()


def _unavailable(text: str, retry_after_s: float = 1.0) -> ReviewUnavailable:
    error = ReviewUnavailable(text)
    error.retry_after_s = max(1, round(retry_after_s))
    return error
