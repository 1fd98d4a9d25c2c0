"""The pure half of the reflector: bytes to events, events to a set of objects and its changes.

Nothing here waits, reads a clock or knows a socket. The apiserver is trusted to be the apiserver
but not to be well: a line may be cut, huge, or no JSON, and an event may lack what it must have.
Each of these is :class:`Malformed`, and the caller then lists afresh, for the event that could not
be read may have been a deletion.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from simplecache.errors import ApiGone, Malformed
from simplecache.kube.faults import make_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")

LINE_MAX_BYTES: Final = 16 << 20
"""One event. etcd takes objects of 1.5 MiB; JSON of the same is a few times longer at worst."""

Json = dict[str, Any]


class Lines:
    """Cuts a stream of chunks into lines of bounded length."""

    def __init__(self, line_max_bytes: int = LINE_MAX_BYTES) -> None:
        self._line_max_bytes = line_max_bytes
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[bytearray]:
        """The lines that this chunk completes, without their ends and without empty ones.

        Raises:
            Malformed: a line is too long.
        """
        # Only the new bytes are searched, so a long line costs no more than its length.
        first, *others = chunk.split(b"\n")
        self._rest += first
        ended = []
        for other in others:
            ended.append(self._bounded())
            self._rest = bytearray(other)
        self._bounded()
        return [line for line in ended if line.strip()]

    @property
    def is_whole(self) -> bool:
        """Whether the stream may end here: no line has begun and not ended."""
        return not self._rest.strip()

    def _bounded(self) -> bytearray:
        if len(self._rest) > self._line_max_bytes:
            raise Malformed(f"an event has more than {self._line_max_bytes} bytes")
        return self._rest


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a watch."""

    kind: str
    """ADDED, MODIFIED, DELETED or BOOKMARK."""

    version: str
    """The resource version from which a watch can go on after this event."""

    body: Json
    """The object; of a bookmark only its version is of use."""


def parse_event(line: bytes | bytearray) -> Event:
    """Read one line of a watch.

    Raises:
        ApiGone: the server says that the version watched from is no longer known.
        ApiFault: it reports another error.
        Malformed: the line is no event.
    """
    document = _parse_json(line)
    kind, body = document.get("type"), document.get("object")
    if not isinstance(body, dict):
        raise Malformed("an event without an object")
    if kind == "ERROR":
        raise _fault_of_status(body)
    if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
        raise Malformed("an event of an unknown type")
    return Event(kind=str(kind), version=version_of(body), body=body)


def version_of(body: Json) -> str:
    """The resource version of an object or a list.

    Raises:
        Malformed: it has none.
    """
    metadata = body.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not version:
        raise Malformed("an object or list without a resourceVersion")
    return version


def items_of(page: Json) -> list[Json]:
    """The objects of one page of a list.

    Raises:
        Malformed: this is no list. An answer without ``items`` must not pass for an empty one.
    """
    items = page.get("items", ...)
    if items is None:  # how Go writes an empty slice that was never made
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Malformed("the answer to a list has no items")
    return items


def key_of(body: Json) -> str:
    """``namespace/name``, or the name alone of what has no namespace.

    Raises:
        Malformed: the object has no name.
    """
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise Malformed("an object without a name")
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What became of one object."""

    key: str
    old: T | None
    """None: it is new."""

    new: T | None
    """None: it is gone."""


class Mirror(Generic[T]):
    """The objects as last seen, each reduced to what its user needs.

    Args:
        project: makes a ``T`` of an object, or None to leave it out (also for what it cannot make
            sense of). Objects whose ``T`` is equal count as unchanged. It must not raise.
    """

    def __init__(self, project: Callable[[Json], T | None]) -> None:
        self._project = project
        self._objects: dict[str, T] = {}

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def objects(self) -> Mapping[str, T]:
        """A read-only live view, by :func:`key_of`."""
        return MappingProxyType(self._objects)

    def reduce(self, bodies: Iterable[Json]) -> dict[str, T]:
        """What :meth:`replace` takes, made from whole objects, so that pages need not be kept."""
        reduced = {}
        for body in bodies:
            value = self._project(body)
            if value is not None:
                reduced[key_of(body)] = value
        return reduced

    def replace(self, objects: dict[str, T]) -> list[Change[T]]:
        """Take over a whole list at once; what it lacks is gone."""
        before, self._objects = self._objects, objects
        keys = sorted(before.keys() | objects.keys())
        changes = (Change(key, before.get(key), objects.get(key)) for key in keys)
        return [change for change in changes if change.old != change.new]

    def apply(self, event: Event) -> list[Change[T]]:
        """Take over one event."""
        if event.kind == "BOOKMARK":
            return []
        key = key_of(event.body)
        old = self._objects.get(key)
        new = None if event.kind == "DELETED" else self._project(event.body)
        if new is None:
            self._objects.pop(key, None)
        else:
            self._objects[key] = new
        return [Change(key, old, new)] if old != new else []


def _parse_json(line: bytes | bytearray) -> Json:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed("an event that is not JSON") from error
    if not isinstance(document, dict):
        raise Malformed("an event that is not a JSON object")
    return document


def _fault_of_status(status: Json) -> Exception:
    code = status.get("code")
    fault = make_fault("watch", code if isinstance(code, int) else 500, status.get("message"))
    if status.get("reason") in ("Expired", "Gone"):
        return ApiGone(str(fault), status=410)
    return fault
