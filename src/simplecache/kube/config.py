"""How to reach an apiserver: what a pod is given, or what a kubeconfig says.

A value, read once. Files that it names are read later and again, by ``credentials``: tokens and CAs
rotate. What a kubeconfig may say and this package cannot do (exec plugins, proxies) is an error and
never passed over, for passing it over would mean connecting in another way than asked.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import yaml

from simplecache.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE_ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KUBECONFIG_MAX_BYTES: Final = 1 << 20

_UNSUPPORTED: Final = {
    "user": ("exec", "auth-provider", "username", "password", "as", "as-uid", "as-groups"),
    "cluster": ("proxy-url",),
}


@dataclass(frozen=True, slots=True)
class KubeConfig:
    """One apiserver and who we are to it.

    A ``Path`` is read again when it changes; text and bytes are final.

    Raises:
        InvalidConfig: the server is no http(s) URL, or a certificate comes without its key.
    """

    server: str
    """Base URL, possibly with a path; no slash at its end."""

    ca: Path | bytes | None = None
    """PEM of the authorities to trust. None: those of the operating system."""

    cert: Path | bytes | None = None
    """PEM of a client certificate. None: no certificate."""

    key: Path | bytes | None = field(default=None, repr=False)
    """PEM of the certificate's key."""

    token: Path | str | None = field(default=None, repr=False)
    """Bearer token. None: no token."""

    namespace: str = "default"
    """Where namespaced calls go when nothing else is said."""

    tls_server_name: str | None = None
    """The name that the server's certificate must bear. None: the URL's host."""

    insecure: bool = False
    """Do not verify the server. Only a kubeconfig that says so sets it."""

    def __post_init__(self) -> None:
        url = urlsplit(self.server)
        if url.scheme not in {"http", "https"} or not url.hostname or self.server.endswith("/"):
            raise InvalidConfig(
                f"apiserver {self.server!r}: expected https://host:port without a slash at its end"
            )
        if (self.cert is None) != (self.key is None):
            raise InvalidConfig("a client certificate and its key are needed together")


def in_cluster(env: Mapping[str, str], folder: Path = SERVICE_ACCOUNT_DIR) -> KubeConfig:
    """The configuration that Kubernetes gives to a pod.

    Args:
        env: the process's environment.
        folder: where the service account's volume is mounted.

    Raises:
        InvalidConfig: this is no pod, or one without a service account token.
    """
    host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise InvalidConfig(
            "not in a pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"
        )
    namespace = folder / "namespace"
    if not (folder / "token").exists():
        raise InvalidConfig(
            f"{folder / 'token'} is missing: the pod needs automountServiceAccountToken"
        )
    return KubeConfig(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        ca=folder / "ca.crt",
        token=folder / "token",
        namespace=namespace.read_text().strip() if namespace.exists() else "default",
    )


def from_kubeconfig(path: Path, context: str | None = None) -> KubeConfig:
    """The configuration of one context of a kubeconfig file.

    Args:
        path: the file; paths within it are relative to its folder.
        context: the context's name. None: the file's current-context.

    Raises:
        InvalidConfig: the file cannot be read, lacks what is named, or asks for what is not
            supported.
    """
    document = _read_yaml(path)
    name = context or document.get("current-context")
    if not name:
        raise InvalidConfig(f"{path}: no context was named and current-context is not set")
    chosen = _named(document, "contexts", "context", name, path)
    cluster = _named(document, "clusters", "cluster", chosen.get("cluster"), path)
    user = _named(document, "users", "user", chosen.get("user"), path) if "user" in chosen else {}
    for what, entry in (("user", user), ("cluster", cluster)):
        for key in _UNSUPPORTED[what]:
            if entry.get(key):
                raise InvalidConfig(f"{path}: {key} of a {what} is not supported")
    return KubeConfig(
        server=str(cluster.get("server", "")).rstrip("/"),
        ca=_material(cluster, "certificate-authority", "certificate-authority-data", path),
        cert=_material(user, "client-certificate", "client-certificate-data", path),
        key=_material(user, "client-key", "client-key-data", path),
        token=_file(user, "tokenFile", path) or user.get("token") or None,
        namespace=chosen.get("namespace") or "default",
        tls_server_name=cluster.get("tls-server-name") or None,
        insecure=cluster.get("insecure-skip-tls-verify") is True,
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(KUBECONFIG_MAX_BYTES + 1)
        document = yaml.safe_load(raw) if len(raw) <= KUBECONFIG_MAX_BYTES else None
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise InvalidConfig(f"kubeconfig {path}: {type(error).__name__}") from error
    if not isinstance(document, dict):
        raise InvalidConfig(f"kubeconfig {path}: not a mapping of at most 1 MiB")
    return document


def _named(
    document: dict[str, Any], plural: str, singular: str, name: object, path: Path
) -> dict[str, Any]:
    entries = document.get(plural)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            found = entry.get(singular)
            if isinstance(found, dict):
                return found
    raise InvalidConfig(f"{path}: no {singular} named {name!r}")


def _material(
    entry: dict[str, Any], file_key: str, data_key: str, path: Path
) -> Path | bytes | None:
    """A PEM that is given inline (which wins, as in kubectl) or by a file's path."""
    data = entry.get(data_key)
    if not data:
        return _file(entry, file_key, path)
    try:
        return base64.b64decode(data, validate=True)
    except (ValueError, TypeError) as error:
        raise InvalidConfig(f"{path}: {data_key} is not base64") from error


def _file(entry: dict[str, Any], key: str, path: Path) -> Path | None:
    named = entry.get(key)
    return path.parent / str(named) if named else None
