"""The endpoints document: which shards exist, as an operator or a supervisor writes it.

A node has a name, an address and one port per shard; port *i* is shard *i*. The shard's name,
``node/i``, is its hash key: it decides which objects the shard owns, so it stays the same when the
node's address changes and must never be reused for another disk.

Pure: text in, frozen values out. Every key is in a table here, and what is not is an error that
names key and value: a misspelt ``Weigth`` must not silently move the objects of a cluster.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from simplecache.errors import InvalidConfig

SHARDS_MAX: Final = 65_536
"""Far above 4,000 nodes of 4 shards; a bound on what one file may cost every Envoy."""

WEIGHT_MAX: Final = 65_535
"""Keeps the sum of all weights below 2^32, which is Envoy's limit."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_ZONE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
"""A Kubernetes label value: what ``topology.kubernetes.io/zone`` can hold, empty included."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of one node: a process with its port."""

    name: str
    """``node/index``: the hash key, stable over restarts."""

    zone: str
    address: str
    """An IP address: Envoy resolves no names in what EDS tells it."""

    port: int
    weight: int = 1
    """Relative capacity: a shard of weight 2 owns twice the objects of one of weight 1."""

    @property
    def endpoint(self) -> tuple[str, int]:
        """Where it listens; what a probe speaks to."""
        return self.address, self.port

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.name} at {host}:{self.port}"


def published_order(shards: Iterable[Shard]) -> list[Shard]:
    """The one order in which shards are published: by zone, then name.

    Envoy keeps one locality after the other, and a weighted ring depends on the order.
    """
    return sorted(shards, key=lambda shard: (shard.zone, shard.name))


def parse_endpoints(document: object) -> frozenset[Shard]:
    """``{"Nodes": [{"Name": …, "Address": …, "Ports": […]}, …]}`` -> its shards.

    Raises:
        InvalidConfig: naming the key and the value.
    """
    nodes = _table(document, "endpoints", _DOCUMENT_KEYS)["Nodes"]
    if not isinstance(nodes, list):
        raise InvalidConfig(f"Nodes: expected a list of nodes, not {nodes!r:.80}")
    names: set[str] = set()
    places: dict[tuple[str, int], str] = {}
    shards: list[Shard] = []
    for position, node in enumerate(nodes):
        where = f"Nodes[{position}]"
        for shard in _shards(node, where):
            if shard.endpoint in places:
                raise InvalidConfig(
                    f"{where}: {shard} has the endpoint of {places[shard.endpoint]}"
                )
            if shard.name in names:
                raise InvalidConfig(f"{where}.Name: {node['Name']!r} is there twice")
            places[shard.endpoint] = shard.name
            names.add(shard.name)
            shards.append(shard)
        if len(shards) > SHARDS_MAX:
            raise InvalidConfig(f"Nodes: more than {SHARDS_MAX} shards")
    return frozenset(shards)


_DOCUMENT_KEYS: Final = {"Nodes": True}
_NODE_KEYS: Final = {"Name": True, "Zone": False, "Address": True, "Ports": True, "Weight": False}
"""Key -> whether it is required."""


def _shards(node: object, where: str) -> Iterator[Shard]:
    table = _table(node, where, _NODE_KEYS)
    name = _text(table["Name"], f"{where}.Name", _NAME, "letters, digits, '.', '_' and '-'")
    zone = _text(table.get("Zone", ""), f"{where}.Zone", _ZONE, "a label value, such as zone-a")
    address = _address(table["Address"], f"{where}.Address")
    weight = _number(table.get("Weight", 1), f"{where}.Weight", WEIGHT_MAX)
    ports = table["Ports"]
    if not isinstance(ports, list) or not ports:
        raise InvalidConfig(f"{where}.Ports: {ports!r:.80} must be a list of one port or more")
    for index, value in enumerate(ports):
        port = _number(value, f"{where}.Ports[{index}]", 65_535)
        yield Shard(f"{name}/{index}", zone, address, port, weight)


def _address(value: object, where: str) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError as error:
        raise InvalidConfig(
            f"{where}: {value!r} must be an IP address, for Envoy resolves no names here"
        ) from error


def _text(value: object, where: str, pattern: re.Pattern[str], expected: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidConfig(f"{where}: {value!r:.300} is not valid; expected {expected}")
    return value


def _number(value: object, where: str, limit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise InvalidConfig(f"{where}: {value!r:.80} must be a whole number from 1 to {limit}")
    return value


def _table(value: object, where: str, keys: Mapping[str, bool]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidConfig(f"{where}: expected an object, not {value!r:.80}")
    for key in value:
        if key not in keys:
            raise InvalidConfig(f"{where}: unknown key {key!r}; known: {', '.join(keys)}")
    for key, required in keys.items():
        if required and key not in value:
            raise InvalidConfig(f"{where}: {key} is missing")
    return value
