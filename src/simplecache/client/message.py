"""HTTP/1.1 as a client speaks it: request heads out, responses in, and no sockets.

Theory of operation: a shell (blocking or asyncio) writes what :func:`make_request` returns, tells
a :class:`ResponseReader` which method it used (:meth:`~ResponseReader.expect`), feeds it what the
network brings and asks for events until it says ``NEED_DATA``. How the bytes were cut on their way
makes no difference, and several requests may be under way: their answers come in order.

Rules it keeps: every length has a bound; whatever is not exactly the protocol is
:class:`~simplecache.errors.Malformed`; a body whose end is the end of the connection is refused,
because a torn object would look like a whole one. It never decodes a target, never follows a
redirect and never looks at a body.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from simplecache.errors import InvalidName, Malformed
from simplecache.model import Key

HEADER_MAX_BYTES: Final = 32 * 1024
"""A response's header, trailers likewise: what the node itself takes as a request's."""
BODY_MAX_BYTES: Final = 64 * 1024**3
"""The node's default limit for one object; a longer answer is not an object of a cache."""
INTERIM_MAX: Final = 8
"""Answers of status 1xx before the real one. A server needs one; proxies have sent two."""
CHUNK_LINE_MAX_BYTES: Final = 256
"""A chunk's size, its extensions and CRLF: 16 digits, with room for what nobody sends."""
SAFE_CHARACTERS: Final = "/-._~:+,;=@!$&'()*"
"""What an escaped name keeps beside letters and digits: RFC 3986 allows exactly these in a path,
so no hop has a reason to rewrite them, and ``s3://host/bucket/a.jpg`` stays readable."""
LAST_CHUNK: Final = b"0\r\n\r\n"

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_SENT_VALUE = re.compile(r"[!-~](?:[\t -~]*[!-~])?")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_HTTP: Final = b"HTTP/1."
_CRLF: Final = b"\r\n"


# Requests


def escape_name(name: str) -> bytes:
    """The one spelling under which our clients store and find an object called ``name``.

    UTF-8, with everything but letters, digits and :data:`SAFE_CHARACTERS` as upper-case ``%XX``
    (so ``%`` itself is ``%25``, and no two names share a spelling). File names that are not UTF-8
    keep their bytes, as :func:`os.fsdecode` presents them.
    """
    try:
        return quote(name, safe=SAFE_CHARACTERS, errors="surrogateescape").encode("ascii")
    except UnicodeEncodeError as error:
        raise InvalidName(f"object name {name[:80]!r} cannot be written as UTF-8") from error


def make_key(key: str | Key) -> Key:
    """The key for ``"bucket/object"``, the object's name escaped; a ``Key`` stays as it is."""
    if isinstance(key, Key):
        return key
    bucket, slash, name = key.partition("/")
    if not slash:
        raise InvalidName(f"{key[:80]!r} is not of the form 'bucket/object'")
    return Key(bucket, escape_name(name))


def make_request(
    method: str, target: bytes, host: str, fields: Iterable[tuple[str, str]] = ()
) -> bytes:
    """A request's head, its target exactly as given.

    Raises:
        Malformed: a field's value cannot stand in a header.
    """
    assert target.startswith(b"/"), target
    lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), target), b"Host: " + host.encode("ascii")]
    for name, value in fields:
        if not _SENT_VALUE.fullmatch(value):
            raise Malformed(f"{name} {value[:80]!r}: visible ASCII is expected")
        lines.append(f"{name}: {value}".encode("ascii"))
    return _CRLF.join((*lines, b"", b""))


def make_chunk(data: bytes | memoryview) -> bytes:
    """``data`` as one chunk of a chunked body. Empty data would end the body, and is refused."""
    assert len(data) > 0
    return b"".join((b"%x\r\n" % len(data), data, _CRLF))


# Responses


class Mark(enum.Enum):
    """Events that carry nothing."""

    NEED_DATA = enum.auto()
    """All that was fed has been looked at."""
    CONTINUE = enum.auto()
    """``100 Continue``: the body may be sent. Other interim answers are skipped."""
    END = enum.auto()
    """The answer is whole."""


@dataclass(frozen=True, slots=True)
class Head:
    """An answer's status and header."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; the values of a repeated name are joined by ``", "``."""
    length_bytes: int | None
    """``Content-Length``: of the body that follows, or would have followed a HEAD. None: chunked,
    or (for answers without a body only) not told."""
    keep_alive: bool
    """Whether the connection can be used again after the body."""


Event = Mark | Head | bytes


