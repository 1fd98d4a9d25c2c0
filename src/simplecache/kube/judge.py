"""What a TokenReview's answer means: pure.

A review answers 201 whether the token is good or not: all that counts is in its status, and a
careless reader lets the wrong in. Source: the TokenReview API, whose text obliges a client that
sends audiences to look for them in the answer.
"""

from __future__ import annotations

import re
from typing import Any, Final

from simplecache.errors import Malformed
from simplecache.kube.faults import trim
from simplecache.kube.verdicts import Refusal
from simplecache.model import Caller

POD_NAME: Final = "authentication.kubernetes.io/pod-name"
POD_UID: Final = "authentication.kubernetes.io/pod-uid"

_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

Outcome = Caller | Refusal


def judge(status: object, *, audience: str, require_pod_bound: bool) -> Outcome:
    """Who the ``status`` of a TokenReview says the caller is, or why it is nobody.

    Args:
        status: as decoded from JSON.
        audience: must come back in ``status.audiences``. An empty list there means that the server
            did not look at audiences, which is a refusal.
        require_pod_bound: refuse tokens that live on when their pod is gone.

    Raises:
        Malformed: the status is none, so nothing can be said about the token.
    """
    if not isinstance(status, dict) or not isinstance(status.get("authenticated", False), bool):
        raise Malformed("the review has no status that makes sense")
    error = status.get("error")
    if not status.get("authenticated") or error:
        words = f": {trim(error)}" if isinstance(error, str) and error else ""
        return Refusal(f"the cluster does not accept the token{words}")
    audiences = status.get("audiences")
    if not isinstance(audiences, list) or audience not in audiences:
        return Refusal(f'the token is not for the audience "{audience}"')
    user = status.get("user")
    if not isinstance(user, dict):
        raise Malformed("the review names no user")
    namespace = _namespace_of(user)
    if namespace is None:
        return Refusal("the token is not a service account's")
    pod, uid = (_single(user.get("extra"), key) for key in (POD_NAME, POD_UID))
    if require_pod_bound and not (pod and uid):
        return Refusal("the token is not bound to a pod; use a projected volume's token")
    return Caller(namespace=namespace, pod=pod)


def _namespace_of(user: dict[str, Any]) -> str | None:
    """The namespace of a service account, or None for other users.

    The username has exactly four parts, and the groups, which only the apiserver gives, agree.
    """
    name, groups = user.get("username"), user.get("groups")
    match name.split(":") if isinstance(name, str) else ():
        case ["system", "serviceaccount", namespace, account] if account:
            expected = f"system:serviceaccounts:{namespace}"
            agrees = isinstance(groups, list) and expected in groups
            return namespace if agrees and _NAMESPACE.fullmatch(namespace) else None
    return None


def _single(extra: object, key: str) -> str | None:
    values = extra.get(key) if isinstance(extra, dict) else None
    match values:
        case [str(value)] if value:
            return value
    return None
