"""Values that are wrong are refused, and the message names the key."""

import json

import helm_python as helm
import pytest
import yaml
from chart_harness import CHART, PRIVATE, PUBLIC, render

WRONG_TYPES = [
    ({"cache": {"shards": "two"}}, "/cache/shards"),
    ({"cache": {"shards": 0}}, "/cache/shards"),
    ({"cache": {"shards": 2.5}}, "/cache/shards"),
    ({"cache": {"weight": 70000}}, "/cache/weight"),
    ({"cache": {"capacity": 80}}, "/cache/capacity"),
    ({"cache": {"capacity": "120%"}}, "/cache/capacity"),
    ({"cache": {"maxObjectSize": "64 gigabytes"}}, "/cache/maxObjectSize"),
    ({"cache": {"port": 80}}, "/cache/port"),
    ({"cache": {"maxUnavailable": "many"}}, "/cache/maxUnavailable"),
    ({"cache": {"maxUnavailable": True}}, "/cache/maxUnavailable"),
    ({"cache": {"storage": {"type": "nfs"}}}, "/cache/storage/type"),
    ({"cache": {"storage": {"hostPath": {"paths": "/mnt"}}}}, "/cache/storage/hostPath/paths"),
    ({"cache": {"storage": {"hostPath": {"paths": []}}}}, "/cache/storage/hostPath/paths"),
    ({"cache": {"storage": {"hostPath": {"paths": ["mnt"]}}}}, "/cache/storage/hostPath/paths/0"),
    ({"cache": {"storage": {"hostPath": {"paths": ["/"]}}}}, "/cache/storage/hostPath/paths/0"),
    ({"cache": {"storage": {"hostPath": {"prepare": "no"}}}}, "/cache/storage/hostPath/prepare"),
    ({"cache": {"resources": {"limits": "4Gi"}}}, "/cache/resources/limits"),
    ({"cache": {"tolerations": {"key": "x"}}}, "/cache/tolerations"),
    ({"cache": {"nodeSelector": {"gpu": True}}}, "/cache/nodeSelector/gpu"),
    ({"cache": {"extraArgs": "--x"}}, "/cache/extraArgs"),
    ({"cache": {"extraEnv": {"TZ": "UTC"}}}, "/cache/extraEnv"),
    ({"buckets": {"public": {}}}, "/buckets"),
    ({"buckets": [{"Public": True}]}, "/buckets/0"),
    ({"buckets": [{"Name": "UPPER", "Public": True}]}, "/buckets/0/Name"),
    ({"buckets": [PUBLIC, {"Name": "abc", "Public": "yes"}]}, "/buckets/1/Public"),
    ({"buckets": [PUBLIC | {"BucketQuota": 1e12}]}, "/buckets/0/BucketQuota"),
    ({"buckets": [PRIVATE | {"AllowNamespaces": "prj-a"}]}, "/buckets/0/AllowNamespaces"),
    ({"buckets": [PRIVATE | {"AllowNamespaces": ["Prj"]}]}, "/buckets/0/AllowNamespaces/0"),
    ({"auth": {"mode": "ldap"}}, "/auth/mode"),
    ({"auth": {"audience": ""}}, "/auth/audience"),
    ({"image": {"digest": "sha256:short"}}, "/image/digest"),
    ({"image": {"tag": 1.5}}, "/image/tag"),
    ({"imagePullSecrets": [{"name": "x"}]}, "/imagePullSecrets/0"),
    ({"envoy": {"port": 80}}, "/envoy/port"),
    ({"envoy": {"logLevel": "loud"}}, "/envoy/logLevel"),
    ({"envoy": {"updateStrategy": {"maxSurge": "10"}}}, "/envoy/updateStrategy/maxSurge"),
    ({"controlPlane": {"replicas": 0}}, "/controlPlane/replicas"),
    ({"controlPlane": {"lb": "round_robin"}}, "/controlPlane/lb"),
    ({"controlPlane": {"zoneFromNodes": "yes"}}, "/controlPlane/zoneFromNodes"),
    ({"service": {"trafficDistribution": "Near"}}, "/service/trafficDistribution"),
    ({"service": {"internalTrafficPolicy": "Node"}}, "/service/internalTrafficPolicy"),
    ({"service": {"port": "http"}}, "/service/port"),
    ({"networkPolicy": {"enabled": "false"}}, "/networkPolicy/enabled"),
    ({"networkPolicy": {"opsNamespaces": "monitoring"}}, "/networkPolicy/opsNamespaces"),
    ({"metrics": {"podMonitor": {"interval": 30}}}, "/metrics/podMonitor/interval"),
    ({"bindAddress": "localhost"}, "/bindAddress"),
    ({"fullnameOverride": "Upper"}, "/fullnameOverride"),
]

