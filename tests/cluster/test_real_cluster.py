"""What only a real cluster has: RBAC, rotation, topology labels, controllers."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from cluster import objects
from cluster.apiserver import RealCluster
from contract.kube import until
from simplecache.errors import ApiFault, ReviewUnavailable
from simplecache.kube.api import KubeApi
from simplecache.kube.config import from_kubeconfig
from simplecache.kube.jwks import KeyCheck
from simplecache.kube.review import ApiReview, TokenReviewer
from simplecache.kube.watch import Reflector, Timing

API_AUDIENCE = "https://kubernetes.default.svc"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ZONE = "topology.kubernetes.io/zone"


def run(scenario, cluster: RealCluster) -> None:
    async def act() -> None:
        async with KubeApi(cluster.config) as api:
            await scenario(api)
        await asyncio.sleep(0.2)  # TLS farewells; see test_contract_on_real

    asyncio.run(act())


async def allow(
    api: KubeApi, namespace: str, account: str, rules: list[dict], *, name: str
) -> None:
    """Bind an account to a cluster role of its own."""
    await api.call("POST", f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": rules})
    await api.call(
        "POST",
        f"{RBAC}/clusterrolebindings",
        {
            "metadata": {"name": name},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": name,
            },
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        },
    )


REVIEWS = {
    "apiGroups": ["authentication.k8s.io"],
    "resources": ["tokenreviews"],
    "verbs": ["create"],
}
PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}


def test_a_cache_node_needs_to_create_token_reviews_and_nothing_more(real: RealCluster):
    async def scenario(admin: KubeApi) -> None:
        namespace = await objects.make_namespace(admin)
        await objects.make_account(admin, namespace, "node")
        await objects.make_account(admin, namespace)
        pod = await objects.make_pod(admin, namespace, "worker")
        token = await objects.take_token(admin, namespace, pod=pod)
        own = await objects.take_token(admin, namespace, "node", audience=API_AUDIENCE)
        async with KubeApi(real.config_with_token(own)) as api:
            reviewer = TokenReviewer(
                ApiReview(api, audience="scs"), precheck=KeyCheck(api, "scs").check
            )
            with pytest.raises(ReviewUnavailable, match=r"tokenreviews.*403"):
                await reviewer.review(token)
            await allow(admin, namespace, "node", [REVIEWS], name=namespace)

            async def allowed() -> None:  # the authoriser learns of it by its own watch
                while True:
                    with contextlib.suppress(ReviewUnavailable):
                        return await reviewer.review(token)
                    await asyncio.sleep(0.1)

            caller = await asyncio.wait_for(allowed(), 20)
            assert caller.namespace == namespace
            with pytest.raises(ApiFault, match="403"):
                await api.get(objects.pods_path(namespace))

    run(scenario, real)


def test_a_token_that_ends_under_a_running_client_is_replaced_unnoticed(
    real: RealCluster, tmp_path: Path
):
    async def scenario(admin: KubeApi) -> None:
        namespace = await objects.make_namespace(admin)
        await objects.make_account(admin, namespace)
        await allow(admin, namespace, "trainer", [PODS], name=namespace)
        file = tmp_path / "token"

        async def rotate(name: str) -> None:
            """As kubelet does: a new file takes the old one's name."""
            pod = await objects.make_pod(admin, namespace, name)
            fresh = tmp_path / "fresh"
            fresh.write_text(
                await objects.take_token(admin, namespace, audience=API_AUDIENCE, pod=pod)
            )
            fresh.replace(file)

        await rotate("first")
        timing = Timing(pause_min_s=0.05, pause_max_s=1, watch_min_s=1, watch_max_s=1)
        async with KubeApi(real.config_with_token(file)) as api:
            mirror = Reflector(api, objects.pods_path(namespace), lambda _: 1, timing=timing)
            task = asyncio.create_task(mirror.run())
            await asyncio.wait_for(mirror.wait_synced(), 20)
            await objects.delete_now(admin, namespace, "pods", "first")
            await rotate("second")
            for number in range(13):  # the apiserver remembers the first token for 10 s
                await objects.make_pod(admin, namespace, f"p{number}")
                await asyncio.sleep(1)
            await until(lambda: len(mirror.objects) == 14)
            assert mirror.lists_total == 1
            assert mirror.faults_total == 0
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(scenario, real)


def test_a_kubeconfig_is_enough(real: RealCluster):
    async def scenario(_: KubeApi) -> None:
        async with KubeApi(from_kubeconfig(real.write_kubeconfig("admin"))) as api:
            assert (await api.get("/version"))["gitVersion"].startswith("v1.")

    run(scenario, real)


def test_pods_bear_their_nodes_zone(real: RealCluster):
    """Zones then need no rights on nodes; older clusters do not do it."""

    async def scenario(api: KubeApi) -> None:
        await needs_minor(api, 35)
        namespace = await objects.make_namespace(api)
        await objects.make_account(api, namespace)
        await objects.make_node(api, f"node-{namespace}", "zone-b")
        pod = await objects.make_pod(api, namespace, "p", node=f"node-{namespace}")
        assert pod["metadata"]["labels"].get(ZONE) == "zone-b"

    run(scenario, real)


def test_controllers_hint_traffic_to_its_own_zone(governed: RealCluster):
    """The addresses are documentation's (RFC 5737): an EndpointSlice takes no loopback ones."""

    async def scenario(api: KubeApi) -> None:
        await needs_minor(api, 34)
        namespace = await objects.make_namespace(api)
        for number, zone in enumerate("ab"):
            node = f"node-{zone}"
            await objects.make_node(api, node, f"zone-{zone}")
            await wait_for(api, f"/api/v1/namespaces/{namespace}/serviceaccounts", 1)
            await objects.make_pod(
                api,
                namespace,
                f"envoy-{zone}",
                account="default",
                node=node,
                labels={"app": "envoy"},
            )
            await objects.set_pod_ready(api, namespace, f"envoy-{zone}", f"192.0.2.{number + 1}")
        service = {
            "metadata": {"name": "cache"},
            "spec": {
                "selector": {"app": "envoy"},
                "ports": [{"port": 80, "targetPort": 8080}],
                "trafficDistribution": "PreferSameZone",
            },
        }
        await api.call("POST", f"/api/v1/namespaces/{namespace}/services", service)
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"

        async def hints() -> dict[str, list[str]]:
            slices = (await api.get(path))["items"]
            endpoints = [e for item in slices for e in item["endpoints"] or [] if e.get("hints")]
            return {e["zone"]: [z["name"] for z in e["hints"]["forZones"]] for e in endpoints}

        async with asyncio.timeout(30):
            while (found := await hints()) != {"zone-a": ["zone-a"], "zone-b": ["zone-b"]}:
                await asyncio.sleep(0.2)
        assert found
        await wait_for(api, f"/api/v1/namespaces/{namespace}/configmaps", 1)  # the root CA

    run(scenario, governed)


async def needs_minor(api: KubeApi, minor: int) -> None:
    """Skip on clusters that KUBEBUILDER_ASSETS brought and that are too old."""
    version = await api.get("/version")
    if int(version["minor"].rstrip("+")) < minor:
        pytest.skip(f"Kubernetes 1.{minor} began it; this is {version['gitVersion']}")


async def wait_for(api: KubeApi, path: str, count: int) -> None:
    async with asyncio.timeout(30):
        while len((await api.get(path))["items"]) < count:
            await asyncio.sleep(0.1)
