"""Calls: who we are, what is bounded, and what an error says."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from aiohttp import web

from cluster.apiserver import Pki
from fakes.kube import FakeApiserver
from simplecache.errors import ApiFault, ApiGone, InvalidConfig
from simplecache.kube import api as api_module
from simplecache.kube.api import KubeApi
from simplecache.kube.config import KubeConfig
from simplecache.kube.credentials import RELOAD_S, Credentials


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def play(scenario, **config):
    async def run():
        async with FakeApiserver() as fake:
            clock = Clock()
            async with KubeApi(KubeConfig(fake.config.server, **config), clock=clock) as api:
                await scenario(fake, api, clock)

    asyncio.run(run())


def fault_of(answer, *, method="GET"):
    """The fault that an answer becomes."""
    caught = []

    async def scenario(fake, api, clock):
        fake.answer_next("/nodes", answer)
        with pytest.raises(ApiFault) as error:
            await api.call(method, "/api/v1/nodes")
        caught.append(error.value)

    play(scenario)
    return caught[0]


def test_a_fault_has_the_call_the_status_and_the_servers_words():
    fault = fault_of(lambda: web.json_response({"message": "no\nway " + "x" * 999}, status=403))
    assert fault.status == 403
    assert str(fault).startswith("GET /api/v1/nodes: status 403: no way xxx")
    assert len(str(fault)) < 400
    assert fault.retry_after_s is None


def test_410_is_its_own():
    assert isinstance(fault_of(lambda: web.Response(status=410)), ApiGone)


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [("3", 3), ("0", 0), ("9" * 50, 60), ("-1", None), ("soon", None), ("٣", None), ("1.5", None)],
)
def test_retry_after_is_bounded_and_distrusted(header, wait_s):
    fault = fault_of(lambda: web.Response(status=429, headers={"Retry-After": header}))
    assert fault.retry_after_s == wait_s


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"7", b'{"a":', b"[" * 100_000, b"\xff\xfe"], ids=repr
)
def test_an_answer_that_is_no_object_is_a_fault(body):
    assert "not" in str(fault_of(lambda: web.Response(body=body[:200_000])))


def test_an_errors_body_may_be_anything():
    assert fault_of(lambda: web.Response(body=b"\x00" * (1 << 20), status=500)).status == 500
    assert fault_of(lambda: web.json_response({"message": {"a": 1}}, status=500)).status == 500


def test_answers_are_bounded(monkeypatch):
    monkeypatch.setitem(api_module.ANSWER_MAX_BYTES, "GET", 1000)
    assert "more than 1000 bytes" in str(fault_of(lambda: web.Response(body=b"x" * 1001)))


def test_redirects_are_not_followed():
    """The token would travel."""
    fault = fault_of(lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}))
    assert "not JSON" in str(fault)


def test_nobody_there():
    async def scenario(fake, api, clock):
        await fake.stop()
        with pytest.raises(ApiFault, match="ClientConnectorError") as caught:
            await api.get("/api/v1/nodes")
        assert caught.value.status is None

    play(scenario)


def test_no_answer_in_time():
    async def scenario(fake, api, clock):
        fake.script_watch("hang")
        with pytest.raises(ApiFault, match="Timeout"):
            await api.get("/api/v1/nodes", {"watch": "1", "resourceVersion": "1"}, timeout_s=0.1)

    play(scenario)


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_connection_closed_while_idle_is_not_the_callers_trouble(repeatable):
    async def scenario(fake, api, clock):
        await api.get("/api/v1/nodes")
        fake.answer_next("/nodes", Abort)
        call = api.call("POST", "/api/v1/nodes", {"metadata": {"name": "n"}}, repeatable=repeatable)
        if repeatable:
            await call
        else:
            with pytest.raises(ApiFault):
                await call

    play(scenario)


class Abort(web.StreamResponse):
    async def prepare(self, request):
        request.transport.abort()


def test_one_connection_serves_many_calls():
    async def scenario(fake, api, clock):
        for _ in range(20):
            await api.get("/api/v1/nodes")
        assert len(fake._runner.server.connections) == 1

    play(scenario)


# -- tokens ------------------------------------------------------------------------------------


def test_a_token_file_is_read_again_after_a_minute(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("one\n")

    async def scenario(fake, api, clock):
        fake.own_tokens = {"one", "two"}
        await api.get("/api/v1/nodes")
        file.write_text("two")
        fake.own_tokens = {"one"}
        clock.now = RELOAD_S - 1
        await api.get("/api/v1/nodes")
        fake.own_tokens = {"two"}
        clock.now = RELOAD_S
        await api.get("/api/v1/nodes")
        assert fake.count_calls("GET", "/nodes") == 3

    play(scenario, token=file)


def test_a_token_file_is_read_again_at_once_after_401(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("one")

    async def scenario(fake, api, clock):
        fake.own_tokens = {"two"}
        with pytest.raises(ApiFault) as caught:  # nothing new to show: asked once
            await api.get("/api/v1/nodes")
        assert caught.value.status == 401
        assert fake.count_calls("GET", "/nodes") == 1
        file.write_text("two")
        await api.get("/api/v1/nodes")
        assert fake.count_calls("GET", "/nodes") == 3

    play(scenario, token=file)


@pytest.mark.parametrize("content", [b"", b"two\xff", b"two words", b"x" * (2 << 20), None])
def test_a_token_file_that_went_bad_leaves_the_last_good_one(tmp_path: Path, caplog, content):
    file = tmp_path / "token"
    file.write_text("one")

    async def scenario(fake, api, clock):
        fake.own_tokens = {"one"}
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        clock.now = RELOAD_S
        await api.get("/api/v1/nodes")

    play(scenario, token=file)
    assert "keeping the credentials" in caplog.text
    assert "two" not in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        {"token": Path("/nonexistent/token")},
        {"ca": b"no pem"},
        {"cert": b"no pem", "key": b"no pem"},
        {"token": "two words"},
        {"token": "tok\u00e9n"},
    ],
)
def test_credentials_that_cannot_be_used_are_told_at_birth(arguments):
    with pytest.raises(InvalidConfig) as caught:
        KubeApi(KubeConfig("https://127.0.0.1:1", **arguments))
    assert "two words" not in str(caught.value)


def test_secrets_are_in_no_repr(tmp_path: Path):
    config = KubeConfig("http://127.0.0.1:1", token="s3cr3t", cert=b"c", key=b"s3cr3t")
    credentials = Credentials(KubeConfig("http://127.0.0.1:1", token="s3cr3t"), 0)
    for thing in (
        config,
        credentials,
        credentials.at(0),
        credentials._material,
        KubeApi(credentials._config),
    ):
        assert "s3cr3t" not in repr(thing)


# -- TLS ---------------------------------------------------------------------------------------


def serve_tls(pki: Pki, *, client_certs: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki.cert("apiserver"), pki.key("apiserver"))
    if client_certs:
        context.load_verify_locations(pki.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def tls_play(scenario, context):
    async def run():
        async with FakeApiserver(tls=context) as fake:
            await scenario(fake)
            await asyncio.sleep(0.1)

    asyncio.run(run())


@pytest.fixture
def two_pkis(tmp_path: Path) -> tuple[Pki, Pki]:
    pkis = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pkis.append(Pki(tmp_path / name))
    return pkis[0], pkis[1]


def test_a_client_certificate_and_the_servers_are_checked(two_pkis):
    one, two = two_pkis

    async def scenario(fake):
        good = {"ca": one.ca, "cert": one.cert("admin"), "key": one.key("admin").read_bytes()}
        good["cert"] = one.cert("admin").read_bytes()
        async with KubeApi(KubeConfig(fake.config.server, **good)) as api:
            await api.get("/api/v1/nodes")
        for wrong in (
            {"ca": two.ca},
            {"ca": None},
            {"cert": None, "key": None},
            {"cert": two.cert("admin"), "key": two.key("admin")},
            {"tls_server_name": "other.test"},
        ):
            async with KubeApi(KubeConfig(fake.config.server, **(good | wrong))) as api:
                with pytest.raises(ApiFault):
                    await api.get("/api/v1/nodes")
        async with KubeApi(
            KubeConfig(fake.config.server, **(good | {"ca": None, "insecure": True}))
        ) as api:
            await api.get("/api/v1/nodes")

    tls_play(scenario, serve_tls(one, client_certs=True))


def test_a_rotated_ca_is_read_again_at_once(two_pkis, tmp_path: Path):
    one, two = two_pkis
    ca = tmp_path / "ca.crt"
    ca.write_bytes(two.ca.read_bytes())

    async def scenario(fake):
        async with KubeApi(KubeConfig(fake.config.server, ca=ca)) as api:
            with pytest.raises(ApiFault, match="CertificateError"):
                await api.get("/api/v1/nodes")
            ca.write_bytes(one.ca.read_bytes())
            await api.get("/api/v1/nodes")

    tls_play(scenario, serve_tls(one))
