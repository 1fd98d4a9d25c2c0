"""A request's body on its way from the connection to the handler, with backpressure.

The connection feeds bytes as they come and the handler takes pieces as the disk allows; in between
at most ``BODY_HIGH_BYTES`` wait. ``100 Continue`` is sent by the handler's first step: every
refusal which needs no body comes before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Protocol

from simplecache.server.wire import (
    CONTINUE,
    ChunkedBody,
    Headers,
    LengthBody,
    ProtocolError,
    Refusal,
)

BODY_HIGH_BYTES: Final = 1 << 20
BODY_LOW_BYTES: Final = 256 << 10
"""Bytes of a body that wait for the disk: reading is paused above, and goes on below."""
DROP_MAX_BYTES: Final = 1 << 20
"""Of a refused body, read and thrown away to keep the connection."""


class _Flow(Protocol):
    """What a body needs of its connection."""

    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class RequestBody:
    """A request's body on its way from the connection to the handler."""

    def __init__(self, connection: _Flow, headers: Headers, *, expects: bool = True) -> None:
        """``expects`` False: an HTTP/1.0 client, which knows no ``100 Continue``."""
        self._connection = connection
        self.framing = ChunkedBody() if headers.is_chunked else LengthBody(headers.length or 0)
        self._owes_continue = expects and headers.expects_continue
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: Refusal | None = None
        self.received = 0

    @property
    def is_over(self) -> bool:
        """All of it has come, or no more will be taken."""
        return self.framing.rest is not None or self._error is not None

    @property
    def can_be_dropped(self) -> bool:
        """What is left is known, small, and will come whether or not it is wanted."""
        left = self.framing.remaining
        return left is not None and left <= DROP_MAX_BYTES and not self._owes_continue

    @property
    def error(self) -> Refusal | None:
        """Why no more will be taken."""
        return self._error

    def feed(self, data: bytes) -> None:
        """Bytes from the wire."""
        self.received += len(data)
        self._owes_continue = False
        try:
            pieces = self.framing.feed(data)
        except ProtocolError as error:
            self.fail(error)
            return
        self._pieces.extend(pieces)
        self._buffered += sum(map(len, pieces))
        if self._buffered > BODY_HIGH_BYTES:
            self._connection.pause_reading()
        self._wake()

    def fail(self, error: Refusal) -> None:
        """No more will come; whoever reads hears why."""
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, piece by piece; the first step asks for it where the client waits for that."""
        if self._owes_continue and not self.is_over:
            self._owes_continue = False
            self._connection.write(CONTINUE)
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._buffered -= len(piece)
                if self._buffered < BODY_LOW_BYTES:
                    self._connection.resume_reading()
                yield piece
            if self._error is not None:
                raise self._error
            if self.framing.rest is not None:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def drop(self) -> None:
        """Take the rest and throw it away."""
        with contextlib.suppress(Refusal):
            async for _ in self.pieces():
                pass
