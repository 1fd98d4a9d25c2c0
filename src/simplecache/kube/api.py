"""Calls to an apiserver: JSON in, JSON out, all of it bounded.

One client per process. It adds who we are, follows no redirect (a token must not travel), asks once
more with fresh credentials after a 401, reads no answer beyond its bound, and lets no exception of
the HTTP library out: what fails is an :class:`ApiFault` whose text holds the call, the status and
the server's own words, trimmed. Neither tokens nor bodies appear in it.

It repeats nothing else by itself, but for one case: a call that is marked ``repeatable`` and met a
connection which the server had closed while it was idle is sent again at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import aiohttp
from yarl import URL

from simplecache.errors import ApiFault
from simplecache.kube.credentials import Credentials
from simplecache.kube.faults import make_fault, trim

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
    from types import TracebackType

    from simplecache.kube.config import KubeConfig

ANSWER_MAX_BYTES: Final = {"GET": 64 << 20}
"""A page of 500 pods has 5 to 15 MB; 64 MiB leaves room for huge annotations."""

OTHER_ANSWER_MAX_BYTES: Final = 4 << 20
"""One object. etcd takes 1.5 MiB of a denser encoding."""

FAULT_MAX_BYTES: Final = 64 << 10
"""Of an error's body only the message is of use."""

CALL_TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 10.0
CONNECTIONS_MAX: Final = 64
"""More than the sum of what uses one client: 16 reviews, a few watches, the key set."""

_CONTENT_TYPES: Final = {"PATCH": "application/merge-patch+json"}
_UNTRUSTED: Final = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)
_CLOSED_WHILE_IDLE: Final = (aiohttp.ServerDisconnectedError, aiohttp.ClientConnectionResetError)
_HEADERS: Final = {
    "Accept": "application/json, application/jwk-set+json",  # the key set has a type of its own
    "Accept-Encoding": "identity",  # a bound on bytes read is then a bound on memory
    "User-Agent": "simple-cache-service",
}

Json = dict[str, Any]


class KubeApi:
    """A client of one apiserver.

    Owned by one event loop. Close it, or use it as an async context manager.

    Args:
        config: which apiserver, and who we are.
        clock: monotonic seconds, for the age of credentials.

    Raises:
        InvalidConfig: credentials cannot be read.
    """

    def __init__(self, config: KubeConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock = clock
        self._credentials = Credentials(config, clock())
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<KubeApi {self.config.server}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. The client can be used again afterwards."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Json:
        """GET a JSON object; raises as :meth:`call` does."""
        timeout = _make_timeout(timeout_s)
        return await self._object(_Request("GET", path, query, timeout=timeout, repeatable=True))

    async def call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        repeatable: bool = False,
    ) -> Json:
        """Make one call that may change something, and return the JSON object that answers it.

        Args:
            method: ``POST``, ``PUT``, ``DELETE``, or ``PATCH``, which is a merge patch.
            path: from the server's root.
            body: what to send as JSON.
            timeout_s: for the whole call.
            repeatable: making the call twice does no harm.

        Raises:
            ApiGone: 410.
            ApiFault: any other status of 400 or more, no whole answer in time, or one that is too
                long or not a JSON object.
        """
        data = None if body is None else json.dumps(body).encode()
        timeout = _make_timeout(timeout_s)
        return await self._object(
            _Request(method, path, data=data, timeout=timeout, repeatable=repeatable)
        )

    async def watch(
        self, path: str, query: Mapping[str, str], *, silence_s: float, total_s: float
    ) -> AsyncGenerator[bytes]:
        """GET an answer that has no end and yield its bytes as they come.

        Close the iterator (``contextlib.aclosing``) to end the request.

        Args:
            path: from the server's root.
            query: parameters.
            silence_s: with no byte for so long the connection counts as dead: a half-open one
                would stay silent for ever.
            total_s: the most that the whole may take.

        Raises:
            ApiGone: 410 before the first byte.
            ApiFault: any other failure. A clean end is no failure, the iterator just ends.
        """
        timeout = _make_timeout(total_s, silence_s)
        request = _Request("GET", path, query, timeout=timeout, repeatable=True)
        async with _ending(await self._send(request)) as response:
            if response.status >= 400:
                await _raise_fault(response, request)
            chunks = response.content.iter_any()
            while True:
                with _translating(request):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk

    async def _object(self, request: _Request) -> Json:
        limit = ANSWER_MAX_BYTES.get(request.method, OTHER_ANSWER_MAX_BYTES)
        async with _ending(await self._send(request)) as response:
            if response.status >= 400:
                await _raise_fault(response, request)
            return _parse_object(await _read(response, limit, request), request)

    async def _send(self, request: _Request) -> aiohttp.ClientResponse:
        """The answer's head. The caller closes it."""
        with _translating(request):
            try:
                response = await self._send_once(request)
            except aiohttp.ClientError as error:
                if not self._may_repeat(request, error):
                    raise
            else:
                if response.status != 401 or not self._credentials.reload(self._clock()):
                    return response
                response.close()
            return await self._send_once(request)

    def _may_repeat(self, request: _Request, error: aiohttp.ClientError) -> bool:
        if isinstance(error, _UNTRUSTED):
            return self._credentials.reload(self._clock())
        return request.repeatable and isinstance(error, _CLOSED_WHILE_IDLE)

    async def _send_once(self, request: _Request) -> aiohttp.ClientResponse:
        identity = self._credentials.at(self._clock())
        headers = {}
        if request.data is not None:
            headers["Content-Type"] = _CONTENT_TYPES.get(request.method, "application/json")
        if identity.authorization is not None:
            headers["Authorization"] = identity.authorization
        return await self._opened().request(
            request.method,
            URL(self.config.server + request.path).with_query(request.query),
            headers=headers,
            data=request.data,
            timeout=request.timeout,
            ssl=identity.tls or True,
            server_hostname=self.config.tls_server_name,
            allow_redirects=False,
        )

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session


