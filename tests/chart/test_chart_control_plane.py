"""The control plane: two replicas apart from each other, that see this release's pods and no others."""

import pytest
from chart_harness import EVERYTHING, container, flags, render


def control(values=None, **options):
    return flags(container(render(values, **options).pod("control-plane"), "control-plane")["args"])


def test_flags():
    assert control() == {
        "--kubernetes": [],
        "--namespace": ["$(POD_NAMESPACE)"],
        "--selector": [
            "app.kubernetes.io/name=simple-cache-service,app.kubernetes.io/instance=scs,app.kubernetes.io/component=cache"
        ],
        "--listen": ["0.0.0.0:21803"],
        "--ops": ["0.0.0.0:21804"],
        "--envoy-listen": ["0.0.0.0:8080"],
        "--lb": ["maglev"],
        "--probe-interval": ["1"],
    }


def test_the_table_size_is_written_out():
    assert control(EVERYTHING)["--table-size"] == ["5000011"]


def test_its_selector_finds_this_releases_cache_pods_alone():
    one, other = render(name="one"), render(name="two")
    selector = flags(container(one.pod("control-plane"), "control-plane")["args"])["--selector"][0]
    wanted = dict(pair.split("=") for pair in selector.split(","))
    found = [
        owner
        for rendered in (one, other)
        for owner, metadata, _ in rendered.pods()
        if wanted.items() <= metadata["labels"].items()
    ]
    assert found == ["DaemonSet/one-cache"]


def test_replicas_are_spread_and_one_always_runs():
    rendered = render()
    spec = rendered.one("Deployment", "scs-control-plane")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    spread = spec["template"]["spec"]["topologySpreadConstraints"]
    assert [(one["topologyKey"], one["whenUnsatisfiable"]) for one in spread] == [
        ("kubernetes.io/hostname", "DoNotSchedule"),
        ("topology.kubernetes.io/zone", "ScheduleAnyway"),
    ]
    for one in spread:
        assert one["labelSelector"] == spec["selector"]
    budget = rendered.one("PodDisruptionBudget", "scs-control-plane")["spec"]
    assert budget == {"maxUnavailable": 1, "selector": spec["selector"]}


def test_the_budget_can_be_left_out():
    assert (
        render({"controlPlane": {"podDisruptionBudget": {"enabled": False}}}).all(
            "PodDisruptionBudget"
        )
        == []
    )


def test_spread_of_ones_own():
    own = [{"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}]
    spec = render({"controlPlane": {"topologySpreadConstraints": own}}).pod("control-plane")
    assert spec["topologySpreadConstraints"] == own


def test_envoys_see_every_replica_that_is_ready():
    spec = render().one("Service", "scs-xds")["spec"]
    assert spec["clusterIP"] == "None"
    assert not spec.get("publishNotReadyAddresses")
    assert [port["port"] for port in spec["ports"]] == [21803]


def test_probes():
    one = container(render().pod("control-plane"), "control-plane")
    assert one["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "ops"}
    assert one["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "ops"}


@pytest.mark.parametrize(
    ("wanted", "kube", "reads"),
    [
        ("auto", "1.34", True),
        ("auto", "1.35", False),
        (True, "1.37", True),
        (False, "1.30", False),
    ],
)
def test_zones_come_from_nodes_where_pods_do_not_bear_them(wanted, kube, reads):
    rendered = render({"controlPlane": {"zoneFromNodes": wanted}}, kube=kube)
    env = {
        e["name"]: e.get("value")
        for e in container(rendered.pod("control-plane"), "control-plane")["env"]
    }
    assert env["SCS_ZONE_FROM_NODES"] == ("true" if reads else "false")
    roles = [doc["metadata"]["name"] for doc in rendered.all("ClusterRole")]
    assert ("scs:cache-service:zones" in roles) == reads
