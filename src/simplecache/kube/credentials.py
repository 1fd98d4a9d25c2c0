"""Who we are to the apiserver, kept fresh.

Kubernetes rotates a pod's token (at 80 % of its life) and may rotate the cluster's CA. Files are
looked at again at most every ``RELOAD_S`` and at once when a caller was told that what it has is no
longer good. A file that cannot be read just then (a rotation is a rename, a volume can hiccup)
leaves the last good state in place.

Reading is blocking: these are small files in memory (a tmpfs), and a thread would cost more.
"""

from __future__ import annotations

import logging
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from simplecache.errors import InvalidConfig

if TYPE_CHECKING:
    from simplecache.kube.config import KubeConfig

RELOAD_S: Final = 60.0
"""How old a file's content may be. client-go and its Python kin read again after 60 s as well."""

FILE_MAX_BYTES: Final = 1 << 20
"""A bundle of a few hundred authorities has about half of it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a request needs, as of one reading of the files."""

    authorization: str | None = field(repr=False)
    """The Authorization header's value, or None without a token."""

    tls: ssl.SSLContext | None
    """None for a plain http server."""


@dataclass(frozen=True, slots=True)
class _Material:
    """The files' content. Equal material means nothing has rotated."""

    token: str | None = field(repr=False)
    ca: bytes | None = field(repr=False)
    cert: bytes | None = field(repr=False)
    key: bytes | None = field(repr=False)


class Credentials:
    """The current :class:`Identity` of a configuration.

    Owned by one event loop; not safe for threads.

    Args:
        config: what to read.
        now: a monotonic time in seconds, as in every method.

    Raises:
        InvalidConfig: a file is missing or no PEM. Only at birth: later the last good state stays.
    """

    def __init__(self, config: KubeConfig, now: float) -> None:
        self._config = config
        self._read_at = now
        try:
            self._material = _read_material(config)
            self._identity = _make_identity(self._material, _make_tls(config, self._material))
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise InvalidConfig(f"credentials for {config.server}: {_cause(error)}") from error

    def __repr__(self) -> str:
        return f"<Credentials for {self._config.server}, read at {self._read_at:.0f}>"

    def at(self, now: float) -> Identity:
        """The identity to use now."""
        if now - self._read_at >= RELOAD_S:
            self.reload(now)
        return self._identity

    def reload(self, now: float) -> bool:
        """Read the files now; whether anything changed. For after a 401 or a TLS failure."""
        self._read_at = now
        try:
            material = _read_material(self._config)
            if material == self._material:
                return False
            tls = self._identity.tls
            if not _same_tls(material, self._material):
                tls = _make_tls(self._config, material)
        except (OSError, ValueError) as error:
            _log.warning("keeping the credentials read before: %s", _cause(error))
            return False
        self._material = material
        self._identity = _make_identity(material, tls)
        return True


def _make_identity(material: _Material, tls: ssl.SSLContext | None) -> Identity:
    return Identity(f"Bearer {material.token}" if material.token else None, tls)


def _read_material(config: KubeConfig) -> _Material:
    token = config.token
    if isinstance(token, Path):
        token = _read(token).decode("ascii")
    if token is not None:
        token = token.strip()
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("the token is no bearer token")
    return _Material(
        token=token,
        ca=_bytes(config.ca),
        cert=_bytes(config.cert),
        key=_bytes(config.key),
    )


def _bytes(source: Path | bytes | None) -> bytes | None:
    return _read(source) if isinstance(source, Path) else source


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(FILE_MAX_BYTES + 1)
    if not content or len(content) > FILE_MAX_BYTES:
        raise ValueError(f"{path} is empty or has more than 1 MiB")
    return content


def _same_tls(one: _Material, other: _Material) -> bool:
    return (one.ca, one.cert, one.key) == (other.ca, other.cert, other.key)


def _make_tls(config: KubeConfig, material: _Material) -> ssl.SSLContext | None:
    if config.server.startswith("http://"):
        return None
    context = ssl.create_default_context(
        cadata=material.ca.decode("ascii") if material.ca else None
    )
    if config.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if material.cert and material.key:
        _load_client_cert(context, material.cert, material.key)
    return context


def _load_client_cert(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """Give the context a certificate and key that are in memory.

    OpenSSL's binding reads them from a file only: one that nobody else can read (mkstemp gives mode
    0600) and that is gone on return.
    """
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(cert + b"\n" + key)
        file.flush()
        context.load_cert_chain(file.name)


def _cause(error: Exception) -> str:
    """What went wrong, without content: a decoding error's text would quote the token."""
    if isinstance(error, UnicodeError):
        return f"not ASCII ({type(error).__name__})"
    return f"{type(error).__name__}: {error}"
