"""The control plane and a real Envoy, in the situations that operators meet."""

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
from envoy_harness import (
    Backend,
    Client,
    envoy,
    free_port,
    owners,
    running,
    socket_path,
    start_control_plane,
    static_config,
    stop,
    targets,
    until,
    write_endpoints,
)

from simplecache.control.bootstrap import make_bootstrap
from simplecache.control.serve import ControlSettings, serving
from simplecache.control.shards import published_order
from simplecache.placement import make_placement

NAMES = targets(400)


def backends_of(count, **options):
    return [Backend(f"node-{i}/0", zone=f"zone-{i % 2}", **options) for i in range(count)]


def expected_owners(backends, lb="maglev", size=65537):
    shards = published_order(backend.shard for backend in backends)
    placement = make_placement(lb, [(s.name, s.weight) for s in shards], size)
    return [placement.owner(name) for name in NAMES]


def bootstrap(xds_port, admin):
    return make_bootstrap(
        xds=("127.0.0.1", xds_port), node_id="envoy-1", zone="zone-0", admin_path=admin
    )


@asynccontextmanager
async def system(envoy_bin, tmp_path, backends, **settings):
    """Shards, a control plane in this loop and an Envoy that has its configuration."""
    port = free_port()
    path = tmp_path / "endpoints.json"
    async with running(backends):
        write_endpoints(path, [backend.shard for backend in backends])
        control = ControlSettings(
            endpoints=path,
            listen=("127.0.0.1", 0),
            ops=("127.0.0.1", 0),
            envoy_listen=("127.0.0.1", port),
            probe_interval_s=0.1,
            **settings,
        )
        async with serving(control) as plane:
            with socket_path() as admin:
                config = bootstrap(plane.xds_port, admin)
                async with envoy(envoy_bin, config, port, tmp_path) as proxy:
                    yield plane, proxy, path


async def follows(plane, proxy, backends, lb="maglev", size=65537):
    """Wait until exactly ``backends`` are published and Envoy's every answer is as computed."""
    wanted = frozenset(backend.shard for backend in backends)
    await until(
        lambda: plane.plane.snapshot and plane.plane.snapshot.shards == wanted,
        f"{len(wanted)} shards are published",
    )
    expected = expected_owners(backends, lb, size)

    async def agrees():
        return await owners(proxy.port, NAMES) == expected

    await until(agrees, "Envoy has them")


class Load:
    """Reads and writes without a pause, counting what fails."""

    def __init__(self, port, connections=4):
        self.count = 0
        self.failures = []
        self._port = port
        self._tasks = [asyncio.ensure_future(self._run(i)) for i in range(connections)]

    async def _run(self, number):
        client = Client(self._port)
        try:
            while True:
                name = NAMES[self.count % len(NAMES)]
                method = "PUT" if self.count % 5 == 0 else "GET"
                try:
                    status, _, _ = await client.request(method, name, b"x" * (method == "PUT"))
                except (OSError, EOFError) as error:
                    self.failures.append(error)
                    await client.close()
                else:
                    if status not in {200, 201}:
                        self.failures.append((method, name, status))
                self.count += 1
                await asyncio.sleep(0.002)
        finally:
            await client.close()

    async def more(self, count=50):
        start = self.count
        await until(lambda: self.count > start + count, "the load goes on")

    async def end(self):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert self.failures == []


def test_envoy_takes_everything_and_serves_the_contract(envoy_bin, tmp_path):
    async def scenario():
        backends = backends_of(3)
        async with system(envoy_bin, tmp_path, backends) as (plane, proxy, _):
            await follows(plane, proxy, backends)
            client = Client(proxy.port)
            status, fields, body = await client.request("GET", b"/elsewhere/x")
            assert (status, fields["content-type"]) == (404, "application/problem+json")
            assert json.loads(body)["status"] == 404
            assert (await client.request("GET", b"/healthz"))[0] == 200
            status, fields, _ = await client.request("GET", NAMES[0])
            assert fields["server"] == "scs-test"
            assert not [name for name in fields if name.startswith("x-envoy")]
            status, _, _ = await client.request(
                "PUT", NAMES[0], b"body", "Expect: 100-continue\r\n"
            )
            assert status == 100  # what follows on this connection is the 201
            await client.close()
            assert plane.metrics.streams == 1
            assert sum(plane.metrics.nacks.values()) == 0
            await until(lambda: min(plane.metrics.acks.values()), "all four are acknowledged")
            for kind in ("cds", "lds"):
                manager = "cluster_manager.cds" if kind == "cds" else "listener_manager.lds"
                assert await proxy.stat(f"{manager}.update_rejected") == 0
            assert await proxy.stat("cluster.scs.membership_healthy") == 3
            assert await proxy.stat("cluster.scs.maglev_lb.min_entries_per_host") == 21845
        assert "error" not in proxy.log.read_text()

    asyncio.run(scenario())


