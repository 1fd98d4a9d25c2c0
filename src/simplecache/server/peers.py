"""The other shards, and which of them reviews a token for all.

Every client reaches every node, so without this each node would ask the apiserver about each token.
Instead a token has a *home*: one shard, found by rendezvous hashing on a keyed hash of the token,
which asks for all. The list of shards comes from the control plane's directory; without one, or
when the home does not answer, a shard asks by itself.

Rendezvous instead of Envoy's Maglev: nobody else has to find the home, so no table must be built,
and one review in half a minute may well look at each shard's name.

What goes between shards is sealed with a key that all nodes share: without it a question cannot be
asked and an answer cannot be given. A nonce ties an answer to its question. The seal is no
encryption: the token itself travels as openly as it came.
"""

from __future__ import annotations

import asyncio
import contextlib
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
POLL_S: Final = 15.0
"""A list that is a little old only costs reviews: two shards may see the home differently."""
POLL_FIRST_S: Final = 0.5
"""At a shard's start, for others start, too; doubled each time. Also the least pause before the
list is read again because a home was not found."""
DIRECTORY_TIMEOUT_S: Final = 5.0
DIRECTORY_MAX_BYTES: Final = 64 << 20
ANSWER_MAX_BYTES: Final = 32 << 10


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
        self._in_doubt = asyncio.Event()
        """A home was not found where the list says."""
        self.asked = 0
        self.failed = 0
        """Questions to homes, and those that had no answer."""

    def __repr__(self) -> str:
        return f"<Peers of {self._own_name}: {len(self._peers)} shards>"

    async def start(self) -> None:
        """Begin to follow the directory."""
        if self._url is not None and self._key is not None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=DIRECTORY_TIMEOUT_S),
                connector=aiohttp.TCPConnector(limit=64),
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
            OSError, ValueError: it does not answer, or not as a peer does.
        """
        self.asked += 1
        try:
            return await self._ask(home, token)
        except aiohttp.ClientError as error:
            self.failed += 1
            self._in_doubt.set()
            raise OSError(str(error)) from error
        except (OSError, ValueError, ReviewUnavailable):  # TimeoutError is an OSError
            self.failed += 1
            raise

    async def _ask(self, home: Peer, token: str) -> Outcome:
        assert self._session is not None
        assert self._key is not None
        nonce = secrets.token_hex(16)
        host = f"[{home.address}]" if ":" in home.address else home.address
        async with (
            asyncio.timeout(ASK_TIMEOUT_S),
            self._session.post(
                f"http://{host}:{home.port}{REVIEW_PATH}",
                data=seal(self._key, "ask", {"token": token, "nonce": nonce}),
                allow_redirects=False,
            ) as answer,
        ):
            if answer.status != 200:
                raise ReviewUnavailable(f"shard {home.name} answers {answer.status}")
            body = await _read(answer, ANSWER_MAX_BYTES)
        match unseal(self._key, "answer", body):
            case {"nonce": other} if other != nonce:
                raise ValueError("the answer is to another question")
            case {"nonce": _, "refused": str(reason)}:
                return Refusal(reason)
            case {"nonce": _, "namespace": str(namespace), "pod": str() | None as pod}:
                return Caller(namespace, pod)
        raise ValueError("the answer is no verdict")

    async def answer(self, body: bytes, review: Callable[[str], Awaitable[Caller]]) -> bytes:
        """The answer to a peer's question.

        Raises:
            Unauthenticated: whoever asks is no peer.
            ReviewUnavailable: there is no verdict.
        """
        if self._key is None:
            raise Unauthenticated("this node has no peers")
        try:
            question = unseal(self._key, "ask", body)
        except ValueError as error:
            raise Unauthenticated(f"not a peer's question: {error}") from error
        said: dict[str, Any] = {"nonce": question.get("nonce")}
        try:
            caller = await review(str(question.get("token")))
        except Unauthenticated as error:
            said["refused"] = str(error)
        else:
            said |= {"namespace": caller.namespace, "pod": caller.pod}
        return seal(self._key, "answer", said)

    async def _follow(self) -> None:
        is_first_fault, pause_s = True, POLL_FIRST_S
        while True:
            self._in_doubt.clear()
            try:
                await self._poll()
            except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
                if self._peers or is_first_fault:
                    log.warning("the directory of shards stays as it is: %s", error)
                is_first_fault = False
            await asyncio.sleep(POLL_FIRST_S)
            wait_s = (pause_s - POLL_FIRST_S) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._in_doubt.wait()
            pause_s = min(POLL_S, 2 * pause_s) if self._peers else POLL_FIRST_S

    async def _poll(self) -> None:
        assert self._session is not None
        headers = {"If-None-Match": self._etag} if self._etag else {}
        async with self._session.get(f"{self._url}/v1/endpoints", headers=headers) as answer:
            if answer.status != 200:
                return  # 304: nothing new; anything else: what is known stays
            document = json.loads(await _read(answer, DIRECTORY_MAX_BYTES))
            self._peers = tuple(
                Peer(str(shard["name"]), str(shard["address"]), int(shard["port"]))
                for shard in document["shards"]
            )
            self._etag = answer.headers.get("ETag", "")


async def _read(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body.

    Raises:
        ValueError: it has more than ``limit`` bytes.
    """
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > limit:
            raise ValueError(f"an answer of more than {limit} bytes")
    return bytes(body)


def seal(key: bytes, purpose: str, content: dict[str, Any]) -> bytes:
    """A message that only holders of the key can make, for one purpose."""
    text = json.dumps(content, sort_keys=True)
    return json.dumps({"content": text, "mac": _mac(key, purpose, text)}).encode()


def unseal(key: bytes, purpose: str, body: bytes) -> dict[str, Any]:
    """What a peer has sealed for this purpose.

    Raises:
        ValueError: nobody with the key did.
    """
    try:
        sealed = json.loads(body)
    except RecursionError as error:
        raise ValueError("not a sealed message") from error
    match sealed:
        case {"content": str(text), "mac": str(mac)}:
            pass
        case _:
            raise ValueError("not a sealed message")
    if not hmac.compare_digest(_mac(key, purpose, text).encode(), mac.encode()):
        raise ValueError("the seal is not a peer's")
    content: dict[str, Any] = json.loads(text)
    return content


def _mac(key: bytes, purpose: str, text: str) -> str:
    return hmac.new(key, f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()
