"""The composition root of the control plane: settings in, a running service out.

Stateless: what it knows comes from the source and the probes, and versions are content hashes. Any
number of replicas serve the same without knowing of one another, and when all are down, Envoys go
on with what they have.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from simplecache.control.ads import start_server
from simplecache.control.endpoints import EndpointSource, FileSource
from simplecache.control.observe import Metrics
from simplecache.control.ops import make_ops
from simplecache.control.plane import Plane
from simplecache.control.probe import Prober
from simplecache.control.shards import Shard
from simplecache.control.snapshot import Snapshot, make_snapshot
from simplecache.errors import InvalidConfig
from simplecache.ops import OpsServer
from simplecache.placement import LB_NAMES, MAGLEV, RING_SIZE_MAX, check_table_size

Address = tuple[str, int]

STOP_GRACE_S: Final = 0.5
"""How long streams may finish a write. They have no end of their own; Envoys reconnect."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """What an operator chooses, checked at birth.

    Raises:
        InvalidConfig: naming the setting and the value.
    """

    endpoints: Path | None
    """The endpoints file. None: the caller of :func:`run` brings another source."""

    listen: Address = ("127.0.0.1", 21803)
    """Where Envoys connect, by gRPC without TLS: keep it on a network of its own."""

    ops: Address = ("127.0.0.1", 21804)
    lb: str = MAGLEV
    table_size: int = 0
    """0: by the number of listed shards."""

    envoy_listen: Address = ("0.0.0.0", 21800)  # noqa: S104 - clients are on all interfaces
    """Where every Envoy listens for clients."""

    probe_interval_s: float = 1.0
    probe_timeout_s: float = 1.0

    def __post_init__(self) -> None:
        if self.lb not in LB_NAMES:
            raise InvalidConfig(f"lb: {self.lb!r} is not known; expected {' or '.join(LB_NAMES)}")
        if self.table_size and self.lb == MAGLEV:
            check_table_size(self.table_size, "table_size")
        if not 0 <= self.table_size <= RING_SIZE_MAX:
            raise InvalidConfig(f"table_size: {self.table_size} must be 0 to {RING_SIZE_MAX}")
        for name, value in (("interval", self.probe_interval_s), ("timeout", self.probe_timeout_s)):
            if not 0.01 <= value <= 60:
                raise InvalidConfig(f"probe_{name}_s: {value} must be between 0.01 and 60 seconds")


@dataclass(frozen=True, slots=True)
class Running:
    """A control plane at work, and the ports it got."""

    plane: Plane
    metrics: Metrics
    xds_port: int
    ops_port: int


@dataclass(frozen=True, slots=True)
class PodSettings:
    """Where the cache pods are, for the source that is the Kubernetes API."""

    namespace: str
    """Empty: the control plane's own."""
    selector: str
    kubeconfig: Path | None = None
    """None: the pod's own service account."""
    zones_from_nodes: bool = False
    """For clusters that do not put the zone on pods (before Kubernetes 1.35)."""


async def run_on_pods(settings: ControlSettings, pods: PodSettings) -> None:
    """As :func:`run`, with the shards out of Kubernetes.

    Raises:
        InvalidConfig: no apiserver is configured.
        SimpleCacheError: it does not answer at the start.
    """
    from simplecache.control.pods import PodSource  # noqa: PLC0415 - an extra of its own
    from simplecache.kube.api import KubeApi  # noqa: PLC0415
    from simplecache.kube.config import from_kubeconfig, in_cluster  # noqa: PLC0415

    config = from_kubeconfig(pods.kubeconfig) if pods.kubeconfig else in_cluster(os.environ)
    source = PodSource(
        KubeApi(config),
        pods.namespace or config.namespace,
        pods.selector,
        zones_from_nodes=pods.zones_from_nodes,
    )
    async with source:
        await run(settings, source)


async def run(settings: ControlSettings, source: EndpointSource | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InvalidConfig: the source cannot be read at start, or an address not be listened on.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings, source) as running:
        _log.info("xDS on port %d, ops on port %d", running.xds_port, running.ops_port)
        await stop.wait()
        _log.info("stopping")


@asynccontextmanager
async def serving(
    settings: ControlSettings, source: EndpointSource | None = None
) -> AsyncIterator[Running]:
    """A running control plane for as long as the context lasts."""
    if source is None:
        if settings.endpoints is None:
            raise InvalidConfig("endpoints: a file is needed")
        source = FileSource(settings.endpoints)
    metrics = Metrics()
    plane = Plane(
        source,
        Prober(timeout_s=settings.probe_timeout_s),
        partial(_make, settings),
        metrics,
        probe_interval_s=settings.probe_interval_s,
    )
    await plane.start()
    ops = await _start_ops(make_ops(plane, metrics), settings.ops)
    try:
        server, xds_port = await start_server(plane, metrics, _join(settings.listen))
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(plane.run())
                yield Running(plane, metrics, xds_port, ops.sockets[0].getsockname()[1])
                work.cancel()
        finally:
            await server.stop(STOP_GRACE_S)
    finally:
        ops.close()
        await ops.wait_closed()


def _make(settings: ControlSettings, shards: frozenset[Shard], listed: int) -> Snapshot:
    return make_snapshot(
        shards,
        lb=settings.lb,
        envoy_listen=settings.envoy_listen,
        table_size=settings.table_size,
        listed=listed,
    )


async def _start_ops(ops: OpsServer, address: Address) -> asyncio.Server:
    try:
        return await ops.start(*address)
    except OSError as error:
        raise InvalidConfig(f"--ops: cannot listen on {_join(address)!r}: {error}") from error


def _join(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
