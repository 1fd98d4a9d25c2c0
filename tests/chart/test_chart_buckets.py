"""The buckets: what the chart writes is what a node reads, live."""

import yaml
from chart_harness import PRIVATE, PUBLIC, container, flags, render

from simplecache.config import load, parse_buckets


def buckets_file(values):
    return render(values).one("ConfigMap", "scs-buckets")["data"]["buckets.yaml"]


def test_a_node_reads_what_the_chart_writes(tmp_path):
    path = tmp_path / "buckets.yaml"
    rights = {"Name": "shared", "ReadNamespaces": ["a", "b"], "WriteNamespaces": ["a"]}
    path.write_text(buckets_file({"buckets": [PUBLIC, PRIVATE, rights]}))
    buckets = load(path, parse_buckets)
    assert list(buckets) == ["public", "kubecon", "shared"]
    assert buckets["public"].quota_bytes == 100 << 30
    assert buckets["kubecon"].read_namespaces == ("prj-kubernetes",)
    assert buckets["shared"].write_namespaces == ("a",)


def test_no_bucket_is_a_configuration_too():
    assert parse_buckets(yaml.safe_load(buckets_file({}))) == {}


def test_the_file_is_where_the_node_looks():
    spec = render().pod("cache")
    one = container(spec, "cache")
    (mount,) = [m for m in one["volumeMounts"] if m["name"] == "buckets"]
    assert flags(one["args"])["--config"] == [f"{mount['mountPath']}/buckets.yaml"]
    # With subPath a pod would never see a change.
    assert "subPath" not in mount
    (volume,) = [v for v in spec["volumes"] if v["name"] == "buckets"]
    assert volume["configMap"] == {"name": "scs-buckets"}


def test_a_change_of_buckets_restarts_nothing():
    before, after = render({"buckets": [PUBLIC]}), render({"buckets": [PUBLIC, PRIVATE]})
    assert list(before.pods()) == list(after.pods())
    assert before.docs != after.docs


def test_buckets_of_ones_own():
    rendered = render({"existingBucketsConfigMap": "mine"})
    assert [doc["metadata"]["name"] for doc in rendered.all("ConfigMap")] == ["scs-envoy"]
    (volume,) = [v for v in rendered.pod("cache")["volumes"] if v["name"] == "buckets"]
    assert volume["configMap"] == {"name": "mine"}
