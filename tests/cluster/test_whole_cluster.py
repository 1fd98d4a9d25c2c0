"""The rendered chart, run whole on a real apiserver: what users and operators are promised."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from cluster import objects
from cluster.apiserver import API_AUDIENCE, RealCluster
from cluster.kubetools import build
from cluster.load import Load, body_of, fill, misses
from cluster.world import NAMESPACE, NODES, OTHERS, TEAM, World, fetch
from fakes.tokens import Signer, make_claims, make_rsa
from simplecache.client.sync import Client as CacheClient
from simplecache.control.pods import PodSource
from simplecache.errors import SimpleCacheError
from simplecache.kube.api import KubeApi
from simplecache.kube.tokens import parse_token

pytestmark = pytest.mark.timeout(280)

OUTAGE_S = float(os.environ.get("SCS_TEST_OUTAGE_S", "20"))
VERDICT_S = 60 + 10 + 2
"""How long a verdict counts here, how long at the apiserver, and a moment to ask."""
DISCOVERY_S = 2.0
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest.fixture(scope="module")
def whole(envoy_bin, tmp_path_factory):
    cluster = RealCluster(build.ensure_built(), tmp_path_factory.mktemp("whole"), controllers=True)
    world = World(cluster, envoy_bin)
    try:
        cluster.start()
        world.start()
        yield world
    finally:
        world.stop()
        cluster.stop()
    assert not world.kubelet.faults


@pytest.fixture
def world(whole):
    """The cluster as a test may expect it; a test that breaks something finds it whole again."""
    whole.heal()
    return whole


@pytest.fixture
def say(capsys):
    """Print a figure, whether the test passes or not."""

    def say(text):
        with capsys.disabled():
            print(f"\n  {text}", end="", flush=True)

    return say


def name():
    return f"{TEAM}/{secrets.token_hex(4)}"


# -- traffic ------------------------------------------------------------------------------------


def test_a_pods_token_puts_and_gets_through_every_envoy(world):
    client, target = world.client(), name()
    assert world.ask("PUT", target, client, body=b"an apple")[0] == 201
    for number in range(3):
        assert world.ask("GET", target, client, at=world.envoy(number)) == (200, b"an apple")


def test_traffic_is_hinted_to_its_own_zone(world, say):
    service = world.get(f"/api/v1/namespaces/{NAMESPACE}/services/cache")
    assert service["spec"]["trafficDistribution"] == "PreferSameZone"
    path = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"

    def hints():
        rows = [
            (endpoint["nodeName"], endpoint["zone"], zone["name"])
            for item in world.get(path)["items"]
            if item["metadata"]["labels"]["kubernetes.io/service-name"] == "cache"
            for endpoint in item["endpoints"] or []
            for zone in endpoint.get("hints", {}).get("forZones", [])
        ]
        return rows if len(rows) == 3 else None

    found = world.until(hints, 30, "hints for each Envoy")
    say(f"trafficDistribution PreferSameZone; endpoints (node, zone, for zone): {sorted(found)}")
    assert all(own == hinted == NODES[node] for node, own, hinted in found)


def test_both_control_planes_say_the_same(world):
    one, two = (fetch(p.ip, 21804, "/v1/endpoints") for p in world.kubelet.of("control-plane"))
    assert one == two
    shards = json.loads(one)["shards"]
    assert {shard["name"]: shard["zone"] for shard in shards} == {
        f"{node}/0": zone for node, zone in NODES.items()
    }


# -- verdicts -----------------------------------------------------------------------------------


def sentence(body):
    return json.loads(body)["detail"]


def test_another_namespace_is_refused_with_a_sentence(world):
    target = name()
    assert world.ask("PUT", target, world.client(), body=b"x")[0] == 201
    status, body = world.ask("GET", target, world.client(OTHERS))
    assert status == 403
    assert OTHERS in sentence(body)


def test_a_public_bucket_needs_no_token(world):
    assert world.ask("PUT", "public/apple", body=b"x")[0] == 201
    assert world.ask("GET", "public/apple") == (200, b"x")
    assert world.ask("GET", "public/apple", world.client(OTHERS)) == (200, b"x")


def test_no_token_no_private_bucket(world):
    status, body = world.ask("GET", name())
    assert status == 401
    assert "token" in sentence(body)


def signer(world):
    """The cluster's own, with which nobody but the cluster can sign."""
    pem = world.cluster.pki.account_key.read_bytes()
    return Signer(serialization.load_pem_private_key(pem, None), world.cluster.key_id())


