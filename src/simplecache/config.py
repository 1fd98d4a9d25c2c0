"""Configuration as users write it, checked at birth: buckets, tokens, and sizes.

Files are JSON in the form that users of the original system know, or YAML of the same shape. Every
key is in a table here; an unknown key, a wrong type or a value out of range is an
:class:`InvalidConfig` that names the place, the value and what is expected.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from simplecache.errors import InvalidConfig
from simplecache.model import Bucket, is_bucket_name

T = TypeVar("T")

_UNITS: Final = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T", "P"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"), start=1)},
}
_QUANTITY = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DURATION = re.compile(r"([0-9]{1,12})([smhd]?)")
EVICTION_POLICIES: Final = ("steady", "lru", "fifo", "random", "lfu", "sieve", "s3fifo")
"""The table is ``store/policies.py``; the first is the default. See docs/eviction.md."""
FILE_MAX_BYTES: Final = 16 << 20
"""A configuration file's limit: far above 10,000 buckets, far below what would hurt a node."""


def parse_size(value: object, where: str) -> int:
    """Bytes from Kubernetes' quantity form: ``500Gi`` is binary, ``500G`` decimal, 1024 plain.

    Raises:
        InvalidConfig: not a positive size.
    """
    if isinstance(value, int) and value.bit_length() > 64:  # too long even to be written out
        raise InvalidConfig(f"{where}: the size must be larger than zero and below 4 Ei")
    match = _QUANTITY.fullmatch(str(value).strip()) if isinstance(value, str | int) else None
    if match is None or isinstance(value, bool) or match[2] not in _UNITS:
        raise InvalidConfig(
            f"{where}: {value!r} is not a size; expected bytes, or a number with one of "
            f"{', '.join(unit for unit in _UNITS if unit)}, as in 100Gi (binary) or 100G (decimal)"
        )
    size = (
        int(float(match[1]) * _UNITS[match[2]])
        if "." in match[1]
        else (int(match[1]) * _UNITS[match[2]])
    )
    if not 0 < size < 1 << 62:
        raise InvalidConfig(f"{where}: {value!r} must be larger than zero and below 4 Ei")
    return size


_BUCKET_KEYS: Final = {
    "Name": True,
    "Public": False,
    "BucketQuota": False,
    "AllowNamespaces": False,
    "ReadNamespaces": False,
    "WriteNamespaces": False,
    "Weight": False,
    "MinShare": False,
    "Pinned": False,
    "Eviction": False,
    "TTL": False,
}
"""Key -> whether it is required."""


def parse_buckets(document: object) -> dict[str, Bucket]:
    """``{"Bucket": [{"Name": …}, …]}`` -> buckets by name.

    Raises:
        InvalidConfig: naming the key and the value.
    """
    table = _mapping(document, "configuration", {"Bucket": True})
    entries = table["Bucket"]
    if not isinstance(entries, list):
        raise InvalidConfig(f"Bucket: expected a list of buckets, not {_kind(entries)}")
    buckets: dict[str, Bucket] = {}
    for position, entry in enumerate(entries):
        bucket = _bucket(entry, f"Bucket[{position}]")
        if bucket.name in buckets:
            raise InvalidConfig(f"Bucket[{position}].Name: {bucket.name!r} is there twice")
        buckets[bucket.name] = bucket
    return buckets


def _bucket(entry: object, where: str) -> Bucket:
    table = _mapping(entry, where, _BUCKET_KEYS)
    name = table["Name"]
    if not isinstance(name, str) or not is_bucket_name(name):
        raise InvalidConfig(
            f"{where}.Name: {name!r} is not a bucket name; expected 3 to 63 of a-z, 0-9, '.' and "
            "'-', with a letter or digit at both ends"
        )
    where = f"{where} ({name})"
    public = _flag(table, "Public", where)
    quota = _size(table, "BucketQuota", where)
    min_share = _size(table, "MinShare", where)
    if quota is not None and min_share is not None and min_share > quota:
        raise InvalidConfig(f"{where}.MinShare: {table['MinShare']!r} is above the BucketQuota")
    allow = _namespaces(table, "AllowNamespaces", where)
    read = _namespaces(table, "ReadNamespaces", where)
    write = _namespaces(table, "WriteNamespaces", where)
    if public and (allow is not None or read is not None):
        key = "AllowNamespaces" if allow is not None else "ReadNamespaces"
        raise InvalidConfig(
            f"{where}.{key}: a public bucket is read by all; limit its writers by WriteNamespaces"
        )
    if not public and allow is None and read is None:
        raise InvalidConfig(
            f"{where}: a bucket that is not Public needs AllowNamespaces (or ReadNamespaces)"
        )
    if write is None and not public:
        write = allow or ()
    return Bucket(
        name=name,
        public=public,
        quota_bytes=quota,
        read_namespaces=read if read is not None else allow or (),
        write_namespaces=write,
        weight=_weight(table.get("Weight", 1), f"{where}.Weight"),
        min_share_bytes=min_share,
        is_pinned=_flag(table, "Pinned", where),
        eviction=_policy(table.get("Eviction", EVICTION_POLICIES[0]), f"{where}.Eviction"),
        ttl_s=parse_duration(table["TTL"], f"{where}.TTL") if "TTL" in table else None,
    )


