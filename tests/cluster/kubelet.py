"""A test double of kubelet and scheduler: runs the pods of one namespace as local processes.

Each pod has a loopback address of its own, its volumes in a folder, and for each container a process
with the image's command in its local form. What a pod asks for it gets: ConfigMaps, Secrets, emptyDir,
hostPath (below a folder for each node), projected tokens (by TokenRequest, bound to the pod), fields
by environment. Readiness is what the pod's probe says. A pod that is deleted gets its preStop sleep,
SIGTERM and its grace.

There are no mount namespaces: wherever a container's arguments, environment or ConfigMaps name a
mounted path, the path in the pod's folder stands instead; likewise the pod's address for 0.0.0.0, and
forwarders (``network.py``) for Services. The apiserver is told to SCS by ``SCS_KUBECONFIG``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import datetime as dt
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simplecache
from cluster.network import Addresses, Endpoint, forwarding, relaying_xds
from simplecache.errors import ApiFault
from simplecache.kube.api import KubeApi
from simplecache.kube.config import KubeConfig
from simplecache.kube.watch import Reflector, Timing

Json = dict[str, Any]
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
PROBE_S = 0.3
"""Between two readiness probes: tests are in more of a hurry than the chart."""
_libc = ctypes.CDLL(None)


@dataclass
class Pod:
    """A pod that runs here."""

    object: Json
    """As last seen."""
    ip: str
    folder: Path
    ready: bool = False
    held: bool = False
    """A test wants it to be unready, whatever its probe says."""
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    restarts: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    """Its object is; there is nobody to report to."""

    @property
    def name(self) -> str:
        return self.object["metadata"]["name"]

    @property
    def node(self) -> str:
        return self.object["spec"].get("nodeName", "")

    @property
    def component(self) -> str:
        return self.object["metadata"]["labels"].get("app.kubernetes.io/component", "")

    @property
    def ending(self) -> bool:
        return self.gone or "deletionTimestamp" in self.object["metadata"]

    @property
    def admin(self) -> str:
        """Envoy's admin socket."""
        return str(self.folder / "run" / "admin.sock")