def bad_tokens(world):
    good = world.client().token
    head, payload, signature = good.split(".")
    claims = dict(parse_token(good).claims)
    past = int(time.time()) - 10
    ours = signer(world)
    yield "audience", world.client(audience=API_AUDIENCE).token, 'the audience "scs"'
    yield "expired", ours.sign(claims | {"exp": past, "iat": past, "nbf": past}), "expired"
    yield "issuer", ours.sign(claims | {"iss": "https://elsewhere"}), "issuer"
    yield "wrong key", Signer(make_rsa(), ours.key_id).sign(claims), "signature"
    yield "unknown key", Signer(make_rsa(), "no such key").sign(claims), "does not have"
    yield "altered", f"{head}.{payload}.{signature[:-8]}AAAAAAAA", "signature"
    yield "no algorithm", f"{ours.sign(claims, alg='none').rpartition('.')[0]}.AAAA", "signature"
    unbound = world.run(objects.take_token(world.api, TEAM))
    yield "not bound to a pod", unbound, "not bound to a pod"
    yield "no JWT", "secret", "three parts"
    yield "many dots", "." * 4000, "three parts"
    yield "binary", "\x80\xff\xfe", "three parts"
    yield "huge", "a" * 20_000, "16384 bytes"


def test_tokens_that_are_not_good_are_refused_with_a_sentence(world, say):
    for what, token, words in bad_tokens(world):
        status, body = world.ask("GET", name(), token)
        assert (status, words in sentence(body)) == (401, True), (what, status, body)
        assert token not in body.decode()


def test_who_loses_their_pod_or_account_is_out_within_the_time_to_live(world, say, tmp_path):
    """And whose token file is renewed in time notices nothing."""
    target = name()
    world.run(objects.make_account(world.api, TEAM, "fleeting"))
    pod = world.run(objects.make_pod(world.api, TEAM, "fleeting", account="fleeting"))
    fleeting = world.run(objects.take_token(world.api, TEAM, "fleeting", pod=pod))
    doomed, first, second = world.client(), world.client(), world.client()
    assert world.ask("PUT", target, doomed, body=b"x")[0] == 201
    file = tmp_path / "token"
    file.write_text(first.token)
    waiting = {"pod deleted": doomed.token, "account made anew": fleeting, "renewed": first.token}
    for token in waiting.values():
        assert world.ask("GET", target, token)[0] == 200
    with CacheClient(f"http://{world.envoy().ip}:8080", token_file=file, fail_open=False) as client:
        assert client.get(target) == b"x"
        world.delete(doomed, grace_s=0)
        world.call("DELETE", f"/api/v1/namespaces/{TEAM}/serviceaccounts/fleeting")
        world.run(objects.make_account(world.api, TEAM, "fleeting"))
        (tmp_path / "fresh").write_text(second.token)
        (tmp_path / "fresh").replace(file)
        world.delete(first, grace_s=0)
        began = time.monotonic()
        while waiting and time.monotonic() - began < VERDICT_S:
            assert client.get(target) == b"x"
            for what, token in list(waiting.items()):
                status, _ = world.ask("GET", target, token)
                if status == 401:
                    say(f"{what}: refused after {time.monotonic() - began:.0f} s")
                    del waiting[what]
                else:
                    assert status == 200
            time.sleep(0.3)
        assert not waiting, f"still let in after {VERDICT_S} s"
        assert client.get(target) == b"x"


# -- reviews ------------------------------------------------------------------------------------


