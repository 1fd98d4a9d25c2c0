"""Who reaches whom, by a small reading of the rendered NetworkPolicies."""

import pytest
from chart_harness import merged, render

HERE = "cache-service"


def allows(rendered, source, target, port):
    """Whether pod ``source`` (component or None, namespace, namespace labels) may reach a port."""
    component, namespace, namespace_labels = source
    labels = labels_of(component) if component else {"app": "anything"}
    namespace_labels = {"kubernetes.io/metadata.name": namespace} | namespace_labels
    policies = [
        doc["spec"]
        for doc in rendered.all("NetworkPolicy")
        if fits(doc["spec"]["podSelector"], labels_of(target))
    ]
    assert all(spec["policyTypes"] == ["Ingress"] for spec in policies)
    if not policies:
        return True
    for rule in (rule for spec in policies for rule in spec["ingress"]):
        if not any(p["port"] <= port <= p.get("endPort", p["port"]) for p in rule["ports"]):
            continue
        for peer in rule["from"]:
            assert len(peer) == 1, "peers of two selectors are not read here"
            if "podSelector" in peer and namespace == HERE and fits(peer["podSelector"], labels):
                return True
            if "namespaceSelector" in peer and fits(peer["namespaceSelector"], namespace_labels):
                return True
    return False


def labels_of(component):
    return {
        "app.kubernetes.io/name": "simple-cache-service",
        "app.kubernetes.io/instance": "scs",
        "app.kubernetes.io/component": component,
    }


def fits(selector, labels):
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        rule["operator"] == "In" and labels.get(rule["key"]) in rule["values"]
        for rule in selector.get("matchExpressions", [])
    )


ENVOY, CONTROL, CACHE = [(part, HERE, {}) for part in ("envoy", "control-plane", "cache")]
NEIGHBOUR = (None, HERE, {})
CLIENT = (None, "prj-a", {})
FRIEND = (None, "prj-b", {"scs": "yes"})
MONITORING = (None, "monitoring", {})
SOURCES = {
    "envoy": ENVOY,
    "control": CONTROL,
    "cache": CACHE,
    "neighbour": NEIGHBOUR,
    "client": CLIENT,
    "friend": FRIEND,
    "monitoring": MONITORING,
}
TARGETS = {
    "shard": ("cache", 7401),
    "cache ops": ("cache", 7390),
    "http": ("envoy", 8080),
    "envoy ops": ("envoy", 21802),
    "xds": ("control-plane", 21803),
    "directory": ("control-plane", 21804),
}


def reach(values=None):
    rendered = render(values)
    return {
        target: {who for who, source in SOURCES.items() if allows(rendered, source, *where)}
        for target, where in TARGETS.items()
    }


def test_by_default():
    assert reach() == {
        "shard": {"envoy", "control", "cache"},
        "cache ops": {"monitoring"},
        "http": set(SOURCES),
        "envoy ops": {"monitoring"},
        "xds": {"envoy"},
        "directory": {"cache", "monitoring"},
    }


def test_clients_can_be_limited_by_their_namespaces_labels():
    values = {"networkPolicy": {"clientNamespaceSelector": {"matchLabels": {"scs": "yes"}}}}
    assert reach(values)["http"] == {"friend"}
    direct = merged(values, {"networkPolicy": {"directClients": True}})
    assert reach(direct)["shard"] == {"envoy", "control", "cache", "friend"}
    assert reach(direct)["directory"] == {"cache", "friend", "monitoring"}
    assert reach(direct)["xds"] == {"envoy"}


def test_nobody_need_reach_the_ops_ports():
    found = reach({"networkPolicy": {"opsNamespaces": []}})
    assert found["cache ops"] == found["envoy ops"] == set()


def test_several_namespaces_may_watch():
    values = {"networkPolicy": {"opsNamespaces": ["monitoring", "prj-a"]}}
    assert reach(values)["cache ops"] == {"monitoring", "client"}


@pytest.mark.parametrize(
    ("shards", "port", "opened"), [(1, 7401, False), (2, 7401, True), (2, 7402, False)]
)
def test_exactly_the_shards_ports_are_open(shards, port, opened):
    assert allows(render({"cache": {"shards": shards}}), ENVOY, "cache", port) is opened


def test_policies_can_be_left_out():
    assert render({"networkPolicy": {"enabled": False}}).all("NetworkPolicy") == []


def test_another_release_in_the_namespace_is_a_stranger():
    rendered = render(name="other")
    for doc in rendered.all("NetworkPolicy"):
        assert doc["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "other"
        for rule in doc["spec"]["ingress"]:
            for peer in rule["from"]:
                if "podSelector" in peer:
                    labels = peer["podSelector"]["matchLabels"]
                    assert labels["app.kubernetes.io/instance"] == "other"
