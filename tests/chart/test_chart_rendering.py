"""The whole chart: Kubernetes takes what it renders, in each version, with each feature."""

import tomllib

import helm_python as helm
import pytest
import yaml
from chart_harness import CHART, EVERYTHING, ONE_OF_EACH, ROOT, VERSIONS, render, validate

LINT_WARNING = 2


@pytest.mark.parametrize("kube", VERSIONS)
@pytest.mark.parametrize("values", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_kubernetes_knows_every_field(kube, values):
    docs = render(values, kube=kube).docs
    assert len(docs) > 15
    for doc in docs:
        validate(doc, kube)


@pytest.mark.parametrize("kube", VERSIONS)
@pytest.mark.parametrize("values", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_lint_finds_nothing(kube, values):
    report = helm.lint(str(CHART), values, strict=True, kube_version=f"v{kube}.0")
    assert report["total_charts_linted"] == 1
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] >= LINT_WARNING] == []


def test_kubernetes_versions_are_limited_to_those_tested():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["apiVersion"] == "v2"
    assert chart["kubeVersion"] == f">={VERSIONS[0]}.0-0"


def test_the_chart_installs_this_version_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]
    assert chart["name"] == project["name"]


def test_the_parts_and_no_more():
    assert sorted(f"{kind}/{name}" for kind, _, name in render().names()) == [
        "ClusterRole/scs:cache-service:token-reviews",
        "ClusterRoleBinding/scs:cache-service:token-reviews",
        "ConfigMap/scs-buckets",
        "ConfigMap/scs-envoy",
        "DaemonSet/scs-cache",
        "DaemonSet/scs-envoy",
        "Deployment/scs-control-plane",
        "NetworkPolicy/scs-cache",
        "NetworkPolicy/scs-control-plane",
        "NetworkPolicy/scs-envoy",
        "PodDisruptionBudget/scs-control-plane",
        "Role/scs-control-plane",
        "RoleBinding/scs-control-plane",
        "Secret/scs-peer-key",
        "Service/cache",
        "Service/scs-control-plane",
        "Service/scs-xds",
        "ServiceAccount/scs-cache",
        "ServiceAccount/scs-control-plane",
        "ServiceAccount/scs-envoy",
    ]


@pytest.mark.parametrize("values", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_rendering_twice_gives_the_same_but_for_the_key(values):
    first, second = (
        [doc for doc in render(values).docs if doc["kind"] != "Secret"] for _ in range(2)
    )
    assert first == second


def test_labels_say_what_kubernetes_recommends():
    for doc in render(EVERYTHING).docs:
        labels = doc["metadata"]["labels"]
        recommended = ("name", "instance", "component", "version", "part-of", "managed-by")
        assert {f"app.kubernetes.io/{key}" for key in recommended} <= set(labels)
        assert labels["helm.sh/chart"].startswith("simple-cache-service-")
        assert labels["team"] == "platform"


def test_everything_namespaced_says_its_namespace():
    for doc in render(EVERYTHING, namespace="elsewhere").docs:
        is_global = doc["kind"].startswith("Cluster")
        assert doc["metadata"].get("namespace") == (None if is_global else "elsewhere"), doc


def test_pull_secrets_and_digests_reach_every_pod():
    digest = "sha256:" + "a" * 64
    image = {"repository": "registry.example.com/scs", "tag": "x", "digest": digest}
    rendered = render(
        {"image": image, "envoy": {"image": {"digest": digest}}, "imagePullSecrets": ["registry"]}
    )
    assert {container["image"] for _, container in rendered.containers()} == {
        f"registry.example.com/scs@{digest}",
        f"envoyproxy/envoy@{digest}",
    }
    for _, _, spec in rendered.pods():
        assert spec["imagePullSecrets"] == [{"name": "registry"}]


def test_the_image_is_of_the_chart_unless_said_otherwise():
    images = {container["image"] for _, container in render().containers()}
    assert images == {"simple-cache-service:0.1.0", "envoyproxy/envoy:distroless-v1.40.0"}


def test_envoy_is_of_the_version_that_the_tests_run():
    from simplecache.local.envoy import VERSION

    images = {container["image"] for _, container in render().containers()}
    assert f"envoyproxy/envoy:distroless-v{VERSION}" in images


def test_every_mount_has_its_volume_and_every_port_its_name():
    for values in ONE_OF_EACH.values():
        rendered = render(values)
        for owner, _, spec in rendered.pods():
            volumes = {volume["name"] for volume in spec["volumes"]} if "volumes" in spec else set()
            for doc in rendered.all("StatefulSet"):
                if owner == f"StatefulSet/{doc['metadata']['name']}":
                    claims = doc["spec"]["volumeClaimTemplates"]
                    volumes |= {claim["metadata"]["name"] for claim in claims}
            used = set()
            for container in spec.get("initContainers", []) + spec["containers"]:
                used |= {mount["name"] for mount in container.get("volumeMounts", [])}
                names = {port["name"] for port in container.get("ports", [])}
                probes = [
                    container.get(f"{kind}Probe") for kind in ("startup", "liveness", "readiness")
                ]
                for probe in filter(None, probes):
                    assert (probe.get("httpGet") or probe["tcpSocket"])["port"] in names
            assert used == volumes, owner


def test_services_point_at_ports_that_pods_have():
    for values in ONE_OF_EACH.values():
        rendered = render(values)
        for service in rendered.all("Service"):
            selector = service["spec"]["selector"].items()
            (ports,) = [
                {port["name"] for c in spec["containers"] for port in c.get("ports", [])}
                for _, metadata, spec in rendered.pods()
                if selector <= metadata["labels"].items()
            ]
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
