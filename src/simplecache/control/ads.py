"""The gRPC side of the control plane: one task per Envoy moves bytes for its session.

Only state-of-the-world ADS is served: there is one resource of each type, so that incremental xDS
would save nothing. Every other method is answered UNIMPLEMENTED by gRPC itself.

A stream is never behind by more than one snapshot: what could not be written in time is not
queued but overtaken by what is in force then.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import grpc
import grpc.aio
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from simplecache.control.observe import Metrics
from simplecache.control.plane import Plane
from simplecache.control.session import Request, Response, Session
from simplecache.errors import InvalidConfig

SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
STREAMS_MAX: Final = 10_000
"""Envoys at the same time: more than twice the 4,000 nodes that we plan for."""

OPTIONS: Final = (
    # Envoy pings every 30 s; gRPC's default takes that for abuse and closes the connection.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # A node that vanished is noticed, too.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # By default a second process could listen on the same port, and each get half of the Envoys.
    ("grpc.so_reuseport", 0),
)
_ERROR_TEXT_MAX: Final = 500

_log = logging.getLogger(__name__)


async def start_server(plane: Plane, metrics: Metrics, listen: str) -> tuple[grpc.aio.Server, int]:
    """Serve ADS on ``listen``; the port is returned, for the kernel may have chosen it.

    Raises:
        InvalidConfig: the address cannot be listened on.
    """
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=STREAMS_MAX)
    server.add_generic_rpc_handlers((_make_handler(plane, metrics),))
    try:
        port = int(server.add_insecure_port(listen))
    except RuntimeError as error:
        raise InvalidConfig(f"--listen: cannot listen on {listen!r}: {error}") from error
    await server.start()
    return server, port


def _make_handler(plane: Plane, metrics: Metrics) -> Any:
    async def stream(_requests: Any, context: Any) -> None:
        metrics.streams += 1
        session = Session(plane.snapshot)
        peer = "an Envoy"
        read = asyncio.ensure_future(context.read())
        replaced = asyncio.ensure_future(plane.replaced.wait())
        try:
            while True:
                await asyncio.wait((read, replaced), return_when=asyncio.FIRST_COMPLETED)
                responses: list[Response] = []
                if read.done():
                    message = read.result()
                    if not isinstance(message, DiscoveryRequest):
                        return  # the mark of the stream's end
                    peer = message.node.id or peer
                    responses += _receive(session, message, metrics, peer)
                    read = asyncio.ensure_future(context.read())
                if replaced.done() and plane.snapshot is not None:
                    replaced = asyncio.ensure_future(plane.replaced.wait())
                    responses += session.update(plane.snapshot)
                for response in responses:
                    await context.write(response)
                    metrics.pushes[response.type_url] += 1
        finally:
            metrics.streams -= 1
            read.cancel()
            replaced.cancel()
            _log.debug("%s left: %r", peer, session)

    methods = {
        "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(
            stream,
            request_deserializer=DiscoveryRequest.FromString,
            response_serializer=encode_response,
        )
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _receive(session: Session, message: Any, metrics: Metrics, peer: str) -> list[Response]:
    request = decode_request(message)
    acks, nacks = session.acks.get(request.type_url, 0), session.nacks.get(request.type_url, 0)
    responses = session.receive(request)
    if request.type_url in metrics.acks:
        metrics.acks[request.type_url] += session.acks[request.type_url] - acks
        metrics.nacks[request.type_url] += session.nacks[request.type_url] - nacks
    if request.error is not None:
        _log.error("%s rejects %s: %s", peer, request.type_url, request.error)
    return responses


def decode_request(message: Any) -> Request:
    """What of a DiscoveryRequest the session needs."""
    error = message.error_detail.message if message.HasField("error_detail") else None
    return Request(
        message.type_url,
        message.version_info,
        message.response_nonce,
        tuple(message.resource_names),
        None if error is None else error[:_ERROR_TEXT_MAX],
    )


def encode_response(response: Response) -> bytes:
    """The bytes of a DiscoveryResponse.

    Two encodings of parts of a message, one after the other, are the encoding of the whole: so one
    encoded snapshot serves every stream, and only the nonce is written for each.
    """
    nonce: bytes = DiscoveryResponse(nonce=response.nonce).SerializeToString()
    return response.body + nonce
