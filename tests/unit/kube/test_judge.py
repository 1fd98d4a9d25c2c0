"""What a TokenReview's status means, the lies included."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplecache.errors import Malformed
from simplecache.kube.judge import POD_NAME, POD_UID, judge
from simplecache.kube.verdicts import Refusal
from simplecache.model import Caller

GOOD = {
    "authenticated": True,
    "audiences": ["scs"],
    "user": {
        "username": "system:serviceaccount:prj-a:trainer",
        "uid": "u-1",
        "groups": [
            "system:serviceaccounts",
            "system:serviceaccounts:prj-a",
            "system:authenticated",
        ],
        "extra": {POD_NAME: ["worker-0"], POD_UID: ["p-1"]},
    },
}


def judged(status, *, require_pod_bound=True):
    return judge(status, audience="scs", require_pod_bound=require_pod_bound)


def but(*path_and_value):
    *path, last, value = path_and_value
    status = copy.deepcopy(GOOD)
    place = status
    for step in path:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return status


def test_a_bound_token_is_its_pods():
    assert judged(GOOD) == Caller(namespace="prj-a", pod="worker-0")
    assert judged(but("audiences", ["other", "scs"])) == Caller("prj-a", "worker-0")
    assert judged(but("error", "")) == Caller("prj-a", "worker-0")


REFUSED = {
    "not authenticated": {"authenticated": False},
    "silent about it": {},
    "error beside authenticated": but("error", "sorry"),
    "error of another type": but("error", {"a": 1}),
    "no audiences: they were not looked at": but("audiences", ...),
    "empty audiences: the same": but("audiences", []),
    "other audience": but("audiences", ["https://kubernetes.default.svc"]),
    "audiences as text that contains it": but("audiences", "scs"),
    "nested audience": but("audiences", [["scs"]]),
    "a person": but("user", "username", "alice"),
    "three parts": but("user", "username", "system:serviceaccount:prj-a"),
    "five parts": but("user", "username", "system:serviceaccount:prj-a:trainer:x"),
    "a node": but("user", "username", "system:node:prj-a:trainer"),
    "empty namespace": but("user", "username", "system:serviceaccount::trainer"),
    "empty account": but("user", "username", "system:serviceaccount:prj-a:"),
    "namespace that cannot be": but("user", "username", "system:serviceaccount:PRJ_A:trainer"),
    "no username": but("user", "username", ...),
    "username of another type": but("user", "username", ["system:serviceaccount:prj-a:trainer"]),
    "no groups": but("user", "groups", ...),
    "groups of another namespace": but("user", "groups", ["system:serviceaccounts:prj-b"]),
    "groups as text": but("user", "groups", "system:serviceaccounts:prj-a"),
    "no extra": but("user", "extra", ...),
    "no pod name": but("user", "extra", POD_NAME, ...),
    "no pod uid": but("user", "extra", POD_UID, ...),
    "two pod names": but("user", "extra", POD_NAME, ["a", "b"]),
    "empty pod name": but("user", "extra", POD_NAME, [""]),
    "pod name as text": but("user", "extra", POD_NAME, "worker-0"),
}


@pytest.mark.parametrize("status", REFUSED.values(), ids=REFUSED.keys())
def test_refused(status):
    verdict = judged(status)
    assert isinstance(verdict, Refusal)
    assert verdict.reason


NONSENSE = {
    "nothing": None,
    "text": "ok",
    "list": [GOOD],
    "authenticated as text": but("authenticated", "true"),
    "authenticated as a number": but("authenticated", 1),
    "no user": but("user", ...),
    "user as text": but("user", "system:serviceaccount:prj-a:trainer"),
}


@pytest.mark.parametrize("status", NONSENSE.values(), ids=NONSENSE.keys())
def test_says_nothing_about_the_token(status):
    with pytest.raises(Malformed):
        judged(status)


def test_an_unbound_token_can_be_allowed():
    unbound = but("user", "extra", ...)
    assert judged(unbound, require_pod_bound=False) == Caller(namespace="prj-a", pod=None)


def test_the_clusters_words_are_trimmed():
    refusal = judged({"error": "bad\n\x1b[31m" + "x" * 5000})
    assert isinstance(refusal, Refusal)
    assert refusal.reason.isprintable()
    assert len(refusal.reason) < 400


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("scs"),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)
PATHS = st.sampled_from(
    [
        ("authenticated",),
        ("audiences",),
        ("user",),
        ("user", "username"),
        ("user", "groups"),
        ("user", "extra"),
        ("user", "extra", POD_NAME),
        ("user", "extra", POD_UID),
    ]
)


@given(PATHS, VALUES)
def test_whatever_is_changed_lets_nobody_else_in(path, value):
    try:
        verdict = judged(but(*path, value))
    except Malformed:
        return
    if isinstance(verdict, Caller):
        assert verdict.namespace == "prj-a"
