"""The cache nodes: shards, directories, flags, updates, and the variant with volumes."""

import argparse

import pytest
from chart_harness import EVERYTHING, ONE_OF_EACH, VOLUMES, container, flags, merged, render

from simplecache.cli.main import make_parser


def known_flags(command):
    (subparsers,) = [
        action
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return {
        flag for action in subparsers.choices[command]._actions for flag in action.option_strings
    }


def cache(values=None, **options):
    return container(render(values, **options).pod("cache"), "cache")


@pytest.mark.parametrize("values", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_every_flag_is_known_to_the_command(values):
    for _, one in render(values).containers():
        if one.get("command") == ["scs"]:
            command, *args = one["args"]
            assert set(flags(args)) <= known_flags(command)


def test_flags_of_a_node():
    assert flags(cache()["args"]) == {
        "--auth": ["kubernetes"],
        "--audience": ["scs"],
        "--peer-key": ["/etc/scs-peer/key"],
        "--node-name": ["$(NODE_NAME)"],
        "--config": ["/etc/scs/buckets.yaml"],
        "--data": ["/var/lib/scs/0"],
        "--shards": ["2"],
        "--listen": ["0.0.0.0:7400"],
        "--ops": ["0.0.0.0:7390"],
        "--capacity": ["80%"],
        "--max-object-size": ["64Gi"],
        "--drain-delay": ["5"],
        "--drain-grace": ["30"],
    }


def test_every_argument_and_annotation_is_a_string():
    rendered = render(merged(EVERYTHING, {"cache": {"capacity": "500000000", "weight": 3}}))
    for owner, metadata, _ in rendered.pods():
        assert all(isinstance(v, str) for v in metadata.get("annotations", {}).values()), owner
    for name, one in rendered.containers():
        assert all(isinstance(arg, str) for arg in one.get("args", []) + one["command"]), name
        assert all(isinstance(e.get("value", ""), str) for e in one.get("env", [])), name


def test_further_flags_come_last():
    assert cache(EVERYTHING)["args"][-2:] == ["--max-uploads", "64"]


@pytest.mark.parametrize(
    ("shards", "ports"), [(1, "7400"), (2, "7400,7401"), (3, "7400,7401,7402")]
)
def test_the_pod_announces_its_shards(shards, ports):
    rendered = render({"cache": {"shards": shards, "weight": 7}})
    (annotations,) = [
        metadata["annotations"]
        for owner, metadata, _ in rendered.pods()
        if owner.endswith("/scs-cache")
    ]
    assert annotations == {"simple-cache-service/ports": ports, "simple-cache-service/weight": "7"}
    one = container(rendered.pod("cache"), "cache")
    assert flags(one["args"])["--shards"] == [str(shards)]
    opened = {port["containerPort"] for port in one["ports"] if port["name"].startswith("shard-")}
    assert opened == {int(port) for port in ports.split(",")}


def test_a_node_keeps_its_name_over_restarts():
    (name,) = [env for env in cache()["env"] if env["name"] == "NODE_NAME"]
    assert name["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"


def test_it_knows_where_the_directory_of_shards_is():
    def url(values=None):
        rendered = render(values)
        (found,) = [
            env["value"]
            for env in container(rendered.pod("cache"), "cache")["env"]
            if env["name"] == "SCS_CONTROL_PLANE"
        ]
        service = rendered.one("Service", "scs-control-plane")
        assert found.endswith(f":{service['spec']['ports'][0]['port']}")
        return found

    assert url() == "http://scs-control-plane.cache-service.svc:21804"
    full = url({"clusterDomain": "cluster.local", "controlPlane": {"opsPort": 5000}})
    assert full == "http://scs-control-plane.cache-service.svc.cluster.local.:5000"


def test_a_disk_is_a_directory_of_its_own():
    values = {
        "cache": {
            "storage": {"hostPath": {"paths": ["/mnt/a/scs", "/mnt/b/scs"], "type": "Directory"}}
        }
    }
    spec = render(values).pod("cache")
    assert flags(container(spec, "cache")["args"])["--data"] == ["/var/lib/scs/0", "/var/lib/scs/1"]
    assert [v["hostPath"] for v in spec["volumes"] if "hostPath" in v] == [
        {"path": "/mnt/a/scs", "type": "Directory"},
        {"path": "/mnt/b/scs", "type": "Directory"},
    ]
    for name in ("cache", "prepare"):
        mounts = container(spec, name)["volumeMounts"]
        assert [m["mountPath"] for m in mounts if m["name"].startswith("data-")] == [
            "/var/lib/scs/0",
            "/var/lib/scs/1",
        ]


def test_host_directories_are_given_to_the_caches_user():
    spec = render().pod("cache")
    prepare = container(spec, "prepare")
    user = spec["securityContext"]
    assert prepare["command"] == ["chown", f"{user['runAsUser']}:{user['runAsGroup']}"]
    assert prepare["args"] == ["/var/lib/scs/0"]
    off = render({"cache": {"storage": {"hostPath": {"prepare": False}}}}).pod("cache")
    assert "initContainers" not in off


def test_there_are_never_two_pods_on_one_nodes_data():
    update = render().one("DaemonSet", "scs-cache")["spec"]["updateStrategy"]
    assert update == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0},
    }
    more = render({"cache": {"maxUnavailable": "5%"}}).one("DaemonSet", "scs-cache")
    assert more["spec"]["updateStrategy"]["rollingUpdate"] == {
        "maxUnavailable": "5%",
        "maxSurge": 0,
    }


def test_a_pod_may_take_as_long_as_its_drain():
    values = {"cache": {"drainDelaySeconds": 10, "drainGraceSeconds": 600}}
    rendered = render(values)
    given = flags(container(rendered.pod("cache"), "cache")["args"])
    total = int(given["--drain-delay"][0]) + int(given["--drain-grace"][0])
    # The supervisor waits ten seconds more before it kills a shard.
    assert rendered.pod("cache")["terminationGracePeriodSeconds"] > total + 10


def test_probes_ask_the_ops_port():
    one = cache()
    assert one["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "ops"}
    assert one["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "ops"}
    assert one["startupProbe"]["httpGet"] == {"path": "/healthz", "port": "ops"}


def test_without_authentication_there_is_nothing_to_ask_with():
    rendered = render({"auth": {"mode": "none"}})
    spec = rendered.pod("cache")
    given = flags(container(spec, "cache")["args"])
    assert given["--auth"] == ["none"]
    assert {"--audience", "--peer-key"} & set(given) == set()
    assert spec["automountServiceAccountToken"] is False
    assert "peer-key" not in {volume["name"] for volume in spec["volumes"]}
    assert rendered.all("Secret") == []
    assert "every bucket is open" in rendered.notes


def test_ipv6_only():
    rendered = render({"bindAddress": "::"})
    assert flags(container(rendered.pod("cache"), "cache")["args"])["--listen"] == ["[::]:7400"]
    control = flags(container(rendered.pod("control-plane"), "control-plane")["args"])
    assert control["--envoy-listen"] == ["[::]:8080"]
    assert control["--listen"] == ["[::]:21803"]


def test_placement_of_pods():
    spec = render(EVERYTHING).pod("cache")
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]


def test_volumes_make_a_statefulset():
    rendered = render(VOLUMES)
    assert [doc["metadata"]["name"] for doc in rendered.all("DaemonSet")] == ["scs-envoy"]
    spec = rendered.one("StatefulSet", "scs-cache")["spec"]
    assert spec["replicas"] == 3
    claims = spec["volumeClaimTemplates"]
    assert [claim["metadata"]["name"] for claim in claims] == ["data-0", "data-1"]
    for claim in claims:
        assert claim["spec"]["storageClassName"] == "nvme"
        assert claim["spec"]["resources"]["requests"] == {"storage": "100Gi"}
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert spec["serviceName"] in {doc["metadata"]["name"] for doc in rendered.all("Service")}
    assert "initContainers" not in spec["template"]["spec"]
    assert spec["template"]["spec"]["securityContext"]["fsGroup"] == 65532


def test_with_volumes_the_name_follows_the_data():
    rendered = render(VOLUMES)
    one = container(rendered.pod("cache"), "cache")
    (name,) = [env for env in one["env"] if env["name"] == "NODE_NAME"]
    assert name["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    template = rendered.one("StatefulSet", "scs-cache")["spec"]["template"]
    assert template["metadata"]["annotations"]["simple-cache-service/name-from"] == "pod"


def test_pods_with_volumes_are_spread_and_evicted_one_by_one():
    rendered = render(VOLUMES)
    spread = rendered.pod("cache")["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in spread] == [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    ]
    budget = rendered.one("PodDisruptionBudget", "scs-cache")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == rendered.one("StatefulSet", "scs-cache")["spec"]["selector"]


def test_the_clusters_default_storage_class():
    (claim,) = render({"cache": {"storage": {"type": "volumeClaim"}}}).one(
        "StatefulSet", "scs-cache"
    )["spec"]["volumeClaimTemplates"]
    assert "storageClassName" not in claim["spec"]