class Kubelet:
    """Runs all pods of ``namespace``. One event loop owns it: :meth:`run` as a task.

    Args:
        config: as an administrator.
        namespace: whose pods to run; others' are only objects.
        folder: short, for there will be sockets in it.
        programs: an image's command -> how it is started here.
    """

    def __init__(
        self, config: KubeConfig, namespace: str, folder: Path, programs: dict[str, list[str]]
    ) -> None:
        self._config = config
        self._namespace = namespace
        self._folder = folder
        self._programs = programs
        self._addresses = Addresses()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._services: dict[str, Json] = {}
        self.nodes: list[str] = []
        """Where pods go that are not tied to a node, in turn."""
        self.pods: dict[str, Pod] = {}
        """By uid."""
        self.faults: list[str] = []
        """What went wrong here; a test that finds any has failed."""

    async def run(self) -> None:
        async with KubeApi(self._config) as self._api:
            path = f"/api/v1/namespaces/{self._namespace}/pods"
            timing = Timing(pause_max_s=1)
            mirror = Reflector(self._api, path, lambda pod: pod, on_change=self._see, timing=timing)
            try:
                await mirror.run()
            finally:
                for task in self._tasks.values():
                    task.cancel()
                await asyncio.gather(*self._tasks.values(), return_exceptions=True)
                self._addresses.close()

    def of(self, component: str) -> list[Pod]:
        """The running pods of a component, by node."""
        found = [p for p in self.pods.values() if p.component == component and not p.ending]
        return sorted(found, key=lambda pod: pod.node)

    def _see(self, changes) -> None:
        for change in changes:
            old, new = (
                (body["metadata"]["uid"] if body else "") for body in (change.old, change.new)
            )
            if old and old != new and (pod := self.pods.pop(old, None)):
                pod.gone = True
                pod.changed.set()
            if new and new not in self.pods:
                pod = self.pods[new] = Pod(
                    change.new, self._addresses.take(), self._folder / new[:8]
                )
                self._tasks[new] = asyncio.create_task(self._watched(pod))
            elif new:
                self.pods[new].object = change.new
                self.pods[new].changed.set()

    # -- one pod's life ------------------------------------------------------------------------

    async def _watched(self, pod: Pod) -> None:
        try:
            await self._live(pod)
        except Exception as error:  # noqa: BLE001 - told to the test at its end
            self.faults.append(f"{pod.name}: {error!r}")

    async def _live(self, pod: Pod) -> None:
        try:
            if not pod.node and not pod.ending:
                await self._bind(pod)
            async with contextlib.AsyncExitStack() as stack:
                if not pod.ending:
                    await self._start(pod, stack)
                while not pod.ending:
                    await self._report(pod, await self._is_ready(pod))
                    pod.changed.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(pod.changed.wait(), PROBE_S)
                await self._end(pod)
        finally:
            pod.ready = False
            for process in pod.processes.values():
                _kill(process)
        if not pod.gone:
            await self._patiently(self._delete, pod)

    async def _bind(self, pod: Pod) -> None:
        """What a scheduler does; a DaemonSet's pod says for which node it is."""
        found = re.search(
            r'"metadata\.name", "operator": "In", "values": \["([^"]+)"',
            json.dumps(pod.object["spec"].get("affinity", {}), sort_keys=True),
        )
        self.nodes.append(self.nodes.pop(0))
        target = {"kind": "Node", "name": found[1] if found else self.nodes[-1]}
        body = {"metadata": {"name": pod.name}, "target": target}
        await self._patiently(self._api.call, "POST", f"{self._path(pod)}/binding", body)
        while not pod.node and not pod.ending:
            pod.changed.clear()
            await pod.changed.wait()

    async def _start(self, pod: Pod, stack: contextlib.AsyncExitStack) -> None:
        spec = pod.object["spec"]
        volumes = {v["name"]: v for v in spec.get("volumes", [])}
        places = {
            volume["name"]: self._folder / pod.node / volume["hostPath"]["path"].lstrip("/")
            if "hostPath" in volume
            else pod.folder / volume["name"]
            for volume in volumes.values()
        }
        services = await self._patiently(self._api.get, f"{self._root}/services")
        self._services = {s["metadata"]["name"]: s for s in services["items"]}
        local = _Local(pod.ip, self._namespace, self._services)
        for container in spec["containers"]:
            for mount in container.get("volumeMounts", []):
                local.paths[mount["mountPath"]] = str(places[mount["name"]])
        for name, volume in volumes.items():
            places[name].mkdir(parents=True, exist_ok=True)
            await self._patiently(self._fill, pod, volume, places[name], local)
        commands = {c["name"]: self._command(pod, c, local) for c in spec["containers"]}
        for service in local.named:
            await self._forward(pod, self._services[service], stack)
        for name, (command, env) in commands.items():
            pod.processes[name] = await self._spawn(pod, command, env)
            stack.callback(asyncio.create_task(self._keep(pod, name, command, env)).cancel)

    async def _forward(self, pod: Pod, service: Json, stack: contextlib.AsyncExitStack) -> None:
        for port in service["spec"]["ports"]:
            relay = relaying_xds if port["name"] == "xds" else forwarding
            endpoints = self._endpoints(service["spec"]["selector"], port)
            await stack.enter_async_context(relay((pod.ip, port["port"]), endpoints))

    def _endpoints(self, selector: Json, port: Json) -> Callable[[], list[Endpoint]]:
        def find() -> list[Endpoint]:
            return [
                (pod.ip, _port(pod.object["spec"]["containers"], port["targetPort"]))
                for pod in self.pods.values()
                if pod.ready
                and not pod.ending
                and selector.items() <= pod.object["metadata"]["labels"].items()
            ]

        return find

    async def _keep(self, pod: Pod, name: str, command: list[str], env: dict[str, str]) -> None:
        """Start a container again that ends before its pod does."""
        while True:
            await pod.processes[name].wait()
            await asyncio.sleep(1)
            if pod.ending:
                return
            pod.restarts += 1
            pod.processes[name] = await self._spawn(pod, command, env)

    async def _spawn(self, pod: Pod, command: list[str], env: dict[str, str]):
        with (self._folder / f"{pod.name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *command,
                env=env,
                cwd=pod.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    async def _end(self, pod: Pod) -> None:
        spec, processes = pod.object["spec"], pod.processes
        if (
            not processes
            or pod.gone
            or pod.object["metadata"].get("deletionGracePeriodSeconds") == 0
        ):
            return

        async def end(container: Json) -> None:
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            await asyncio.sleep(sleep.get("seconds", 0))
            process = processes[container["name"]]
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(spec.get("terminationGracePeriodSeconds", 30)):
                await asyncio.gather(*map(end, spec["containers"]))

    # -- what a pod asks for -------------------------------------------------------------------

    async def _fill(self, pod: Pod, volume: Json, place: Path, local: _Local) -> None:
        for source in volume.get("projected", {}).get("sources", [volume]):
            files = await self._files(pod, source)
            for name, content in files.items():
                whole = content if isinstance(content, bytes) else local.text(content).encode()
                (place / name).write_bytes(whole)
        if local.paths.get(ACCOUNT) == str(place):
            (place / "kubeconfig").write_text(json.dumps(self._kubeconfig()))

    async def _files(self, pod: Pod, source: Json) -> dict[str, bytes | str]:
        if asked := source.get("serviceAccountToken"):
            return {asked["path"]: (await self._token(pod, asked)).encode()}
        if asked := source.get("configMap"):
            path = f"{self._root}/configmaps/{asked['name']}"
            return (await self._api.get(path)).get("data", {})
        if asked := source.get("secret"):
            path = f"{self._root}/secrets/{asked['secretName']}"
            data = (await self._api.get(path)).get("data", {})
            return {name: base64.b64decode(text) for name, text in data.items()}
        if asked := source.get("downwardAPI"):
            return {i["path"]: _field(pod, i["fieldRef"]["fieldPath"]) for i in asked["items"]}
        return {}

    async def _token(self, pod: Pod, asked: Json) -> str:
        bound = {"apiVersion": "v1", "kind": "Pod", "name": pod.name}
        bound["uid"] = pod.object["metadata"]["uid"]
        spec: Json = {"boundObjectRef": bound, "audiences": []}
        spec["expirationSeconds"] = max(600, asked.get("expirationSeconds", 3600))
        if "audience" in asked:
            spec["audiences"] = [asked["audience"]]
        account = pod.object["spec"]["serviceAccountName"]
        path = f"{self._root}/serviceaccounts/{account}/token"
        return (await self._api.call("POST", path, {"spec": spec}))["status"]["token"]

    def _kubeconfig(self) -> Json:
        cluster = {"server": self._config.server, "certificate-authority": "ca.crt"}
        context = {"cluster": "c", "user": "u", "namespace": self._namespace}
        return {
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"tokenFile": "token"}}],
            "contexts": [{"name": "c", "context": context}],
        }

    def _command(
        self, pod: Pod, container: Json, local: _Local
    ) -> tuple[list[str], dict[str, str]]:
        env = {
            e["name"]: local.text(e["value"])
            if "value" in e
            else _field(pod, e["valueFrom"]["fieldRef"]["fieldPath"])
            for e in container.get("env", [])
        }
        words = [*container["command"], *container.get("args", [])]
        # What every Envoy is to listen on is not this pod's address: see network.py.
        kept = {words.index("--envoy-listen") + 1} if "--envoy-listen" in words else set()
        words = [
            re.sub(r"\$\((\w+)\)", lambda m: env[m[1]], w if at in kept else local.text(w))
            for at, w in enumerate(words)
        ]
        if ACCOUNT in local.paths:
            env["SCS_KUBECONFIG"] = f"{local.paths[ACCOUNT]}/kubeconfig"
        ours = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(simplecache.__file__).parents[1]),
        }
        return [*self._programs[words[0]], *words[1:]], ours | env

    # -- reports -------------------------------------------------------------------------------

    async def _is_ready(self, pod: Pod) -> bool:
        probes = [
            c["readinessProbe"] for c in pod.object["spec"]["containers"] if "readinessProbe" in c
        ]
        alive = all(process.returncode is None for process in pod.processes.values())
        if pod.held or not alive:
            return False
        containers = pod.object["spec"]["containers"]
        answers = [
            await _get(pod.ip, _port(containers, p["httpGet"]["port"]), p["httpGet"]["path"])
            for p in probes
        ]
        return all(status == 200 for status in answers)

    async def _report(self, pod: Pod, ready: bool) -> None:
        """Tell the apiserver, if it is news."""
        if ready == pod.ready and pod.object.get("status", {}).get("podIP"):
            return
        pod.ready = ready
        ip = pod.ip if pod.component == "cache" else Addresses.reported(pod.ip)
        state = "True" if ready else "False"
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = [
            {"type": kind, "status": state, "lastTransitionTime": now}
            for kind in ("Ready", "ContainersReady")
        ]
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions}
        with contextlib.suppress(ApiFault):  # said again with the next probe
            answer = await self._api.call("PATCH", f"{self._path(pod)}/status", {"status": status})
            pod.object = answer if not pod.ending else pod.object

    async def report_now(self, pod: Pod) -> None:
        """Have a change of ``held`` told at once."""
        await self._report(pod, not pod.held)

    async def _delete(self, pod: Pod) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.object["metadata"]["uid"]}}
        try:
            await self._api.call("DELETE", self._path(pod), body)
        except ApiFault as fault:
            if fault.status not in {404, 409}:
                raise

    async def _patiently(self, call, *args) -> Any:
        """A call that is made again until it succeeds: objects come in any order."""
        while True:
            try:
                return await call(*args)
            except ApiFault:
                await asyncio.sleep(0.3)

    @property
    def _root(self) -> str:
        return f"/api/v1/namespaces/{self._namespace}"

    def _path(self, pod: Pod) -> str:
        return f"{self._root}/pods/{pod.name}"


