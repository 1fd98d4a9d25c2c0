"""One consistent set of everything that Envoys are told, and the versions of its parts.

A snapshot is made whole and never changes. The version of a part is the SHA-256 of its content, so
that replicas agree without talking, a control plane that restarts changes nothing, and an Envoy
that reconnects to another replica is not disturbed.

The hash is taken over canonical JSON and not over protobuf's bytes: those are not canonical, for
the maps inside an ``Any`` are written in an order that differs from process to process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.access_loggers.stream.v3 import stream_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.load_balancing_policies.maglev.v3 import maglev_pb2
from envoy.extensions.load_balancing_policies.ring_hash.v3 import ring_hash_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf.json_format import ParseDict

from simplecache.control.resources import (
    Json,
    make_cluster,
    make_listener,
    make_load_assignment,
    make_routes,
)
from simplecache.control.shards import Shard, published_order
from simplecache.placement import table_size_for

DESCRIPTORS: Final = (
    stream_pb2,
    router_pb2,
    http_connection_manager_pb2,
    maglev_pb2,
    ring_hash_pb2,
    previous_hosts_pb2,
    http_protocol_options_pb2,
)
"""The messages that stand inside an ``Any``: importing them is what lets them be encoded."""

_PREFIX: Final = "type.googleapis.com/envoy.config."
CDS: Final = f"{_PREFIX}cluster.v3.Cluster"
EDS: Final = f"{_PREFIX}endpoint.v3.ClusterLoadAssignment"
LDS: Final = f"{_PREFIX}listener.v3.Listener"
RDS: Final = f"{_PREFIX}route.v3.RouteConfiguration"
TYPES: Final = (CDS, EDS, LDS, RDS)
"""In the order in which they are sent: nothing may name what is not there yet."""

SHORT_NAMES: Final = {CDS: "cds", EDS: "eds", LDS: "lds", RDS: "rds"}


@dataclass(frozen=True, slots=True)
class ResourceSet:
    """The one resource of one type, ready to be sent."""

    name: str
    version: str
    response: bytes
    """An encoded DiscoveryResponse that only lacks its nonce; one copy serves all streams."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is in force."""

    version: str
    """Of the placement: the algorithm, the table and the shards."""

    shards: frozenset[Shard]
    sets: Mapping[str, ResourceSet]
    """By type URL, one for each of ``TYPES``."""

    directory: bytes
    """The JSON document from which clients compute owners by themselves."""

    def __repr__(self) -> str:
        return f"<Snapshot {self.version[:12]} of {len(self.shards)} shards>"


def make_snapshot(
    shards: frozenset[Shard],
    *,
    lb: str,
    envoy_listen: tuple[str, int],
    table_size: int = 0,
    listed: int = 0,
) -> Snapshot:
    """The snapshot for a set of shards. Pure; about 30 µs a shard.

    Args:
        shards: the published set, not empty.
        lb: ``maglev`` or ``ring_hash``.
        envoy_listen: where every Envoy listens for clients.
        table_size: slots; 0 goes by the number of shards.
        listed: that number, where it is larger than the published set: a table's size must not
            depend on who is up just now.
    """
    assert shards, "an empty set is never published"
    size = table_size or table_size_for(max(listed, len(shards)))
    sets = {
        CDS: _encode(CDS, make_cluster(lb, size), Cluster()),
        EDS: _encode(EDS, make_load_assignment(shards), ClusterLoadAssignment()),
        LDS: _encode(LDS, make_listener(*envoy_listen), Listener()),
        RDS: _encode(RDS, make_routes(), RouteConfiguration()),
    }
    directory = make_directory(shards, lb=lb, table_size=size)
    return Snapshot(directory["version"], shards, sets, json.dumps(directory).encode() + b"\n")


def make_directory(shards: Iterable[Shard], *, lb: str, table_size: int) -> Json:
    """What a client needs in order to compute owners: ``GET /v1/endpoints``."""
    content: Json = {
        "lb": lb,
        "table_size": table_size,
        "shards": [
            {
                "name": shard.name,
                "zone": shard.zone,
                "address": shard.address,
                "port": shard.port,
                "weight": shard.weight,
            }
            for shard in published_order(shards)
        ],
    }
    return {"version": content_version(content)} | content


def content_version(content: Json) -> str:
    """SHA-256 over canonical JSON, in hexadecimal."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _encode(type_url: str, content: Json, message: Any) -> ResourceSet:
    response = DiscoveryResponse(version_info=content_version(content), type_url=type_url)
    response.resources.add().Pack(ParseDict(content, message), deterministic=True)
    name = content["cluster_name"] if type_url == EDS else content["name"]
    return ResourceSet(name, response.version_info, response.SerializeToString(deterministic=True))
