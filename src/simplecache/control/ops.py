"""The ops port: health, metrics, and the directory from which clients compute owners.

A few answers over HTTP/1.1, one request a connection, by asyncio alone. What comes in is bounded
in bytes, time and number.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from simplecache.control import observe
from simplecache.control.observe import Metrics
from simplecache.control.plane import Plane

HEAD_MAX_BYTES: Final = 8 << 10
TIMEOUT_S: Final = 5.0
CONNECTIONS_MAX: Final = 256

_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, still without its framing."""

    status: int
    body: bytes = b""
    content_type: str = _TEXT
    etag: str = ""


class OpsServer:
    """Answers from the plane's state; decides nothing."""

    def __init__(self, plane: Plane, metrics: Metrics) -> None:
        self._plane = plane
        self._metrics = metrics
        self._connections = 0
        self._routes: dict[str, Callable[[dict[str, str]], Answer]] = {
            "/healthz": lambda _: Answer(200, b"ok\n"),
            "/readyz": self._readyz,
            "/metrics": self._render_metrics,
            "/v1/endpoints": self._endpoints,
        }

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
                        writer.write(self.answer(head))
                        await writer.drain()
        finally:
            self._connections -= 1
            writer.close()

    def answer(self, head: bytes) -> bytes:
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
        if method not in {"GET", "HEAD"}:
            return _frame(Answer(405, b"only GET and HEAD\n"), method)
        return _frame(self._routes[path](fields), method)

    def _readyz(self, _: dict[str, str]) -> Answer:
        if self._plane.snapshot is None:
            return Answer(503, b"no snapshot yet: waiting for shards that answer\n")
        return Answer(200, f"{self._plane.snapshot!r}\n".encode())

    def _render_metrics(self, _: dict[str, str]) -> Answer:
        text = observe.render(self._metrics, asyncio.get_running_loop().time())
        return Answer(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _endpoints(self, fields: dict[str, str]) -> Answer:
        snapshot = self._plane.snapshot
        if snapshot is None:
            return Answer(503, b"no snapshot yet\n")
        etag = f'"{snapshot.version}"'
        if fields.get("if-none-match") == etag:
            return Answer(304, etag=etag)
        return Answer(200, snapshot.directory, "application/json", etag)


def _frame(answer: Answer, method: str) -> bytes:
    etag = f"ETag: {answer.etag}\r\n" if answer.etag else ""
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\nContent-Length: {len(answer.body)}\r\n"
        f"{etag}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else answer.body)
