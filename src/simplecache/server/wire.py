"""Bytes to request heads and back: parsing, framing and limits. No sockets, no clock.

Theory: a request head is its first line and its header block. The line differs from request to
request and is read by one regular expression (``route.py``); the block is the same, byte for byte,
for thousands of requests of one client. So llhttp (httptools) judges each *distinct* block once,
strictly, and a bounded memo remembers what it means.

Rules it keeps (request smuggling lives where these are bent):

* A line ends in CRLF; a bare LF or CR is an error. No folded lines.
* One Content-Length at most, digits only; never beside Transfer-Encoding; ``chunked`` alone.
* Exactly one Host in HTTP/1.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import httptools

from simplecache.errors import Malformed

LINE_MAX_BYTES: Final = 8192
"""The request line. A name of 4,096 bytes fits; nginx and Apache draw the line here, too."""
HEAD_MAX_BYTES: Final = 32768
"""Line and header block. httptools itself would take megabytes."""
HEADERS_MAX: Final = 100
"""Header fields in one block; Apache's limit."""
MEMO_BLOCKS: Final = 4096
"""Distinct header blocks remembered: one for each client, token and range shape in use."""
MEMO_BLOCK_MAX_BYTES: Final = 4096
"""Larger blocks are judged each time: the memo stays below 40 MiB whatever is sent to it."""


class Refusal(Malformed):
    """A request that is framed well and asks for what there is not; the connection goes on."""

    def __init__(self, status: int, word: str, detail: str, *fields: bytes) -> None:
        super().__init__(detail)
        self.status = status
        self.word = word
        self.detail = detail
        self.fields = fields
        """More header lines of the answer, each with its CRLF."""


class ProtocolError(Refusal):
    """Bytes that are not HTTP as docs/behaviour.md has it; the connection ends with this answer."""


def _bad(detail: str) -> ProtocolError:
    return ProtocolError(400, "malformed", detail)


@dataclass(frozen=True, slots=True)
class Headers:
    """What a header block says, as far as the cache cares. Values are raw bytes, or None."""

    is_plain: bool
    """No body, range, condition or wish about the connection: a GET with it is a plain read."""
    authorization: bytes | None
    length: int | None
    """Content-Length."""
    has_host: bool
    is_chunked: bool
    expects_continue: bool
    wants_close: bool
    wants_keep_alive: bool
    values: Mapping[bytes, bytes]
    """The other fields that mean something, by lower-case name: see ``_KEPT``."""


_KEPT: Final = frozenset({
    b"range", b"if-range", b"if-match", b"if-none-match", b"content-type", b"content-encoding",
    b"content-range", b"content-md5", b"content-digest", b"cache-control", b"scs-why",
    b"scs-ring-share",
})  # fmt: skip
_SINGLE: Final = (_KEPT - {b"cache-control"}) | {
    b"authorization", b"host", b"content-length", b"transfer-encoding", b"expect",
}  # fmt: skip
"""Fields that may stand in a block once: two of them have no agreed meaning."""
_NOT_PLAIN: Final = frozenset({b"range", b"if-match", b"if-none-match", b"scs-why"})


class HeaderMemo:
    """Header blocks and what they mean; when it is full it starts again from nothing."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, Headers] = {}
        self.misses = 0

    def get(self, block: bytes) -> Headers | None:
        """What ``block`` means, if it has been seen."""
        return self._blocks.get(block)

    def parse(self, block: bytes) -> Headers:
        """Judge and remember a block: the bytes from the request line's CRLF to the last field.

        Raises:
            ProtocolError: it breaks a rule.
        """
        headers = parse_headers(block)
        self.misses += 1
        if len(block) > MEMO_BLOCK_MAX_BYTES:
            return headers
        if len(self._blocks) >= MEMO_BLOCKS:
            self._blocks.clear()
        self._blocks[block] = headers
        return headers


class _Fields:
    """Receives llhttp's callbacks."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.is_complete = True


