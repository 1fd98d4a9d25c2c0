"""A real Envoy, started as the chart starts it, and ended as Kubernetes ends it."""

import contextlib
import http.client
import json
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from chart_harness import CHART, container, render

DEADLINE_S = 30.0
DRAIN_SECONDS = 1
DRAIN = CHART / "files" / "drain.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.02)
    return result


def get(port, path):
    """Status and header of an answer; None without one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return None
    else:
        return answer.status, dict(answer.getheaders())
    finally:
        connection.close()


def status(port, path):
    found = get(port, path)
    return found and found[0]


class Admin(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("admin", timeout=5)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


class Shard(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def process(*command):
    started = subprocess.Popen(command)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


class Node:
    """One node's Envoy pod: the ConfigMap as files, the containers as processes."""

    def __init__(self, envoy_bin, folder):
        self.folder = folder
        self.port, self.ops, self.xds = free_port(), free_port(), free_port()
        rendered = render(
            {
                "envoy": {
                    "xdsHost": "127.0.0.1",
                    "port": self.port,
                    "opsPort": self.ops,
                    "drainSeconds": DRAIN_SECONDS,
                    "concurrency": 1,
                },
                "controlPlane": {"xdsPort": self.xds},
            }
        )
        self.admin = str(folder / "admin.sock")
        for name, text in rendered.one("ConfigMap", "scs-envoy")["data"].items():
            (folder / name).write_text(text.replace("/run/scs/admin.sock", self.admin))
        args = container(rendered.pod("envoy"), "envoy")["args"]
        env = {
            "/etc/envoy/bootstrap.yaml": str(folder / "bootstrap.yaml"),
            "$(NODE_NAME)": "node-1",
            "$(NODE_ZONE)": "",
        }
        self.command = [envoy_bin, *(env.get(arg, arg) for arg in args)]

    def envoy(self):
        return process(*self.command)

    @contextlib.contextmanager
    def control_plane(self):
        shard = ThreadingHTTPServer(("127.0.0.1", 0), Shard)
        threading.Thread(target=shard.serve_forever, daemon=True).start()
        endpoints = self.folder / "endpoints.json"
        node = {"Name": "node-1", "Address": "127.0.0.1", "Ports": [shard.server_port]}
        endpoints.write_text(json.dumps({"Nodes": [node]}))
        with process(
            sys.executable, "-m", "simplecache", "control-plane", "--endpoints", str(endpoints),
            "--listen", f"127.0.0.1:{self.xds}", "--ops", "127.0.0.1:0",
            "--envoy-listen", f"127.0.0.1:{self.port}",
        ):  # fmt: skip
            yield
        shard.shutdown()
        shard.server_close()


@pytest.fixture
def node(envoy_bin):
    # A socket's path holds 107 bytes: pytest's own folders are too deep.
    with tempfile.TemporaryDirectory(prefix="scs-") as folder:
        yield Node(envoy_bin, Path(folder))


def test_envoy_is_ready_once_the_control_plane_has_spoken(node):
    with node.envoy():
        # It lives, but does not even listen: hence a startup probe of an hour, and no earlier liveness.
        until(lambda: Path(node.admin).exists(), "admin socket")
        time.sleep(0.5)
        assert status(node.ops, "/ready") is None
        with node.control_plane():
            until(lambda: status(node.ops, "/ready") == 200, "/ready")
            until(lambda: status(node.port, "/v1/objects/public/apple") == 200, "an answer")
            assert status(node.ops, "/stats/prometheus?usedonly=") == 200
            # What the ops port does not show stays on the socket.
            assert status(node.ops, "/config_dump") == 404
            assert status(node.ops, "/drain_listeners") == 404
        assert status(node.port, "/v1/objects/public/apple") == 200, "without a control plane"