def test_a_token_costs_one_review_however_many_nodes_it_meets(world, say):
    count, caches = 20, world.kubelet.of("cache")

    def use(client):
        return [
            world.ask("GET", f"{TEAM}/missing-{n}", client, at=caches[n % len(caches)])[0]
            for n in range(count)
        ]

    def reviews_of(clients):
        before = world.reviews()
        with ThreadPoolExecutor(8) as pool:
            for statuses in pool.map(use, clients):
                assert statuses == [404] * count
        return world.reviews() - before

    # Earlier tests may have moved shards, which is noticed when one is not found.
    world.until(lambda: reviews_of(world.clients(10)) == 10, 60, "a review for each token")
    clients = world.clients(200)
    asked, began = world.metric("scs_peer_asks_total"), time.monotonic()
    reviews = reviews_of(clients)
    say(
        f"{len(clients)} pods x {len(caches)} nodes, {count} requests each, in "
        f"{time.monotonic() - began:.1f} s: {reviews} reviews ({reviews / len(clients):.2f} a token); "
        f"shards asked one another {world.metric('scs_peer_asks_total') - asked:.0f} times"
    )
    assert reviews <= 1.2 * len(clients)


def test_forged_tokens_cause_no_review(world, say):
    good = world.client().token
    head, payload, signature = good.split(".")
    forger = Signer(make_rsa(), parse_token(good).key_id)
    claims = make_claims(API_AUDIENCE)
    signed = [forger.sign(claims | {"jti": str(n)}) for n in range(200)]
    altered = [f"{head}.{payload}.{n:04d}{signature[4:]}" for n in range(9_800)]
    tokens = [*signed, *altered]
    before = world.reviews()
    began = time.monotonic()
    caches = world.kubelet.of("cache")
    with ThreadPoolExecutor(len(caches)) as pool:
        parts = [(pod.ip, tokens[n :: len(caches)]) for n, pod in enumerate(caches)]
        statuses = [status for part in pool.map(lambda p: pipelined(*p), parts) for status in part]
    reviews = world.reviews() - before
    say(f"{len(tokens)} forged tokens in {time.monotonic() - began:.1f} s: {reviews} reviews")
    assert statuses == [401] * len(tokens)
    assert reviews == 0


def pipelined(host, tokens):
    """A GET with each token over one connection; the statuses."""
    statuses = []
    with socket.create_connection((host, 7400), timeout=60) as sock, sock.makefile("rb") as file:
        for at in range(0, len(tokens), 20):
            batch = tokens[at : at + 20]
            sock.sendall(
                b"".join(
                    f"GET /v1/objects/{TEAM}/x HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer {t}\r\n\r\n".encode()
                    for t in batch
                )
            )
            for _ in batch:
                statuses.append(int(file.readline().split()[1]))
                length = 0
                while (line := file.readline()) != b"\r\n":
                    key, _, value = line.partition(b":")
                    if key.lower() == b"content-length":
                        length = int(value)
                file.read(length)
    return statuses


def test_without_an_apiserver_known_callers_go_on_and_others_wait(world, say):
    known, unknown = world.client(), world.client()
    targets = fill(world, name(), 100, known)
    with Load(world, targets, [known] * 3) as load:
        world.until(lambda: load.total > 300, 60, "the load does not run")
        with world.outage():
            began, refused = time.monotonic(), set()
            while time.monotonic() - began < OUTAGE_S:
                status, body = world.ask("GET", targets[0], unknown)
                refused.add((status, json.loads(body)["title"]))
                time.sleep(0.2)
            away = load.total
        back = time.monotonic()
        world.until(
            lambda: world.ask("GET", targets[0], unknown)[0] == 200, 30, "the unknown get in"
        )
        say(f"apiserver away for {OUTAGE_S:.0f} s: known callers had {load}")
        say(f"unknown callers had {refused}, and got in {time.monotonic() - back:.1f} s after")
        world.until(lambda: load.total > away + 300, 60, "the load stands still")
    assert {status for status, _ in refused} == {503}
    assert not load.faults
    assert not load.wrong


# -- discovery ----------------------------------------------------------------------------------


