"""The blocking client: one request, one answer, connections kept between them.

It is a thin shell: ``message`` knows the protocol, ``answer`` what an answer means, ``body`` what
a PUT sends, ``connection`` and ``pool`` the sockets. Here is the order of things: what is sent,
what is sent again, and what becomes of faults.

Rules it keeps:

* Nothing is sent twice over one connection. A request is repeated once when a kept connection
  turns out to have ended before any byte of an answer, and once when a 401 is met by a token file
  that holds another token by now; a PUT only when its body can be given from its first byte.
* An object is given out whole or not at all. Only a stream can end in the middle, and then it
  raises, whether the client fails open or not.
* A cache fault is a counted miss (``fail_open=True``) or an exception, never both and never silent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self

from simplecache.client.answer import (
    Stat,
    check_part,
    is_miss,
    make_range_field,
    make_stat,
    parse_unsatisfied,
)
from simplecache.client.body import Data, make_body
from simplecache.client.connection import StaleConnection
from simplecache.client.exchange import Exchange, Request
from simplecache.client.message import make_key
from simplecache.client.pool import Pool, parse_url
from simplecache.client.stats import ClientStats
from simplecache.client.token import TokenFile, check_token
from simplecache.errors import CacheFault, InvalidConfig, Refused, SimpleCacheError
from simplecache.model import Key

TIMEOUT_S: Final = 10.0
"""For an answer's head and for any progress of a body. A node answers in milliseconds; a disk in
trouble needs seconds; a job that waits longer had better read from the origin."""
TIMEOUT_MAX_S: Final = 3600.0
"""Every wait has an end."""
CONNECT_TIMEOUT_S: Final = 2.0
"""Room for one lost SYN, which is sent again after 1 s."""
LOG_EVERY_S: Final = 30.0
"""Faults of one client are logged at most this often: a job makes thousands a second."""

_FAULTS: Final = (CacheFault, Refused, InvalidConfig)
"""What fails open. Not InvalidName or a wrong length: those are the caller's mistakes, the same
every time. InvalidConfig is a token file that can't be read, found out when it is needed."""

