"""A real Kubernetes control plane on loopback: etcd, kube-apiserver and, if asked, its controllers.

Ports are the kernel's choice, files live in one folder, processes end by their own id. There is no
scheduler and no kubelet: tests place their pods and report their status (``objects``), or run them
(the cluster test). Without the controller manager nothing makes service accounts by itself, so the
admission plugin that insists on them is off.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import ipaddress
import json
import socket
import ssl
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from simplecache.kube.config import KubeConfig

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
API_AUDIENCE = "https://kubernetes.default.svc"

# Pods live without kubelets here: what would evict them, or needs a cloud, stays off.
CONTROLLERS = "*,-node-lifecycle-controller,-taint-eviction-controller,-node-ipam-controller"


class StartError(Exception):
    """A process ended or did not become ready; the text has the end of its log."""


class RealCluster:
    """One cluster in one folder. ``start`` before use, ``stop`` after; both can be repeated.

    Args:
        assets: the folder with the binaries.
        folder: for certificates, data and logs.
        controllers: also run kube-controller-manager.
        apiserver_flags: more flags for kube-apiserver.
    """

    def __init__(
        self,
        assets: Path,
        folder: Path,
        *,
        controllers: bool = False,
        apiserver_flags: tuple[str, ...] = (),
    ) -> None:
        self._assets = assets
        self._folder = folder
        self._controllers = controllers
        self._flags = apiserver_flags
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd_port, self._peer_port, self._port = _free_ports(3)
        self.pki = Pki(folder)

    def __repr__(self) -> str:
        pids = {name: process.pid for name, process in self._processes.items()}
        return f"<RealCluster at {self.server}: {pids}>"

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def config(self) -> KubeConfig:
        """As an administrator."""
        return self.config_with_cert("admin")

    def config_with_cert(self, name: str) -> KubeConfig:
        pki = self.pki
        return KubeConfig(self.server, ca=pki.ca, cert=pki.cert(name), key=pki.key(name))

    def config_with_token(self, token: Path | str) -> KubeConfig:
        return KubeConfig(self.server, ca=self.pki.ca, token=token)

    def start(self) -> None:
        self.start_etcd()
        self.start_apiserver()
        if self._controllers:
            self.start_controllers()

    def stop(self) -> None:
        for name in reversed(list(self._processes)):
            self._end(name)

    # -- the two acts of an outage, for tests that run in an event loop -----------------------

    async def take_down(self) -> None:
        """The apiserver crashes (a gentle end waits for open watches); etcd goes on."""
        await asyncio.to_thread(self._end, "kube-apiserver", gently=False)

    async def bring_up(self) -> None:
        """Start the apiserver again on the same port.

        Its controllers as well, whose own pauses after an outage come to a minute.
        """

        def act() -> None:
            self._end("kube-controller-manager", gently=False)
            self.start_apiserver()
            if self._controllers:
                self.start_controllers()

        await asyncio.to_thread(act)

    async def compact(self) -> None:
        """Make etcd forget all revisions before the current one."""

        def act() -> None:
            answer = self._etcd("kv/range", {"key": _b64("compact")})
            revision = answer["header"]["revision"]
            self._etcd("kv/compaction", {"revision": revision, "physical": True})

        await asyncio.to_thread(act)

    async def lose(self, namespace: str, plural: str, name: str) -> None:
        """Delete an object in etcd, behind the apiserver's back."""
        key = f"/registry/{plural}/{namespace}/{name}"
        answer = await asyncio.to_thread(self._etcd, "kv/deleterange", {"key": _b64(key)})
        assert answer.get("deleted") == "1", answer

    def key_id(self) -> str:
        """The id under which the apiserver publishes its token key."""
        context = self.pki.admin_context()
        with urllib.request.urlopen(f"{self.server}/openid/v1/jwks", context=context) as answer:
            return str(json.load(answer)["keys"][0]["kid"])

    # -- processes -----------------------------------------------------------------------------

    def start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        self._spawn(
            "etcd",
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync=true",
            "--log-level=warn",
        )
        self._wait("etcd", f"{client}/health", None)

    def start_apiserver(self) -> None:
        pki = self.pki
        admission = [] if self._controllers else ["--disable-admission-plugins=ServiceAccount"]
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={self._port}",
            f"--cert-dir={self._folder / 'apiserver'}",
            f"--tls-cert-file={pki.cert('apiserver')}",
            f"--tls-private-key-file={pki.key('apiserver')}",
            f"--client-ca-file={pki.ca}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--allow-privileged=true",
            f"--service-account-issuer={API_AUDIENCE}",
            f"--api-audiences={API_AUDIENCE}",
            f"--service-account-key-file={pki.account_public_key}",
            f"--service-account-signing-key-file={pki.account_key}",
            *admission,
            *self._flags,
        )
        self._wait("kube-apiserver", f"{self.server}/readyz", self.pki.admin_context())

    def start_controllers(self) -> None:
        name = "kube-controller-manager"
        (port,) = _free_ports(1)
        kubeconfig = self.write_kubeconfig(name)
        self._spawn(
            name,
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--service-account-private-key-file={self.pki.account_key}",
            f"--root-ca-file={self.pki.ca}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={self._folder / name}",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--controllers={CONTROLLERS}",
        )
        context = self.pki.admin_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it signs for itself
        self._wait(name, f"https://127.0.0.1:{port}/healthz", context)

    def write_kubeconfig(self, user: str) -> Path:
        """A kubeconfig file for the holder of one of the certificates."""
        pki = self.pki
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": self.server, "certificate-authority": str(pki.ca)},
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate": str(pki.cert(user)),
                        "client-key": str(pki.key(user)),
                    },
                }
            ],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        }
        path = self._folder / f"{user}.kubeconfig"
        path.write_text(json.dumps(document))  # JSON is YAML
        return path

    def _spawn(self, name: str, *flags: str) -> None:
        binary = self._assets / name
        if not binary.exists():
            raise StartError(f"{binary} is missing")
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [binary, *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _wait(self, name: str, url: str, context: ssl.SSLContext | None) -> None:
        process, deadline = self._processes[name], time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if _answers(url, context):
                return
            time.sleep(0.1)
        state = "is not ready" if process.poll() is None else f"ended with {process.returncode}"
        self._end(name)
        log = (self._folder / f"{name}.log").read_text(errors="replace")
        raise StartError(f"{name} {state}; the end of its log:\n{log[-3000:]}")

    def _end(self, name: str, *, gently: bool = True) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        if gently:
            process.terminate()
        else:
            process.kill()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _etcd(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._etcd_port}/v3/{method}", data=json.dumps(body).encode()
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            document: dict[str, Any] = json.load(answer)
            return document


@dataclass
class Pki:
    """A CA, the certificates it signed, and the key pair of service account tokens."""

    folder: Path
    _key: ec.EllipticCurvePrivateKey = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca.write_bytes(_pem(_certificate("test-ca", self._key.public_key(), self._key)))
        self._issue("apiserver", "kube-apiserver", server=True)
        self._issue("admin", "admin", group="system:masters")
        self._issue("kube-controller-manager", "system:kube-controller-manager")
        account_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        _write_secret(self.account_key, _private_pem(account_key))
        self.account_public_key.write_bytes(
            account_key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def account_key(self) -> Path:
        return self.folder / "sa.key"

    @property
    def account_public_key(self) -> Path:
        return self.folder / "sa.pub"

    def cert(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def admin_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.cert("admin"), self.key("admin"))
        return context

    def _issue(self, file: str, name: str, *, group: str = "", server: bool = False) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key.public_key(), self._key, group=group, server=server)
        self.cert(file).write_bytes(_pem(certificate))
        _write_secret(self.key(file), _private_pem(key))


def _certificate(
    name: str,
    public_key: ec.EllipticCurvePublicKey,
    signing_key: ec.EllipticCurvePrivateKey,
    *,
    group: str = "",
    server: bool = False,
) -> x509.Certificate:
    """A certificate signed by the CA; the CA's own is the one whose two keys belong together."""
    is_ca = public_key == signing_key.public_key()
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    now = dt.datetime.now(dt.UTC)
    usage = x509.ExtendedKeyUsageOID
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-ca")]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=is_ca,
                crl_sign=is_ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not is_ca:
        kinds = [usage.SERVER_AUTH if server else usage.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(kinds), critical=False)
    if server:
        names = [
            x509.DNSName("localhost"),
            x509.DNSName("kubernetes.default.svc"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signing_key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; all are held until all are chosen, so they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


def _answers(url: str, context: ssl.SSLContext | None) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            return answer.status == 200
    except OSError:  # a URLError is one
        return False


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
