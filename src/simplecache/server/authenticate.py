"""Who sent a request: the modes ``none`` and ``static``, behind one interface.

Mode ``kubernetes`` has its own file, ``kubernetes.py``, for it needs an extra.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from simplecache.config import StaticTokens
from simplecache.errors import Unauthenticated
from simplecache.model import ANONYMOUS, Caller

_SCHEME: Final = b"bearer "

Count = tuple[str, dict[str, str], float]
"""A metric's name, its labels and its value."""


class Authenticator(Protocol):
    """Tells callers by their ``Authorization`` field."""

    async def start(self) -> None:
        """Before the first request."""

    async def close(self) -> None:
        """After the last."""

    def known(self, authorization: bytes) -> Caller | None:
        """The caller if it is known right now, without waiting; None is no verdict."""

    async def authenticate(self, authorization: bytes | None) -> Caller | None:
        """The caller; None when nobody said who they are.

        Raises:
            Unauthenticated: the field is malformed or its token is not good.
            ReviewUnavailable: that cannot be found out just now.
        """

    def counts(self) -> Iterable[Count]:
        """What it counts, for metrics."""


class _Still:
    """Nothing to be started, closed or counted."""

    async def start(self) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""

    def counts(self) -> Iterable[Count]:
        """Nothing."""
        return ()


class OpenAuthenticator(_Still):
    """Mode ``none``: nobody is asked. The handler opens every bucket in this mode."""

    def known(self, authorization: bytes) -> Caller | None:  # noqa: ARG002 - the protocol's
        """Everybody is anonymous."""
        return ANONYMOUS

    async def authenticate(self, authorization: bytes | None) -> Caller | None:  # noqa: ARG002
        """Everybody is anonymous."""
        return ANONYMOUS


class StaticAuthenticator(_Still):
    """Mode ``static``: tokens and their namespaces come from a file."""

    def __init__(self, tokens: StaticTokens) -> None:
        self.tokens = tokens

    def known(self, authorization: bytes) -> Caller | None:
        """The caller whose token stands in the file."""
        try:
            namespace = self.tokens.namespace(bearer_token(authorization))
        except Unauthenticated:
            return None
        return None if namespace is None else Caller(namespace)

    async def authenticate(self, authorization: bytes | None) -> Caller | None:
        """The caller whose token stands in the file."""
        if authorization is None:
            return None
        namespace = self.tokens.namespace(bearer_token(authorization))
        if namespace is None:
            raise Unauthenticated("the token is not known here")
        return Caller(namespace)


def bearer_token(authorization: bytes) -> bytes:
    """The token of an ``Authorization: Bearer`` field.

    Raises:
        Unauthenticated: another scheme, or no token.
    """
    if authorization[: len(_SCHEME)].lower() != _SCHEME:
        raise Unauthenticated("the Authorization field is not of the form: Bearer TOKEN")
    token = authorization[len(_SCHEME) :].strip()
    if not token:
        raise Unauthenticated("the bearer token is empty")
    return token