_log = logging.getLogger("simplecache.client")


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a client is made of: all that is pickled."""

    url: str
    token_file: str | os.PathLike[str] | None
    token: str | None
    timeout_s: float
    connect_timeout_s: float
    fail_open: bool


class Client:
    """A client of the cache at ``url``.

    One client serves a whole process: threads share it, a forked child goes on with connections
    of its own, and a pickled copy (settings only, the ``token`` among them) opens its own, too.

    ``key`` is ``"bucket/object"``, the object's name escaped in the one way of
    :func:`~simplecache.client.message.escape_name`, or a :class:`~simplecache.model.Key`, whose
    name is sent as it is.

    Args:
        url: ``http://host:port``.
        token_file: a file with a bearer token; it is read again whenever it changes.
        token: a bearer token, instead of a file.
        timeout_s: how long to wait for an answer's head, and for any progress of a body.
        connect_timeout_s: how long to wait for a connection, per address of the host.
        fail_open: take a fault of the cache for a miss. It is counted in :attr:`stats` and
            logged at most every 30 s. False: raise it.

    Raises:
        InvalidConfig: the url, the token or a timeout is not of its form. A token file is not
            read yet.
    """

    def __init__(  # noqa: PLR0913  all but the first are keywords
        self,
        url: str,
        *,
        token_file: str | os.PathLike[str] | None = None,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        fail_open: bool = True,
    ) -> None:
        self._set_up(_Settings(url, token_file, token, timeout_s, connect_timeout_s, fail_open))

    def _set_up(self, settings: _Settings) -> None:
        if settings.token is not None and settings.token_file is not None:
            raise InvalidConfig("token and token_file: only one of them is expected")
        for name in ("timeout_s", "connect_timeout_s"):
            if not 0 < getattr(settings, name) <= TIMEOUT_MAX_S:
                raise InvalidConfig(f"{name}: more than 0 and at most {TIMEOUT_MAX_S:g} s")
        self._settings = settings
        self._token = None if settings.token is None else check_token(settings.token, "token")
        self._token_file = None if settings.token_file is None else TokenFile(settings.token_file)
        self._pool = Pool(
            parse_url(settings.url),
            timeout_s=settings.timeout_s,
            connect_timeout_s=settings.connect_timeout_s,
        )
        self._next_log_s = 0.0
        self.stats = ClientStats()
        """What this client has counted in this process."""

    def __getstate__(self) -> _Settings:
        return self._settings

    def __setstate__(self, settings: _Settings) -> None:
        self._set_up(settings)

    def __repr__(self) -> str:
        mode = "open" if self._settings.fail_open else "closed"
        return f"<Client {self._settings.url} fails={mode} {self._pool!r} {self.stats!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the idle connections. The client can be used again."""
        self._pool.close()

    # What can be asked

    def get(self, key: str | Key) -> bytes | None:
        """The object, or None when the cache has none."""
        return self._get(make_key(key), 0, None)

    def get_range(self, key: str | Key, start: int, end: int | None = None) -> bytes | None:
        """``object[start:end]``, or None when the cache has no such object.

        As with a slice, what lies past the object's end is left out, and b"" when nothing is left.

        Raises:
            ValueError: not 0 <= start < end.
        """
        return self._get(make_key(key), start, end)

    @contextlib.contextmanager
    def get_stream(
        self, key: str | Key, *, start: int = 0, end: int | None = None
    ) -> Iterator[Stream | None]:
        """The object (or ``object[start:end]``) in pieces, as they come; None when there is none.

        Leaving the block early ends the connection. A stream that breaks in the middle raises
        ``CacheFault`` from its iteration, also when the client fails open: nobody may take a part
        for the whole.
        """
        request = _make_read(make_key(key), start, end)
        with contextlib.ExitStack() as stack:
            stream = None
            with self._failing_open():
                exchange = stack.enter_context(self._ask(request))
                stream = self._judge_read(exchange, start, end)
            yield stream

    def head(self, key: str | Key) -> Stat | None:
        """What the cache knows of the object, or None when it has none."""
        request = Request("HEAD", make_key(key))
        with self._failing_open(), self._ask(request) as exchange:
            head = exchange.head
            if self._is_miss(exchange):
                return None
            if head.status != 200 or head.length_bytes is None:
                raise exchange.read_error()
            exchange.finish()
            self.stats.add(hits=1)
            return make_stat(head, head.length_bytes)
        return None

    def put(
        self,
        key: str | Key,
        data: Data,
        *,
        length: int | None = None,
        content_type: str | None = None,
        if_absent: bool = False,
    ) -> bool:
        """Store an object. True when the cache has it now.

        Args:
            key: its name.
            data: bytes; a binary file, from its current position; or an iterable of bytes.
            length: bytes that ``data`` will give, if it cannot tell. Without it an iterable or a
                pipe is sent in chunks.
            content_type: what GET will say it is.
            if_absent: store it only when there is none. False is the answer when there is one;
                that is no fault.

        Raises:
            Malformed: ``data`` gave more or less than ``length``, or ``content_type`` cannot
                stand in a header. Nothing was stored.
        """
        fields = [] if content_type is None else [("Content-Type", content_type)]
        if if_absent:
            fields.append(("If-None-Match", "*"))
        body = make_body(data, length)
        request = Request("PUT", make_key(key), fields=tuple(fields), body=body)
        with self._failing_open(), self._ask(request) as exchange:
            if exchange.head.status == 412 and if_absent:
                return False
            if exchange.head.status != 201:
                raise exchange.read_error()
            if not exchange.is_sent:
                raise CacheFault("the cache answered 201 before it had the whole body")
            exchange.finish()
            self.stats.add(stored=1, written_bytes=exchange.sent_bytes)
            return True
        return False

    def delete(self, key: str | Key) -> bool:
        """Delete an object. Whether it was there."""
        request = Request("DELETE", make_key(key))
        with self._failing_open(), self._ask(request) as exchange:
            if self._is_miss(exchange):
                return False
            if exchange.head.status != 204:
                raise exchange.read_error()
            exchange.finish()
            return True
        return False

    # How it is asked

    def _get(self, key: Key, start: int, end: int | None) -> bytes | None:
        request = _make_read(key, start, end)
        with self._failing_open(), self._ask(request) as exchange:
            if self._judge_read(exchange, start, end) is None:
                return None
            data = b"".join(exchange.read())
            self.stats.add(hits=1, read_bytes=len(data))
            return data
        return None

    def _ask(self, request: Request) -> Exchange:
        """Send a request, once more if its token was renewed meanwhile."""
        if self._token_file is None:
            return self._send(request, self._token)
        token = self._token_file.read()
        exchange = self._send(request, token)
        if exchange.head.status != 401 or not request.is_sendable:
            return exchange
        with contextlib.suppress(InvalidConfig):  # then the 401 says more
            renewed = self._token_file.reread()
            if renewed != token:
                exchange.close()
                self.stats.add(repeats=1)
                return self._send(request, renewed)
        return exchange

    def _send(self, request: Request, token: str | None) -> Exchange:
        """Send a request, once more if a kept connection had ended."""
        connection = self._pool.take()
        if connection is not None:
            try:
                return Exchange(request, token, connection, self._pool)
            except StaleConnection:
                if not request.is_sendable:
                    raise
                self.stats.add(repeats=1)
        return Exchange(request, token, self._pool.connect(), self._pool)

    # What becomes of it

    def _judge_read(self, exchange: Exchange, start: int, end: int | None) -> Stream | None:
        """The stream that the answer to a GET will be, None for a miss."""
        head = exchange.head
        is_part = _is_part(start, end)
        if self._is_miss(exchange):
            return None
        if is_part and head.status == 416:
            exchange.finish()
            return self._make_stream(exchange, 0, parse_unsatisfied(head))
        if head.status != (206 if is_part else 200):
            raise exchange.read_error()
        length_bytes = head.length_bytes
        if length_bytes is None:
            raise CacheFault("the cache did not tell the object's size")
        size_bytes = check_part(head, start, end) if is_part else length_bytes
        return self._make_stream(exchange, length_bytes, size_bytes)

    def _make_stream(self, exchange: Exchange, length_bytes: int, size_bytes: int) -> Stream:
        return Stream(
            exchange, length_bytes, size_bytes, stats=self.stats, on_fault=self._count_fault
        )

    def _is_miss(self, exchange: Exchange) -> bool:
        if not is_miss(exchange.head):
            return False
        exchange.finish()
        self.stats.add(misses=1)
        return True

    @contextlib.contextmanager
    def _failing_open(self) -> Iterator[None]:
        """Count a fault, and swallow it when this client fails open."""
        try:
            yield
        except _FAULTS as error:
            self._count_fault(error)
            if not self._settings.fail_open:
                raise

    def _count_fault(self, error: SimpleCacheError) -> None:
        self.stats.add_fault(type(error).__name__)
        now_s = time.monotonic()
        if self._settings.fail_open and now_s >= self._next_log_s:
            self._next_log_s = now_s + LOG_EVERY_S
            _log.warning("cache fault (%d so far): %s", self.stats.faults, error)


