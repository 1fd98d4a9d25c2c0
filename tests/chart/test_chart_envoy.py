"""Envoy on every node: its bootstrap, its flags, its end."""

import pytest
import yaml
from chart_harness import PRIVATE, PUBLIC, container, flags, render

from simplecache.control.bootstrap import make_bootstrap


def bootstrap(values=None, **options):
    return yaml.safe_load(
        render(values, **options).one("ConfigMap", "scs-envoy")["data"]["bootstrap.yaml"]
    )


def envoy(values=None):
    return container(render(values).pod("envoy"), "envoy")


def expected(host, port=21803, ops=("0.0.0.0", 21802)):
    document = make_bootstrap(
        xds=(host, port), node_id="", zone="", admin_path="/run/scs/admin.sock", ops=ops
    )
    # Every node has the same ConfigMap; who an Envoy is, its flags say.
    del document["node"]
    return document


@pytest.mark.parametrize(
    ("values", "document"),
    [
        ({}, expected("scs-xds.cache-service.svc")),
        ({"envoy": {"xdsHost": "10.0.0.1"}}, expected("10.0.0.1")),
        ({"envoy": {"xdsHost": "fd00::1"}}, expected("fd00::1")),
        ({"envoy": {"xdsHost": "xds.example.com"}}, expected("xds.example.com")),
        (
            {"clusterDomain": "cluster.local"},
            expected("scs-xds.cache-service.svc.cluster.local."),
        ),
        (
            {"controlPlane": {"xdsPort": 5000}, "envoy": {"opsPort": 5001}, "bindAddress": "::"},
            expected("scs-xds.cache-service.svc", 5000, ("::", 5001)),
        ),
    ],
)
def test_the_bootstrap_is_the_one_that_the_project_makes(values, document):
    assert bootstrap(values) == document


def test_it_points_at_the_service_of_this_release():
    rendered = render(name="other", namespace="ns")
    document = yaml.safe_load(rendered.one("ConfigMap", "other-envoy")["data"]["bootstrap.yaml"])
    (endpoint,) = document["static_resources"]["clusters"][0]["load_assignment"]["endpoints"]
    address = endpoint["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    assert address == {"address": "other-xds.ns.svc", "port_value": 21803}
    rendered.one("Service", "other-xds")


def test_flags():
    assert flags(envoy()["args"]) == {
        "--config-path": ["/etc/envoy/bootstrap.yaml"],
        "--service-cluster": ["scs-envoy"],
        "--service-node": ["$(NODE_NAME)"],
        "--service-zone": ["$(NODE_ZONE)"],
        "--disable-hot-restart": [],
        "--concurrency": ["2"],
        "--drain-time-s": ["20"],
        "--drain-strategy": ["immediate"],
        "--log-level": ["warning"],
    }
    assert {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in envoy()["env"]} == {
        "NODE_NAME": "spec.nodeName",
        "NODE_ZONE": "metadata.labels['topology.kubernetes.io/zone']",
    }


def test_a_new_bootstrap_restarts_envoys_and_nothing_else_does():
    def checksum(values=None):
        template = render(values).one("DaemonSet", "scs-envoy")["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/config"]

    assert checksum() == checksum()
    assert checksum({"controlPlane": {"xdsPort": 5000}}) != checksum()
    assert checksum({"clusterDomain": "cluster.local"}) != checksum()
    assert checksum({"buckets": [PUBLIC, PRIVATE]}) == checksum()


def test_a_second_envoy_starts_before_the_first_leaves():
    update = render().one("DaemonSet", "scs-envoy")["spec"]["updateStrategy"]
    assert update["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": "10%"}


@pytest.mark.parametrize("seconds", [1, 20, 300])
def test_envoy_stays_until_it_has_drained(seconds):
    spec = render({"envoy": {"drainSeconds": seconds}}).pod("envoy")
    one = container(spec, "envoy")
    assert flags(one["args"])["--drain-time-s"] == [str(seconds)]
    stays = one["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert seconds < stays < spec["terminationGracePeriodSeconds"]


def test_the_second_container_drains_at_once():
    spec = render().pod("envoy")
    drain, one = container(spec, "drain"), container(spec, "envoy")
    assert drain["command"] == ["python3", "/etc/envoy/drain.py", "/run/scs/admin.sock"]
    assert "lifecycle" not in drain
    # The socket is for its owner alone: both are the same user, and see the same directory.
    assert "runAsUser" not in drain["securityContext"] | one["securityContext"]
    assert drain["volumeMounts"] == one["volumeMounts"]


def test_probes():
    one = envoy()
    assert one["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "ops"}
    # An Envoy without its first configuration does not listen yet; it must not be killed for it.
    startup = one["startupProbe"]
    assert startup["httpGet"] == {"path": "/ready", "port": "ops"}
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3600
    assert one["livenessProbe"]["tcpSocket"] == {"port": "ops"}


def test_the_control_plane_tells_envoys_the_port_that_the_service_uses():
    rendered = render({"envoy": {"port": 9000}})
    given = flags(container(rendered.pod("control-plane"), "control-plane")["args"])
    ports = {
        port["name"]: port["containerPort"]
        for port in container(rendered.pod("envoy"), "envoy")["ports"]
    }
    assert given["--envoy-listen"] == [f"0.0.0.0:{ports['http']}"] == ["0.0.0.0:9000"]
