"""Several releases: they do not meet, and an upgrade never changes a selector."""

import pytest
from chart_harness import EVERYTHING, VERSIONS, merged, render


def identities(rendered):
    return set(rendered.names())


def host_paths(rendered):
    return {v["hostPath"]["path"] for v in rendered.pod("cache")["volumes"] if "hostPath" in v}


def test_one_name_in_two_namespaces():
    one, two = render(namespace="one", kube="1.34"), render(namespace="two", kube="1.34")
    assert len([name for name in one.names() if name[1] is None]) == 4
    assert identities(one) & identities(two) == set()
    assert host_paths(one) & host_paths(two) == set()


def test_global_names_cannot_be_made_to_meet():
    one = render(name="a", namespace="b-c", kube="1.34")
    two = render(name="a-b", namespace="c", kube="1.34")
    assert identities(one) & identities(two) == set()


def test_two_names_in_one_namespace():
    one = render(name="one")
    two = render({"service": {"name": "cache-two"}}, name="two")
    assert identities(one) & identities(two) == set()


def test_a_release_selects_no_pod_of_another():
    one, two = render(name="one"), render(name="two")
    selectors = [doc["spec"]["selector"] for doc in one.all("Service")]
    selectors += [doc["spec"]["podSelector"]["matchLabels"] for doc in one.all("NetworkPolicy")]
    selectors += [doc["spec"]["selector"]["matchLabels"] for doc in one.all("DaemonSet")]
    for selector in selectors:
        for _, metadata, _ in two.pods():
            assert not selector.items() <= metadata["labels"].items()


LONG = "a" * 53
"""The longest name that Helm takes."""


@pytest.mark.parametrize("name", ["s", "scs", LONG, "a" * 40, "a" * 41, f"{'a' * 30}-{'b' * 22}"])
@pytest.mark.parametrize("namespace", ["n", "n" * 63])
def test_names_are_short_enough(name, namespace):
    # 63 is what a label holds; a pod's name gets up to 17 characters more than its owner's.
    rendered = render(EVERYTHING, name=name, namespace=namespace)
    for kind, _, found in rendered.names():
        if not kind.startswith("Cluster"):
            assert len(found) <= 63 - (9 if kind in {"DaemonSet", "Deployment"} else 0), found
            assert not found.endswith("-")
        assert len(found) <= 253
    for doc in rendered.docs:
        assert all(len(value) <= 63 for value in doc["metadata"]["labels"].values())


def test_long_names_that_begin_alike_stay_two():
    one = render(name="a" * 52 + "b")
    two = render({"service": {"name": "cache-two"}}, name="a" * 52 + "c")
    assert identities(one) & identities(two) == set()


def test_a_name_of_ones_own():
    names = {
        name
        for kind, _, name in render({"fullnameOverride": "mine"}).names()
        if kind == "DaemonSet"
    }
    assert names == {"mine-cache", "mine-envoy"}


def test_selectors_are_the_same_whatever_the_values():
    def selectors(rendered):
        return {
            (doc["kind"], doc["metadata"]["name"]): doc["spec"]["selector"]
            for kind in ("DaemonSet", "Deployment")
            for doc in rendered.all(kind)
        }

    expected = {
        (kind, f"scs-{component}"): {
            "matchLabels": {
                "app.kubernetes.io/name": "simple-cache-service",
                "app.kubernetes.io/instance": "scs",
                "app.kubernetes.io/component": component,
            }
        }
        for kind, component in (
            ("DaemonSet", "cache"),
            ("DaemonSet", "envoy"),
            ("Deployment", "control-plane"),
        )
    }
    for kube in VERSIONS:
        assert selectors(render(kube=kube)) == selectors(render(EVERYTHING, kube=kube)) == expected


def test_selectors_fit_their_pods():
    for values in ({}, EVERYTHING):
        rendered = render(values)
        for doc in rendered.all("DaemonSet") + rendered.all("Deployment"):
            labels = doc["spec"]["template"]["metadata"]["labels"]
            assert doc["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_a_new_chart_version_alone_restarts_nothing():
    for _, metadata, _ in render(merged(EVERYTHING, {"commonLabels": {"a": "b"}})).pods():
        if metadata.get("name", "").endswith("test-client"):
            continue
        assert not {"helm.sh/chart", "app.kubernetes.io/version", "a"} & set(metadata["labels"])
