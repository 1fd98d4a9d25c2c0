"""The ops port of any part: health, metrics, small documents.

A few answers over HTTP/1.1, one request a connection, by asyncio alone. What comes in is bounded
in bytes, time and number. It is never in the way of data.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

HEAD_MAX_BYTES: Final = 8 << 10
TIMEOUT_S: Final = 5.0
CONNECTIONS_MAX: Final = 256

TEXT: Final = "text/plain; charset=utf-8"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, still without its framing."""

    status: int
    body: bytes = b""
    content_type: str = TEXT
    etag: str = ""


Route = Callable[[dict[str, str]], Answer | Awaitable[Answer]]
"""A request's fields, by lower-case name -> its answer."""


class OpsServer:
    """Answers GET and HEAD of a few paths, and POST of fewer."""

    def __init__(
        self, routes: Mapping[str, Route], posts: Mapping[str, Route] | None = None
    ) -> None:
        self._routes = {"/healthz": _alive, **routes}
        self._posts = posts or {}
        self._connections = 0

    async def start(self, host: str, port: int) -> asyncio.Server:
        """Listen; close the server to stop."""
        return await asyncio.start_server(self._serve, host, port, limit=HEAD_MAX_BYTES)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= CONNECTIONS_MAX:
                with contextlib.suppress(
                    OSError, EOFError, asyncio.LimitOverrunError, TimeoutError
                ):
                    async with asyncio.timeout(TIMEOUT_S):
                        head = await reader.readuntil(b"\r\n\r\n")
                        writer.write(await self.answer(head))
                        await writer.drain()
        finally:
            self._connections -= 1
            writer.close()

    async def answer(self, head: bytes) -> bytes:
        """Request head -> the whole answer."""
        line, *rest = head.decode("latin-1").split("\r\n")
        method, _, target = line.partition(" ")
        path = target.rpartition(" ")[0].partition("?")[0]
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (field.partition(":") for field in rest)
        }
        if path not in self._routes:
            return _frame(Answer(404, b"not found\n"), method)
        if method == "POST" and path in self._posts:
            answer = self._posts[path](fields)
        elif method in {"GET", "HEAD"}:
            answer = self._routes[path](fields)
        else:
            return _frame(Answer(405, b"this method is not for this path\n"), method)
        return _frame(await answer if inspect.isawaitable(answer) else answer, method)


def _alive(_: dict[str, str]) -> Answer:
    return Answer(200, b"ok\n")


def _frame(answer: Answer, method: str) -> bytes:
    etag = f"ETag: {answer.etag}\r\n" if answer.etag else ""
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\nContent-Length: {len(answer.body)}\r\n"
        f"{etag}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else answer.body)
