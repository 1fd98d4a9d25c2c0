"""One connection: bytes in, answers out in order, and every wait bounded.

Theory: a connection is a small state machine around ``_pump``. Plain GETs of small hot objects are
answered within ``data_received`` itself. Anything else becomes the connection's one task; what
arrives meanwhile waits in ``_inbox`` (or goes to the task's body), so answers keep the order of
their requests. While tenants compete, the next request begins when it is its tenant's turn: until
then the connection stands in that tenant's queue (``fair.py``), and ``_inbox`` waits.

Rules it keeps:

* Backpressure both ways: reading is paused when a body or pipelined requests pile up, requests are
  not started while the peer does not take the answers.
* No timer per request: once a second :meth:`Connection.tick` looks whether anything moved.
* An answer that leaves a body unread is followed by a bounded, lingering close, so it is not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass
from typing import Final, Protocol, cast

from simplecache.server.accounts import Account
from simplecache.server.body import RequestBody
from simplecache.server.fair import TASK_COST, Fair, Tenant
from simplecache.server.handle import Answer, FileAnswer, Handler, Request
from simplecache.server.route import PLAIN_GET, Route, route
from simplecache.server.turns import Turns
from simplecache.server.wire import (
    HEAD_MAX_BYTES,
    LINE_MAX_BYTES,
    HeaderMemo,
    Headers,
    ProtocolError,
    Refusal,
    head,
    problem,
    refusal,
    with_fields,
)
from simplecache.store.blobs import BLOCK_BYTES, Blob, Corrupt

log = logging.getLogger(__name__)

INBOX_MAX_BYTES: Final = 64 << 10
"""Pipelined requests that wait behind one in progress; then reading is paused."""
WRITE_HIGH_BYTES: Final = 512 << 10
"""Bytes of answers that wait for the peer; then no further request is started."""
LINGER_S: Final = 2
BODY_WINDOW_BYTES: Final = 32 << 10
"""What a body must bring in every body timeout: less is a client that only holds a slot."""

SEND_BYTES: Final = 256 << 10
"""Of a large body: so much is sent, then others have their turn."""

RING_SHARE_MIN: Final = 1e-5
"""A smaller part of the ring is not believed: it is a thousandth of a cluster of 100 shards."""

_CLOSE: Final = b"Connection: close\r\n"
_KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one shard's connections; seconds unless the name says otherwise."""

    connections_max: int = 8192
    header_timeout_s: int = 10
    body_timeout_s: int = 30
    send_timeout_s: int = 60
    idle_timeout_s: int = 330
    """PFIO wants at least 300; Envoy gives its upstream connections up after 55."""


