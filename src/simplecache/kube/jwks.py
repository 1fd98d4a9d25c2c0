"""The check that spares the apiserver forged tokens: against the cluster's own public keys.

The apiserver publishes its issuer's name and keys; each service account may read them. They are
read again every ``REFRESH_S``, and when a token names a key that is not known (the cluster may have
rotated) at most every ``REFETCH_S``: forged tokens with made-up key ids cause no more than that.
Keys once read stay in use while the apiserver is away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from simplecache.errors import ApiFault, Malformed, ReviewUnavailable
from simplecache.kube.tokens import Demands, Key, Token, check_token, parse_keys, parse_token
from simplecache.kube.verdicts import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from simplecache.kube.api import KubeApi

DISCOVERY_PATH: Final = "/.well-known/openid-configuration"
KEYS_PATH: Final = "/openid/v1/jwks"
REFRESH_S: Final = 300.0
REFETCH_S: Final = 10.0
RETRY_S: Final = 1.0
"""While there are no keys at all, every token waits for them."""

FETCH_TIMEOUT_S: Final = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Known:
    keys: Mapping[str, Key]
    demands: Demands
    read_at: float


class KeyCheck:
    """Checks tokens locally. One event loop owns it.

    Args:
        api: whose keys to use.
        audience: for whom tokens must be.
        clock: monotonic seconds.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        api: KubeApi,
        audience: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._audience = audience
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: _Known | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._tried_at = float("-inf")
        self._fault = ""
        self.fetches_total = 0

    def __repr__(self) -> str:
        keys = len(self._known.keys) if self._known else "no"
        return f"<KeyCheck with {keys} keys of {self._api.config.server}>"

    async def check(self, text: str) -> Token | Refusal:
        """The token taken apart and verified, or why it is not good.

        Raises:
            ReviewUnavailable: the cluster's keys cannot be read.
        """
        try:
            token = parse_token(text)
        except Malformed as error:
            return Refusal(str(error))
        known = await self._keys_for(token.key_id)
        return check_token(token, known.keys, known.demands, self._wall_clock()) or token

    async def close(self) -> None:
        """End a fetch that runs."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    async def _keys_for(self, key_id: str) -> _Known:
        """The keys, read anew first if that may bring this one."""
        known = self._known
        if known is None or key_id not in known.keys:
            fetch = self._fetch(REFETCH_S if known else RETRY_S)
            if fetch is not None:
                await asyncio.shield(fetch)  # others may wait for it too
        elif self._clock() - known.read_at >= REFRESH_S:
            self._fetch(REFETCH_S)
        if self._known is None:
            raise ReviewUnavailable(f"the cluster's token keys cannot be read: {self._fault}")
        return self._known

    def _fetch(self, apart_s: float) -> asyncio.Task[None] | None:
        """The fetch that runs or is started now; None if the last one was too short a time ago."""
        if self._fetching is not None and not self._fetching.done():
            return self._fetching
        now = self._clock()
        if now - self._tried_at < apart_s:
            return None
        self._tried_at = now
        self._fetching = asyncio.create_task(self._read())
        return self._fetching

    async def _read(self) -> None:
        self.fetches_total += 1
        now = self._clock()
        try:
            discovery = await self._api.get(DISCOVERY_PATH, timeout_s=FETCH_TIMEOUT_S)
            document = await self._api.get(KEYS_PATH, timeout_s=FETCH_TIMEOUT_S)
            self._known = _Known(
                parse_keys(document), Demands(_issuer_of(discovery), self._audience), now
            )
        except (ApiFault, Malformed) as error:
            self._fault = str(error)
            _log.warning("token keys not read: %s", error)


def _issuer_of(discovery: Mapping[str, Any]) -> str:
    issuer = discovery.get("issuer")
    if not isinstance(issuer, str) or not issuer:
        raise Malformed("the apiserver names no issuer")
    return issuer
