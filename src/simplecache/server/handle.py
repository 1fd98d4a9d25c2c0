"""What each request does: get, put, delete. The one table from error to status stands here.

The hot way is :meth:`Handler.get_now`: a plain GET of a small object that is in the page cache,
answered without a task, a lock, a clock or SQLite. Everything it cannot do at once it leaves,
untouched, to :meth:`Handler.respond`, which tells the whole story of a request.
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import logging
import re
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final

from simplecache.errors import (
    DigestMismatch,
    DiskError,
    DiskFull,
    Draining,
    Forbidden,
    NoSuchBucket,
    NotAdmitted,
    Overloaded,
    PreconditionFailed,
    Refused,
    ReviewUnavailable,
    Throttled,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from simplecache.model import Bucket, Key, Namespace
from simplecache.server.accounts import Account, Accounts
from simplecache.server.authenticate import Authenticator, OpenAuthenticator
from simplecache.server.authorise import authorise, is_read, needs_caller
from simplecache.server.fair import REQUEST_COST, Fair, Tenant
from simplecache.server.turns import Turns
from simplecache.server.wire import Headers, Refusal, head, problem, refusal
from simplecache.store.blobs import Blob, Corrupt, Meta
from simplecache.store.store import Store
from simplecache.store.upload import Condition

log = logging.getLogger(__name__)

INLINE_MAX_BYTES: Final = 256 << 10
"""Bodies up to this size are read, checked and written in one go; larger ones go by sendfile."""
READERS_MAX: Final = 10_000
"""Authorizations remembered for one bucket; past it the memory starts again."""
UPLOADS_MAX: Final = 256
PAY_BYTES: Final = 64 << 10
"""Of an upload: so much is taken, then others have their turn."""
QUESTION_MAX_BYTES: Final = 32 << 10
"""Of another shard about a token, which has 16 KiB at most."""
REFUSALS_LOGGED: Final = 10
"""401s and 403s written to the log in one second: enough to see, too few to fill a disk."""

STATUS: Final[Mapping[type[Refused], tuple[int, str]]] = {
    Unauthenticated: (401, "unauthenticated"),
    Forbidden: (403, "forbidden"),
    NoSuchBucket: (404, "no-bucket"),
    TooLarge: (413, "too-large"),
    PreconditionFailed: (412, "precondition"),
    DigestMismatch: (400, "digest"),
    NotAdmitted: (507, "not-admitted"),
    Throttled: (429, "throttled"),
    Overloaded: (503, "overloaded"),
    Draining: (503, "draining"),
    ReviewUnavailable: (503, "review-unavailable"),
    DiskFull: (507, "disk-full"),
    DiskError: (503, "disk-error"),
}
"""Each leaf of the tree in errors.py has its status and its word for ``SCS-Error``."""

_CHALLENGE: Final = b'WWW-Authenticate: Bearer realm="simple-cache-service"\r\n'
_MISS: Final = "the object is not in the cache"
MISS: Final = problem(404, "miss", _MISS)
_MISS_LINE, _, _MISS_REST = MISS.partition(b"\n")
NOT_STORED: Final = b"SCS-Stored: no\r\n"
"""On a 404: do not bother to send it now. On a 201: it was taken and thrown away."""
_MAX_AGE: Final = re.compile(rb"(?i)(?:^|[,\s])max-age\s*=\s*\"?(\d{1,9})")
_NO_STORE: Final = re.compile(rb"(?i)(?:^|[,\s])no-store(?:$|[,\s])")
_RANGE: Final = re.compile(rb"bytes=(\d{0,19})-(\d{0,19})")
_ETAGS: Final = re.compile(rb'(W/)?"([^"]*)"')
_OUR_ETAG: Final = re.compile(rb"[0-9a-f]{32}")
_PRINTABLE: Final = re.compile(rb"[\t -~]*")
_DIGEST: Final = re.compile(rb"\s*([a-z0-9-]+)\s*=\s*:([A-Za-z0-9+/=]*):\s*")
_DIGEST_NAMES: Final = {b"sha-256": "sha256", b"sha-512": "sha512", b"md5": "md5"}
_DIGEST_BYTES: Final = {"sha256": 32, "sha512": 64, "md5": 16}


@dataclass(slots=True)
class Request:
    """One request, its head understood, its body still to come."""

    verb: bytes
    key: Key
    headers: Headers
    body: AsyncIterator[bytes]
    """The first step of it sends ``100 Continue`` where that was asked for."""


@dataclass(slots=True)
class FileAnswer:
    """A response whose body is (a part of) a file: ``length`` bytes of the body from ``start``."""

    head: bytes
    blob: Blob
    start: int
    length: int
    account: Account


Answer = bytes | tuple[bytes, bytearray] | FileAnswer
"""A whole response; or its head and a small body; or its head and where a large body is."""


@dataclass(slots=True)
class _BucketState:
    bucket: Bucket
    is_open: bool
    """Anyone may read."""
    readers: dict[bytes | None, Account]
    """Authorizations that were found to be allowed to read, and on whose account they do."""


class Counters:
    """Plain ints that the hot way adds to; ``observe.py`` renders them."""

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.hit_bytes = 0
        self.put_bytes = 0
        self.hot_hits = 0
        self.hot_misses = 0
        """GETs that the hot way answered with 200 and with 404."""
        self._responses: dict[tuple[str, int], int] = {}

    def count(self, verb: str, status: int) -> None:
        """Note a response that the hot way did not send."""
        self._responses[verb, status] = self._responses.get((verb, status), 0) + 1

    def responses(self) -> dict[tuple[str, int], int]:
        """All responses by verb and status."""
        found = dict(self._responses)
        for status, count in ((200, self.hot_hits), (404, self.hot_misses)):
            if count:
                found["GET", status] = found.get(("GET", status), 0) + count
        return found


class Handler:
    """Answers requests from one store, for the configured buckets."""

    def __init__(
        self,
        store: Store,
        authenticator: Authenticator,
        *,
        uploads_max: int = UPLOADS_MAX,
        is_fair: bool = True,
    ) -> None:
        self.store = store
        self.turns = Turns(Fair(is_on=is_fair))
        self.accounts = Accounts(self.turns.fair)
        self.authenticator = authenticator
        self.answer_peer: Callable[[bytes], Awaitable[bytes]] | None = None
        """Answers other shards' questions about tokens, in mode ``kubernetes``."""
        self.counters = Counters()
        self.uploads = 0
        self._uploads_max = uploads_max
        self._buckets: dict[bytes, _BucketState] = {}
        self.date = b""
        self._hit_line = b""
        self._miss_line = b""
        self._vain_miss_line = b""
        self._refusals = 0
        self.tick(0)

    def tick(self, now_s: float) -> None:
        """Once a second: the ``Date`` of answers, and callers that are known no more.

        Args:
            now_s: seconds since the Unix epoch.
        """
        self.date = b"Date: %b\r\n" % formatdate(now_s, usegmt=True).encode()
        self._hit_line = b"HTTP/1.1 200 OK\r\n" + self.date
        self._miss_line = _MISS_LINE + b"\n" + self.date
        self._vain_miss_line = self._miss_line + NOT_STORED
        if self._refusals > REFUSALS_LOGGED:
            log.info("%d more refusals in the same second", self._refusals - REFUSALS_LOGGED)
        self._refusals = 0
        self.forget_callers()

    def configure(
        self, buckets: Mapping[str, Bucket], namespaces: Mapping[str, Namespace] | None = None
    ) -> None:
        """Serve these buckets from now on; what is not among them is gone at once."""
        if isinstance(self.authenticator, OpenAuthenticator):
            buckets = {
                name: replace(bucket, public=True, write_namespaces=None)
                for name, bucket in buckets.items()
            }
        self._buckets = {
            name.encode(): _BucketState(bucket, not needs_caller(bucket, reads=True), {})
            for name, bucket in buckets.items()
        }
        self.accounts.configure(buckets, namespaces or {})
        self.store.configure(buckets)

    def note_ring_share(self, share: float) -> None:
        """This shard's part of the ring, as the control plane has it."""
        self.store.set_ring_share(share)
        self.accounts.set_share(self.store.evictor.shares.ring_share)

    def forget_callers(self) -> None:
        """Drop remembered authorizations that the authenticator does not vouch for any more."""
        known = self.authenticator.known
        for state in self._buckets.values():
            state.readers = {
                who: account
                for who, account in state.readers.items()
                if not state.is_open and who is not None and known(who) is not None
            }

    def account(self, bucket: str, authorization: bytes | None) -> Account:
        """On whose account a request is, as far as that is known without asking."""
        state = self._buckets.get(bucket.encode())
        if state is None:
            return self.accounts.of_nothing
        return state.readers.get(authorization) or self._account(state, authorization)

    def _account(self, state: _BucketState, authorization: bytes | None) -> Account:
        caller = None if authorization is None else self.authenticator.known(authorization)
        namespace = "" if caller is None else caller.namespace or ""
        return self.accounts.of(state.bucket, namespace)

    def _open_reader(self, state: _BucketState, authorization: bytes | None) -> Account | None:
        """The account of one who reads where anyone may; None: that is not so."""
        if not state.is_open:
            return None
        return self._remember(state, authorization, self._account(state, authorization))

    def _remember(
        self, state: _BucketState, authorization: bytes | None, account: Account
    ) -> Account:
        if len(state.readers) >= READERS_MAX:
            state.readers.clear()
        state.readers[authorization] = account
        return account

    # -- the hot way -----------------------------------------------------------------------

    def get_now(  # noqa: PLR0911 - the hot way, in one piece
        self, target: bytes, bucket: bytes, authorization: bytes | None
    ) -> tuple[bytes | bytearray, ...] | Tenant | None:
        """The pieces of the answer to a plain GET.

        Or the tenant whose turn it must be before; or None: take the other way.
        """
        state = self._buckets.get(bucket)
        if state is None:
            return None
        account = state.readers.get(authorization) or self._open_reader(state, authorization)
        if account is None:
            return None
        tenant = account.tenant
        if tenant.credit <= 0:
            return tenant
        if account.caps and (throttled := account.refusal(time.monotonic())) is not None:
            return self._throttled_now(throttled, account)
        store = self.store
        try:
            blob = store.find_now(target)
            if blob is None:
                return self._miss_now(target, account)
            if blob.size > INLINE_MAX_BYTES:
                return None
            body = blob.read_now()
        except BlockingIOError:
            return None
        except Corrupt as error:
            store.drop(target, error, blob)
            return self._miss_now(target, account)
        store.touched.append(target)
        tenant.credit -= 1
        tenant.used += (REQUEST_COST + blob.size) * account.price
        if account.caps:
            account.spend(blob.size, requests=1)
        self.counters.hot_hits += 1
        self.counters.hit_bytes += blob.size
        return (self._hit_line, blob.head or _prepare_head(blob), body)

    def _miss_now(self, target: bytes, account: Account) -> tuple[bytes, bytes]:
        account.charge(REQUEST_COST)
        account.spend(0, requests=1)
        self.store.touched.append(target)
        self.counters.hot_misses += 1
        is_vain = self.store.is_full and not self.store.would_admit(target)
        return (self._vain_miss_line if is_vain else self._miss_line, _MISS_REST)

    def _throttled_now(self, error: Throttled, account: Account) -> tuple[bytes, ...]:
        account.charge(REQUEST_COST)
        self.counters.count("GET", 429)
        line, rest = _throttled(str(error), error.retry_after_s)
        return (line, self.date, rest)

    # -- the whole story -------------------------------------------------------------------

    async def respond(self, request: Request) -> Answer:
        """The answer to ``request``; never raises for what a client or the disk does."""
        return await self.answer(request.verb, self._serve(request))

    async def answer(self, verb: bytes, work: Coroutine[Any, Any, tuple[Answer, int]]) -> Answer:
        """What ``work`` answers, or the answer to what it raises."""
        body = verb != b"HEAD"
        answer: Answer
        try:
            answer, status = await work
        except Refusal as error:
            status, answer = error.status, refusal(error, body=body)
        except Refused as error:
            status, word = STATUS[type(error)]
            self._log_refusal(verb, status, error)
            fields = [_CHALLENGE] if status == 401 else []
            if isinstance(error, Unavailable):
                fields.append(b"Retry-After: %d\r\n" % error.retry_after_s)
            answer = problem(status, word, str(error), *fields, body=body)
        self.counters.count(verb.decode(), status)
        return answer

    def _log_refusal(self, verb: bytes, status: int, error: Refused) -> None:
        """The verdict's sentence, with the namespace and never the token."""
        if status in {401, 403}:
            self._refusals += 1
            if self._refusals <= REFUSALS_LOGGED:
                log.info("%s refused with %d: %s", verb.decode(), status, error)

    async def _serve(self, request: Request) -> tuple[Answer, int]:
        reads = is_read(request.verb)
        namespace, account = await self._admit(request.key.bucket, request.headers, reads=reads)
        if request.verb == b"PUT":
            return await self._put(request, namespace, account)
        if request.verb == b"DELETE":
            return await self._delete(request)
        return await self._get(request, account)

    async def _admit(self, bucket: str, headers: Headers, *, reads: bool) -> tuple[str, Account]:
        """Whoever may do it passes: their namespace, empty for anonymous, and their account."""
        state = self._buckets.get(bucket.encode())
        if state is None:
            raise NoSuchBucket(f'bucket "{bucket}" is not configured')
        authorization = headers.authorization
        if not needs_caller(state.bucket, reads=reads):
            caller = None
            if not reads and authorization is not None:
                caller = self.authenticator.known(authorization)
        else:
            caller = await self.authenticator.authenticate(authorization)
            verdict = authorise(state.bucket, caller, reads=reads)
            if not verdict.allowed:
                raise (Unauthenticated if verdict.needs_token else Forbidden)(verdict.reason)
        namespace = (caller.namespace or "") if caller is not None else ""
        account = (
            self.accounts.of(state.bucket, namespace)
            if namespace
            else self._account(state, authorization)
        )
        if reads and needs_caller(state.bucket, reads=True):
            self._remember(state, authorization, account)
        throttled = account.refusal(time.monotonic()) if account.caps else None
        if throttled is not None:
            raise throttled
        account.spend(0, requests=1)
        return namespace, account

    async def _get(self, request: Request, account: Account) -> tuple[Answer, int]:
        is_head = request.verb == b"HEAD"
        blob = await self._find(request.key.target)
        if blob is None:
            return await self._miss(request), 404
        conditional = _condition(request.headers, blob.meta)
        if conditional is not None:
            return conditional
        span = None if is_head else _range(request.headers, blob.meta)
        if span is None:
            why = await self._why(request)
            answer_head, status = head(200, *why, *_fields(blob.meta, blob.size)), 200
            start, length = 0, blob.size
        else:
            start, length = span
            part = b"Content-Range: bytes %d-%d/%d\r\n" % (start, start + length - 1, blob.size)
            answer_head, status = head(206, part, *_fields(blob.meta, length)), 206
        if is_head:
            return answer_head, status
        body = None
        if blob.size <= INLINE_MAX_BYTES:
            try:
                body = await self._read(blob)
            except Corrupt as error:
                self.store.drop(request.key.target, error, blob)
                self.counters.misses += 1
                return MISS, 404
        self.store.touched.append(request.key.target)
        self.counters.hits += 1
        self.counters.hit_bytes += length
        if body is None:
            return FileAnswer(answer_head, blob, start, length, account), status
        account.spend(length)
        self.turns.fair.charge(account.tenant, length * account.price)
        return (answer_head, body[start : start + length] if span else body), status

    async def _miss(self, request: Request) -> bytes:
        target, is_head = request.key.target, request.verb == b"HEAD"
        self.counters.misses += 1
        if not is_head:
            self.store.touched.append(target)
        fields = await self._why(request)
        if self.store.is_full and not self.store.would_admit(target):
            fields.append(NOT_STORED)
        return problem(404, "miss", _MISS, *fields, body=not is_head)

    async def _why(self, request: Request) -> list[bytes]:
        """``SCS-Why``, for those who ask."""
        if b"scs-why" not in request.headers.values:
            return []
        why = await self.store.why(request.key)
        return [b"SCS-Why: %b\r\n" % why.encode("ascii", "replace")]

    async def _put(self, request: Request, namespace: str, account: Account) -> tuple[Answer, int]:
        headers, values = request.headers, request.headers.values
        if headers.length is None and not headers.is_chunked:
            raise Refusal(411, "length-required", "send Content-Length, or chunked")
        if b"content-range" in values:
            raise Refusal(400, "malformed", "there are no partial PUTs (Content-Range)")
        condition = _put_condition(headers)
        if condition is not None:
            condition.check(await self.store.meta(request.key.target))
        if self.uploads >= self._uploads_max:
            raise Overloaded(f"{self.uploads} uploads are under way on this shard")
        ttl_s = self._ttl(request)
        if ttl_s == 0:
            return await self._decline(request, account, "the client asks not to store it")
        if not await self.store.admits(request.key, namespace, headers.length):
            return await self._decline(request, account, "the shard is full of what is wanted more")
        upload = self.store.begin(
            request.key,
            length=headers.length,
            namespace=namespace,
            content_type=_kept(values, b"content-type", 256) or b"application/octet-stream",
            content_encoding=_kept(values, b"content-encoding", 64),
            ttl_s=ttl_s,
            condition=condition,
            digests=_digests(values),
        )
        self.uploads += 1
        try:
            async for piece in self._paid(request.body, account):
                await upload.write(piece)
            meta = await upload.commit()
        finally:
            try:
                await upload.abort()
            finally:
                self.uploads -= 1
        self.counters.put_bytes += meta.size
        return head(201, b"ETag: %b\r\nContent-Length: 0\r\n" % _etag(meta)), 201

    async def _paid(self, body: AsyncIterator[bytes], account: Account) -> AsyncIterator[bytes]:
        """A body, charged as it comes; what is not taken yet waits in the client's socket."""
        owed = 0
        async for piece in body:
            account.spend(len(piece))
            owed += len(piece)
            if owed >= PAY_BYTES:
                await self.turns.pay(account.tenant, owed * account.price)
                owed = 0
            yield piece
        self.turns.fair.charge(account.tenant, owed * account.price)

    async def _decline(self, request: Request, account: Account, why: str) -> tuple[Answer, int]:
        """What would not be kept: a client that asks first is told, others see their 201."""
        if request.headers.expects_continue:
            raise NotAdmitted(f"the object would not be kept: {why}")
        async for _ in self._paid(request.body, account):
            pass
        return head(201, NOT_STORED, b"Content-Length: 0\r\n"), 201

    def _ttl(self, request: Request) -> int | None:
        """Seconds that an object may live: the client's wish, within the bucket's limit."""
        state = self._buckets.get(request.key.bucket.encode())
        limit = state.bucket.ttl_s if state is not None else None
        wish = request.headers.values.get(b"cache-control", b"")
        match = _MAX_AGE.search(wish)
        if _NO_STORE.search(wish):
            return 0
        if match is None:
            return limit
        return int(match[1]) if limit is None else min(limit, int(match[1]))

    async def review(self, body: AsyncIterator[bytes]) -> tuple[Answer, int]:
        """The verdict on a token, for another shard that asks."""
        if self.answer_peer is None:
            raise Refusal(404, "no-route", "this node reviews no tokens for others")
        question = b""
        async for piece in body:
            question += piece
            if len(question) > QUESTION_MAX_BYTES:
                raise Refusal(413, "too-large", "the question is too large")
        said = await self.answer_peer(question)
        fields = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(said)
        return head(200, fields) + said, 200

    async def purge(self, bucket: str, prefix: bytes, headers: Headers) -> tuple[Answer, int]:
        """Remove all objects of a bucket whose target begins with ``prefix``."""
        await self._admit(bucket, headers, reads=False)
        removed = await self.store.purge(bucket, prefix)
        body = b'{"removed": %d}\n' % removed
        fields = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        return head(200, fields) + body, 200

    async def _delete(self, request: Request) -> tuple[Answer, int]:
        if await self.store.delete(request.key.target):
            return head(204), 204
        return problem(404, "miss", _MISS), 404

    async def _find(self, target: bytes) -> Blob | None:
        try:
            return self.store.find_now(target)
        except BlockingIOError:
            return await self.store.find(target)

    async def _read(self, blob: Blob) -> bytearray:
        with contextlib.suppress(BlockingIOError):
            return blob.read_now()
        return await self.store.in_thread(blob.read)