class Shared(Protocol):
    """What a connection needs of its server."""

    handler: Handler
    limits: Limits
    memo: HeaderMemo
    connections: set[Connection]
    is_ready: bool
    is_draining: bool


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request that is not a plain GET of a hot object, its head understood."""

    wanted: Route | Refusal
    headers: Headers
    is_head: bool
    is_http_10: bool

    @property
    def closes(self) -> bool:
        """Whether the client wants the connection to end with this answer."""
        headers = self.headers
        return headers.wants_close or (self.is_http_10 and not headers.wants_keep_alive)


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body", "_can_read", "_can_write", "_closing", "_drained", "_dup", "_fair", "_has_eof",
        "_inbox", "_moves", "_phase", "_quiet", "_seen", "_server", "_task", "_tenant",
        "_transport", "_turns", "_waits_for_peer", "is_in_line",
    )  # fmt: skip

    def __init__(self, server: Shared) -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._inbox = b""
        self._task: asyncio.Task[None] | None = None
        self._body: RequestBody | None = None
        self._can_write = True
        self._can_read = True
        self._closing = False
        """No further request is taken; what comes is thrown away until the connection is gone."""
        self._has_eof = False
        self._drained: asyncio.Future[None] | None = None
        self._dup = -1
        self._waits_for_peer = False
        self._turns: Turns = server.handler.turns
        self._fair: Fair = self._turns.fair
        self._tenant: Tenant | None = None
        """Whose turn the last request needed: a guess at the next one's, and whose line it is."""
        self.is_in_line = False
        """The next request waits for its tenant's turn."""
        self._moves = 0
        """Counts requests begun and answers taken; single bytes of a head or body are no move."""
        self._seen = 0
        self._phase = "idle"
        """``_moves`` and the phase at the last tick; ``_quiet`` counts ticks without a change."""
        self._quiet = 0

    def __repr__(self) -> str:
        return (
            f"<Connection busy={self.is_busy} in_line={self.is_in_line} inbox={len(self._inbox)} "
            f"quiet_s={self._quiet} closing={self._closing}>"
        )

    @property
    def is_busy(self) -> bool:
        """A request waits or is in progress, or its answer is on its way."""
        return (
            self._task is not None or self.is_in_line or self._transport.get_write_buffer_size() > 0
        )

    # -- the transport's calls -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it when there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        connections = self._server.connections
        connections.add(self)
        if len(connections) > self._server.limits.connections_max:
            answer = problem(
                503, "overloaded", "this shard has too many connections", b"Retry-After: 1\r\n"
            )
            self._send_last(answer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Give up what was in progress."""
        self._closing = True
        self._server.connections.discard(self)
        self._inbox = b""
        if self.is_in_line and self._tenant is not None:
            self._fair.leave(self._tenant, self)
        if self._task is not None:
            self._task.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.cancel()
        if self._dup >= 0:
            with contextlib.suppress(Exception):
                asyncio.get_running_loop().remove_writer(self._dup)
            os.close(self._dup)
            self._dup = -1

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer."""
        if self._closing:
            return
        body = self._body
        if body is not None and not body.is_over:
            body.feed(data)
        else:
            self._inbox = self._inbox + data if self._inbox else data
            if self._task is None and self._can_write and not self.is_in_line:
                tenant = self._tenant
                if not self._fair.is_contended or tenant is None:
                    self._pump()
                elif tenant.queue:  # not looked at before it is (likely to be) its turn
                    self._fair.wait(tenant, self)
                elif self._may_go(tenant):
                    self._pump()
            elif len(self._inbox) > INBOX_MAX_BYTES:
                self.pause_reading()

    def eof_received(self) -> bool:
        """The peer sends no more; what it asked for is still answered."""
        self._has_eof = True
        if self._body is not None and not self._body.is_over:
            self._body.fail(ProtocolError(400, "malformed", "the body ended before its length"))
        is_waiting = self._task is not None or self.is_in_line or not self._can_write
        return not self._closing and is_waiting

    def pause_writing(self) -> None:
        """The peer is slow to take its answers."""
        self._can_write = False

    def resume_writing(self) -> None:
        """The peer took them."""
        self._moves += 1
        self._can_write = True
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        elif self._task is None and not self._closing and not self.is_in_line:
            self._go_on(self._inbox)

    def take_turn(self) -> None:
        """The tenant in whose queue this connection stood has its turn."""
        try:
            if self._has_eof:
                self._go_on(self._inbox)
            else:
                self._pump()
        except Exception:
            log.exception("a request failed")
            self._transport.abort()

    # -- requests --------------------------------------------------------------------------

    def _pump(self) -> None:  # noqa: C901 - the hot way, in one piece
        """Answer what is in the inbox: at once where that can be, else by a task."""
        server = self._server
        known, get_now = server.memo.get, server.handler.get_now
        data, at = self._inbox, 0
        while at < len(data) and self._can_write:
            end = data.find(b"\r\n\r\n", at)
            if end < 0:
                if not self._check_partial(data, at):
                    return
                break
            match = PLAIN_GET.match(data, at)
            if match is not None:
                headers = known(data[match.end() - 2 : end])
                if headers is not None and headers.is_plain and not server.is_draining:
                    answer = get_now(match[1], match[2], headers.authorization)
                    if type(answer) is tuple:
                        self._transport.writelines(answer)
                        at = end + 4
                        continue
                    if type(answer) is Tenant:
                        if not self._may_go(answer):
                            break
                        continue
            if data.startswith(b"\r\n", at):  # an empty line before a request (RFC 9112, 2.2)
                at += 2
                continue
            self._start(data, at, end)
            return
        self._moves += at > 0
        self._inbox = data[at:]
        if not self._can_read and len(self._inbox) <= INBOX_MAX_BYTES:
            self.resume_reading()

    def _start(self, data: bytes, at: int, end: int) -> None:
        """Start the request whose head is ``data[at:end]``, or let it wait for its turn."""
        try:
            asked = self._understand(data[at:end])
        except ProtocolError as error:
            self._fail(error)
            return
        account = self._account(asked)
        if account is None or self._may_go(account.tenant):
            self._inbox = data[end + 4 :]
            self._begin(asked, account)
        else:
            self._inbox = data[at:]

    def _may_go(self, tenant: Tenant) -> bool:
        """Whether it is ``tenant``'s turn; if not, the connection has a place in its line now."""
        self._tenant = tenant
        if tenant.credit > 0 or self._fair.admit(tenant):
            return True
        self._turns.wait(tenant, self)
        return False

    def _check_partial(self, data: bytes, at: int) -> bool:
        """Whether a head that is not whole yet may still become one."""
        size = len(data) - at
        if size > LINE_MAX_BYTES and data.find(b"\r\n", at, at + LINE_MAX_BYTES + 2) < 0:
            self._fail(ProtocolError(414, "too-large", "the request line is too long"))
        elif size > HEAD_MAX_BYTES:
            self._fail(ProtocolError(431, "too-large", "the header is too large"))
        elif data.find(b"\n\n", at) >= 0 or data.find(b"\n\r\n", at) >= 0:
            self._fail(ProtocolError(400, "malformed", "a line does not end in CRLF"))
        else:
            return True
        return False

    def _understand(self, request_head: bytes) -> _Asked:
        """What one request's head means.

        Raises:
            ProtocolError: it breaks a rule.
        """
        eol = request_head.find(b"\r\n")
        line, block = (request_head[:eol], request_head[eol:]) if eol >= 0 else (request_head, b"")
        if len(line) > LINE_MAX_BYTES:
            raise ProtocolError(414, "too-large", "the request line is too long")
        if len(request_head) > HEAD_MAX_BYTES:
            raise ProtocolError(431, "too-large", "the header is too large")
        headers = self._server.memo.get(block) or self._server.memo.parse(block)
        wanted: Route | Refusal
        try:
            wanted = route(line)
        except ProtocolError:
            raise
        except Refusal as error:
            wanted = error
        is_http_10 = line.endswith(b"HTTP/1.0")
        if not is_http_10 and not headers.has_host:
            raise ProtocolError(400, "malformed", "there is no Host")
        if is_http_10 and headers.is_chunked:
            raise ProtocolError(400, "malformed", "HTTP/1.0 has no chunked coding")
        return _Asked(wanted, headers, line.startswith(b"HEAD "), is_http_10)

    def _account(self, asked: _Asked) -> Account | None:
        """On whose account it is, as far as is known already; None: a probe, which never waits."""
        handler, wanted = self._server.handler, asked.wanted
        if isinstance(wanted, Refusal):
            return handler.accounts.of_nothing
        if wanted.key is not None:
            return handler.account(wanted.key.bucket, asked.headers.authorization)
        if wanted.purge is not None:
            return handler.account(wanted.purge[0], asked.headers.authorization)
        return None

    def _begin(self, asked: _Asked, account: Account | None) -> None:
        """Start the task of one request."""
        self._moves += 1
        if account is not None:
            account.charge(TASK_COST)
        body = self._body = RequestBody(self, asked.headers, expects=not asked.is_http_10)
        if not body.is_over:
            self.resume_reading()  # what paused it was the inbox, which this body takes over
            inbox, self._inbox = self._inbox, b""
            if inbox:
                body.feed(inbox)
        self._task = asyncio.get_running_loop().create_task(self._serve(asked, body))

    async def _serve(self, asked: _Asked, body: RequestBody) -> None:
        """One request from its understood head to the last byte of its answer."""
        try:
            answer = await self._answer(asked, body)
            is_clean = body.error is None and (body.is_over or body.can_be_dropped)
            is_last = self._has_eof and not (self._inbox or body.framing.rest)
            closes = asked.closes or self._server.is_draining or is_last or not is_clean
            extra = _CLOSE if closes else _KEEP_ALIVE if asked.is_http_10 else b""
            await self._send(answer, self._server.handler.date, extra)
            if not closes:
                await body.drop()
            if closes or body.error is not None:
                self._finish()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a request failed")
            self._transport.abort()
        finally:
            self._task = None
            self._body = None
            if not self._closing:
                self._go_on((body.framing.rest or b"") + self._inbox)

    async def _answer(self, asked: _Asked, body: RequestBody) -> Answer:
        handler, wanted = self._server.handler, asked.wanted
        if isinstance(wanted, Refusal):
            handler.counters.count("other", wanted.status)
            return refusal(wanted, body=not asked.is_head)
        if wanted.is_review:
            return await handler.answer(wanted.verb, handler.review(body.pieces()))
        if wanted.purge is not None:
            work = handler.purge(*wanted.purge, asked.headers)
            return await handler.answer(wanted.verb, work)
        if wanted.key is None:
            self._note_share(asked.headers.values.get(b"scs-ring-share"))
            return self._readiness(body=not asked.is_head)
        return await handler.respond(Request(wanted.verb, wanted.key, asked.headers, body.pieces()))

    def _go_on(self, inbox: bytes) -> None:
        """The next request, if it is there; the end, if there will be none."""
        self._inbox = inbox
        if inbox and self._can_write:
            self._pump()
        is_waiting = self._task is not None or self.is_in_line or not self._can_write
        if self._has_eof and not is_waiting:
            self._finish()

    def _note_share(self, value: bytes | None) -> None:
        """Take the shard's part of the ring from the control plane's probe."""
        try:
            share = float(value or b"")
        except ValueError:
            return
        if RING_SHARE_MIN <= share <= 1:
            self._server.handler.note_ring_share(share)

    def _readiness(self, *, body: bool) -> bytes:
        if self._server.is_ready and not self._server.is_draining:
            return head(200, b"Content-Length: 0\r\n")
        detail = "this shard does not serve now"
        return problem(503, "draining", detail, b"Retry-After: 1\r\n", body=body)

    # -- answers ---------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        if not self._closing:
            self._transport.write(data)

    async def _send(self, answer: Answer, *fields: bytes) -> None:
        if isinstance(answer, FileAnswer):
            self._transport.write(with_fields(answer.head, *fields))
            await self._send_file(answer)
        elif isinstance(answer, tuple):
            self._transport.writelines((with_fields(answer[0], *fields), answer[1]))
        else:
            self._transport.write(with_fields(answer, *fields))

    async def _send_file(self, answer: FileAnswer) -> None:
        """Send a part of a large body by sendfile, each block checked before it goes."""
        blob, at, end = answer.blob, answer.start, answer.start + answer.length
        await self._drain()
        if self._dup < 0:
            disk = self._server.handler.store.disk
            fileno = self._transport.get_extra_info("socket").fileno()
            self._dup = disk.despite_shortage(os.dup, fileno)
        blob.check_untouched()
        while at < end:
            block = at // BLOCK_BYTES
            if not blob.is_ready(block) and not await self._verify(blob, block):
                self._transport.abort()  # short of its length: the peer sees that it is not whole
                return
            stop = min(end, (block + 1) * BLOCK_BYTES, at + SEND_BYTES)
            size = stop - at
            while at < stop:
                try:
                    sent = os.sendfile(self._dup, blob.fd, blob.body_at + at, stop - at)
                except BlockingIOError:
                    await self._writable()
                    continue
                except OSError:  # the peer is gone
                    self._transport.abort()
                    return
                if not sent:  # a stray program cut the file under our hands
                    why = Corrupt("the file became shorter")
                    self._server.handler.store.drop(blob.meta.target, why, blob)
                    self._transport.abort()
                    return
                at += sent
                self._moves += 1
            answer.account.spend(size)
            cost = size * answer.account.price
            if at < end:
                await self._turns.pay(answer.account.tenant, cost)  # others' requests, between
            else:
                self._fair.charge(answer.account.tenant, cost)

    async def _verify(self, blob: Blob, block: int) -> bool:
        store = self._server.handler.store
        try:
            await store.in_thread(blob.verify, block)
        except Corrupt as error:
            store.drop(blob.meta.target, error, blob)
            return False
        except Exception as error:  # noqa: BLE001 - a failing disk: its sentence is in the log
            log.error("%r: %s", blob, error)
            return False
        return True

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._drained = loop.create_future()
        self._waits_for_peer = True
        loop.add_writer(self._dup, _set, waiter)
        try:
            await waiter
        finally:
            self._waits_for_peer = False
            self._drained = None
            if self._dup >= 0:
                loop.remove_writer(self._dup)

    async def _drain(self) -> None:
        """Wait until the transport has handed all its bytes to the kernel."""
        if not self._transport.get_write_buffer_size():
            return
        self._transport.set_write_buffer_limits(high=0)
        try:
            if self._transport.get_write_buffer_size():
                self._drained = asyncio.get_running_loop().create_future()
                self._can_write = False
                await self._drained
        finally:
            self._drained = None
            self._can_write = True
            if not self._transport.is_closing():
                self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def _fail(self, error: ProtocolError) -> None:
        """Answer bytes that are not the protocol, and end the connection."""
        self._server.handler.counters.count("other", error.status)
        self._send_last(refusal(error))

    def _send_last(self, answer: bytes) -> None:
        self._transport.write(with_fields(answer, self._server.handler.date, _CLOSE))
        self._finish()

    def _finish(self) -> None:
        """Close after what was written; read on for a moment so that the answer is not lost."""
        if self._closing:
            return
        self._closing = True
        self._inbox = b""
        self._quiet = 0
        self.resume_reading()
        if self._has_eof:
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def end(self) -> asyncio.Task[None] | None:
        """Close now: the drain is over. Returns the request in progress, which is given up."""
        self._closing = True
        if self._task is None:
            self._transport.close()
        else:
            self._transport.abort()  # cancels it, once: a second time would cut its clean-up short
        return self._task

    # -- flow and time ---------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Take nothing more from the peer for now."""
        if self._can_read and not self._transport.is_closing():
            self._can_read = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take from the peer again."""
        if not self._can_read and not self._transport.is_closing():
            self._can_read = True
            self._transport.resume_reading()

    def tick(self) -> None:
        """A second has passed."""
        phase = self._phase_now()
        if phase != self._phase or self._moves != self._seen:
            self._phase, self._seen, self._quiet = phase, self._moves, 0
            return
        self._quiet += 1
        limits = self._server.limits
        if phase == "head" and self._quiet >= limits.header_timeout_s:
            self._fail(ProtocolError(408, "timeout", "the header came too slowly"))
        elif phase == "body" and self._quiet >= limits.body_timeout_s:
            self._check_body()
        elif phase == "idle" and self._quiet >= limits.idle_timeout_s:
            self._transport.close()
        elif (phase == "linger" and self._quiet >= LINGER_S) or (
            phase == "send" and self._quiet >= limits.send_timeout_s
        ):
            self._transport.abort()

    def _phase_now(self) -> str:
        """What the connection waits for: the peer's head, body, reading or next idea; or us."""
        if not self._can_write or self._waits_for_peer:
            return "send"
        if self._closing:
            return "send" if self._transport.get_write_buffer_size() else "linger"
        if self.is_in_line:
            return "work"
        if self._task is None:
            return "head" if self._inbox.strip(b"\r\n") else "idle"
        body = self._body
        return "body" if body is not None and not body.is_over and self._can_read else "work"

    def _check_body(self) -> None:
        body = self._body
        if body is not None and body.received < BODY_WINDOW_BYTES:
            body.fail(ProtocolError(408, "timeout", "the body came too slowly"))
        elif body is not None:
            body.received = 0
        self._quiet = 0


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
