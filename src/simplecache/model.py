"""The nouns of the system: frozen values, checked at birth, without I/O.

``Key`` is an object's name and nothing else decides where it lives: Envoy and our own placement
hash ``Key.target``, a shard's file path is a hash of it too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from simplecache.errors import InvalidName

TARGET_PREFIX: Final = b"/v1/objects/"
NAME_MAX_BYTES: Final = 4096
"""An object name's limit. PFIO's names are a URL inside a URL: S3 allows 1,024 bytes, and two
of them (archive and member) fit with room to spare."""

BUCKET_PATTERN: Final = rb"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
NAME_PATTERN: Final = rb"[!\"$-~]{1,%d}" % NAME_MAX_BYTES
"""Visible ASCII without '#': what Envoy lets through, byte for byte."""

_BUCKET = re.compile(BUCKET_PATTERN)
_NAME = re.compile(NAME_PATTERN)


def is_bucket_name(name: str) -> bool:
    """Whether ``name`` follows S3's rules: 3-63 of a-z 0-9 . -, letter or digit at both ends."""
    return name.isascii() and _BUCKET.fullmatch(name.encode()) is not None


@dataclass(frozen=True, slots=True)
class Key:
    """An object's identity: its bucket and the raw bytes of its name.

    Raises:
        InvalidName: the bucket or the name breaks the rules of docs/behaviour.md.
    """

    bucket: str
    name: bytes

    def __post_init__(self) -> None:
        if not is_bucket_name(self.bucket):
            raise InvalidName(
                f"bucket name {self.bucket!r}: 3 to 63 of a-z, 0-9, '.' and '-' are allowed, "
                "with a letter or digit at both ends"
            )
        if not _NAME.fullmatch(self.name):
            raise InvalidName(_name_fault(self.name))

    @property
    def target(self) -> bytes:
        """The request target (Envoy's ``:path``): what placement and storage hash."""
        return TARGET_PREFIX + self.bucket.encode() + b"/" + self.name

    @classmethod
    def from_target(cls, target: bytes) -> Key:
        """The key that a request target names; the inverse of :attr:`target`."""
        if not target.startswith(TARGET_PREFIX):
            raise InvalidName(f"{target[:80]!r} does not begin with /v1/objects/")
        bucket, _, name = target[len(TARGET_PREFIX) :].partition(b"/")
        return cls(bucket.decode("ascii", "backslashreplace"), name)

    def __str__(self) -> str:
        return f"{self.bucket}/{self.name.decode('ascii')}"


def _name_fault(name: bytes) -> str:
    if not name:
        return "the object name is empty"
    if len(name) > NAME_MAX_BYTES:
        return f"the object name has {len(name)} bytes; at most {NAME_MAX_BYTES} are allowed"
    at = next(i for i, byte in enumerate(name) if not 0x21 <= byte <= 0x7E or byte == 0x23)
    return (
        f"the object name has byte 0x{name[at]:02x} at offset {at}; escape space, '#', control "
        f"characters and non-ASCII as %XX"
    )


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket, as the configuration has it (``config.parse_buckets``)."""

    name: str
    public: bool
    """Anyone reads without a token; anyone writes, too, unless ``write_namespaces`` is given."""

    quota_bytes: int | None
    """Over the whole cluster; a shard enforces its share. None: bounded by the disks alone."""

    read_namespaces: tuple[str, ...]
    write_namespaces: tuple[str, ...] | None
    """None: anybody, which only a public bucket has."""

    weight: float = 1.0
    """Its part of the room, against the other buckets', when there is not enough for all."""

    min_share_bytes: int | None = None
    """Over the whole cluster; what others' pressure never takes from it."""

    is_pinned: bool = False
    """Others' pressure takes nothing from it."""

    eviction: str = "steady"
    """The policy that chooses among its own entries."""

    ttl_s: int | None = None
    """Entries go after so long; None: never by age."""

    requests_per_s: float | None = None
    bytes_per_s: float | None = None
    """Caps over the whole cluster; a shard enforces its share. None: no cap."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """What the configuration says of a namespace's callers (``config.parse_namespaces``)."""

    name: str

    weight: float | None = None
    """Its part of the throughput; None: by the weight of the bucket that it uses."""

    requests_per_s: float | None = None
    bytes_per_s: float | None = None
    """Caps over the whole cluster and all buckets. None: no cap."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as far as the cache cares.

    ``namespace`` is None for an anonymous caller (no token, or mode ``none``).
    """

    namespace: str | None = None
    pod: str | None = None
    """The pod's name when the token is bound to one; for logs only."""


ANONYMOUS: Final = Caller()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to "may this caller do that?", with the sentence that explains it."""

    allowed: bool
    reason: str
    needs_token: bool = False
    """Denied only because nobody said who they are: 401, not 403."""