class _Local:
    """A pod's texts, with what they name put where it is."""

    def __init__(self, ip: str, namespace: str, services: dict[str, Json]) -> None:
        self._ip = ip
        self._hosts = {f"{name}.{namespace}.svc": name for name in services}
        self.paths: dict[str, str] = {}
        """Mounted path -> path here."""
        self.named: set[str] = set()
        """The Services that were named."""

    def text(self, text: str) -> str:
        words = sorted((*self.paths, *self._hosts, "0.0.0.0"), key=len, reverse=True)
        pattern = "|".join(map(re.escape, words))
        return re.sub(rf"(?<![\w.-])(?:{pattern})(?![\w-])", self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        word = match[0]
        if word in self._hosts:
            self.named.add(self._hosts[word])
        return self.paths.get(word, self._ip)


def _field(pod: Pod, path: str) -> str:
    if key := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return pod.object["metadata"].get(key[1], {}).get(key[2], "")
    if path == "status.podIP":
        return pod.ip
    first, second = path.split(".")
    return str(pod.object[first][second])


def _port(containers: list[Json], port: int | str) -> int:
    if isinstance(port, int):
        return port
    named = {p["name"]: p["containerPort"] for c in containers for p in c.get("ports", [])}
    return named[port]


async def _get(host: str, port: int, path: str) -> int:
    """The status of a GET; 0 without an answer."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(
                    f"GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n".encode()
                )
                return int((await reader.readline()).split()[1])
            finally:
                writer.close()
    except (OSError, IndexError, ValueError):
        return 0


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            process.kill()


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL)


PROGRAMS = {
    "scs": [sys.executable, "-m", "simplecache"],
    "python3": [sys.executable],
}
"""Commands of our image; the test adds Envoy's."""
