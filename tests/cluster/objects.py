"""What tests do to a cluster, real or fake: make and change its objects, take tokens, count."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

from simplecache.kube.api import KubeApi

Json = dict[str, Any]
AUDIENCE = "scs"


async def make_namespace(api: KubeApi, name: str = "") -> str:
    """A namespace, by default with a name of its own, so that tests share a cluster."""
    name = name or f"test-{uuid.uuid4().hex[:10]}"
    await api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return name


async def make_account(api: KubeApi, namespace: str, name: str = "trainer") -> Json:
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    return await api.call("POST", path, {"metadata": {"name": name}})


async def make_node(api: KubeApi, name: str, zone: str) -> Json:
    labels = {"topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": name}
    return await api.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})


async def make_pod(
    api: KubeApi,
    namespace: str,
    name: str,
    *,
    account: str = "trainer",
    node: str = "node-a",
    labels: dict[str, str] | None = None,
) -> Json:
    """A pod that is already placed: there is no scheduler."""
    body = {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {
            "serviceAccountName": account,
            "nodeName": node,
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": "none"}],
        },
    }
    return await api.call("POST", pods_path(namespace), body)


async def set_pod_ready(
    api: KubeApi, namespace: str, name: str, ip: str, *, ready: bool = True
) -> Json:
    """What a kubelet would report."""
    state = "True" if ready else "False"
    status = {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": [{"type": kind, "status": state} for kind in ("Ready", "ContainersReady")],
    }
    path = f"{pods_path(namespace)}/{name}/status"
    return await api.call("PATCH", path, {"status": status})


async def delete_now(api: KubeApi, namespace: str, plural: str, name: str) -> None:
    """Delete without grace: the object is gone on return."""
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
    await api.call("DELETE", f"/api/v1/namespaces/{namespace}/{plural}/{name}", body)


async def take_token(
    api: KubeApi,
    namespace: str,
    account: str = "trainer",
    *,
    audience: str = AUDIENCE,
    pod: Json | None = None,
    seconds: int = 600,
) -> str:
    """A token, bound to ``pod`` as a projected volume's is, or to none."""
    spec: Json = {"audiences": [audience], "expirationSeconds": seconds}
    if pod:
        meta = pod["metadata"]
        spec["boundObjectRef"] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": meta["name"],
            "uid": meta["uid"],
        }
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    answer = await api.call("POST", path, {"spec": spec})
    return str(answer["status"]["token"])


def pods_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


async def read_text(api: KubeApi, path: str) -> str:
    """A page that is not JSON."""
    stream = api.watch(path, {}, silence_s=10, total_s=30)
    async with contextlib.aclosing(stream) as chunks:
        return b"".join([chunk async for chunk in chunks]).decode()


async def count_reviews(api: KubeApi) -> int:
    """TokenReviews that the apiserver has answered since it started, by its own count."""
    lines = (await read_text(api, "/metrics")).splitlines()
    return sum(
        round(float(line.rpartition(" ")[2]))
        for line in lines
        if line.startswith("apiserver_request_total{") and 'resource="tokenreviews"' in line
    )
