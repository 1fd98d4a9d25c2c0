"""Rights: what each account may do, in full."""

import pytest
from chart_harness import EVERYTHING, ONE_OF_EACH, VERSIONS, render

TOKEN_REVIEWS = ("authentication.k8s.io", "tokenreviews", ("create",))
PODS = ("", "pods", ("list", "watch"))
NODES = ("", "nodes", ("list", "watch"))


def rights(rendered):
    """Account -> (namespace or None, group, resource, verbs)."""
    rules = {
        (doc["kind"], doc["metadata"]["name"]): doc["rules"]
        for kind in ("Role", "ClusterRole")
        for doc in rendered.all(kind)
    }
    found = {doc["metadata"]["name"]: set() for doc in rendered.all("ServiceAccount")}
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        for doc in rendered.all(kind):
            for subject in doc["subjects"]:
                assert subject["kind"] == "ServiceAccount"
                assert subject["namespace"] == "cache-service"
                for rule in rules[doc["roleRef"]["kind"], doc["roleRef"]["name"]]:
                    for group in rule["apiGroups"]:
                        for resource in rule["resources"]:
                            where = doc["metadata"].get("namespace")
                            found[subject["name"]].add(
                                (where, group, resource, tuple(rule["verbs"]))
                            )
    return found


def test_by_default():
    assert rights(render()) == {
        "scs-cache": {(None, *TOKEN_REVIEWS)},
        "scs-control-plane": {("cache-service", *PODS)},
        "scs-envoy": set(),
    }


def test_with_zones_from_nodes():
    assert rights(render(EVERYTHING))["scs-control-plane"] == {
        ("cache-service", *PODS),
        (None, *NODES),
    }


def test_without_authentication_nobody_reviews_tokens():
    assert rights(render({"auth": {"mode": "none"}}))["scs-cache"] == set()


def test_roles_can_be_left_to_the_administrator():
    rendered = render({"rbac": {"create": False}})
    assert rights(rendered) == {"scs-cache": set(), "scs-control-plane": set(), "scs-envoy": set()}
    assert len(rendered.all("ServiceAccount")) == 3


@pytest.mark.parametrize("kube", VERSIONS)
@pytest.mark.parametrize("values", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_no_wildcards_and_no_foreign_roles(values, kube):
    rendered = render(values, kube=kube)
    own = {
        doc["metadata"]["name"] for kind in ("Role", "ClusterRole") for doc in rendered.all(kind)
    }
    for doc in rendered.all("RoleBinding") + rendered.all("ClusterRoleBinding"):
        assert doc["roleRef"]["name"] in own
    for doc in rendered.all("Role") + rendered.all("ClusterRole"):
        for rule in doc["rules"]:
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert "nonResourceURLs" not in rule
            assert not {"secrets", "configmaps"} & set(rule["resources"])


def test_only_who_asks_the_apiserver_has_a_token():
    mounts = {
        owner: spec["automountServiceAccountToken"] for owner, _, spec in render(EVERYTHING).pods()
    }
    assert mounts == {
        "DaemonSet/scs-cache": True,
        "DaemonSet/scs-envoy": False,
        "Deployment/scs-control-plane": True,
        "Pod/scs-test-client": False,
    }
    for doc in render().all("ServiceAccount"):
        assert doc["automountServiceAccountToken"] is False