def test_endpoint_updates_arrive_and_the_table_follows(envoy_bin, tmp_path):
    async def scenario():
        backends = backends_of(3)
        async with system(envoy_bin, tmp_path, backends) as (plane, proxy, path):
            await follows(plane, proxy, backends)

            fourth = Backend("node-9/0", zone="zone-1")
            async with running([fourth]):
                write_endpoints(path, [b.shard for b in [*backends, fourth]])
                await follows(plane, proxy, [*backends, fourth])

                backends[0].weight = 5
                write_endpoints(path, [b.shard for b in [*backends, fourth]])
                await follows(plane, proxy, [*backends, fourth])

                backends[1].zone = "zone-7"
                write_endpoints(path, [b.shard for b in [*backends, fourth]])
                await follows(plane, proxy, [*backends, fourth])

                before = expected_owners([*backends, fourth])
                await fourth.stop()
                fourth.port = 0
                await fourth.start()  # the same disk behind another address
                write_endpoints(path, [b.shard for b in [*backends, fourth]])
                await follows(plane, proxy, [*backends, fourth])
                assert expected_owners([*backends, fourth]) == before

                write_endpoints(path, [b.shard for b in backends])
                await follows(plane, proxy, backends)
            assert sum(plane.metrics.nacks.values()) == 0

    asyncio.run(scenario())


def test_a_weighted_ring_follows_updates_as_well(envoy_bin, tmp_path):
    async def scenario():
        backends = backends_of(4)
        backends[2].weight = 3

        async with system(envoy_bin, tmp_path, backends, lb="ring_hash") as (plane, proxy, path):
            await follows(plane, proxy, backends, "ring_hash")
            write_endpoints(path, [b.shard for b in backends[1:]])
            await follows(plane, proxy, backends[1:], "ring_hash")
            write_endpoints(path, [b.shard for b in backends])
            await follows(plane, proxy, backends, "ring_hash")

    asyncio.run(scenario())


def test_a_dead_shard_leaves_and_comes_back(envoy_bin, tmp_path):
    async def scenario():
        backends = backends_of(3)
        async with system(envoy_bin, tmp_path, backends) as (plane, proxy, _):
            await follows(plane, proxy, backends)
            await backends[1].stop()
            await follows(plane, proxy, [backends[0], backends[2]])
            await backends[1].start()
            await follows(plane, proxy, backends)

            backends[2].ready = False  # it drains
            await follows(plane, proxy, backends[:2])
            backends[2].ready = True
            await follows(plane, proxy, backends)

    asyncio.run(scenario())


def test_when_no_shard_answers_nothing_changes(envoy_bin, tmp_path):
    async def scenario():
        backends = backends_of(3)
        async with system(envoy_bin, tmp_path, backends) as (plane, proxy, path):
            await follows(plane, proxy, backends)
            version = plane.plane.snapshot.version
            for backend in backends:
                await backend.stop()
            rounds = plane.metrics.probe_rounds
            await until(lambda: plane.metrics.probe_rounds > rounds + 10, "ten rounds of probes")
            write_endpoints(path, [])
            await until(lambda: plane.metrics.relists > 0, "the empty file is read again")
            assert plane.plane.snapshot.version == version
            write_endpoints(path, [b.shard for b in backends])
            for backend in backends:
                await backend.start()
            await until(lambda: plane.metrics.ready == 3, "all are back")
            await follows(plane, proxy, backends)

    asyncio.run(scenario())