def parse_headers(block: bytes) -> Headers:
    """What a header block (each field with its CRLF *before* it) means.

    Raises:
        ProtocolError: it breaks a rule.
    """
    if block.count(b"\r\n") != block.count(b"\n") or block.count(b"\r") != block.count(b"\n"):
        raise _bad("a line of the header does not end in CRLF")
    fields = _Fields()
    try:
        httptools.HttpRequestParser(fields).feed_data(b"GET / HTTP/1.1" + block + b"\r\n\r\n")
    except httptools.HttpParserUpgrade:
        pass  # not offered; a client that asks for it is served as if it had not
    except httptools.HttpParserError as error:
        if "Transfer-Encoding" in str(error) and "Content-Length" not in str(error):
            raise _transfer_coding(block) from error
        raise _bad(f"the header is malformed: {error}") from error
    if not fields.is_complete or len(fields.fields) > HEADERS_MAX:
        raise ProtocolError(431, "too-large", f"more than {HEADERS_MAX} header fields")
    return _interpret(fields.fields)


def _transfer_coding(block: bytes) -> ProtocolError:
    if re.search(rb"(?i)\r\ntransfer-encoding:[ \t]*[a-z]+[ \t]*(\r\n|$)", block):
        return ProtocolError(501, "unsupported", "the only transfer coding here is chunked")
    return _bad("the Transfer-Encoding is malformed")


def _interpret(fields: list[tuple[bytes, bytes]]) -> Headers:
    found: dict[bytes, bytes] = {}
    tokens: set[bytes] = set()
    for name, value in fields:
        if name in found and name in _SINGLE:
            raise _bad(f"two {name.decode('ascii', 'replace')} fields")
        if name == b"connection":
            tokens.update(token.strip().lower() for token in value.split(b","))
        else:
            found[name] = value
    expects = found[b"expect"].lower() if b"expect" in found else None
    if expects not in {None, b"100-continue"}:
        raise ProtocolError(417, "expectation", "the only expectation known is 100-continue")
    length = found.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) <= 19):
        raise _bad("Content-Length is not a number of bytes")
    is_chunked = b"transfer-encoding" in found
    if is_chunked and found[b"transfer-encoding"].lower() != b"chunked":
        raise ProtocolError(501, "unsupported", "the only transfer coding here is chunked")
    values = {name: value for name, value in found.items() if name in _KEPT}
    return Headers(
        is_plain=b"host" in found
        and not (
            values.keys() & _NOT_PLAIN or is_chunked or tokens & {b"close"} or expects
            or (length is not None and int(length))
        ),
        authorization=found.get(b"authorization"),
        length=None if length is None else int(length),
        has_host=b"host" in found,
        is_chunked=is_chunked,
        expects_continue=expects is not None,
        wants_close=b"close" in tokens,
        wants_keep_alive=b"keep-alive" in tokens,
        values=values,
    )  # fmt: skip


_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?")
_CHUNK_LINE_MAX_BYTES: Final = 1024
_TRAILERS_MAX_BYTES: Final = 8192


