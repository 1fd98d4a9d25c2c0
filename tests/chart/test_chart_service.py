"""The clients' Service: which Envoy a connection goes to."""

import pytest
from chart_harness import NEWEST, PUBLIC, VERSIONS, render

ANNOTATION = "service.kubernetes.io/topology-mode"
AUTO = {
    "1.30": "annotation",
    "1.31": "PreferClose",
    "1.32": "PreferClose",
    "1.33": "PreferClose",
    "1.34": "PreferSameZone",
    "1.35": "PreferSameZone",
    "1.36": "PreferSameZone",
    "1.37": "PreferSameZone",
}


def service(values=None, kube=NEWEST):
    return render({"service": values or {}}, kube=kube).one(
        "Service", (values or {}).get("name", "cache")
    )


def test_every_version_has_its_row():
    assert tuple(AUTO) == VERSIONS


@pytest.mark.parametrize(("kube", "wanted"), AUTO.items())
def test_auto_takes_what_the_version_has(kube, wanted):
    doc = service(kube=kube)
    annotations = doc["metadata"].get("annotations", {})
    if wanted == "annotation":
        assert annotations == {ANNOTATION: "Auto"}
        assert "trafficDistribution" not in doc["spec"]
    else:
        assert doc["spec"]["trafficDistribution"] == wanted
        assert annotations == {}


@pytest.mark.parametrize(
    ("kube", "wanted"),
    [
        ("1.33.5-eks-1a2b3c", "PreferClose"),
        ("1.34.0-gke.100", "PreferSameZone"),
        ("1.34.2+k3s1", "PreferSameZone"),
        ("1.31.0-rc.1", "PreferClose"),
    ],
)
def test_vendors_versions_count_as_what_they_are(kube, wanted):
    assert service(kube=kube)["spec"]["trafficDistribution"] == wanted


@pytest.mark.parametrize(
    "wanted", ["PreferSameZone", "PreferSameNode", "PreferClose", "annotation", "none"]
)
@pytest.mark.parametrize("kube", VERSIONS)
def test_a_value_overrides_the_version(wanted, kube):
    doc = service({"trafficDistribution": wanted}, kube)
    field = doc["spec"].get("trafficDistribution")
    annotation = doc["metadata"].get("annotations", {}).get(ANNOTATION)
    assert (field, annotation) == {"annotation": (None, "Auto"), "none": (None, None)}.get(
        wanted, (wanted, None)
    )


@pytest.mark.parametrize("kube", VERSIONS)
def test_local_stands_alone(kube):
    doc = service({"internalTrafficPolicy": "Local"}, kube)
    assert doc["spec"]["internalTrafficPolicy"] == "Local"
    assert "trafficDistribution" not in doc["spec"]
    assert "annotations" not in doc["metadata"]


def test_other_annotations_stay_beside_ours():
    doc = service({"annotations": {"example.com/a": "b"}}, "1.30")
    assert doc["metadata"]["annotations"] == {"example.com/a": "b", ANNOTATION: "Auto"}


def test_name_and_ports():
    doc = service()
    assert doc["spec"]["type"] == "ClusterIP"
    assert doc["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert doc["spec"]["selector"]["app.kubernetes.io/component"] == "envoy"
    other = service({"name": "simple-cache", "port": 8000})
    assert other["spec"]["ports"][0]["port"] == 8000


def test_the_notes_have_lines_to_paste():
    notes = render(
        {"buckets": [PUBLIC, {"Name": "kubecon", "AllowNamespaces": ["prj-a", "prj-b"]}]},
        namespace="ns",
    ).notes
    url = "http://cache.ns.svc/v1/objects"
    token = '-H "Authorization: Bearer $(cat /var/run/secrets/scs/token)"'
    lines = [line.strip() for line in notes.splitlines()]
    assert f"curl -X PUT --data-binary @apple.txt {url}/public/apple" in lines
    assert f"curl {url}/public/apple" in lines
    assert f"curl {token} -X PUT --data-binary @apple.txt {url}/kubecon/apple" in lines
    assert f"curl {token} {url}/kubecon/apple" in lines
    assert "for pods in: prj-a, prj-b" in notes


def test_the_notes_say_when_a_public_bucket_has_few_writers():
    notes = render({"buckets": [PUBLIC | {"WriteNamespaces": ["prj-a"]}]}).notes
    assert "Bearer" in next(line for line in notes.splitlines() if "-X PUT" in line)
    assert "Bearer" not in next(line for line in notes.splitlines() if "curl http" in line)


def test_the_notes_say_that_there_is_no_bucket():
    assert "There is no bucket yet" in render().notes
    assert "no bucket" not in render({"existingBucketsConfigMap": "mine"}).notes


def test_the_notes_show_another_port():
    assert "http://cache.cache-service.svc:8000" in render({"service": {"port": 8000}}).notes
