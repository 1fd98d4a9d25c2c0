"""The pod network of the test's cluster: what DNS and kube-proxy do, for processes on loopback.

A pod that speaks to a Service speaks to a port of its own address, behind which a forwarder stands
that goes to one of the Service's pods. For xDS the forwarder knows the protocol: every Envoy is told
by the control plane to listen on all addresses, which on one machine can only be had once, so the
listener's address is replaced by that of the Envoy's pod. Nothing else is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable

# The kubelet forks beside these servers, and its children are other programs at once.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse

Endpoint = tuple[str, int]
Endpoints = Callable[[], list[Endpoint]]
"""Where a Service's pods are just now."""

STREAM = "StreamAggregatedResources"
SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"


class Addresses:
    """A range of loopback addresses that no other test on this machine uses, dealt out one by one."""

    def __init__(self) -> None:
        self._holder = socket.socket()  # held as long as this object lives
        for _ in range(50):
            self._prefix = f"127.{random.randrange(16, 250)}.{random.randrange(1, 250)}"
            try:
                self._holder.bind((f"{self._prefix}.254", 1024 + os.getpid() % 60_000))
            except OSError:
                continue
            self._holder.listen(1)
            break
        self._next = 1

    def take(self) -> str:
        """An address that was never taken before."""
        self._next += 1
        assert self._next < 254, "a test makes more pods than a range has addresses"
        return f"{self._prefix}.{self._next}"

    @staticmethod
    def reported(address: str) -> str:
        """The address to show in a pod's status: an EndpointSlice takes no loopback ones.

        From RFC 2544's range for benchmarks; nobody connects to it.
        """
        return "198.18." + address.split(".", 2)[2]

    def close(self) -> None:
        self._holder.close()


@contextlib.asynccontextmanager
async def forwarding(listen: Endpoint, endpoints: Endpoints) -> AsyncIterator[None]:
    """Carry connections to one of the Service's pods each, as kube-proxy does."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = endpoints()
        try:
            if found:
                there, back = await asyncio.open_connection(*random.choice(found))
                await asyncio.gather(_pump(reader, back), _pump(there, writer))
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(carry, *listen)
    try:
        yield
    finally:
        server.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def relaying_xds(listen: Endpoint, endpoints: Endpoints) -> AsyncIterator[None]:
    """As :func:`forwarding`, for the streams of one Envoy, which is to listen on ``listen``'s host."""

    async def relay(requests, context):
        found = endpoints()
        if not found:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no control plane is ready")
        host, port = random.choice(found)
        async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
            try:
                async for answer in channel.stream_stream(f"/{SERVICE}/{STREAM}")(requests):
                    yield _at(answer, listen[0])
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), "the control plane is gone")

    handler = grpc.method_handlers_generic_handler(
        SERVICE, {STREAM: grpc.stream_stream_rpc_method_handler(relay)}
    )
    # Envoy pings every 30 s, which gRPC takes for abuse by default.
    server = grpc.aio.server(options=(("grpc.http2.max_ping_strikes", 0), ("grpc.so_reuseport", 0)))
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"{listen[0]}:{listen[1]}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


def _at(answer: bytes, host: str) -> bytes:
    response = DiscoveryResponse.FromString(answer)
    if not response.type_url.endswith(".Listener"):
        return answer
    for resource in response.resources:
        listener = Listener()
        resource.Unpack(listener)
        listener.address.socket_address.address = host
        resource.Pack(listener)
    return response.SerializeToString()