class ChunkedBody:
    """The chunked coding, sans I/O: bytes in, pieces of the body out.

    Source: RFC 9112, section 7.1. Extensions and trailers are read, bounded, and ignored.
    """

    def __init__(self) -> None:
        self.remaining: int | None = None
        """Of the body, in bytes; never known here."""
        self._buffer = b""
        self._at = 0
        """Where in the buffer the unread bytes begin."""
        self._left = 0
        """Bytes of the present chunk that are still to come."""
        self._state = self._size_line
        self._trailers = 0
        self.rest: bytes | None = None
        """What came after the body's end; None until the end."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes from the wire; returns the pieces of the body they hold.

        Raises:
            ProtocolError: they are not the chunked coding.
        """
        if self.rest is not None:
            self.rest += data
            return []
        self._buffer = self._buffer + data if self._buffer else data
        pieces: list[bytes] = []
        while self.rest is None and self._state(pieces):
            pass
        self._buffer, self._at = self._buffer[self._at :], 0
        # Chunks of two bytes would otherwise wait for the disk as two bytes and an object each.
        return pieces if len(pieces) < 2 else [b"".join(pieces)]

    def _line(self, limit: int) -> bytes | None:
        start = self._at
        end = self._buffer.find(b"\n", start)
        if (end if end >= 0 else len(self._buffer)) - start > limit:
            raise _bad("a line of the chunked coding is too long")
        if end < 0:
            return None
        line, self._at = self._buffer[start:end], end + 1
        if not line.endswith(b"\r"):
            raise _bad("a line of the chunked coding does not end in CRLF")
        return line[:-1]

    def _size_line(self, pieces: list[bytes]) -> bool:  # noqa: ARG002 - one of the states
        line = self._line(_CHUNK_LINE_MAX_BYTES)
        if line is None:
            return False
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise _bad("a chunk's size is malformed")
        self._left = int(match[1], 16)
        self._state = self._data if self._left else self._trailer
        return True

    def _data(self, pieces: list[bytes]) -> bool:
        piece = self._buffer[self._at : self._at + self._left]
        if not piece:
            return False
        self._at += len(piece)
        self._left -= len(piece)
        pieces.append(piece)
        if not self._left:
            self._state = self._data_end
        return True

    def _data_end(self, pieces: list[bytes]) -> bool:  # noqa: ARG002 - one of the states
        line = self._line(1)
        if line is None:
            return False
        if line:
            raise _bad("a chunk is longer than its size says")
        self._state = self._size_line
        return True

    def _trailer(self, pieces: list[bytes]) -> bool:  # noqa: ARG002 - one of the states
        line = self._line(_TRAILERS_MAX_BYTES)
        if line is None:
            return False
        self._trailers += len(line)
        if self._trailers > _TRAILERS_MAX_BYTES:
            raise _bad("the trailers are too long")
        if not line:
            self.rest, self._at = self._buffer[self._at :], len(self._buffer)
        return True


class LengthBody:
    """A body of Content-Length bytes; the same shape as :class:`ChunkedBody`."""

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.rest: bytes | None = None if length else b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes from the wire; returns the pieces of the body they hold."""
        if self.rest is not None:
            self.rest += data
            return []
        self.remaining -= len(data)
        if self.remaining > 0:
            return [data]
        cut = len(data) + self.remaining
        self.remaining = 0
        self.rest = data[cut:]
        return [data[:cut]] if cut else []


CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    416: "Range Not Satisfiable",
}
_LINES: Final = {
    status: f"HTTP/1.1 {status} {phrase}\r\n".encode() for status, phrase in _PHRASES.items()
}


def head(status: int, *fields: bytes) -> bytes:
    """A response head up to and with its empty line. ``fields`` are whole lines with CRLF."""
    return b"".join((_LINES[status], *fields, b"\r\n"))


def with_fields(response: bytes, *fields: bytes) -> bytes:
    """A response with more header lines, right behind its status line."""
    at = response.index(b"\n") + 1
    return b"".join((response[:at], *fields, response[at:]))


def problem(status: int, word: str, detail: str, *fields: bytes, body: bool = True) -> bytes:
    """A whole error response in ``application/problem+json`` (RFC 9457).

    Args:
        status: the HTTP status.
        word: for ``SCS-Error``, one of those in docs/behaviour.md.
        detail: a sentence a person can act on.
        fields: more header lines, each with CRLF.
        body: False for HEAD: the same head, no body.
    """
    text = json.dumps(
        {"type": "about:blank", "title": _PHRASES[status], "status": status, "detail": detail}
    ).encode()
    lines = (
        b"Content-Type: application/problem+json\r\nSCS-Error: %b\r\nContent-Length: %d\r\n"
        % (word.encode(), len(text)),
        *fields,
    )
    return head(status, *lines) + (text if body else b"")


def refusal(error: Refusal, *, body: bool = True) -> bytes:
    """The whole response to a request that was refused by its head."""
    return problem(error.status, error.word, error.detail, *error.fields, body=body)