@pytest.mark.parametrize("zone", ["zone-a", ""])  # empty: a pod without the label
def test_envoy_knows_its_node_by_its_flags(node, zone):
    node.command[node.command.index("--service-zone") + 1] = zone
    path = node.folder / "bootstrap.yaml"
    document = yaml.safe_load(path.read_text())
    document["admin"]["allow_paths"].append({"exact": "/server_info"})
    path.write_text(yaml.safe_dump(document))
    with node.control_plane(), node.envoy():
        until(lambda: status(node.ops, "/ready") == 200, "/ready")
        admin = Admin(node.admin)
        admin.request("GET", "/server_info")
        info = json.loads(admin.getresponse().read())
        admin.close()
    assert (info["node"]["id"], info["node"]["cluster"]) == ("node-1", "scs-envoy")
    assert info["node"].get("locality", {}).get("zone", "") == zone


def test_the_admin_socket_is_for_its_owner_alone(node):
    with node.envoy():
        until(lambda: Path(node.admin).exists(), "admin socket")
        assert stat.S_IMODE(Path(node.admin).stat().st_mode) == 0o600


def test_a_killed_envoy_starts_again_on_its_old_socket(node):
    with node.control_plane():
        for _ in range(2):
            with node.envoy():
                until(lambda: status(node.ops, "/ready") == 200, "/ready")
            assert Path(node.admin).exists(), "a kill leaves it behind, as in a container's restart"


def test_the_end_of_a_pod_loses_no_request(node):
    with node.control_plane(), node.envoy() as envoy:
        until(lambda: status(node.ops, "/ready") == 200, "/ready")
        kept = http.client.HTTPConnection("127.0.0.1", node.port, timeout=5)
        kept.request("GET", "/v1/objects/public/apple")
        answer = kept.getresponse()
        answer.read()
        assert answer.getheader("connection") is None
        command = [sys.executable, str(DRAIN), node.admin]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as drain:
            assert drain.stdout.readline() == "waiting for SIGTERM\n"
            # The kubelet ends "drain" at once, and Envoy only after its preStop sleep.
            drain.send_signal(signal.SIGTERM)
            assert "drain: 200" in drain.stdout.read()
            assert drain.wait(10) == 0
        kept.request("GET", "/v1/objects/public/apple")
        answer = kept.getresponse()
        answer.read()
        assert (answer.status, answer.getheader("connection")) == (200, "close")
        kept.close()
        # Whoever was still sent here is served, too, until Envoy itself is told to end.
        time.sleep(DRAIN_SECONDS + 1)
        late, headers = get(node.port, "/v1/objects/public/pear")
        assert (late, headers.get("connection")) == (200, "close")
        assert envoy.poll() is None


def test_without_an_envoy_the_drain_says_so(tmp_path):
    command = [sys.executable, str(DRAIN), str(tmp_path / "nothing.sock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as drain:
        drain.stdout.readline()
        drain.send_signal(signal.SIGTERM)
        assert drain.stdout.read().startswith("drain: ")
        assert drain.wait(10) == 1


def test_the_script_is_the_one_in_the_configmap():
    data = render().one("ConfigMap", "scs-envoy")["data"]
    assert data["drain.py"].strip() == DRAIN.read_text().strip()
    compile(data["drain.py"], "drain.py", "exec")


@pytest.mark.parametrize("host", ["xds.example.com", "10.0.0.1", "fd00::1"])
def test_envoy_takes_the_bootstrap(envoy_bin, tmp_path, host):
    data = render({"envoy": {"xdsHost": host}}).one("ConfigMap", "scs-envoy")["data"]
    path = tmp_path / "bootstrap.yaml"
    path.write_text(data["bootstrap.yaml"])
    assert yaml.safe_load(path.read_text())
    command = [envoy_bin, "--mode", "validate", "-c", str(path), "--disable-hot-restart"]
    # The ids come by flags in a pod, and Envoy insists on them.
    command += ["--service-node", "n", "--service-cluster", "c", "--service-zone", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
