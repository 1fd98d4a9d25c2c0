"""The key that cache nodes share: made once, kept by upgrades. Helm's ``lookup`` asks a real HTTP server."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import helm_python as helm
import pytest
import yaml
from chart_harness import chart, container, flags, parse, render


def key(rendered):
    (secret,) = rendered.all("Secret")
    return base64.b64decode(secret["data"]["key"])


def test_it_is_long_and_random():
    first, second = key(render()), key(render())
    assert len(first) == len(second) == 48
    assert first != second


def test_it_is_where_the_node_looks_and_readable_by_its_user_alone():
    spec = render().pod("cache")
    one = container(spec, "cache")
    (mount,) = [m for m in one["volumeMounts"] if m["name"] == "peer-key"]
    assert flags(one["args"])["--peer-key"] == [f"{mount['mountPath']}/key"]
    (volume,) = [v for v in spec["volumes"] if v["name"] == "peer-key"]
    assert volume["secret"] == {"secretName": "scs-peer-key", "defaultMode": 0o440}


def test_nobody_else_mounts_it():
    for owner, _, spec in render().pods():
        secrets = [v for v in spec.get("volumes", []) if "secret" in v]
        assert bool(secrets) == (owner == "DaemonSet/scs-cache")


def test_a_key_of_ones_own():
    rendered = render({"peerKey": {"existingSecret": "mine"}})
    assert rendered.all("Secret") == []
    (volume,) = [v for v in rendered.pod("cache")["volumes"] if v["name"] == "peer-key"]
    assert volume["secret"]["secretName"] == "mine"


class Apiserver(BaseHTTPRequestHandler):
    """As much of an apiserver as ``lookup`` needs: what Secrets are, and one of them."""

    protocol_version = "HTTP/1.1"
    secrets: ClassVar[dict[str, dict]] = {}

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/api/v1":
            resource = {"name": "secrets", "kind": "Secret", "namespaced": True, "verbs": ["get"]}
            self.answer({"kind": "APIResourceList", "groupVersion": "v1", "resources": [resource]})
        elif path in self.secrets:
            self.answer(self.secrets[path])
        else:
            self.answer(
                {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}, 404
            )

    def answer(self, document, status=200):
        body = json.dumps({"apiVersion": "v1"} | document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def cluster():
    """Secrets in a cluster by path, and a function that renders an upgrade against it."""
    secrets: dict[str, dict] = {}
    handler = type("Handler", (Apiserver,), {"secrets": secrets})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        ],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }

    def upgrade(**options):
        with helm.Config(kubeconfig_content=yaml.safe_dump(kubeconfig)) as config:
            files = config.render(chart(), {}, name="scs", namespace="cache-service", **options)
        return parse(files)

    yield secrets, upgrade
    server.shutdown()
    server.server_close()


PATH = "/api/v1/namespaces/cache-service/secrets/scs-peer-key"


def secret(data):
    return {"kind": "Secret", "metadata": {"name": "scs-peer-key"}, "data": data}


def test_an_upgrade_keeps_the_key(cluster):
    secrets, upgrade = cluster
    secrets[PATH] = secret({"key": base64.b64encode(b"k" * 48).decode()})
    assert key(upgrade(is_upgrade=True, revision=2)) == b"k" * 48


def test_an_installation_makes_one(cluster):
    _, upgrade = cluster
    assert len(key(upgrade())) == 48


@pytest.mark.parametrize("found", [secret(None), secret({}), secret({"other": "eA=="})])
def test_a_secret_without_the_key_gets_one(cluster, found):
    secrets, upgrade = cluster
    secrets[PATH] = found
    assert len(key(upgrade())) == 48


def test_another_namespaces_key_is_not_taken(cluster):
    secrets, upgrade = cluster
    theirs = base64.b64encode(b"k" * 48).decode()
    secrets[PATH.replace("cache-service", "elsewhere")] = secret({"key": theirs})
    assert key(upgrade()) != b"k" * 48
