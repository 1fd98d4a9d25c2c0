"""What a PUT sends: bytes, a file or an iterable behind one face.

A body knows its length when that can be known, and whether it can be sent once more. It is given
out in pieces of bounded size, and it never gives more or less than it promised: a length that
turns out to be wrong ends the request, not the framing of the connection.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final, cast

from simplecache.errors import Malformed

PIECE_BYTES: Final = 1024 * 1024
"""The largest piece: what one upload holds in memory, and more than any socket's buffer."""
EXPECT_OVER_BYTES: Final = 1024 * 1024
"""Bodies over this size ask first (``Expect: 100-continue``). A smaller one is sent sooner than
it is asked for, and the node reads and drops that much after a refusal."""

Data = bytes | bytearray | memoryview | BinaryIO | Iterable[bytes]


class Body:
    """A body that is sent once, or again when it can be.

    Args:
        open_pieces: begins to give the body out, each time from its first byte.
        length_bytes: None when it is not known before the end.
        replayable: whether ``open_pieces`` can be called again.
    """

    def __init__(
        self,
        open_pieces: Callable[[], Iterator[bytes | memoryview]],
        length_bytes: int | None,
        *,
        replayable: bool,
    ) -> None:
        self._open_pieces = open_pieces
        self._replayable = replayable
        self._started = False
        self.length_bytes: Final = length_bytes

    def __repr__(self) -> str:
        return f"<Body length_bytes={self.length_bytes} started={self._started}>"

    @property
    def is_sendable(self) -> bool:
        """Whether the body can be sent (again) from its first byte."""
        return self._replayable or not self._started

    @property
    def asks_first(self) -> bool:
        """Whether to send the head alone and wait for the cache to agree."""
        return self.length_bytes is None or self.length_bytes > EXPECT_OVER_BYTES

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The body in pieces of 1 to :data:`PIECE_BYTES` bytes.

        Raises:
            Malformed: the source gave more or less than the length that was promised.
        """
        assert self.is_sendable
        self._started = True
        sent_bytes = 0
        for piece in self._open_pieces():
            sent_bytes += len(piece)
            if self.length_bytes is not None and sent_bytes > self.length_bytes:
                raise Malformed(f"the body is longer than its length of {self.length_bytes} bytes")
            yield piece
        if self.length_bytes is not None and sent_bytes < self.length_bytes:
            raise Malformed(
                f"the body ended after {sent_bytes} of the {self.length_bytes} bytes promised"
            )


def make_body(data: Data, length_bytes: int | None = None) -> Body:
    """The body that sends ``data``.

    Args:
        data: bytes; a binary file, sent from its current position to its end; or an iterable of
            bytes.
        length_bytes: how much that is, when the caller knows better. Of a file only so much is
            read; bytes and iterables must agree with it.

    Raises:
        Malformed: ``length_bytes`` is negative or is not the length of the bytes given.
        TypeError: ``data`` is text.
    """
    if length_bytes is not None and length_bytes < 0:
        raise Malformed(f"a length of {length_bytes} bytes")
    if isinstance(data, str):
        raise TypeError("the body is text; encode it first")
    if isinstance(data, bytes | bytearray | memoryview):
        return _make_bytes_body(data, length_bytes)
    if hasattr(data, "read"):
        return _make_file_body(cast("BinaryIO", data), length_bytes)
    pieces = iter(data)
    body = Body(lambda: _split_all(pieces), length_bytes, replayable=False)
    if body.asks_first:
        return body
    # Small enough to hold: then it can be sent again.
    return _make_bytes_body(b"".join(body.pieces()), length_bytes)


def _make_bytes_body(data: bytes | bytearray | memoryview, length_bytes: int | None) -> Body:
    view = memoryview(data).cast("B")
    if length_bytes not in (None, len(view)):
        raise Malformed(f"the body has {len(view)} bytes, not the {length_bytes} promised")
    return Body(lambda: _split(view), len(view), replayable=True)


def _make_file_body(file: BinaryIO, length_bytes: int | None) -> Body:
    start, rest_bytes = _measure(file)
    if length_bytes is None:
        length_bytes = rest_bytes

    def open_pieces() -> Iterator[bytes]:
        if start is not None:
            file.seek(start)
        return _read(file, length_bytes)

    return Body(open_pieces, length_bytes, replayable=start is not None)


def _measure(file: BinaryIO) -> tuple[int | None, int | None]:
    """A file's position and the bytes after it; (None, None) when it can't be rewound."""
    try:
        start = file.tell()
        end = file.seek(0, io.SEEK_END)
        file.seek(start)
    except (OSError, ValueError, AttributeError):  # a pipe, a decompressor, a bare reader
        return None, None
    return start, max(end - start, 0)


def _read(file: BinaryIO, length_bytes: int | None) -> Iterator[bytes]:
    """Pieces as they come: a pipe's bytes are passed on without waiting for a whole piece."""
    read: Callable[[int], bytes] = getattr(file, "read1", file.read)
    left_bytes = length_bytes
    while left_bytes is None or left_bytes > 0:
        piece = _check_piece(read(min(PIECE_BYTES, left_bytes or PIECE_BYTES)))
        if not piece:
            return
        if left_bytes is not None:
            left_bytes -= len(piece)
        yield piece


def _split_all(pieces: Iterator[bytes]) -> Iterator[memoryview]:
    for piece in pieces:
        yield from _split(memoryview(_check_piece(piece)).cast("B"))


def _split(view: memoryview) -> Iterator[memoryview]:
    for at in range(0, len(view), PIECE_BYTES):
        yield view[at : at + PIECE_BYTES]


def _check_piece(piece: bytes) -> bytes:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise TypeError(f"the body gave {type(piece).__name__}; bytes are expected")
    return piece
