"""The whole: a real cluster, the rendered chart in it, a kubelet that runs it, and its users.

Tests are ordinary functions; what speaks to the apiserver runs in a loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from chart_harness import render

from cluster import objects
from cluster.apiserver import RealCluster
from cluster.kubelet import PROGRAMS, Kubelet, Pod
from simplecache.kube.api import KubeApi

T = TypeVar("T")
Json = dict[str, Any]

NAMESPACE = "cache-service"
TEAM = "prj-foobar"
OTHERS = "prj-other"
NODES = {f"node-{n}": f"zone-{'ab'[n % 2]}" for n in range(5)}
ENVOYS = 3
VALUES: Json = {
    "buckets": [
        {"Name": "public", "Public": True, "BucketQuota": "1Gi"},
        {"Name": TEAM, "Public": False, "BucketQuota": "1Gi", "AllowNamespaces": [TEAM]},
    ],
    "cache": {
        "shards": 1,
        "capacity": "1Gi",
        "drainDelaySeconds": 1,
        "drainGraceSeconds": 5,
        "nodeSelector": {"cache": "yes"},
        "storage": {"hostPath": {"prepare": False}},  # there is no root here
    },
    "envoy": {"concurrency": 1, "drainSeconds": 1, "nodeSelector": {"envoy": "yes"}},
}
READY_S = 90.0


@dataclass(frozen=True)
class Client:
    """A user's pod: an object, and the token that a kubelet would give it."""

    name: str
    namespace: str
    token: str

    @property
    def fields(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


class World:
    def __init__(self, cluster: RealCluster, envoy: str) -> None:
        self.cluster = cluster
        # Not pytest's folder: a socket's path has at most 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="scs-k-"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kubelet", daemon=True)
        programs = PROGRAMS | {"/usr/local/bin/envoy": [envoy]}
        self.kubelet = Kubelet(cluster.config, NAMESPACE, self._folder, programs)
        self.kubelet.nodes = list(NODES)
        self._clients = 0

    # -- its life ------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()
        self.api = self.run(self._open())
        self.run(self._furnish())
        self._running = asyncio.run_coroutine_threadsafe(self.kubelet.run(), self._loop)
        self.until(self.is_whole, READY_S, "the chart is not up")

    def stop(self) -> None:
        self._running.cancel()
        with contextlib.suppress(BaseException):
            self._running.result(20)
        self.run(self.api.close())
        self.run(asyncio.sleep(0.2))  # TLS farewells
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _open(self) -> KubeApi:
        return KubeApi(self.cluster.config)

    async def _furnish(self) -> None:
        for name in (NAMESPACE, TEAM, OTHERS):
            await objects.make_namespace(self.api, name)
        for number, (name, zone) in enumerate(NODES.items()):
            await objects.make_node(self.api, name, zone)
            ready = [{"type": "Ready", "status": "True"}]
            await self.api.call(
                "PATCH", f"/api/v1/nodes/{name}/status", {"status": {"conditions": ready}}
            )
            labels = {"cache": "yes"} | ({"envoy": "yes"} if number < ENVOYS else {})
            body = {"metadata": {"labels": labels}, "spec": {"taints": None}}
            await self.api.call("PATCH", f"/api/v1/nodes/{name}", body)
        for team in (TEAM, OTHERS):
            await objects.make_account(self.api, team)
        version = (await self.api.get("/version"))["gitVersion"].removeprefix("v")
        self.rendered = render(VALUES, kube=version, namespace=NAMESPACE)
        for document in self.rendered.docs:
            await self.api.call("POST", path_of(document), document)

    def is_whole(self) -> bool:
        """Every pod is ready and every Envoy knows every shard."""
        expected = {"cache": len(NODES), "envoy": ENVOYS, "control-plane": 2}
        ready = {name: [p for p in self.kubelet.of(name) if p.ready] for name in expected}
        if any(len(ready[name]) != count for name, count in expected.items()):
            return False
        wanted = {f"{pod.ip}:7400" for pod in ready["cache"]}
        if not all(self.known_to(envoy) == wanted for envoy in ready["envoy"]):
            return False
        return self.watchers() == 3

    # -- words for tests -----------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 120) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        return self.run(self.api.call(method, path, body))

    def get(self, path: str) -> Json:
        return self.run(self.api.get(path))

    def until(self, condition: Callable[[], T], timeout_s: float, what: str) -> T:
        """Wait for a condition; returns what it returned."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert not self.kubelet.faults, self.kubelet.faults
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}\n{self.state()}"
            time.sleep(0.02)
        return found

    def heal(self) -> None:
        """Wait until all is as in the beginning."""
        self.until(self.is_whole, READY_S, "the cluster is not whole")

    def state(self) -> str:
        pods = [
            f"{p.name} {p.node} {p.ip} ready={p.ready} restarts={p.restarts} ending={p.ending}"
            for p in self.kubelet.pods.values()
        ]
        tails = [
            f"{path.name}: ...{path.read_text(errors='replace')[-600:]}"
            for path in self._folder.glob("*.log")
        ]
        return "\n".join([*pods, *tails])

    def envoy(self, number: int = 0) -> Pod:
        return self.kubelet.of("envoy")[number]

    def client(self, namespace: str = TEAM, *, node: str = "node-0", **options: Any) -> Client:
        """A user's new pod."""
        self._clients += 1
        return self.run(self._client(f"client-{self._clients}", namespace, node, options))

    async def _client(self, name: str, namespace: str, node: str, options: Json) -> Client:
        pod = await objects.make_pod(self.api, namespace, name, node=node)
        token = await objects.take_token(self.api, namespace, pod=pod, **options)
        return Client(name, namespace, token)

    def clients(self, count: int) -> list[Client]:
        """Many at once."""

        async def make() -> list[Client]:
            seats = asyncio.Semaphore(8)

            async def one(number: int) -> Client:
                async with seats:
                    return await self._client(f"many-{number}", TEAM, "node-0", {})

            return list(await asyncio.gather(*map(one, range(start, start + count))))

        start, self._clients = self._clients, self._clients + count
        return self.run(make())

    def delete(self, pod: Pod | Client, *, grace_s: int | None = None) -> None:
        namespace = pod.namespace if isinstance(pod, Client) else NAMESPACE
        body = {} if grace_s is None else {"gracePeriodSeconds": grace_s}
        self.call("DELETE", f"{objects.pods_path(namespace)}/{pod.name}", body)

    def ask(
        self,
        verb: str,
        target: str,
        who: Client | str | None = None,
        *,
        body: bytes | None = None,
        at: Pod | None = None,
    ) -> tuple[int, bytes]:
        """One request, through an Envoy or at a shard; status and body."""
        fields = {} if who is None else {"Authorization": f"Bearer {getattr(who, 'token', who)}"}
        pod = at or self.envoy()
        port = 7400 if pod.component == "cache" else 8080
        connection = http.client.HTTPConnection(pod.ip, port, timeout=15)
        try:
            connection.request(verb, f"/v1/objects/{target}", body, fields)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def known_to(self, envoy: Pod) -> set[str]:
        """The shards that an Envoy has in its table, as ``address:port``."""
        try:
            lines = admin(envoy, "/clusters").splitlines()
        except (OSError, http.client.HTTPException):
            return set()
        rows = (line.split("::") for line in lines if line.startswith("scs::"))
        return {row[1] for row in rows if row[2] == "hostname"}

    def all_know(self, shards: set[str]) -> bool:
        return all(self.known_to(envoy) == shards for envoy in self.kubelet.of("envoy"))

    def shards(self) -> set[str]:
        return {f"{pod.ip}:7400" for pod in self.kubelet.of("cache") if pod.ready}

    def metric(self, name: str) -> float:
        """The sum over all shards."""
        return sum(
            float(line.rpartition(" ")[2])
            for pod in self.kubelet.of("cache")
            for line in fetch(pod.ip, 7390, "/metrics").splitlines()
            if line.startswith(name + "{")
        )

    def reviews(self) -> int:
        """At the apiserver, by its own count."""
        return self.run(objects.count_reviews(self.api))

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """No apiserver."""
        self.run(self.cluster.take_down())
        try:
            yield
        finally:
            self.run(self.cluster.bring_up())

    def watchers(self) -> int:
        """Who watches pods of one namespace: the control planes and the kubelet."""
        text = self.run(objects.read_text(self.api, "/metrics"))
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in text.splitlines()
            if line.startswith("apiserver_longrunning_requests{")
            and 'resource="pods",scope="namespace"' in line
        )


class _Admin(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("admin", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(self._path)


def admin(envoy: Pod, path: str) -> str:
    """A page of an Envoy's admin interface."""
    connection = _Admin(envoy.admin)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def fetch(host: str, port: int, path: str) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def path_of(document: Json) -> str:
    """Where a document is POSTed."""
    version, namespace = document["apiVersion"], document["metadata"].get("namespace")
    kind = document["kind"].lower()
    plural = kind[:-1] + "ies" if kind.endswith("y") else kind + "s"
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"
