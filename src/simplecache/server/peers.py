"""The other shards, and which of them reviews a token for all.

Every client reaches every node, so without this each node would ask the apiserver about each token.
Instead a token has a *home*: one shard, found by rendezvous hashing on a keyed hash of the token,
which asks for all. The list of shards comes from the control plane's directory; without one, or
when the home does not answer, a shard asks by itself.

Rendezvous instead of Envoy's Maglev: nobody else has to find the home, so no table must be built,
and one review in a minute may well look at each shard's name.

What goes between shards is signed with a key that all nodes share: without it a question cannot be
asked and an answer cannot be given.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import aiohttp
from xxhash import xxh64_intdigest

from simplecache.errors import ReviewUnavailable, Unauthenticated
from simplecache.kube.judge import Outcome
from simplecache.kube.verdicts import Refusal
from simplecache.model import Caller

log = logging.getLogger(__name__)

REVIEW_PATH: Final = "/v1/review"
ASK_TIMEOUT_S: Final = 1.0
"""A request waits 2.5 s for its review in all: there must be time to ask the apiserver instead."""
POLL_S: Final = 5.0
DIRECTORY_MAX_BYTES: Final = 64 << 20
QUESTION_MAX_BYTES: Final = 32 << 10


class Peer(NamedTuple):
    """A shard of the cluster."""

    name: str
    address: str
    port: int


class Peers:
    """Knows the shards, asks them, and answers them. One event loop owns it."""

    def __init__(self, own_name: str, control_plane: str | None, key: bytes | None) -> None:
        """Without ``control_plane`` or ``key`` there are no peers: every token is at home here."""
        self._own_name = own_name
        self._url = control_plane
        self._key = key
        self._peers: tuple[Peer, ...] = ()
        self._etag = ""
        self._session: aiohttp.ClientSession | None = None
        self._polling: asyncio.Task[None] | None = None
        self.asked = 0
        self.failed = 0
        """Questions to homes, and those that had no answer."""

    async def start(self) -> None:
        """Begin to follow the directory."""
        if self._url is not None and self._key is not None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=5), connector=aiohttp.TCPConnector(limit=64)
            )
            self._polling = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following; close connections."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def home(self, token: str) -> Peer | None:
        """The shard that reviews ``token``; None when that is this one."""
        if not self._peers or self._key is None:
            return None
        mark = hmac.digest(self._key, b"home" + token.encode(), "sha256")
        home = max(self._peers, key=lambda peer: xxh64_intdigest(mark + peer.name.encode()))
        return None if home.name == self._own_name else home

    async def ask(self, home: Peer, token: str) -> Outcome:
        """The home's verdict.

        Raises:
            ReviewUnavailable: it has none.
            OSError, TimeoutError, ValueError: it does not answer, or not as a peer does.
        """
        assert self._session is not None
        assert self._key is not None
        self.asked += 1
        nonce = secrets.token_hex(16)
        host = f"[{home.address}]" if ":" in home.address else home.address
        try:
            async with (
                asyncio.timeout(ASK_TIMEOUT_S),
                self._session.post(
                    f"http://{host}:{home.port}{REVIEW_PATH}",
                    data=_seal(self._key, "ask", {"token": token, "nonce": nonce}),
                    allow_redirects=False,
                ) as answer,
            ):
                if answer.status != 200:
                    raise ReviewUnavailable(f"shard {home.name} answers {answer.status}")
                body = await answer.content.read(QUESTION_MAX_BYTES)
        except aiohttp.ClientError as error:
            self.failed += 1
            raise OSError(str(error)) from error
        except (TimeoutError, ReviewUnavailable):
            self.failed += 1
            raise
        said = _unseal(self._key, "answer", body)
        if said.get("nonce") != nonce:
            raise ValueError("the answer is to another question")
        if "refused" in said:
            return Refusal(str(said["refused"]))
        return Caller(str(said["namespace"]), said.get("pod"))

    async def answer(self, body: bytes, review: Callable[[str], Awaitable[Caller]]) -> bytes:
        """The answer to a peer's question.

        Raises:
            Unauthenticated: whoever asks is no peer.
            ReviewUnavailable: there is no verdict.
        """
        if self._key is None:
            raise Unauthenticated("this node has no peers")
        try:
            question = _unseal(self._key, "ask", body)
        except ValueError as error:
            raise Unauthenticated(f"not a peer's question: {error}") from error
        said: dict[str, Any] = {"nonce": question["nonce"]}
        try:
            caller = await review(str(question["token"]))
        except Unauthenticated as error:
            said["refused"] = str(error)
        else:
            said |= {"namespace": caller.namespace, "pod": caller.pod}
        return _seal(self._key, "answer", said)

    async def _follow(self) -> None:
        while True:
            try:
                await self._poll()
            except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
                log.warning("the directory of shards stays as it is: %s", error)
            await asyncio.sleep(POLL_S * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load

    async def _poll(self) -> None:
        assert self._session is not None
        headers = {"If-None-Match": self._etag} if self._etag else {}
        async with self._session.get(f"{self._url}/v1/endpoints", headers=headers) as answer:
            if answer.status != 200:
                return  # 304: nothing new; anything else: what is known stays
            document = json.loads(await answer.content.read(DIRECTORY_MAX_BYTES))
            self._peers = tuple(
                Peer(shard["name"], shard["address"], shard["port"]) for shard in document["shards"]
            )
            self._etag = answer.headers.get("ETag", "")


def _seal(key: bytes, purpose: str, content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True)
    mac = hmac.new(key, f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()
    return json.dumps({"content": text, "mac": mac}).encode()


def _unseal(key: bytes, purpose: str, body: bytes) -> dict[str, Any]:
    """What a peer has sealed for this purpose.

    Raises:
        ValueError: nobody with the key did.
    """
    sealed = json.loads(body)
    if not isinstance(sealed, dict) or not isinstance(sealed.get("content"), str):
        raise ValueError("not a sealed message")  # noqa: TRY004 - of the bytes, not the type
    text = sealed["content"]
    mac = hmac.new(key, f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(mac, str(sealed.get("mac"))):
        raise ValueError("the seal is not a peer's")
    content: dict[str, Any] = json.loads(text)
    return content
