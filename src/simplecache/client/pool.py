"""Where the cache is, and the connections to it that are idle.

Connections are filed under the process that opened them, so a forked child finds none and opens
its own. There is no lock that a fork could catch in the wrong moment: the pool rests on deques and
dicts whose single operations are atomic.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from simplecache.client.connection import Connection
from simplecache.errors import CacheFault, InvalidConfig

IDLE_MAX: Final = 32
"""Idle connections kept per process: a DataLoader worker has a handful of threads."""
IDLE_MAX_S: Final = 300.0
"""How long an idle connection is trusted. The node keeps one for 330 s, and whatever translates
addresses on the way often forgets one after about as long without a word."""

_HOST = re.compile(r"[0-9A-Za-z._:-]+(%[0-9A-Za-z._-]+)?")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the cache listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """As a ``Host`` header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 80 else f"{host}:{self.port}"


def parse_url(url: str) -> Address:
    """The address in ``http://host[:port]``.

    Raises:
        InvalidConfig: it is anything else. A path would change the targets, and with them the
            nodes that objects live on.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise InvalidConfig(f"url {url!r}: {error}") from error
    rest = (parts.path.rstrip("/"), parts.query, parts.fragment, parts.username, parts.password)
    if parts.scheme != "http" or not host or not _HOST.fullmatch(host) or any(rest):
        raise InvalidConfig(f"url {url!r}: http://host:port is expected, without anything more")
    return Address(host, port)


class Pool:
    """Keeps connections between requests, last in first out, so that few stay warm."""

    def __init__(self, address: Address, *, timeout_s: float, connect_timeout_s: float) -> None:
        self.address: Final = address
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[int, deque[Connection]] = {}

    def __repr__(self) -> str:
        return f"<Pool {self.address} idle={len(self._idle.get(os.getpid(), ()))}>"

    def take(self) -> Connection | None:
        """An idle connection that seems to be alive, now the caller's; None when there is none."""
        idle = self._own_idle()
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            fresh = time.monotonic() - connection.idle_since_s < IDLE_MAX_S
            if fresh and connection.is_quiet:
                return connection
            connection.close()

    def give(self, connection: Connection) -> None:
        """Keep a connection whose last answer is whole. Of too many the oldest is ended."""
        if not connection.is_own:
            connection.close()
            return
        connection.idle_since_s = time.monotonic()
        idle = self._own_idle()
        idle.append(connection)
        if len(idle) > IDLE_MAX:
            _close_oldest(idle)

    def connect(self) -> Connection:
        """A new connection.

        Raises:
            CacheFault: nobody listens there, or not quickly enough.
        """
        place = (self.address.host, self.address.port)
        try:
            sock = socket.create_connection(place, self._connect_timeout_s)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise CacheFault(f"cannot connect to {self.address}: {reason or error}") from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(sock, peer=str(self.address), timeout_s=self._timeout_s)

    def close(self) -> None:
        """End the idle connections of this process."""
        idle = self._own_idle()
        while idle:
            _close_oldest(idle)

    def _own_idle(self) -> deque[Connection]:
        pid = os.getpid()
        idle = self._idle.get(pid)
        if idle is None:
            inherited = list(self._idle)
            idle = self._idle.setdefault(pid, deque())
            for other in inherited:
                self._forget(other)
        return idle

    def _forget(self, pid: int) -> None:
        """Close the child's copies of a parent's connections; the parent's stay open."""
        inherited = self._idle.pop(pid, None)
        while inherited:
            _close_oldest(inherited)


def _close_oldest(idle: deque[Connection]) -> None:
    try:
        connection = idle.popleft()
    except IndexError:  # another thread was faster
        return
    connection.close()