class ResponseReader:
    """Turns bytes into events: per answer ``CONTINUE``*, one ``Head``, ``bytes``*, ``END``.

    Not for more than one thread. After ``Malformed`` the connection is of no use.
    """

    __slots__ = (
        "_at",
        "_awaited",
        "_body_max_bytes",
        "_data",
        "_ended",
        "_interim_count",
        "_left_bytes",
        "_step",
        "_taken_bytes",
    )

    def __init__(self, *, body_max_bytes: int = BODY_MAX_BYTES) -> None:
        self._body_max_bytes = body_max_bytes
        self._data = b""
        self._at = 0
        self._ended = False
        self._awaited: deque[str] = deque()
        self._interim_count = 0
        self._left_bytes = 0
        self._taken_bytes = 0
        self._step: Callable[[], Event] = self._read_head

    def __repr__(self) -> str:
        waiting = len(self._data) - self._at
        return f"<ResponseReader {self._step.__name__} awaited={len(self._awaited)} {waiting=}>"

    def expect(self, method: str) -> None:
        """A request was sent: one more answer will come."""
        self._awaited.append(method)

    def feed(self, data: bytes) -> None:
        """Bytes from the network; none at all means that the peer has ended the connection.

        Call it when :meth:`next_event` has said ``NEED_DATA``: what is kept from before is then
        at most the beginning of a header or of a chunk's line.
        """
        if not data:
            self._ended = True
        elif self._at == len(self._data):
            self._data, self._at = data, 0
        else:
            self._data, self._at = self._data[self._at :] + data, 0

    def next_event(self) -> Event:
        """What comes next.

        Raises:
            Malformed: it is not an answer, is past a bound, or was cut off.
        """
        event = self._step()
        if event is Mark.NEED_DATA and self._ended and self._awaited:
            raise Malformed(self._describe_cut())
        return event

    def _read_head(self) -> Event:
        if not self._awaited:
            if self._at < len(self._data):
                raise Malformed("bytes beyond the end of the answer")
            return Mark.NEED_DATA
        begin = self._data[self._at : self._at + len(_HTTP)]
        if not _HTTP.startswith(begin):
            raise Malformed(f"{begin!r} is not the beginning of an HTTP/1.1 answer")
        block = self._take_until(b"\r\n\r\n", HEADER_MAX_BYTES)
        if block is None:
            return Mark.NEED_DATA
        head = _parse_head(block)
        return self._skip_interim(head) if head.status < 200 else self._begin_body(head)

    def _skip_interim(self, head: Head) -> Event:
        self._interim_count += 1
        if head.status == 101 or self._interim_count > INTERIM_MAX:
            raise Malformed(f"an answer {head.status} that makes no sense here")
        return Mark.CONTINUE if head.status == 100 else self._read_head()

    def _begin_body(self, head: Head) -> Head:
        """Source: https://www.rfc-editor.org/rfc/rfc9112#section-6.3, without its rule 8."""
        self._interim_count = self._taken_bytes = 0
        if self._awaited[0] == "HEAD" or head.status in (204, 304):
            self._left_bytes, self._step = 0, self._read_body
        elif "transfer-encoding" in head.headers:
            self._step = self._read_chunk_line
        elif head.length_bytes is None:
            raise Malformed(f"an answer {head.status} that does not tell its length")
        else:
            self._left_bytes, self._step = head.length_bytes, self._read_body
            self._count_body(head.length_bytes)
        return head

    def _read_body(self) -> Event:
        return self._take_some() if self._left_bytes else self._end()

    def _read_chunk_line(self) -> Event:
        line = self._take_until(_CRLF, CHUNK_LINE_MAX_BYTES)
        if line is None:
            return Mark.NEED_DATA
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise Malformed(f"{line[:40]!r} is not the size of a chunk")
        self._left_bytes = int(match[1], 16)
        self._count_body(self._left_bytes)
        if self._left_bytes:
            self._step = self._read_chunk
        else:
            self._taken_bytes, self._step = 0, self._read_trailer
        return self._step()

    def _read_chunk(self) -> Event:
        if self._left_bytes:
            return self._take_some()
        if len(self._data) - self._at < len(_CRLF):
            return Mark.NEED_DATA
        if not self._data.startswith(_CRLF, self._at):
            raise Malformed("a chunk that is longer than its size")
        self._at += len(_CRLF)
        self._step = self._read_chunk_line
        return self._read_chunk_line()

    def _read_trailer(self) -> Event:
        while True:
            line = self._take_until(_CRLF, HEADER_MAX_BYTES - self._taken_bytes)
            if line is None:
                return Mark.NEED_DATA
            if not line:
                return self._end()
            _parse_field(line)
            self._taken_bytes += len(line) + len(_CRLF)

    def _end(self) -> Event:
        self._awaited.popleft()
        self._step = self._read_head
        return Mark.END

    def _count_body(self, size_bytes: int) -> None:
        self._taken_bytes += size_bytes
        if self._taken_bytes > self._body_max_bytes:
            raise Malformed(f"a body of more than {self._body_max_bytes} bytes")

    def _take_some(self) -> Event:
        piece = self._data[self._at : self._at + self._left_bytes]
        self._at += len(piece)
        self._left_bytes -= len(piece)
        return piece or Mark.NEED_DATA

    def _take_until(self, mark: bytes, limit_bytes: int) -> bytes | None:
        """The bytes before ``mark``, which must end within the next ``limit_bytes``."""
        end = self._data.find(mark, self._at, self._at + limit_bytes)
        if end < 0:
            if len(self._data) - self._at >= limit_bytes:
                raise Malformed("a header that is too large")
            return None
        taken = self._data[self._at : end]
        self._at = end + len(mark)
        return taken

    def _describe_cut(self) -> str:
        if self._step == self._read_body:
            return f"the answer was cut off {self._left_bytes} bytes before its end"
        return "the answer was cut off"


def _parse_head(block: bytes) -> Head:
    lines = block.split(_CRLF)
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise Malformed(f"{lines[0][:80]!r} is not a status line")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, value = _parse_field(line)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    is_http11 = match[1] == b"1"
    length = headers.get("content-length")
    if length is not None and not _LENGTH.fullmatch(length):
        raise Malformed(f"Content-Length {length[:40]!r}")  # also when it was sent twice
    coding = headers.get("transfer-encoding")
    if coding is not None and (coding.lower() != "chunked" or length is not None or not is_http11):
        raise Malformed(f"Transfer-Encoding {coding[:40]!r} (Content-Length: {length})")
    options = [option.strip() for option in headers.get("connection", "").lower().split(",")]
    return Head(
        status=int(match[2]),
        headers=headers,
        length_bytes=None if length is None else int(length),
        keep_alive=is_http11 and "close" not in options,
    )


def _parse_field(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not (colon and _TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
        raise Malformed(f"{line[:80]!r} is not a header field")
    return name.decode("ascii").lower(), value.decode("latin-1").strip(" \t")
