"""One blocking connection to the cache: bytes of requests out, events of answers in.

It is used by one thread at a time and by the process that opened it. Every wait has an end. What
the network does wrong comes out as :class:`~simplecache.errors.CacheFault` and nothing else.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import Final

from simplecache.client.message import Event, Head, Mark, ResponseReader
from simplecache.errors import CacheFault, Malformed

RECEIVE_BYTES: Final = 256 * 1024
"""For one ``recv``. Larger ones are no faster: the kernel rarely has more."""
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)


class StaleConnection(CacheFault):
    """A kept connection ended before any byte of an answer: most likely it ended while idle."""


class Connection:
    """A connection, from its first request to its last.

    Args:
        sock: connected; the connection owns it.
        peer: the address, for errors.
        timeout_s: how long to wait for an answer's head, and for any progress of a body.
    """

    def __init__(self, sock: socket.socket, *, peer: str, timeout_s: float) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._peer = peer
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        self._poll = select.poll()
        self._reader = ResponseReader()
        self._heard = False
        self.answer_count = 0
        """Whole answers received: more than none makes this a kept connection."""
        self.idle_since_s = 0.0
        """When it went into the pool, on the monotonic clock."""

    def __repr__(self) -> str:
        return f"<Connection {self._peer} answers={self.answer_count} {self._reader!r}>"

    @property
    def is_own(self) -> bool:
        """Whether this process has opened it, and not the one that it was forked from."""
        return os.getpid() == self._pid

    @property
    def is_quiet(self) -> bool:
        """Whether the peer has neither spoken nor ended: so an idle connection can be used."""
        return not self._wait(select.POLLIN, time.monotonic())

    def begin(self, method: str) -> None:
        """A request's first bytes are about to be sent."""
        self._heard = False
        self._reader.expect(method)

    def send(self, data: bytes | memoryview) -> Head | None:
        """Send all of ``data``, unless the cache answers before it has taken it.

        Returns:
            None when all was sent, else the head of the early answer. A connection that broke
            is read, too: the answer that explains it may have come before.
        """
        self._check_owner()
        view = memoryview(data)
        while view:
            try:
                view = view[self._sock.send(view, _NO_SIGNAL) :]
            except BlockingIOError:
                ready = self._wait_or_fail(select.POLLIN | select.POLLOUT, "took no bytes")
                if ready != select.POLLOUT:
                    self._receive()
                    early = self._parse_early()
                    if early is not None:
                        return early
            except OSError:
                return self.read_head()
        return None

    def look_for_answer(self) -> Head | None:
        """The head of an answer that has come already; None, without waiting, if there is none."""
        self._check_owner()
        early = self._parse_early()  # first: what has come counts, though the rest is broken
        if early is not None or self.is_quiet:
            return early
        self._receive()
        return self._parse_early()

    def read_head(self) -> Head:
        """The answer's head, within ``timeout_s`` as a whole."""
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            event = self._next_event(deadline_s)
            if isinstance(event, Head):
                return event
            if event is None:
                raise CacheFault(f"{self._peer}: no answer within {self._timeout_s:g} s")

    def wait_for_consent(self, wait_s: float) -> Head | None:
        """Wait for ``100 Continue``, at most ``wait_s``; old hops never send it.

        Returns:
            None when the body may be sent, the head of the answer when it was given at once.
        """
        event = self._next_event(time.monotonic() + wait_s)
        return event if isinstance(event, Head) else None

    def read_body(self, *, in_all: bool = False) -> Iterator[bytes]:
        """The answer's body, as it comes.

        Args:
            in_all: ``timeout_s`` is for the whole body, not for each progress.

        Raises:
            CacheFault: it is not whole, has bytes to spare, or has stopped coming. What was
                given out before is then not an object.
        """
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            event = self._next_event(deadline_s)
            if isinstance(event, bytes):
                yield event
                if not in_all:
                    deadline_s = time.monotonic() + self._timeout_s
            elif event is None:
                raise CacheFault(f"{self._peer}: no more bytes within {self._timeout_s:g} s")
            else:
                break
        assert event is Mark.END, event
        self._parse_event()  # nothing may follow what nobody asked for
        self.answer_count += 1

    def close(self) -> None:
        """End it. In a forked child this leaves the parent's connection alone."""
        self._sock.close()

    def _next_event(self, deadline_s: float) -> Event | None:
        """What comes next; None when ``deadline_s`` has come."""
        self._check_owner()
        while (event := self._parse_event()) is Mark.NEED_DATA:
            if not self._wait(select.POLLIN, deadline_s):
                return None
            self._receive()
        return event

    def _parse_event(self) -> Event:
        try:
            return self._reader.next_event()
        except Malformed as error:
            raise CacheFault(f"{self._peer}: {error}") from error

    def _receive(self) -> None:
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._make_fault(str(error.strerror)) from error
        if not data and not self._heard:
            raise self._make_fault("the connection was ended without an answer")
        self._heard = True
        self._reader.feed(data)

    def _make_fault(self, text: str) -> CacheFault:
        is_stale = self.answer_count > 0 and not self._heard
        return (StaleConnection if is_stale else CacheFault)(f"{self._peer}: {text}")

    def _parse_early(self) -> Head | None:
        """The head of an answer among the bytes received; a consent by now means nothing."""
        while (event := self._parse_event()) is Mark.CONTINUE:
            pass
        return event if isinstance(event, Head) else None

    def _wait_or_fail(self, events: int, complaint: str) -> int:
        ready = self._wait(events, time.monotonic() + self._timeout_s)
        if not ready:
            raise CacheFault(f"{self._peer}: {complaint} for {self._timeout_s:g} s")
        return ready

    def _wait(self, events: int, deadline_s: float) -> int:
        """The events that are there, after a wait until ``deadline_s``; 0 for none."""
        wait_ms = max(0, math.ceil((deadline_s - time.monotonic()) * 1000))
        self._poll.register(self._sock, events)
        ready = self._poll.poll(wait_ms)
        return ready[0][1] if ready else 0

    def _check_owner(self) -> None:
        if not self.is_own:
            raise CacheFault(f"{self._peer}: this connection belongs to the process that forked")
