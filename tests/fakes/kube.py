"""A small apiserver in the test's own event loop, faithful in what ``simplecache.kube`` relies on.

It keeps objects with growing resource versions and a log of events that can be compacted; lists in
pages; watches from a version, with bookmarks, label selectors and both forms of 410; issues tokens
that are bound to pods, publishes their keys and reviews them by Kubernetes' rules. The contract
tests run on it and on a real apiserver, which keeps it honest.

On top of that it can misbehave on demand, which a real one cannot: see ``script_watch``,
``answer_next`` and ``stop``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import ssl
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from aiohttp import web

from fakes.tokens import Signer, make_rsa
from simplecache.kube.config import KubeConfig
from simplecache.kube.tokens import Demands, check_token, parse_keys, parse_token

Json = dict[str, Any]
Answer = Callable[[], web.StreamResponse]
ISSUER = "https://fake.test"
API_AUDIENCE = "https://kubernetes.default.svc"

CUT = "cut"
"""In a script: the connection breaks here."""
HANG = "hang"
"""In a script: nothing more comes, but the connection stays."""
LIVE = "live"
"""In a script: behave well from here on."""


class FakeApiserver:
    """Start with ``async with FakeApiserver() as fake``."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.signers = [Signer(make_rsa(), "key-1")]
        self.own_tokens: set[str] | None = None
        """Bearer tokens that may call. None: anybody may."""

        self.bookmark_every_s = 0.05
        self.calls: list[tuple[str, str, dict[str, str]]] = []
        self._version = 1
        self._compacted = 0
        self._objects: dict[str, dict[str, Json]] = {}
        self._log: list[tuple[int, str, str, Json]] = []
        self._moved = asyncio.Event()
        self._stopping = asyncio.Event()
        self._pages: dict[str, tuple[list[Json], int]] = {}
        self._scripts: deque[tuple[bytes | str | Answer, ...]] = deque()
        self._answers: deque[tuple[str, Answer]] = deque()
        self._runner: web.AppRunner | None = None
        self._port = 0

    # -- life ------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._stopping.clear()
        app = web.Application(client_max_size=4 << 20)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Break all connections and refuse new ones until ``start``."""
        if self._runner is not None:
            self._stopping.set()
            for connection in list(self._runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()
            self._runner = None

    take_down, bring_up = stop, start

    @property
    def config(self) -> KubeConfig:
        return KubeConfig(server=f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}")

    # -- misbehaviour ----------------------------------------------------------------------

    def script_watch(self, *steps: bytes | str | Answer) -> None:
        """What the next watch sends instead of events; a script that ends ends the answer.

        An ``Answer`` as the first step is the whole of it.
        """
        self._scripts.append(steps)

    def answer_next(self, path_end: str, answer: Answer) -> None:
        """How to answer the next request whose path ends so."""
        self._answers.append((path_end, answer))

    async def compact(self) -> None:
        """Forget all events so far, and the pages of lists that are being read."""
        self._compacted = self._version
        self._log.clear()
        self._pages.clear()

    async def lose(self, namespace: str, plural: str, name: str) -> None:
        """An object vanishes, and the version moves, without a server being up to tell."""
        self._put("DELETED", plural, f"{namespace}/{name}", None)

    def count_calls(self, method: str, path_end: str, **query: str) -> int:
        return sum(
            made == method and path.endswith(path_end) and query.items() <= asked.items()
            for made, path, asked in self.calls
        )

    # -- requests --------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.calls.append((request.method, path, dict(request.query)))
        if self.own_tokens is not None:
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if token not in self.own_tokens:
                return _status(401, "Unauthorized")
        if self._answers and path.endswith(self._answers[0][0]):
            return self._answers.popleft()[1]()
        if path == "/metrics":
            reviews = self.count_calls("POST", "/tokenreviews")
            return web.Response(
                text=f'apiserver_request_total{{resource="tokenreviews"}} {reviews}\n'
            )
        if path == "/.well-known/openid-configuration":
            return web.json_response({"issuer": ISSUER})
        if path == "/openid/v1/jwks":
            if "application/jwk-set+json" not in request.headers.get("Accept", ""):
                return _status(406, "NotAcceptable")
            return web.json_response({"keys": [signer.jwk() for signer in self.signers]})
        if path.endswith("/tokenreviews"):
            body = await request.json()
            return web.json_response(body | {"status": self._review(body["spec"])}, status=201)
        parts = path.split("/")[3:]  # /api/v1/...
        if parts[0] == "namespaces" and len(parts) > 2:
            return await self._objects_call(request, parts[1], parts[2:])
        return await self._objects_call(request, "", parts)

    async def _objects_call(
        self, request: web.Request, namespace: str, parts: list[str]
    ) -> web.StreamResponse:
        plural, name, sub = [*parts, "", ""][:3]
        key = f"{namespace}/{name}" if namespace else name
        stored = self._objects.get(plural, {})
        if request.method == "POST" and sub == "token":
            return self._issue(namespace, name, await request.json())
        if request.method == "POST":
            body = await request.json()
            meta = body["metadata"]
            meta |= {"uid": str(uuid.uuid4())} | ({"namespace": namespace} if namespace else {})
            key = f"{namespace}/{meta['name']}" if namespace else meta["name"]
            if key in stored:
                return _status(409, "AlreadyExists")
            return web.json_response(self._put("ADDED", plural, key, body), status=201)
        if not name:
            if request.query.get("watch"):
                return await self._watch(request, namespace, plural)
            return self._list(request, namespace, plural)
        if key not in stored:
            return _status(404, "NotFound")
        if request.method == "DELETE":
            return web.json_response(self._put("DELETED", plural, key, None))
        if request.method == "PATCH":
            assert request.content_type == "application/merge-patch+json"
            merged = _merge(copy.deepcopy(stored[key]), await request.json())
            return web.json_response(self._put("MODIFIED", plural, key, merged))
        return web.json_response(stored[key])

    def _put(self, kind: str, plural: str, key: str, body: Json | None) -> Json:
        self._version += 1
        stored = self._objects.setdefault(plural, {})
        if body is None:
            body = copy.deepcopy(stored.pop(key))
        else:
            stored[key] = body
        body["metadata"]["resourceVersion"] = str(self._version)
        self._log.append((self._version, plural, kind, copy.deepcopy(body)))
        self._moved.set()
        self._moved = asyncio.Event()
        return body

    def _list(self, request: web.Request, namespace: str, plural: str) -> web.Response:
        token = request.query.get("continue")
        if token:
            if token not in self._pages:
                return _status(410, "Expired")
            items, version = self._pages.pop(token)
        else:
            version = self._version
            items = [
                copy.deepcopy(body)
                for _, body in sorted(self._objects.get(plural, {}).items())
                if _matches(request, namespace, body)
            ]
        limit = int(request.query.get("limit", "0")) or len(items)
        metadata = {"resourceVersion": str(version)}
        if len(items) > limit:
            metadata["continue"] = uuid.uuid4().hex
            self._pages[metadata["continue"]] = (items[limit:], version)
        return web.json_response({"kind": "List", "metadata": metadata, "items": items[:limit]})

    # -- watch -----------------------------------------------------------------------------

    async def _watch(self, request: web.Request, namespace: str, plural: str) -> web.StreamResponse:
        steps = self._scripts.popleft() if self._scripts else (LIVE,)
        if callable(steps[0]):
            return steps[0]()
        response = web.StreamResponse()
        response.content_type = "application/json"
        await response.prepare(request)
        with contextlib.suppress(ConnectionResetError):
            for step in steps:
                if step == CUT:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                if step == HANG:
                    await self._stopping.wait()
                    return response
                if step == LIVE:
                    async for line in self._events(request, namespace, plural):
                        await response.write(line)
                else:
                    assert isinstance(step, bytes)
                    await response.write(step)
        return response

    async def _events(
        self, request: web.Request, namespace: str, plural: str
    ) -> AsyncIterator[bytes]:
        at = int(request.query["resourceVersion"])
        ends = time.monotonic() + float(request.query.get("timeoutSeconds", "300"))
        while time.monotonic() < ends:
            if at < self._compacted:
                yield event_line("ERROR", make_status(410, "Expired"))
                return
            moved = self._moved
            for version, of, kind, body in [entry for entry in self._log if entry[0] > at]:
                at = version
                if of == plural and _matches(request, namespace, body):
                    yield event_line(kind, body)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(moved.wait(), self.bookmark_every_s)
            # Not by the timeout: both can come true in one round of the loop.
            if not moved.is_set():
                at = max(at, self._version)
                yield event_line("BOOKMARK", {"metadata": {"resourceVersion": str(at)}})

    # -- tokens ----------------------------------------------------------------------------

    def _issue(self, namespace: str, account: str, request: Json) -> web.Response:
        key = f"{namespace}/{account}"
        found = self._objects.get("serviceaccounts", {}).get(key)
        if found is None:
            return _status(404, "NotFound")
        spec = request["spec"]
        bound: Json = {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": found["metadata"]["uid"]},
        }
        if ref := spec.get("boundObjectRef"):
            pod = self._objects.get("pods", {}).get(f"{namespace}/{ref['name']}")
            if pod is None or ref.get("uid") not in {None, pod["metadata"]["uid"]}:
                return _status(409, "Conflict")
            bound["pod"] = {"name": ref["name"], "uid": pod["metadata"]["uid"]}
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": spec.get("audiences") or [API_AUDIENCE],
            "iat": now,
            "nbf": now,
            "exp": now + spec.get("expirationSeconds", 3600),
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "jti": str(uuid.uuid4()),
            "kubernetes.io": bound,
        }
        token = self.signers[0].sign(claims)
        return web.json_response(request | {"status": {"token": token}}, status=201)

    def _review(self, spec: Json) -> Json:
        """TokenReview by Kubernetes' rules; the signature is checked with the code under test,
        which the real apiserver checks in turn."""
        wanted = spec.get("audiences") or [API_AUDIENCE]
        try:
            token = parse_token(spec["token"])
        except ValueError:
            return {"user": {}, "error": "invalid bearer token"}
        keys = parse_keys({"keys": [signer.jwk() for signer in self.signers]})
        had = [name for name in wanted if name in token.claims.get("aud", [])]
        if not had or check_token(token, keys, Demands(ISSUER, had[0]), time.time()):
            return {"user": {}, "error": "invalid bearer token"}
        bound = token.claims["kubernetes.io"]
        namespace, account, pod = bound["namespace"], bound["serviceaccount"], bound.get("pod")
        for plural, ref in (("serviceaccounts", account), ("pods", pod)):
            found = self._objects.get(plural, {}).get(f"{namespace}/{ref['name']}") if ref else None
            if ref and (found is None or found["metadata"]["uid"] != ref["uid"]):
                return {"user": {}, "error": "service account token has been invalidated"}
        extra = {"authentication.kubernetes.io/credential-id": [f"JTI={token.claims['jti']}"]}
        if pod:
            extra["authentication.kubernetes.io/pod-name"] = [pod["name"]]
            extra["authentication.kubernetes.io/pod-uid"] = [pod["uid"]]
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"]
        user = {
            "username": token.claims["sub"],
            "uid": account["uid"],
            "groups": groups,
            "extra": extra,
        }
        return {"authenticated": True, "user": user, "audiences": had}


def event_line(kind: str, body: Json) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def make_status(code: int, reason: str, message: str = "") -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message or reason,
        "reason": reason,
        "code": code,
    }


def _status(code: int, reason: str) -> web.Response:
    return web.json_response(make_status(code, reason), status=code)


def _matches(request: web.Request, namespace: str, body: Json) -> bool:
    metadata = body["metadata"]
    labels = metadata.get("labels") or {}
    wanted = [pair.split("=") for pair in request.query.get("labelSelector", "").split(",") if pair]
    return (not namespace or metadata.get("namespace") == namespace) and all(
        labels.get(name) == value for name, value in wanted
    )


def _merge(body: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = body if isinstance(body, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged
