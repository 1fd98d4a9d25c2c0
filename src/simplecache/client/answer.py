"""What an answer means to a client: an object's facts, a part of it, or one of our errors.

Pure: heads and bodies in, values and exceptions out. A peer's text is trimmed and distrusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from simplecache import errors
from simplecache.client.message import Head

ERROR_BODY_MAX_BYTES: Final = 64 * 1024
"""An error's body is a sentence; whoever sends more than this is not a cache node."""
DETAIL_MAX_CHARACTERS: Final = 500

_ERRORS: Final[Mapping[str, type[errors.SimpleCacheError]]] = {
    "unauthenticated": errors.Unauthenticated,
    "forbidden": errors.Forbidden,
    "no-bucket": errors.NoSuchBucket,
    "too-large": errors.TooLarge,
    "precondition": errors.PreconditionFailed,
    "digest": errors.DigestMismatch,
    "timeout": errors.Unavailable,
    "throttled": errors.Throttled,
    "overloaded": errors.Overloaded,
    "draining": errors.Draining,
    "review-unavailable": errors.ReviewUnavailable,
    "disk-full": errors.DiskFull,
    "disk-error": errors.DiskError,
}
"""The words of ``SCS-Error`` (docs/behaviour.md) that have a class of their own. The others mean
that this client and the cache do not understand each other: ``Refused``."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_UNSATISFIED_RANGE = re.compile(r"bytes \*/([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Stat:
    """What the cache knows of an object."""

    size_bytes: int
    """The size of the whole object, also when only a part of it was asked for."""
    content_type: str
    etag: str | None
    """Equal bytes have equal tags on every node."""
    modified_at: datetime | None
    """When it was put."""
    content_encoding: str | None = None
    """As it was put; the bytes are always given as stored."""


def make_stat(head: Head, size_bytes: int) -> Stat:
    """The facts in a header."""
    return Stat(
        size_bytes=size_bytes,
        content_type=head.headers.get("content-type", "application/octet-stream"),
        etag=head.headers.get("etag"),
        modified_at=_parse_date(head.headers.get("last-modified")),
        content_encoding=head.headers.get("content-encoding"),
    )


def make_range_field(start: int, end: int | None) -> str:
    """The ``Range`` for ``object[start:end]``.

    Raises:
        ValueError: the part is empty or its bounds are negative.
    """
    if start < 0 or (end is not None and end <= start):
        raise ValueError(f"range [{start}:{end}]: 0 <= start < end is expected")
    return f"bytes={start}-{'' if end is None else end - 1}"


def check_part(head: Head, start: int, end: int | None) -> int:
    """The size of the whole object, once the 206 is exactly the part that was asked for.

    Raises:
        CacheFault: it is another part.
    """
    told = head.headers.get("content-range", "")
    match = _CONTENT_RANGE.fullmatch(told)
    if match is not None:
        first, last, size_bytes = (int(digits) for digits in match.groups())
        wanted_last = size_bytes - 1 if end is None else min(end, size_bytes) - 1
        if (first, last, head.length_bytes) == (start, wanted_last, last - first + 1):
            return size_bytes
    raise errors.CacheFault(
        f"asked for bytes [{start}:{end}], the cache answered Content-Range {told[:80]!r} "
        f"with Content-Length {head.length_bytes}"
    )


def parse_unsatisfied(head: Head) -> int:
    """The size of the whole object that a 416 tells.

    Raises:
        CacheFault: it does not.
    """
    match = _UNSATISFIED_RANGE.fullmatch(head.headers.get("content-range", ""))
    if match is None:
        raise errors.CacheFault("the cache answered 416 without the object's size")
    return int(match[1])


def is_miss(head: Head) -> bool:
    """Whether a node said that it has no such object (and not a hop that there is no such page)."""
    return head.status == 404 and head.headers.get("scs-error") == "miss"


def make_error(head: Head, body: bytes) -> errors.SimpleCacheError:
    """The error that an answer stands for.

    Args:
        head: its status and header.
        body: its ``application/problem+json``, or as much of it as could be had.
    """
    word = head.headers.get("scs-error")
    detail = _parse_detail(body)
    if word is None:
        if 300 <= head.status < 400:
            detail = "redirects are not followed"
        text = f"the answer {head.status} was not made by a cache node"
        return errors.CacheFault(f"{text}: {detail}" if detail else text)
    error = _ERRORS.get(word, errors.Refused)(detail or f"the cache refused: {head.status} {word}")
    if isinstance(error, errors.Unavailable):
        error.retry_after_s = _parse_retry_after(head, error.retry_after_s)
    return error


def _parse_detail(body: bytes) -> str:
    """The problem's sentence; of a body of another kind its beginning."""
    text = body.decode("utf-8", "replace")
    try:
        problem = json.loads(text)
    except (ValueError, RecursionError):
        problem = None
    if isinstance(problem, dict) and isinstance(problem.get("detail"), str):
        text = problem["detail"]
    text = " ".join(text[: 2 * DETAIL_MAX_CHARACTERS].split())
    return "".join(c if c.isprintable() else "?" for c in text)[:DETAIL_MAX_CHARACTERS]


def _parse_retry_after(head: Head, default_s: int) -> int:
    told = head.headers.get("retry-after", "")
    return min(int(told), 3600) if re.fullmatch("[0-9]{1,9}", told) else default_s


def _parse_date(told: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(told) if told else None
    except ValueError:
        return None