def _flag(table: Mapping[str, Any], key: str, where: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise InvalidConfig(f"{where}.{key}: {value!r} must be true or false")
    return value


def _size(table: Mapping[str, Any], key: str, where: str) -> int | None:
    return parse_size(table[key], f"{where}.{key}") if key in table else None


def _weight(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
        raise InvalidConfig(f"{where}: {value!r} must be a number above 0, at most 1,000,000")
    return float(value)


def _policy(value: object, where: str) -> str:
    if value not in EVICTION_POLICIES:
        raise InvalidConfig(f"{where}: {value!r} is none of {', '.join(EVICTION_POLICIES)}")
    return str(value)


def _namespaces(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...] | None:
    if key not in table:
        return None
    value = table[key]
    if not isinstance(value, list):
        raise InvalidConfig(f"{where}.{key}: expected a list of namespaces, not {_kind(value)}")
    for name in value:
        if not isinstance(name, str) or not _NAMESPACE.fullmatch(name):
            raise InvalidConfig(f"{where}.{key}: {name!r} is not a Kubernetes namespace name")
    return tuple(dict.fromkeys(value))


def parse_duration(value: object, where: str) -> int:
    """Seconds from ``90``, ``"90s"``, ``"15m"``, ``"12h"`` or ``"7d"``.

    Raises:
        InvalidConfig: not a duration of at least a second.
    """
    match = _DURATION.fullmatch(str(value)) if isinstance(value, str | int) else None
    if match is None or isinstance(value, bool) or not 0 < int(match[1]) < 10**9:
        raise InvalidConfig(
            f"{where}: {value!r} is not a duration; expected seconds, or a number with s, m, h or d"
        )
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2] or "s"]


@dataclass(frozen=True, slots=True)
class StaticTokens:
    """Mode ``static``: which token speaks for which namespace. Tokens are kept as hashes only."""

    namespaces: Mapping[bytes, str] = field(repr=False)
    """SHA-256 of the token -> namespace."""

    def namespace(self, token: bytes) -> str | None:
        """The namespace that ``token`` speaks for, or None."""
        return self.namespaces.get(hashlib.sha256(token).digest())


def parse_tokens(document: object) -> StaticTokens:
    """``{"Token": [{"Token": "…", "Namespace": "prj-foobar"}, …]}`` -> tokens.

    Raises:
        InvalidConfig: naming the place, never the token.
    """
    table = _mapping(document, "tokens", {"Token": True})
    if not isinstance(table["Token"], list):
        raise InvalidConfig(f"Token: expected a list, not {_kind(table['Token'])}")
    namespaces: dict[bytes, str] = {}
    for position, entry in enumerate(table["Token"]):
        where = f"Token[{position}]"
        row = _mapping(entry, where, {"Token": True, "Namespace": True})
        token, namespace = row["Token"], row["Namespace"]
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]{16,8192}", token):
            raise InvalidConfig(f"{where}.Token: expected 16 to 8,192 visible ASCII characters")
        if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
            raise InvalidConfig(f"{where}.Namespace: {namespace!r} is not a namespace name")
        digest = hashlib.sha256(token.encode()).digest()
        if digest in namespaces:
            raise InvalidConfig(f"{where}.Token: the same token stands there twice")
        namespaces[digest] = namespace
    return StaticTokens(namespaces)


def load(path: Path, parse: Callable[[object], T]) -> T:
    """Read a JSON or YAML (``.yaml``, ``.yml``) file and parse its document.

    Raises:
        InvalidConfig: unreadable, too large, not the format, or refused by ``parse``; the text
            begins with the path.
    """
    try:
        with path.open("rb") as file:
            text = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidConfig(f"{path}: {error.strerror}") from error
    if len(text) > FILE_MAX_BYTES:
        raise InvalidConfig(f"{path}: larger than {FILE_MAX_BYTES} bytes")
    try:
        return parse(_decode(text, yaml=path.suffix in {".yaml", ".yml"}))
    except InvalidConfig as error:
        raise InvalidConfig(f"{path}: {error}") from error


def _decode(text: bytes, *, yaml: bool) -> object:
    try:
        return _decode_yaml(text) if yaml else json.loads(text, object_pairs_hook=_no_duplicates)
    except InvalidConfig:
        raise
    except (ValueError, RecursionError) as error:  # also numbers and dates that cannot be
        raise InvalidConfig(f"not {'YAML' if yaml else 'JSON'}: {error}") from error


def _decode_yaml(text: bytes) -> object:
    import yaml  # noqa: PLC0415 - an extra that JSON users need not have

    class Loader(yaml.SafeLoader):
        """A loader that refuses what JSON refuses: a key that stands there twice."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        return _no_duplicates(loader.construct_pairs(node, deep=True))

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:  # its own text shows the line, which may hold a token
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise InvalidConfig(f"not YAML: {where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise InvalidConfig("not YAML: it holds a character that YAML does not know") from error


def _no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    try:
        table = dict(pairs)
    except TypeError as error:
        raise InvalidConfig("a key is a list or an object, not a name") from error
    if len(table) != len(pairs):
        seen: set[Any] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidConfig(f"key {twice!r} is there twice")
    return table


def _mapping(value: object, where: str, keys: Mapping[str, bool]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidConfig(f"{where}: expected an object, not {_kind(value)}")
    for key in value:
        if key not in keys:
            raise InvalidConfig(f"{where}: unknown key {key!r}; known: {', '.join(keys)}")
    for key, required in keys.items():
        if required and key not in value:
            raise InvalidConfig(f"{where}: {key} is missing")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    if isinstance(value, int) and value.bit_length() > 64:
        return "a very large number"
    return names.get(type(value)) or repr(value)