TYPOS = [
    ({"bucket": []}, "bucket"),
    ({"cache": {"shrads": 2}}, "shrads"),
    ({"cache": {"storage": {"hostpath": {}}}}, "hostpath"),
    ({"cache": {"resources": {"limit": {}}}}, "limit"),
    ({"envoy": {"image": {"pullPolicy": "Always"}}}, "pullPolicy"),
    ({"controlPlane": {"replica": 2}}, "replica"),
    ({"buckets": [PUBLIC | {"Quota": "1Gi"}]}, "Quota"),
    ({"buckets": [{"name": "public"}]}, "name"),
    ({"service": {"trafficPolicy": "Local"}}, "trafficPolicy"),
    ({"metrics": {"serviceMonitor": {}}}, "serviceMonitor"),
]

RULES = [
    ({"cache": {"shards": 1, "storage": {"hostPath": {"paths": ["/a", "/b"]}}}}, "cache.shards: 1"),
    (
        {"cache": {"storage": {"type": "volumeClaim", "volumeClaim": {"count": 3}}}},
        "cache.shards: 2 cannot use 3 data directories",
    ),
    ({"cache": {"opsPort": 7401}}, "cache.opsPort: 7401 is a shard's"),
    ({"cache": {"port": 65535}}, "cache.port: the last of 2 shards"),
    ({"envoy": {"opsPort": 8080}}, "envoy.opsPort: 8080"),
    ({"controlPlane": {"opsPort": 21803}}, "controlPlane.opsPort: 21803"),
    ({"envoy": {"updateStrategy": {"maxSurge": 0}}}, "envoy.updateStrategy"),
    ({"envoy": {"updateStrategy": {"maxSurge": "0%"}}}, "envoy.updateStrategy"),
    ({"cache": {"maxUnavailable": 0}}, "cache.maxUnavailable"),
    ({"cache": {"maxUnavailable": "0%"}}, "cache.maxUnavailable"),
    ({"buckets": [PUBLIC, PUBLIC]}, "buckets[1] (public): the name is there twice"),
    ({"buckets": [PUBLIC | {"AllowNamespaces": ["a"]}]}, "buckets[0] (public): a Public bucket"),
    ({"buckets": [{"Name": "abc"}]}, "buckets[0] (abc): a bucket that is not Public needs"),
    ({"buckets": [PUBLIC], "existingBucketsConfigMap": "mine"}, "existingBucketsConfigMap"),
    ({"tests": {"enabled": True}}, "tests.bucket"),
    ({"tests": {"enabled": True, "bucket": "other"}, "buckets": [PUBLIC]}, 'tests.bucket: "other"'),
    (
        {"service": {"internalTrafficPolicy": "Local", "trafficDistribution": "PreferSameZone"}},
        "service.trafficDistribution",
    ),
    (
        {"service": {"annotations": {"service.kubernetes.io/topology-mode": "Auto"}}},
        "service.annotations: service.kubernetes.io/topology-mode",
    ),
]


@pytest.mark.parametrize(("values", "key"), WRONG_TYPES, ids=[key for _, key in WRONG_TYPES])
def test_a_wrong_type_names_the_key(values, key):
    with pytest.raises(helm.HelmValuesError) as caught:
        render(values)
    assert f"at '{key}'" in str(caught.value)


@pytest.mark.parametrize(("values", "key"), TYPOS, ids=[key for _, key in TYPOS])
def test_an_unknown_key_is_named(values, key):
    with pytest.raises(helm.HelmValuesError, match=f"'{key}' not allowed"):
        render(values)


@pytest.mark.parametrize(("values", "sentence"), RULES, ids=[rule for _, rule in RULES])
def test_values_that_do_not_fit_together_are_named(values, sentence):
    with pytest.raises(helm.HelmError) as caught:
        render(values)
    assert sentence in str(caught.value)


def test_global_values_of_a_parent_chart_are_taken():
    render({"global": {"anything": 1}})


def schema_keys(schema, definitions, path=""):
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    for key, child in schema.get("properties", {}).items():
        yield f"{path}{key}"
        yield from schema_keys(child, definitions, f"{path}{key}.")


def value_keys(values, path=""):
    for key, child in values.items():
        yield f"{path}{key}"
        if isinstance(child, dict):
            yield from value_keys(child, f"{path}{key}.")


def test_the_schema_and_the_values_have_the_same_keys():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert "draft-07" in schema["$schema"]
    known = set(schema_keys(schema, schema["definitions"])) - {"global"}
    # Kubernetes' own: what may stand in them is not ours to list in values.yaml.
    inner = {key for key in known if key.rpartition(".")[0].endswith("resources")}
    assert known - inner == set(value_keys(values)) - {
        key for key in value_keys(values) if ".resources." in key
    }


def test_every_object_of_ours_refuses_unknown_keys():
    schema = json.loads((CHART / "values.schema.json").read_text())

    def check(node, path):
        if isinstance(node, dict):
            if "properties" in node and path != "env":
                is_open = "additionalProperties" not in node
                assert not is_open or "extraEnv" in path, path
            for key, child in node.items():
                check(child, f"{path}/{key}")

    check(schema, "")
