"""A request line to what it asks for: one pattern for the hot way, one function for the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from simplecache.errors import InvalidName
from simplecache.model import (
    BUCKET_PATTERN,
    NAME_MAX_BYTES,
    NAME_PATTERN,
    TARGET_PREFIX,
    Key,
    is_bucket_name,
)
from simplecache.server.wire import ProtocolError, Refusal

PLAIN_GET: Final = re.compile(
    rb"GET (%b(%b)/%b) HTTP/1\.1\r\n" % (TARGET_PREFIX, BUCKET_PATTERN, NAME_PATTERN)
)
"""The line of nearly every request: target and bucket."""

VERBS: Final = (b"GET", b"HEAD", b"PUT", b"DELETE")
ALLOW: Final = b"Allow: GET, HEAD, PUT, DELETE\r\n"
READY: Final = b"/readyz"
REVIEW: Final = b"/v1/review"
PURGE_PREFIX: Final = b"/v1/buckets/"

_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_VERSION = re.compile(rb"HTTP/(\d)\.(\d)")
_ABSOLUTE = re.compile(rb"(?i)https?://[^/?#]+(?=/)")


@dataclass(frozen=True, slots=True)
class Route:
    """What a request line asks for: an object, or one of the shard's own paths."""

    verb: bytes
    key: Key | None
    """The object; None for the shard's own paths."""
    is_http_10: bool
    purge: tuple[str, bytes] | None = None
    """Bucket and the beginning of the targets to be removed."""
    is_review: bool = False
    """A peer's question about a token."""


def route(line: bytes) -> Route:
    """What a request line, without its CRLF, asks for.

    Raises:
        ProtocolError: it is not a request line.
        Refusal: it asks for what there is not.
    """
    parts = line.split(b" ")
    if len(parts) != 3 or not _METHOD.fullmatch(parts[0]):
        raise ProtocolError(400, "malformed", "the request line is not METHOD SP TARGET SP VERSION")
    verb, target, version = parts
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ProtocolError(400, "malformed", "the request line does not end in an HTTP version")
    if version not in {b"HTTP/1.1", b"HTTP/1.0"}:
        raise ProtocolError(505, "version", "HTTP/1.1 and HTTP/1.0 are spoken here")
    absolute = _ABSOLUTE.match(target)
    if absolute is not None:  # absolute-form, which servers must take (RFC 9112, 3.2.2)
        target = target[absolute.end() :]
    own = _own_path(verb, target, is_http_10=version == b"HTTP/1.0")
    if own is not None:
        return own
    if not target.startswith(TARGET_PREFIX):
        raise Refusal(404, "no-route", "objects are at /v1/objects/{bucket}/{object}")
    if verb not in VERBS:
        raise Refusal(405, "method", "the methods are GET, HEAD, PUT and DELETE", ALLOW)
    try:
        key = Key.from_target(target)
    except InvalidName as error:
        too_long = len(target) > NAME_MAX_BYTES and "at most" in str(error)
        raise Refusal(
            414 if too_long else 400, "too-large" if too_long else "malformed", str(error)
        ) from error
    return Route(verb, key, version == b"HTTP/1.0")


def _own_path(verb: bytes, target: bytes, *, is_http_10: bool) -> Route | None:
    if target == READY and verb in {b"GET", b"HEAD"}:
        return Route(verb, None, is_http_10)
    if target == REVIEW and verb == b"POST":
        return Route(verb, None, is_http_10, is_review=True)
    if target.startswith(PURGE_PREFIX) and verb == b"DELETE":
        return Route(verb, None, is_http_10, _purge(target))
    return None


def _purge(target: bytes) -> tuple[str, bytes]:
    """``/v1/buckets/{bucket}/{prefix}``, with the prefix of the objects' names, maybe empty."""
    bucket, slash, prefix = target[len(PURGE_PREFIX) :].partition(b"/")
    name = bucket.decode("ascii", "replace")
    if not slash or not is_bucket_name(name):
        raise Refusal(400, "malformed", "a purge is DELETE /v1/buckets/{bucket}/{prefix}")
    return name, TARGET_PREFIX + bucket + b"/" + prefix
