"""A whole cluster on one machine: cache nodes, control plane and Envoy, each its own process.

Everything is the product's own command line, so what works here works anywhere else. Each node has
its own ports on 127.0.0.1, chosen by the kernel; two clusters never meet. With a directory that
stays, the objects stay: placement goes by the nodes' names, not by their ports.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

from simplecache.errors import SimpleCacheError
from simplecache.local.part import Part

START_S: Final = 30.0
NAMESPACE: Final = "prj-foobar"
DEFAULT_BUCKETS: Final = {
    "Bucket": [
        {"Name": "public", "Public": True, "BucketQuota": "100Gi"},
        {
            "Name": "prj-foobar",
            "Public": False,
            "BucketQuota": "500Gi",
            "AllowNamespaces": [NAMESPACE],
        },
    ]
}


class Cluster:
    """Nodes, control plane and Envoy. ``start`` returns when a request gets through."""

    def __init__(  # noqa: PLR0913 - what there is to say of a cluster, by name
        self,
        directory: Path,
        *,
        envoy: Path,
        nodes: int = 3,
        shards: int = 1,
        host: str = "127.0.0.1",
        port: int = 8080,
        lb: str = "maglev",
        node_flags: Iterable[str] = (),
    ) -> None:
        """Lay out the directory; nothing is started yet.

        Raises:
            SimpleCacheError: the port is taken, or the directory cannot be written.
        """
        self.directory = directory
        self.host = host
        self.port = port or _free_port()
        self._check_port()
        try:
            (directory / "logs").mkdir(parents=True, exist_ok=True)
            self.token_file = directory / "token"
            self._write_defaults()
        except OSError as error:
            raise SimpleCacheError(f"{directory}: {error.strerror}") from error
        self.nodes = [
            self._part(
                f"node-{number}",
                "serve", "--announce", "--node-name", f"node-{number}",
                "--config", str(directory / "buckets.json"),
                "--tokens", str(directory / "tokens.json"),
                "--data", str(directory / f"node-{number}"),
                "--shards", str(shards), "--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0",
                "--drain-delay", "0", "--drain-grace", "5", *node_flags,
                announces=True,
            )
            for number in range(1, nodes + 1)
        ]  # fmt: skip
        self.xds_port, self.ops_port = _free_port(), _free_port()
        self.control = self._part(
            "control-plane",
            "control-plane", "--endpoints", str(directory / "endpoints.json"), "--lb", lb,
            "--listen", f"127.0.0.1:{self.xds_port}", "--ops", f"127.0.0.1:{self.ops_port}",
            "--envoy-listen", f"{host}:{self.port}", "--probe-interval", "0.5",
        )  # fmt: skip
        self.envoy = Part(
            "envoy",
            [
                str(envoy), "-c", str(directory / "envoy.json"), "--disable-hot-restart",
                "--concurrency", "1", "--log-level", "warning",
            ],
            directory / "logs" / "envoy.log",
        )  # fmt: skip
        self.announced: dict[str, dict[str, Any]] = {}
        """What each node said when it was ready: listen addresses, ops address, pids."""

    @property
    def url(self) -> str:
        """Where clients connect: Envoy."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - not a bind
        return f"http://{host}:{self.port}"

    @property
    def parts(self) -> list[Part]:
        """All processes, in the order of a request that comes back."""
        return [*self.nodes, self.control, self.envoy]

    def start(self) -> None:
        """Start all parts and wait until a request gets through.

        Raises:
            SimpleCacheError: a part did not start; the text ends in its log.
        """
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            self._await_node(node)
        self._write_endpoints()
        self.control.start()
        self._write_bootstrap()
        self.envoy.start()
        wait_until(self.is_through, START_S, "no request gets through Envoy", self.parts)

    def start_node(self, node: Part) -> None:
        """Start a node that has ended, and tell the control plane where it is now."""
        node.start()
        self._await_node(node)
        self._write_endpoints()

    def stop(self) -> None:
        """End all parts: Envoy first, so that nobody asks a node that is gone."""
        self.envoy.stop()
        self.control.stop()
        for node in self.nodes:
            node.signal(15)
        for node in self.nodes:
            node.reap()

    def is_through(self) -> bool:
        """Whether a request passes Envoy and is answered by a shard, and all shards are known."""
        expected = sum(len(each["listen"]) for each in self.announced.values())
        directory = get_json(self.ops_port, "/v1/endpoints")
        if directory is None or len(directory["shards"]) < expected:
            return False
        return self.probe() == "miss"

    def probe(self) -> str | None:
        """``SCS-Error`` of a GET through Envoy for an object that nobody stores."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/v1/objects/public/.scs-up-probe")
            return connection.getresponse().getheader("SCS-Error")
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def health(self) -> dict[str, str]:
        """Each part's name -> ``ready``, or what is the matter with it."""
        states = {}
        for node in self.nodes:
            port = self.announced.get(node.name, {}).get("ops", ("", 0))[1]
            states[node.name] = _state(node, partial(_answers, port, "/readyz"))
        states["control-plane"] = _state(
            self.control, partial(_answers, self.ops_port, "/v1/endpoints")
        )
        states["envoy"] = _state(self.envoy, lambda: self.probe() == "miss")
        return states

    # -- inside ----------------------------------------------------------------------------

    def _part(self, name: str, *arguments: str, announces: bool = False) -> Part:
        command = [sys.executable, "-m", "simplecache", *arguments]
        return Part(name, command, self.directory / "logs" / f"{name}.log", announces=announces)

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise SimpleCacheError(
                    f"cannot listen on {self.host}:{self.port}: {error.strerror}; "
                    "choose another by --port"
                ) from error

    def _write_defaults(self) -> None:
        """Buckets, token and token table, unless they are there: they are the user's to edit."""
        buckets, tokens = self.directory / "buckets.json", self.directory / "tokens.json"
        if not buckets.exists():
            buckets.write_text(json.dumps(DEFAULT_BUCKETS, indent=2) + "\n")
        if not self.token_file.exists():
            _write_private(self.token_file, secrets.token_urlsafe(32))
        if not tokens.exists():
            table = {"Token": [{"Token": self.token_file.read_text(), "Namespace": NAMESPACE}]}
            _write_private(tokens, json.dumps(table, indent=2) + "\n")

    def _await_node(self, node: Part) -> None:
        self.announced[node.name] = json.loads(node.first_line(START_S))

    def _write_endpoints(self) -> None:
        nodes = [
            {
                "Name": name,
                "Zone": "local",
                "Address": told["listen"][0][0],
                "Ports": [port for _, port in told["listen"]],
            }
            for name, told in sorted(self.announced.items())
        ]
        path = self.directory / "endpoints.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"Nodes": nodes}, indent=2) + "\n")
        temporary.rename(path)

    def _write_bootstrap(self) -> None:
        from simplecache.control.bootstrap import make_bootstrap  # noqa: PLC0415 - pulls in an extra

        document = make_bootstrap(
            xds=("127.0.0.1", self.xds_port),
            node_id="envoy-local",
            zone="local",
            admin_path=_admin_path(self.directory),
        )
        (self.directory / "envoy.json").write_text(json.dumps(document, indent=2) + "\n")


