"""Mode ``kubernetes``: callers are pods, known by their bound service-account tokens.

Two reviewers stand behind each other. The outer one remembers verdicts for the requests of this
shard and checks tokens against the cluster's keys; what it does not know it asks the token's home
(``peers.py``). The inner one is the home's side: it asks the apiserver, for itself and its peers.

A verdict may count for 60 s in all, for that is how long a deleted pod can still get in: its time
is divided between the home, the shard, and the hot way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from simplecache.errors import InvalidConfig, Malformed, ReviewUnavailable, Unauthenticated
from simplecache.kube.api import KubeApi
from simplecache.kube.config import from_kubeconfig, in_cluster
from simplecache.kube.judge import Outcome
from simplecache.kube.jwks import KeyCheck
from simplecache.kube.review import ApiReview, TokenReviewer
from simplecache.kube.tokens import parse_token
from simplecache.kube.verdicts import Refusal, Ttl
from simplecache.model import Caller
from simplecache.server.authenticate import Count, bearer_token
from simplecache.server.peers import Peers

KNOWN_S: Final = 5.0
"""The hot way takes a caller for granted for so long; then the reviewer is asked, mostly without
waiting."""
TTL: Final = Ttl(good_s=27, bad_s=5, stale_s=300)
"""At the home and at each shard. Twice that, ``KNOWN_S`` and a tick make 60 s."""
KNOWN_MAX: Final = 32_768
PEER_KEY_BYTES: Final = (16, 4096)


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """What mode ``kubernetes`` needs to know."""

    audience: str = "scs"
    kubeconfig: str | None = None
    """None: the pod's own service account."""
    control_plane: str | None = None
    """Whose directory names the peers; None: this shard reviews all it meets."""
    peer_key: str | None = None
    """A file; its content is shared by all nodes."""
    require_pod_bound: bool = True

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> KubernetesSettings:
        """From what the supervisor sends."""
        return cls(**document)


class KubernetesAuthenticator:
    """Tells pods by their tokens: an ``Authenticator``."""

    def __init__(self, settings: KubernetesSettings, own_name: str) -> None:
        """Nothing is asked before :meth:`start`.

        Raises:
            InvalidConfig: no apiserver is configured, or the peer key cannot be used.
        """
        config = (
            from_kubeconfig(Path(settings.kubeconfig))
            if settings.kubeconfig
            else in_cluster(os.environ)
        )
        self._api = KubeApi(config)
        self._keys = KeyCheck(self._api, settings.audience)
        ask = ApiReview(
            self._api,
            audience=settings.audience,
            require_pod_bound=settings.require_pod_bound,
        )
        self.peers = Peers(own_name, settings.control_plane, _read_key(settings.peer_key))
        self.home = TokenReviewer(ask, precheck=self._keys.check, ttl=TTL)
        self.reviewer = TokenReviewer(self._ask_home, precheck=self._keys.check, ttl=TTL)
        self._known: dict[bytes, tuple[Caller, float]] = {}

    async def start(self) -> None:
        """Begin to follow the peers."""
        await self.peers.start()

    async def close(self) -> None:
        """End reviews and connections."""
        await self.reviewer.close()
        await self.home.close()
        await self.peers.close()
        await self._keys.close()
        await self._api.close()

    def known(self, authorization: bytes) -> Caller | None:
        """A caller whose token was found good a moment ago."""
        caller, until = self._known.get(authorization, (None, 0.0))
        return caller if time.monotonic() < until else None

    async def authenticate(self, authorization: bytes | None) -> Caller | None:
        """The pod behind a token; None when none was sent.

        Raises:
            Unauthenticated: the token is not good.
            ReviewUnavailable: that cannot be found out now.
        """
        if authorization is None:
            return None
        token = bearer_token(authorization).decode("latin-1")
        caller = await self.reviewer.review(token)
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        known_s = min(KNOWN_S, _left_s(token))
        self._known[authorization] = caller, time.monotonic() + known_s
        return caller

    async def answer_peer(self, body: bytes) -> bytes:
        """The answer to another shard that asks about a token whose home is here."""
        return await self.peers.answer(body, self.home.review)

    def counts(self) -> Iterable[Count]:
        """Of this shard's own callers, and of what it asked others for them."""
        counts = self.reviewer.counts
        for outcome in ("remembered", "forged", "reviewed", "stale", "unavailable"):
            yield "scs_reviews_total", {"outcome": outcome}, getattr(counts, outcome)
        yield "scs_apiserver_reviews_total", {}, self.home.counts.asked
        yield "scs_peer_asks_total", {}, self.peers.asked
        yield "scs_peer_failures_total", {}, self.peers.failed

    async def _ask_home(self, token: str) -> Outcome:
        home = self.peers.home(token)
        if home is not None:
            try:
                return await self.peers.ask(home, token)
            except (OSError, ValueError, ReviewUnavailable):
                pass  # then by ourselves: a home that is down must lock nobody out
        try:
            return await self.home.review(token)
        except Unauthenticated as error:
            return Refusal(str(error))


def _left_s(token: str) -> float:
    """Seconds until a token's own end."""
    try:
        end = parse_token(token).expires_at
    except Malformed:  # then it tells none
        end = None
    return float("inf") if end is None else end - time.time()


def _read_key(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise InvalidConfig(f"--peer-key: {path}: {error.strerror}") from error
    least, most = PEER_KEY_BYTES
    if not least <= len(key) <= most:
        raise InvalidConfig(f"--peer-key: {path} has {len(key)} bytes; expected {least} to {most}")
    return key
