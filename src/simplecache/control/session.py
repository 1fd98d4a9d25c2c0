"""One Envoy's stream: what it asks and what it is sent, without a socket.

State-of-the-world xDS over one aggregated stream. Requests and snapshots go in, responses come
out; the caller moves the bytes.

The protocol has no words for "acknowledge" and "subscribe": both are a request, told apart by its
nonce. The rules, each of which was paid for by somebody:

  * The first request of a type is a subscription. It is answered even if it carries the version
    in force: a reconnecting Envoy waits for the answer.
  * A nonce that is not the last one sent is stale: another answer is on its way already.
  * The last nonce, for the first time: the verdict on that answer. With an error it is a
    rejection; the same content is not sent again, for it would be rejected again.
  * The last nonce once more: a new subscription with the same names. Envoy sends exactly that
    after its cluster changed, and keeps the cluster warming until it is answered.
  * When a cluster (listener) is sent, its endpoints (routes) follow, changed or not: whatever
    Envoy asked in between, it gets them after their parent.
  * Order: clusters, endpoints, listeners, routes.

Rejection is told by the error alone; the version in a rejection is the one in force before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from simplecache.control.snapshot import CDS, EDS, LDS, RDS, TYPES, Snapshot

_CHILD: Final = {CDS: EDS, LDS: RDS}
_WILDCARD: Final = frozenset({CDS, LDS})
"""The types in which naming nothing means everything."""


@dataclass(frozen=True, slots=True)
class Request:
    """What of a DiscoveryRequest matters."""

    type_url: str
    version: str = ""
    nonce: str = ""
    names: tuple[str, ...] = ()
    error: str | None = None
    """The text of ``error_detail``; None: it has none."""


@dataclass(frozen=True, slots=True)
class Response:
    """What is to be sent: ``body`` is an encoded DiscoveryResponse without its nonce."""

    type_url: str
    version: str
    nonce: str
    body: bytes = field(repr=False)


@dataclass(slots=True)
class _Subscription:
    names: frozenset[str]
    nonce: str = ""
    """Of the last answer; empty: nothing was sent yet."""

    version: str = ""
    settled: bool = True
    """The last answer was acknowledged or rejected."""


class Session:
    """The state of one stream. Its owner feeds it from one task at a time."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self._snapshot = snapshot
        self._subscriptions: dict[str, _Subscription] = {}
        self._nonces = 0
        self.acks = dict.fromkeys(TYPES, 0)
        self.nacks = dict.fromkeys(TYPES, 0)

    def receive(self, request: Request) -> list[Response]:
        """One request came: what to send now. Types that are not ours are never answered."""
        if request.type_url not in TYPES:
            return []
        subscription = self._subscriptions.get(request.type_url)
        names = frozenset(request.names)
        if subscription is None:
            self._subscriptions[request.type_url] = _Subscription(names)
            return self._answer(request.type_url)
        if request.nonce and request.nonce != subscription.nonce:
            return []
        known, subscription.names = subscription.names, names
        if not request.nonce or subscription.settled:
            return self._answer(request.type_url)
        subscription.settled = True
        counter = self.acks if request.error is None else self.nacks
        counter[request.type_url] += 1
        # An acknowledgement may add a name at the same time: then it is a subscription, too.
        return self._answer(request.type_url) if names - known else []

    def update(self, snapshot: Snapshot) -> list[Response]:
        """A new snapshot is in force: what to send, in order."""
        self._snapshot = snapshot
        due: set[str] = set()
        for type_url in TYPES:
            subscription = self._subscriptions.get(type_url)
            if subscription and subscription.version != snapshot.sets[type_url].version:
                due |= {type_url, _CHILD.get(type_url, type_url)}
        return self._send(type_url for type_url in TYPES if type_url in due)

    def _answer(self, type_url: str) -> list[Response]:
        return self._send([type_url])

    def _send(self, types: Iterable[str]) -> list[Response]:
        responses = []
        for type_url in types:
            subscription = self._subscriptions.get(type_url)
            if self._snapshot is None or subscription is None:
                continue
            resources = self._snapshot.sets[type_url]
            if not _wants(type_url, subscription.names, resources.name):
                continue
            self._nonces += 1
            subscription.nonce = str(self._nonces)
            subscription.version = resources.version
            subscription.settled = False
            responses.append(
                Response(type_url, resources.version, subscription.nonce, resources.response)
            )
        return responses

    def __repr__(self) -> str:
        states = ", ".join(
            f"{type_url.rpartition('.')[2]} {s.version[:8] or '-'}{'' if s.settled else '?'}"
            for type_url, s in self._subscriptions.items()
        )
        return f"<Session {states or 'without subscriptions'}>"


def _wants(type_url: str, names: frozenset[str], name: str) -> bool:
    return name in names or (type_url in _WILDCARD and (not names or "*" in names))