@dataclass(frozen=True, slots=True)
class _Request:
    """One call; ``str()`` of it is how faults name it."""

    method: str
    path: str
    query: Mapping[str, str] | None = None
    data: bytes | None = field(default=None, repr=False)
    timeout: aiohttp.ClientTimeout = field(kw_only=True)
    repeatable: bool = field(kw_only=True)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def _make_timeout(total_s: float, silence_s: float | None = None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s)


@contextlib.asynccontextmanager
async def _ending(response: aiohttp.ClientResponse) -> AsyncGenerator[aiohttp.ClientResponse]:
    """Leave no connection behind: one that was read to its end is back in the pool by then.

    Any other is aborted. Closing it would wait for the peer's TLS farewell, which a half-open one
    never sends.
    """
    try:
        yield response
    finally:
        connection = response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
            await asyncio.sleep(0)  # the abort is done by the loop's next round
        response.close()


@contextlib.contextmanager
def _translating(request: _Request) -> Iterator[None]:
    """Turn what the HTTP library and the sockets raise into a fault of the call."""
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
        raise ApiFault(f"{request}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__} {trim(str(error))}".rstrip()


async def _read(response: aiohttp.ClientResponse, limit: int, request: _Request) -> bytes:
    """The whole body, if it has at most ``limit`` bytes."""
    body = bytearray()
    with _translating(request):
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise ApiFault(f"{request}: the answer has more than {limit} bytes")
    return bytes(body)


def _parse_object(body: bytes, request: _Request) -> Json:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiFault(f"{request}: the answer is not JSON") from error
    if not isinstance(document, dict):
        raise ApiFault(f"{request}: the answer is not a JSON object")
    return document


async def _raise_fault(response: aiohttp.ClientResponse, request: _Request) -> NoReturn:
    """Raise what an error's status and body say; the body is distrusted and may be anything."""
    try:
        body = _parse_object(await _read(response, FAULT_MAX_BYTES, request), request)
    except ApiFault:
        body = {}
    retry_after = response.headers.get("Retry-After")
    raise make_fault(str(request), response.status, body.get("message"), retry_after)
