"""The running control plane: its ops port, its loop and its settings, without an Envoy."""

import asyncio
import contextlib
import json
import logging
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from envoy.service.discovery.v3.ads_pb2_grpc import AggregatedDiscoveryServiceStub
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest

from simplecache.control import observe
from simplecache.control.endpoints import EndpointSource
from simplecache.control.observe import Metrics
from simplecache.control.serve import ControlSettings, run, serving
from simplecache.control.shards import Shard
from simplecache.control.snapshot import CDS, EDS, TYPES
from simplecache.errors import CacheFault, InvalidConfig

ANY = ("127.0.0.1", 0)
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Source(EndpointSource):
    """A source that a test drives."""

    def __init__(self, shards=()):
        self.shards = frozenset(shards)
        self.broken = False
        self.followed = asyncio.Event()
        self._changed = asyncio.Event()

    async def relist(self):
        if self.broken:
            raise CacheFault("the source is out of reach")
        return self.shards

    async def changes(self):
        self.followed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield self.shards

    def change(self, shards):
        self.shards = frozenset(shards)
        self._changed.set()


@asynccontextmanager
async def shards(count):
    """Ready shards, on one port each."""

    async def answer(reader, writer):
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(READY)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    servers = [await asyncio.start_server(answer, *ANY) for _ in range(count)]
    try:
        yield [
            Shard(f"n{i}/0", "", "127.0.0.1", server.sockets[0].getsockname()[1])
            for i, server in enumerate(servers)
        ]
    finally:
        for server in servers:
            server.close()


def settings(**options):
    defaults = {"endpoints": None, "listen": ANY, "ops": ANY, "probe_interval_s": 0.05}
    return ControlSettings(**defaults | options)


async def get(port, path, headers="", method="GET"):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), head.decode(), body.decode()


async def published(running, count):
    async with asyncio.timeout(20):
        while running.plane.snapshot is None or len(running.plane.snapshot.shards) != count:
            await running.plane.replaced.wait()
    return running.plane.snapshot


def test_the_ops_port(caplog):
    async def scenario():
        async with shards(2) as members:
            source = Source()
            async with serving(settings(), source) as running:
                port = running.ops_port
                assert (await get(port, "/healthz"))[0] == 200
                assert (await get(port, "/readyz"))[0] == 503
                assert (await get(port, "/v1/endpoints"))[0] == 503
                source.change(members)
                snapshot = await published(running, 2)
                assert (await get(port, "/readyz"))[0] == 200
                status, head, body = await get(port, "/v1/endpoints?x=1")
                directory = json.loads(body)
                assert status == 200
                assert "application/json" in head
                assert (directory["lb"], directory["table_size"]) == ("maglev", 65537)
                assert directory["version"] == snapshot.version
                match = f'If-None-Match: "{snapshot.version}"\r\n'
                assert (await get(port, "/v1/endpoints", match))[0] == 304
                assert (await get(port, "/metrics", method="HEAD"))[2] == ""
                _, _, metrics = await get(port, "/metrics")
                assert "\nscs_control_shards_published 2\n" in metrics
                assert '\nscs_control_nacks_total{type="eds"} 0\n' in metrics
                assert (await get(port, "/other"))[0] == 404
                assert (await get(port, "/metrics", method="PUT"))[0] == 405

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert "joined: n0/0 at 127.0.0.1" in caplog.text


def test_a_shrunk_listing_waits_for_a_fresh_read_and_a_broken_source_for_better_times():
    async def scenario():
        async with shards(3) as members:
            source = Source(members)
            async with serving(settings(), source) as running:
                await published(running, 3)
                source.broken = True
                source.change(members[:1])
                async with asyncio.timeout(20):
                    while running.metrics.relist_errors < 3:
                        await asyncio.sleep(0.01)
                assert len(running.plane.snapshot.shards) == 3
                source.broken = False
                await published(running, 1)
                assert running.metrics.relists > running.metrics.relist_errors

    asyncio.run(scenario())


def test_streams_are_answered_and_delta_is_not_offered():
    async def scenario():
        async with shards(2) as members:
            source = Source(members[:1])
            async with (
                serving(settings(), source) as running,
                grpc.aio.insecure_channel(f"127.0.0.1:{running.xds_port}") as channel,
            ):
                stub = AggregatedDiscoveryServiceStub(channel)
                stream = stub.StreamAggregatedResources()
                await stream.write(DiscoveryRequest(type_url=CDS))
                cluster = await stream.read()
                assert cluster.type_url == CDS
                request = DiscoveryRequest(type_url=CDS, response_nonce=cluster.nonce)
                request.node.id = "envoy-7"
                request.error_detail.message = "no such policy"
                await stream.write(request)
                await stream.write(DiscoveryRequest(type_url=EDS, resource_names=["scs"]))
                before = await stream.read()
                source.change(members)
                after = await stream.read()
                assert after.type_url == EDS
                assert after.version_info != before.version_info
                assert running.metrics.nacks[CDS] == 1
                assert running.metrics.streams == 1
                stream.cancel()
                delta = stub.DeltaAggregatedResources()
                with contextlib.suppress(grpc.aio.AioRpcError):  # it may be refused by now
                    await delta.write(DeltaDiscoveryRequest(type_url=CDS))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await delta.read()
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(scenario())


def test_many_changes_are_one_snapshot():
    async def scenario():
        async with shards(4) as members:
            source = Source(members[:1])
            async with serving(settings(), source) as running:
                await published(running, 1)
                made = running.metrics.snapshots
                for count in (2, 3, 4):
                    source.change(members[:count])
                    while running.metrics.published < count:
                        await asyncio.sleep(0.001)
                await published(running, 4)
                assert running.metrics.snapshots == made + 1

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it(number):
    async def scenario():
        source = Source()
        running = asyncio.ensure_future(run(settings(), source))
        async with asyncio.timeout(10):
            await source.followed.wait()
            assert not running.done()
            os.kill(os.getpid(), number)
            await running

    asyncio.run(scenario())


def test_an_address_in_use_is_named_and_so_is_a_missing_source(tmp_path):
    async def scenario():
        async with shards(1) as members:
            taken = ("127.0.0.1", members[0].port)
            for name in ("ops", "listen"):
                with pytest.raises(InvalidConfig, match=f"--{name}: cannot listen .*{taken[1]}"):
                    await run(settings(**{name: taken}), Source())
        with pytest.raises(InvalidConfig, match="a file is needed"):
            await run(settings())
        with pytest.raises(InvalidConfig, match="No such file"):
            await run(settings(endpoints=tmp_path / "absent"))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lb": "random"}, "lb: 'random'"),
        ({"table_size": 65536}, "table_size: 65536 must be a prime"),
        ({"lb": "ring_hash", "table_size": 1 << 30}, "table_size: 1073741824"),
        ({"probe_interval_s": 0.0}, "probe_interval_s: 0.0"),
    ],
)
def test_settings_are_checked_at_birth(options, text):
    with pytest.raises(InvalidConfig, match=text):
        settings(**options)


def test_every_metric_is_rendered_and_documented():
    text = observe.render(Metrics(), 0.0)
    documentation = (Path(__file__).parents[3] / "docs/control-plane.md").read_text()
    for short, kind, _, _ in observe.TABLE:
        assert f"# TYPE scs_control_{short} {kind}\n" in text
        assert f"`scs_control_{short}" in documentation
    assert text.count("scs_control_pushes_total{") == len(TYPES)
    assert "scs_control_snapshot_age_seconds -1\n" in text
