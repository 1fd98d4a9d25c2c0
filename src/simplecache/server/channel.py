"""The control channel between a node's supervisor and one shard: JSON lines over a socket pair.

It carries settings, configuration, statistics and the word to stop; never objects. Its end is a
message, too: a shard whose supervisor is gone stops by itself, so nothing is ever left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from typing import Any, Final

LINE_MAX_BYTES: Final = 64 << 20
"""A configuration with every bucket and token it may have (see config.py) fits."""


class Channel:
    """One end. ``receive`` and ``send`` are messages; ``ask`` is a question with its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._questions: dict[int, asyncio.Future[Any]] = {}

    @classmethod
    async def open(cls, end: socket.socket) -> Channel:
        """A channel over one socket of a pair; takes the socket over."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=LINE_MAX_BYTES))

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; nothing is said when the other end is gone."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """The next message that is no answer to a question; None when the other end is gone."""
        while True:
            line = b""
            with contextlib.suppress(OSError, ValueError):
                line = await self._reader.readline()
            if not line.endswith(b"\n"):
                self._fail_questions()
                return None
            message: dict[str, Any] = json.loads(line)
            if "answer" not in message:
                return message
            question = self._questions.pop(message["number"], None)
            if question is not None and not question.done():
                question.set_result(message["answer"])

    async def ask(self, message: dict[str, Any], *, timeout_s: float) -> Any:
        """Send a question and wait for its answer, while someone runs :meth:`receive`.

        Raises:
            ConnectionError: the other end is gone.
            TimeoutError: it did not answer in time.
        """
        number = next(self._numbers)
        question = self._questions[number] = asyncio.get_running_loop().create_future()
        try:
            if self._writer.is_closing():
                raise ConnectionResetError
            self.send({**message, "number": number})
            async with asyncio.timeout(timeout_s):
                return await question
        finally:
            self._questions.pop(number, None)

    def answer(self, question: dict[str, Any], answer: Any) -> None:
        """Answer a message that was sent by :meth:`ask`."""
        self.send({"number": question["number"], "answer": answer})

    def close(self) -> None:
        """Close this end."""
        self._fail_questions()
        self._writer.close()

    def _fail_questions(self) -> None:
        for question in self._questions.values():
            if not question.done():
                question.set_exception(ConnectionResetError("the other end is gone"))
        self._questions.clear()