@lru_cache(maxsize=1024)
def _throttled(detail: str, retry_after_s: int) -> tuple[bytes, bytes]:
    """The answer to a capped request, without its ``Date``: refusing must cost next to nothing."""
    answer = problem(429, "throttled", detail, b"Retry-After: %d\r\n" % retry_after_s)
    line, _, rest = answer.partition(b"\n")
    return line + b"\n", rest


@lru_cache(maxsize=4096)
def _http_date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


def _etag(meta: Meta) -> bytes:
    return b'"%b"' % meta.etag.hex().encode()


def _fields(meta: Meta, length: int) -> tuple[bytes, ...]:
    encoding = (b"Content-Encoding: %b\r\n" % meta.content_encoding,)
    return (
        b"Content-Length: %d\r\nContent-Type: %b\r\nETag: %b\r\nLast-Modified: %b\r\n"
        b"Accept-Ranges: bytes\r\n"
        % (
            length,
            meta.content_type,
            _etag(meta),
            _http_date(meta.created_ms // 1000),
        ),
        *(encoding if meta.content_encoding else ()),
    )


def _prepare_head(blob: Blob) -> bytes:
    """What stands behind the status line of a 200 with the whole object; kept with the blob."""
    blob.head = b"".join((*_fields(blob.meta, blob.size), b"\r\n"))
    return blob.head


def _condition(headers: Headers, meta: Meta) -> tuple[bytes, int] | None:
    """The answer to a read whose condition does not hold (RFC 9110, 13.2.2), or None."""
    if headers.is_plain:
        return None
    etag = meta.etag.hex().encode()
    if_match = headers.values.get(b"if-match")
    if if_match is not None and if_match != b"*" and etag not in _strong_tags(if_match):
        raise PreconditionFailed("the object's ETag is not among those of If-Match")
    if_none_match = headers.values.get(b"if-none-match")
    if if_none_match is not None and (
        if_none_match == b"*" or any(etag == tag for _, tag in _ETAGS.findall(if_none_match))
    ):
        return head(304, b"ETag: %b\r\n" % _etag(meta)), 304
    return None


def _strong_tags(value: bytes) -> list[bytes]:
    """The tags of an If-Match: a weak one matches nothing there (RFC 9110, 13.1.1)."""
    return [tag for weak, tag in _ETAGS.findall(value) if not weak]


def _range(headers: Headers, meta: Meta) -> tuple[int, int] | None:
    """(start, length) of the range that is asked for and valid; None: the whole object.

    Raises:
        Refusal: 416, nothing of the object is in reach.
    """
    wanted = headers.values.get(b"range")
    match = _RANGE.fullmatch(wanted) if wanted is not None else None
    if match is None or not (match[1] or match[2]):
        return None
    if_range = headers.values.get(b"if-range")
    if if_range is not None and if_range != _etag(meta):
        return None
    size = meta.size
    if match[1]:
        start, end = int(match[1]), min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < start:
            return None
    else:
        start, end = max(0, size - int(match[2])), size - 1
    if start > end:
        raise Refusal(
            416, "range", f"the object has {size} bytes", b"Content-Range: bytes */%d\r\n" % size
        )
    return start, end - start + 1


def _put_condition(headers: Headers) -> Condition | None:
    if_none_match = headers.values.get(b"if-none-match")
    if if_none_match is not None:
        if if_none_match != b"*":
            raise Refusal(400, "malformed", "on a PUT, If-None-Match takes * only")
        return Condition(None)
    if_match = headers.values.get(b"if-match")
    if if_match is None:
        return None
    if if_match == b"*":
        return Condition(frozenset())
    if not _ETAGS.search(if_match):
        raise Refusal(400, "malformed", "If-Match takes * or ETags in double quotes")
    ours = [tag for tag in _strong_tags(if_match) if _OUR_ETAG.fullmatch(tag)]
    if not ours:
        raise PreconditionFailed("no object has an ETag like that (If-Match)")
    return Condition(frozenset(bytes.fromhex(tag.decode()) for tag in ours))


def _kept(values: Mapping[bytes, bytes], name: bytes, limit: int) -> bytes:
    value = values.get(name, b"")
    if len(value) > limit or not _PRINTABLE.fullmatch(value):
        raise Refusal(
            400, "malformed", f"{name.decode()} takes up to {limit} bytes of printable ASCII"
        )
    return value


def _digests(values: Mapping[bytes, bytes]) -> list[tuple[Any, bytes]]:
    """(hashlib object, expected digest) pairs from Content-Digest (RFC 9530) and Content-MD5."""
    wanted: list[tuple[str, bytes]] = []
    for member in values.get(b"content-digest", b"").split(b",") if values else ():
        if not member.strip():
            continue
        match = _DIGEST.fullmatch(member)
        if match is None:
            raise Refusal(400, "malformed", "Content-Digest is not of the form sha-256=:BASE64:")
        if match[1] in _DIGEST_NAMES:
            wanted.append((_DIGEST_NAMES[match[1]], match[2]))
    if b"content-md5" in values:
        wanted.append(("md5", values[b"content-md5"]))
    digests = []
    for name, text in wanted:
        try:
            expected = b64decode(text, validate=True)
        except binascii.Error:
            expected = b""
        if len(expected) != _DIGEST_BYTES[name]:
            raise Refusal(400, "malformed", f"the {name} digest is not {_DIGEST_BYTES[name]} bytes")
        digests.append((hashlib.new(name, usedforsecurity=False), expected))
    return digests