@pytest.mark.parametrize("change", [{}, {"table_size": 9973}, {"lb": "ring_hash"}])
def test_killed_and_restarted_under_load_without_a_failed_request(envoy_bin, tmp_path, change):
    """``change``: what the restarted control plane says differently. A change of the cluster
    makes Envoy build a new one and subscribe to its endpoints anew."""

    async def scenario():
        path, port = tmp_path / "endpoints.json", free_port()
        flags = {
            "endpoints": path,
            "listen": f"127.0.0.1:{free_port()}",
            "ops": f"127.0.0.1:{free_port()}",
            "envoy_listen": f"127.0.0.1:{port}",
            "probe_interval": 0.1,
        }
        xds_port = int(flags["listen"].rpartition(":")[2])
        process: subprocess.Popen[bytes] | None = None
        async with running(backends_of(4)) as backends:
            write_endpoints(path, [b.shard for b in backends[:3]])
            process = start_control_plane(tmp_path, **flags)
            try:
                with socket_path() as admin:
                    config = bootstrap(xds_port, admin)
                    async with envoy(envoy_bin, config, port, tmp_path) as proxy:

                        async def connected(state):
                            return await proxy.stat("control_plane.connected_state") == state

                        assert await owners(port, NAMES) == expected_owners(backends[:3])
                        load = Load(port)
                        await load.more()
                        stop(process)
                        await until(lambda: connected(0), "Envoy noticed")
                        await load.more()
                        process = start_control_plane(tmp_path, **(flags | change))
                        await until(lambda: connected(1), "Envoy is back", 60)
                        write_endpoints(path, [b.shard for b in backends])

                        lb, size = change.get("lb", "maglev"), change.get("table_size", 65537)
                        expected = expected_owners(backends, lb, size)

                        async def agrees():
                            return await owners(port, NAMES) == expected

                        await until(agrees, "the fourth shard is in use")
                        await load.more()
                        await load.end()
                        for kind in ("cluster_manager.cds", "listener_manager.lds"):
                            assert await proxy.stat(f"{kind}.update_rejected") == 0
                        print(f"{load.count} requests, none failed")
            finally:
                stop(process)

    asyncio.run(scenario())


def test_a_cluster_that_changes_in_mid_stream_gets_its_endpoints(envoy_bin, tmp_path):
    """Only the cluster changes: Envoy warms a new one and asks for the endpoints it has already."""

    async def scenario():
        backends = backends_of(3)
        async with system(envoy_bin, tmp_path, backends) as (plane, proxy, _):
            await follows(plane, proxy, backends)
            load = Load(proxy.port)
            make = plane.plane._make_snapshot
            plane.plane._make_snapshot = lambda shards, _: make(shards, 1000)
            plane.plane.snapshot = None
            plane.plane._dirty.set()

            async def warm():
                slots = await proxy.stat("cluster.scs.maglev_lb.min_entries_per_host")
                return slots == 655_373 // 3

            await until(warm, "the larger table is in use", 10)
            await follows(plane, proxy, backends, size=655_373)
            await load.end()

    asyncio.run(scenario())


def test_replicas_agree_on_every_version(tmp_path):
    """Two processes with different hash seeds say the same, to the byte of the version."""
    program = (
        "from simplecache.control.snapshot import make_snapshot, TYPES\n"
        "from simplecache.control.shards import Shard\n"
        "shards = frozenset(Shard(f'n{i}/0', 'z', '10.0.0.1', i + 1) for i in range(50))\n"
        "s = make_snapshot(shards, lb='maglev', envoy_listen=('0.0.0.0', 80))\n"
        "print(s.version, [s.sets[t].version for t in TYPES])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


@pytest.mark.parametrize(
    ("xds", "ops"), [("127.0.0.1", None), ("xds.cache-service.svc", ("0.0.0.0", 21802))]
)
def test_the_bootstrap_validates(envoy_bin, tmp_path, xds, ops):
    config = make_bootstrap(
        xds=(xds, 21803), node_id="n", zone="z", admin_path="/tmp/scs/admin.sock", ops=ops
    )
    validate(envoy_bin, tmp_path, config)


@pytest.mark.parametrize("lb", ["maglev", "ring_hash"])
def test_the_resources_validate(envoy_bin, tmp_path, lb):
    backend = Backend("node-1/0", zone="zone-a", weight=3)
    backend.port = 1
    admin = str(tmp_path / "a.sock")[-100:]
    config = static_config([backend.shard], admin=admin, port=0, lb=lb, ejection=True)
    validate(envoy_bin, tmp_path, config)


def validate(envoy_bin, tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    done = subprocess.run(
        [envoy_bin, "--mode", "validate", "-c", path, "--disable-hot-restart"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()
