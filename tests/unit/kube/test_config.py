"""Configurations: a pod's and a kubeconfig's."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml

from simplecache.errors import InvalidConfig
from simplecache.kube.config import KubeConfig, from_kubeconfig, in_cluster

ENV = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_text("c")
    (tmp_path / "namespace").write_text("cache-service\n")
    return tmp_path


def test_in_a_pod(account: Path):
    assert in_cluster(ENV, account) == KubeConfig(
        server="https://10.0.0.1:443",
        ca=account / "ca.crt",
        token=account / "token",
        namespace="cache-service",
    )


def test_in_a_pod_with_ipv6(account: Path):
    env = ENV | {"KUBERNETES_SERVICE_HOST": "fd00::1"}
    assert in_cluster(env, account).server == "https://[fd00::1]:443"


@pytest.mark.parametrize("env", [{}, {"KUBERNETES_SERVICE_HOST": "x"}])
def test_not_in_a_pod(env, account: Path):
    with pytest.raises(InvalidConfig, match="not in a pod"):
        in_cluster(env, account)


def test_a_pod_without_a_token(account: Path):
    (account / "token").unlink()
    with pytest.raises(InvalidConfig, match="automountServiceAccountToken"):
        in_cluster(ENV, account)


def kubeconfig(folder: Path, *, cluster=None, user=None, context=None) -> Path:
    document = {
        "current-context": "main",
        "contexts": [{"name": "main", "context": {"cluster": "c", "user": "u"} | (context or {})}],
        "clusters": [{"name": "c", "cluster": {"server": "https://k.test:6443"} | (cluster or {})}],
        "users": [{"name": "u", "user": user or {}}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(document))
    return path


def test_files_are_relative_to_the_kubeconfig(tmp_path: Path):
    path = kubeconfig(
        tmp_path,
        cluster={"certificate-authority": "pki/ca.crt", "tls-server-name": "k8s"},
        user={"client-certificate": "/etc/c.crt", "client-key": "c.key", "tokenFile": "token"},
        context={"namespace": "cache-service"},
    )
    assert from_kubeconfig(path) == KubeConfig(
        server="https://k.test:6443",
        ca=tmp_path / "pki/ca.crt",
        cert=Path("/etc/c.crt"),
        key=tmp_path / "c.key",
        token=tmp_path / "token",
        namespace="cache-service",
        tls_server_name="k8s",
    )


def test_inline_data_wins(tmp_path: Path):
    data = base64.b64encode(b"PEM").decode()
    path = kubeconfig(
        tmp_path,
        cluster={
            "certificate-authority": "x",
            "certificate-authority-data": data,
            "insecure-skip-tls-verify": True,
        },
        user={"client-certificate-data": data, "client-key-data": data, "token": "t"},
    )
    config = from_kubeconfig(path)
    assert (config.ca, config.cert, config.key, config.token) == (b"PEM", b"PEM", b"PEM", "t")
    assert config.insecure


def test_another_context_is_named(tmp_path: Path):
    path = kubeconfig(tmp_path)
    assert from_kubeconfig(path, "main").server == "https://k.test:6443"
    with pytest.raises(InvalidConfig, match="no context named 'other'"):
        from_kubeconfig(path, "other")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user": {"exec": {"command": "aws"}}}, "exec of a user"),
        ({"user": {"username": "x"}}, "username of a user"),
        ({"cluster": {"proxy-url": "socks5://x"}}, "proxy-url of a cluster"),
        ({"cluster": {"server": ""}}, "apiserver"),
        ({"cluster": {"server": "ftp://x"}}, "apiserver"),
        ({"cluster": {"certificate-authority-data": "*"}}, "not base64"),
        ({"cluster": {"certificate-authority-data": 5}}, "not base64"),
        ({"user": {"client-certificate": "x"}}, "together"),
        ({"context": {"user": "nobody"}}, "no user named 'nobody'"),
        ({"context": {"cluster": None}}, "no cluster named None"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, changes, words):
    with pytest.raises(InvalidConfig, match=words):
        from_kubeconfig(kubeconfig(tmp_path, **changes))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b"a: " * 9999, b"x" * (2 << 20), b"[" * 5000]
)
def test_a_file_that_is_no_kubeconfig(tmp_path: Path, content):
    path = tmp_path / "config"
    path.write_bytes(content)
    with pytest.raises(InvalidConfig):
        from_kubeconfig(path)
    with pytest.raises(InvalidConfig):
        from_kubeconfig(tmp_path / "none")
