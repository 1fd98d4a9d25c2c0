"""One request and its answer, on a connection that goes back to its pool when all went well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, Self

from simplecache import __version__
from simplecache.client.answer import ERROR_BODY_MAX_BYTES, make_error
from simplecache.client.body import Body
from simplecache.client.connection import Connection
from simplecache.client.message import LAST_CHUNK, Head, make_chunk, make_request
from simplecache.client.pool import Pool
from simplecache.errors import CacheFault, SimpleCacheError
from simplecache.model import Key

CONSENT_WAIT_S: Final = 1.0
"""How long to wait for ``100 Continue`` before the body is sent unasked."""

_COMMON_FIELDS: Final = (
    ("User-Agent", f"simplecache/{__version__}"),
    ("Accept-Encoding", "identity"),
)


class Request:
    """What is asked; it can be sent more than once, as far as its body can.

    Raises:
        Malformed: a field's value cannot stand in a header.
    """

    def __init__(
        self,
        method: str,
        key: Key,
        *,
        fields: tuple[tuple[str, str], ...] = (),
        body: Body | None = None,
    ) -> None:
        self.method: Final = method
        self.body: Final = body
        self._target = key.target
        self._fields = (*_COMMON_FIELDS, *fields, *_frame_fields(body))

    def __repr__(self) -> str:
        return f"<Request {self.method} {self._target.decode('ascii')} {self.body!r}>"

    @property
    def is_sendable(self) -> bool:
        """Whether it can be sent (again)."""
        return self.body is None or self.body.is_sendable

    def make_head(self, host: str, token: str | None) -> bytes:
        """Its head, as the bearer of ``token``."""
        bearer = () if token is None else (("Authorization", f"Bearer {token}"),)
        return make_request(self.method, self._target, host, (*self._fields, *bearer))


class Exchange:
    """A request that was sent and the head of its answer; then, as wanted, its body.

    Use it as a context manager: at the end the connection is kept if the request was sent and the
    answer was read as a whole, and ended otherwise.

    Args:
        request: what to send.
        token: who asks.
        connection: over which; it is closed when this raises.
        pool: where the connection belongs.

    Raises:
        StaleConnection: a kept connection had ended before; the request may be sent again.
        CacheFault: the answer did not come, or is none.
        Exception: whatever the source of the body raises.
    """

    def __init__(
        self, request: Request, token: str | None, connection: Connection, pool: Pool
    ) -> None:
        self._connection = connection
        self._pool = pool
        self._is_whole = False
        self._is_closed = False
        self.sent_bytes = 0
        """Bytes of the body that were given to the connection."""
        try:
            early = self._send(request, request.make_head(str(pool.address), token))
            self.is_sent: Final = early is None
            """Whether the request was sent as a whole before the answer came."""
            self.head: Final = early or connection.read_head()
        except BaseException:
            connection.close()
            raise

    def __repr__(self) -> str:
        return f"<Exchange {self.head.status} whole={self._is_whole} {self._connection!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> Iterator[bytes]:
        """The answer's body, as it comes.

        Raises:
            CacheFault: it does not come as a whole.
        """
        if not self._is_whole:
            yield from self._connection.read_body()
            self._is_whole = True

    def finish(self) -> bytes:
        """Read an answer that says little, so that the connection can be used again.

        Returns:
            Its body, at most 64 KiB of it, within one timeout as a whole.
        """
        body = bytearray()
        for piece in self._connection.read_body(in_all=True):
            body += piece
            if len(body) > ERROR_BODY_MAX_BYTES:
                return bytes(body)
        self._is_whole = True
        return bytes(body)

    def read_error(self) -> SimpleCacheError:
        """The error that the answer stands for, even if the connection broke in its body."""
        body = b""
        with contextlib.suppress(CacheFault):
            body = self.finish()
        return make_error(self.head, body)

    def close(self) -> None:
        """Give the connection back, or end it."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_whole and self.is_sent and self.head.keep_alive:
            self._pool.give(self._connection)
        else:
            self._connection.close()

    def _send(self, request: Request, head: bytes) -> Head | None:
        """Send a request; the head of an answer that came before all was sent."""
        self._connection.begin(request.method)
        if request.body is None:
            return self._connection.send(head)
        if request.body.asks_first:
            early = self._connection.send(head) or self._connection.wait_for_consent(CONSENT_WAIT_S)
            if early is not None:
                return early
            head = b""
        for block in self._frame(head, request.body):
            early = self._connection.look_for_answer() or self._connection.send(block)
            if early is not None:
                return early
        return None

    def _frame(self, head: bytes, body: Body) -> Iterator[bytes | memoryview]:
        """What goes over the wire; the head, if still unsent, travels with the first piece."""
        for piece in body.pieces():
            self.sent_bytes += len(piece)
            block = make_chunk(piece) if body.length_bytes is None else piece
            yield head + block if head else block
            head = b""
        last = head if body.length_bytes is not None else head + LAST_CHUNK
        if last:
            yield last


def _frame_fields(body: Body | None) -> Iterator[tuple[str, str]]:
    if body is None:
        return
    if body.length_bytes is None:
        yield "Transfer-Encoding", "chunked"
    else:
        yield "Content-Length", str(body.length_bytes)
    if body.asks_first:
        yield "Expect", "100-continue"