def test_envoys_follow_pods_within_two_seconds(world, say):
    """Deleted, added, NotReady, Ready, evicted: from the apiserver's word to every Envoy's table."""
    client = world.client()
    targets = fill(world, name(), 300, client)
    figures = {}

    def timed(what, condition):
        began = time.monotonic()
        world.until(condition, 30, what)
        figures[what] = time.monotonic() - began

    def cache(node="node-4"):
        return next((pod for pod in world.kubelet.of("cache") if pod.node == node), None)

    def lacks(pod):
        return lambda: not any(f"{pod.ip}:7400" in world.known_to(e) for e in envoys)

    def has(pod):
        return lambda: all(f"{pod.ip}:7400" in world.known_to(e) for e in envoys)

    envoys = world.kubelet.of("envoy")
    pods = objects.pods_path(NAMESPACE)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"namespace": NAMESPACE}}
    for act in ("deleted", "evicted"):
        old = cache()
        if act == "deleted":
            world.delete(old)
        else:
            body = eviction | {"metadata": {"name": old.name, "namespace": NAMESPACE}}
            world.call("POST", f"{pods}/{old.name}/eviction", body)
        timed(act, lacks(old))
        new = world.until(lambda: (pod := cache()) and pod.ready and pod, 60, "a new pod")
        timed(f"added after it was {act}", has(new))
        assert new.ip != old.ip
        assert misses(world, targets, client) == [], "keys moved, or their objects are gone"
    pod = cache("node-3")
    pod.held = True
    world.run(world.kubelet.report_now(pod))
    timed("NotReady", lacks(pod))
    pod.held = False
    world.run(world.kubelet.report_now(pod))
    timed("Ready again", has(pod))
    say("apiserver to every Envoy: " + ", ".join(f"{k} {v:.2f} s" for k, v in figures.items()))
    say("a pod made anew on its node, with a new address, twice: 0 of 300 keys moved")
    assert max(figures.values()) < DISCOVERY_S


def test_a_node_that_leaves_and_comes_back(world, say):
    client = world.client()
    targets = fill(world, name(), 300, client)
    path = "/api/v1/nodes/node-4"
    world.call("PATCH", path, {"metadata": {"labels": {"cache": None}}})
    try:
        world.until(lambda: len(world.shards()) == 4 and world.all_know(world.shards()), 60, "left")
        gone = misses(world, targets, client)
        say(f"one node of {len(NODES)} lost: {len(gone)} of 300 keys are misses")
        assert len(gone) < 300 * (1 / len(NODES) + 0.1)
    finally:
        world.call("PATCH", path, {"metadata": {"labels": {"cache": "yes"}}})
    world.heal()
    assert misses(world, targets, client) == []


def test_a_restart_of_the_apiserver_and_a_compaction_lose_no_update(world, say):
    """A pod vanishes while nobody can watch, and the versions that would tell of it are compacted."""
    lost = next(pod for pod in world.kubelet.of("cache") if pod.node == "node-3")
    with world.outage():
        world.run(world.cluster.lose(NAMESPACE, "pods", lost.name))
        world.run(world.cluster.compact())
    began = time.monotonic()
    world.until(
        lambda: not any(f"{lost.ip}:7400" in world.known_to(e) for e in world.kubelet.of("envoy")),
        45,
        "the lost pod leaves the ring",
    )
    say(
        "a pod lost behind a compaction left the ring "
        f"{time.monotonic() - began:.1f} s after apiserver and controllers were back"
    )
    world.heal()
    assert lost.ip not in {pod.ip for pod in world.kubelet.of("cache")}


