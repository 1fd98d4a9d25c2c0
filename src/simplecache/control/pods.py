"""Shards out of Kubernetes: the cache pods of a namespace, listed and watched.

A pod announces its shards by annotations, which the chart sets. A pod counts when it has an
address, is Ready and is not being deleted; of two that claim one node the newest counts, for the
other is on its way out. The ring's name of a shard is its node's, so a pod that is recreated on
its node keeps the node's objects.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

from simplecache.control.shards import Shard, parse_endpoints
from simplecache.errors import InvalidConfig, SimpleCacheError
from simplecache.kube.api import KubeApi
from simplecache.kube.watch import Reflector, Timing

log = logging.getLogger(__name__)

PORTS: Final = "simple-cache-service/ports"
WEIGHT: Final = "simple-cache-service/weight"
NAME_FROM: Final = "simple-cache-service/name-from"
ZONE: Final = "topology.kubernetes.io/zone"
RELIST_TIMEOUT_S: Final = 10.0
TIMING: Final = Timing(pause_max_s=4.0)
"""An apiserver that is back is noticed within five seconds: there are two or three of us, and until
then nobody learns of a pod."""


class Claim(NamedTuple):
    """What a pod that is ready says of itself."""

    created: str
    """RFC 3339, so that it sorts; then the uid, for two of the same second."""
    uid: str
    name: str
    """Of its node in the ring."""
    node: str
    zone: str
    address: str
    ports: str
    weight: str


def claim_of(pod: Mapping[str, Any]) -> Claim | None:
    """What a pod claims; None when it is not to be counted."""
    meta, spec, status = (_table(pod.get(key)) for key in ("metadata", "spec", "status"))
    annotations, labels = _table(meta.get("annotations")), _table(meta.get("labels"))
    conditions = status.get("conditions")
    is_ready = any(
        _table(condition).get("type") == "Ready" and _table(condition).get("status") == "True"
        for condition in (conditions if isinstance(conditions, list) else ())
    )
    node = spec.get("nodeName")
    if not is_ready or meta.get("deletionTimestamp") or not status.get("podIP") or not node:
        return None
    return Claim(
        created=str(meta.get("creationTimestamp", "")),
        uid=str(meta.get("uid", "")),
        name=str(meta.get("name")) if annotations.get(NAME_FROM) == "pod" else str(node),
        node=str(node),
        zone=str(labels.get(ZONE, "")),
        address=str(status["podIP"]),
        ports=str(annotations.get(PORTS, "")),
        weight=str(annotations.get(WEIGHT, "1")),
    )


def shards_of(claims: Iterable[Claim], zones: Mapping[str, str]) -> frozenset[Shard]:
    """The shards of all claims, the newest of a name. A claim that makes no sense is left out.

    Args:
        claims: of ready pods.
        zones: of nodes, for pods that bear no zone themselves.
    """
    newest: dict[str, Claim] = {}
    for claim in sorted(claims):
        newest[claim.name] = claim
    shards: list[Shard] = []
    taken: set[tuple[str, int]] = set()
    for claim in newest.values():
        try:
            found = _parse(claim, claim.zone or zones.get(claim.node, ""))
        except (InvalidConfig, ValueError) as error:
            log.error("pod %s on node %s is left out: %s", claim.uid, claim.node, error)
            continue
        places = {shard.endpoint for shard in found}
        if places & taken:
            log.error("pod %s on node %s is left out: its ports are taken", claim.uid, claim.node)
            continue
        taken |= places
        shards += found
    return frozenset(shards)


@lru_cache(16_384)  # each change brings all claims again, of which one is new
def _parse(claim: Claim, zone: str) -> frozenset[Shard]:
    node = {
        "Name": claim.name,
        "Zone": zone,
        "Address": claim.address,
        "Ports": [int(port) for port in claim.ports.split(",")],
        "Weight": int(claim.weight),
    }
    return parse_endpoints({"Nodes": [node]})


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


class PodSource:
    """The cache pods of a namespace: an ``EndpointSource``. Use it as an async context."""

    def __init__(
        self, api: KubeApi, namespace: str, selector: str, *, zones_from_nodes: bool = False
    ) -> None:
        self._api = api
        self._changed = asyncio.Event()
        self._pods: Reflector[Claim] = Reflector(
            api,
            f"/api/v1/namespaces/{namespace}/pods",
            claim_of,
            label_selector=selector,
            timing=TIMING,
            on_change=lambda _: self._changed.set(),
        )
        self._nodes: Reflector[str] | None = None
        if zones_from_nodes:
            self._nodes = Reflector(
                api,
                "/api/v1/nodes",
                lambda node: str(_table(_table(node.get("metadata")).get("labels")).get(ZONE, "")),
                timing=TIMING,
                on_change=lambda _: self._changed.set(),
            )
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._pods.run())]
        if self._nodes is not None:
            self._tasks.append(asyncio.create_task(self._nodes.run()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._api.close()

    def __repr__(self) -> str:
        return f"<PodSource {self._pods!r}>"

    async def relist(self) -> frozenset[Shard]:
        """See ``EndpointSource``.

        Raises:
            SimpleCacheError: the apiserver does not answer now.
        """
        try:
            async with asyncio.timeout(RELIST_TIMEOUT_S):
                await self._pods.relist()
                if self._nodes is not None:
                    await self._nodes.wait_synced()
        except TimeoutError as error:
            raise SimpleCacheError("the apiserver does not list the cache pods now") from error
        return self._shards()

    async def changes(self) -> AsyncIterator[frozenset[Shard]]:
        """See ``EndpointSource``."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._pods.synced:
                yield self._shards()

    def _shards(self) -> frozenset[Shard]:
        zones = (
            {}
            if self._nodes is None
            else {key.rpartition("/")[2]: zone for key, zone in self._nodes.objects.items()}
        )
        return shards_of(self._pods.objects.values(), zones)