class Stream:
    """An object that is coming. Iterate over it once, inside its ``with`` block."""

    def __init__(
        self,
        exchange: Exchange,
        length_bytes: int,
        size_bytes: int,
        *,
        stats: ClientStats,
        on_fault: Callable[[SimpleCacheError], None],
    ) -> None:
        self.length_bytes: Final = length_bytes
        """How many bytes will come: fewer than ``stat.size_bytes`` when a part was asked for."""
        self._size_bytes = size_bytes
        self._exchange = exchange
        self._stats = stats
        self._on_fault = on_fault

    def __repr__(self) -> str:
        return f"<Stream {self.length_bytes} of {self._size_bytes} bytes {self._exchange!r}>"

    @property
    def stat(self) -> Stat:
        """What the cache knows of the whole object."""
        return make_stat(self._exchange.head, self._size_bytes)

    def __iter__(self) -> Iterator[bytes]:
        """The pieces, of whatever size the network brings, at most 256 KiB."""
        came_bytes = 0
        try:
            for piece in self._exchange.read():
                came_bytes += len(piece)
                yield piece
            self._stats.add(hits=1)
        except CacheFault as error:
            self._on_fault(error)
            raise
        finally:
            self._stats.add(read_bytes=came_bytes)


def _is_part(start: int, end: int | None) -> bool:
    return start > 0 or end is not None


def _make_read(key: Key, start: int, end: int | None) -> Request:
    told = make_range_field(start, end)
    return Request("GET", key, fields=(("Range", told),) if _is_part(start, end) else ())