def wait_until(
    condition: Callable[[], bool], timeout_s: float, otherwise: str, parts: Iterable[Part] = ()
) -> None:
    """Wait for a condition that other processes bring about.

    Raises:
        SimpleCacheError: ``otherwise``, or that one of ``parts`` ended, with its log.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        for part in parts:
            if not part.is_running:
                raise SimpleCacheError(f"{part.name} ended{part.tail()}")
        if time.monotonic() > deadline:
            raise SimpleCacheError(f"{otherwise} within {timeout_s:.0f} s")
        time.sleep(0.05)


def get_json(port: int, path: str) -> Any:
    """The document at a local ops port; None when it does not answer 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return json.loads(body) if answer.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _answers(port: int, path: str) -> bool:
    return get_json(port, path) is not None


def _state(part: Part, is_ready: Callable[[], bool]) -> str:
    if part.process is None:
        return "not started"
    status = part.process.poll()
    if status is not None:
        return f"ended ({status})"
    return "ready" if is_ready() else "not ready"


def _admin_path(directory: Path) -> str:
    """A socket's path has at most 107 bytes; a deep directory gets one in /tmp."""
    path = str((directory / "admin.sock").absolute())
    return path if len(os.fsencode(path)) < 100 else f"/tmp/scs-{secrets.token_hex(8)}.sock"  # noqa: S108


def _write_private(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