def test_a_rolling_restart_under_load(world, say):
    client = world.client()
    targets = fill(world, name(), 200, client)
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/scs-cache"
    before = {pod.ip for pod in world.kubelet.of("cache")}
    now = dt.datetime.now(dt.UTC).isoformat()
    restart = {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": now}}}
    began = time.monotonic()
    with Load(world, targets, [client] * 6) as load:
        generation = world.call("PATCH", path, {"spec": {"template": restart}})["metadata"][
            "generation"
        ]

        def is_done():
            status = world.get(path)["status"]
            return (
                status["observedGeneration"] >= generation
                and status.get("updatedNumberScheduled") == len(NODES)
                and status.get("numberAvailable") == len(NODES)
            )

        world.until(is_done, 200, "the rollout ends")
    say(f"rolling restart of {len(NODES)} nodes in {time.monotonic() - began:.0f} s: {load}")
    assert not before & {pod.ip for pod in world.kubelet.of("cache")}
    assert not load.wrong
    assert len(load.faults) <= load.total * 0.001
    world.heal()
    assert misses(world, targets, client) == []


def test_a_preempted_job_reads_nothing_from_the_origin_again(world, say):
    prefix, origin_reads = name(), []

    def epoch(who, envoy):
        reads = 0
        with CacheClient(f"http://{envoy.ip}:8080", token=who.token, fail_open=False) as cache:
            for number in range(200):
                target = f"{prefix}/{number}"
                body = cache.get(target)
                if body is None:
                    reads += 1
                    body = body_of(target)  # the origin
                    cache.put(target, body)
                assert body == body_of(target)
        origin_reads.append(reads)

    first = world.client(node="node-0")
    epoch(first, world.envoy(0))
    world.delete(first, grace_s=0)
    epoch(world.client(node="node-1"), world.envoy(1))
    say(f"origin reads before and after the preemption: {origin_reads}")
    assert origin_reads == [200, 0]


def test_what_it_all_takes(world, say):
    """Figures for docs/kubernetes.md; the bounds are far away."""
    parts = {name: peak_mib(process.pid) for name, process in world.cluster._processes.items()}
    for component in ("cache", "envoy", "control-plane"):
        pods = world.kubelet.of(component)
        parts[f"{component} (first process)"] = max(
            peak_mib(pod.processes[component].pid) for pod in pods
        )
    say("peak memory, MiB: " + ", ".join(f"{name} {mib:.0f}" for name, mib in parts.items()))
    assert parts["kube-apiserver"] < 2048  # on a machine of CI
    assert parts["control-plane (first process)"] < 512


def peak_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# -- rights -------------------------------------------------------------------------------------


def rules_of(world, account):
    """What an account may do, as the apiserver sees it."""

    async def ask():
        token = await objects.take_token(world.api, NAMESPACE, account, audience=API_AUDIENCE)
        async with KubeApi(world.cluster.config_with_token(token)) as api:
            body = {"spec": {"namespace": NAMESPACE}}
            path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
            return (await api.call("POST", path, body))["status"]["resourceRules"]

    return {
        (resource, verb)
        for rule in world.run(ask())
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_each_account_may_do_what_it_needs_and_nothing_else(world):
    anybody = rules_of(world, "default")
    own = {
        account: rules_of(world, f"scs-{account}") - anybody
        for account in ("cache", "control-plane", "envoy")
    }
    assert own == {
        "cache": {("tokenreviews", "create")},
        "control-plane": {("pods", "list"), ("pods", "watch")},
        "envoy": set(),
    }


@contextlib.contextmanager
def without(world, path, verb):
    """A role of the chart that lacks a verb."""
    rules = world.get(path)["rules"]
    assert verb in rules[0]["verbs"]
    less = [rules[0] | {"verbs": [v for v in rules[0]["verbs"] if v != verb] or ["none"]}]
    world.call("PATCH", path, {"rules": less})
    try:
        yield
    finally:
        world.call("PATCH", path, {"rules": rules})


def test_without_create_on_tokenreviews_nobody_new_gets_in(world):
    known, unknown = world.client(), world.client()
    target = fill(world, name(), 1, known)[0]
    with without(world, f"{RBAC}/clusterroles/scs:{NAMESPACE}:token-reviews", "create"):
        time.sleep(1)  # the authoriser learns of it by its own watch
        status, body = world.ask("GET", target, unknown)
        assert status == 503
        assert "tokenreviews" in sentence(body)
        assert world.ask("GET", target, known)[0] == 200
    world.until(lambda: world.ask("GET", target, unknown)[0] == 200, 30, "rights are back")


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_without_list_or_watch_on_pods_a_control_plane_learns_nothing(world, verb):
    async def found():
        token = await objects.take_token(
            world.api, NAMESPACE, "scs-control-plane", audience=API_AUDIENCE
        )
        api = KubeApi(world.cluster.config_with_token(token))
        selector = "app.kubernetes.io/component=cache"
        async with PodSource(api, NAMESPACE, selector) as source:
            shards = await source.relist()
            async with asyncio.timeout(2):
                while not source._pods.faults_total:
                    await asyncio.sleep(0.05)
            return shards

    role = f"{RBAC}/namespaces/{NAMESPACE}/roles/scs-control-plane"
    with without(world, role, verb):
        time.sleep(1)
        if verb == "list":
            with pytest.raises(SimpleCacheError, match="does not list"):
                world.run(found())
        else:
            assert len(world.run(found())) == len(NODES)  # and its watch was refused
    with pytest.raises(TimeoutError):  # no fault within the time
        world.run(found())
