"""A bearer token in a file that somebody else renews.

The kubelet replaces a projected token's file well before the token expires (by swapping a
symlink, so the file is another inode) and an operator may write over one in place. So the file is
looked at before every use and read again when it has changed, and once a minute in any case, for
file systems whose times are coarse.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from simplecache.errors import InvalidConfig

TOKEN_MAX_BYTES: Final = 16 * 1024
"""Half of the header that a node takes. A service account's token has about 1,200 bytes."""
TOKEN_MAX_AGE_S: Final = 60.0
"""How long a token is used without reading the file again, though it seems unchanged."""

_TOKEN = re.compile(r"[!-~]+")


def check_token(token: str, source: str) -> str:
    """``token`` without the white space around it.

    Raises:
        InvalidConfig: it cannot stand in a header. The text names ``source``, never the token.
    """
    token = token.strip()
    if not token:
        raise InvalidConfig(f"{source} is empty; a bearer token is expected")
    if len(token) > TOKEN_MAX_BYTES:
        raise InvalidConfig(f"{source} is larger than {TOKEN_MAX_BYTES} bytes")
    if not _TOKEN.fullmatch(token):
        raise InvalidConfig(f"{source} is not one token: visible ASCII on one line is expected")
    return token


class _Reading(NamedTuple):
    token: str
    signature: tuple[int, int, int]
    at_s: float


class TokenFile:
    """The token in the file at ``path``, as fresh as the file.

    Safe for threads: two that read at the same time read the same.

    Args:
        path: the file.
        now: a monotonic clock in seconds.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.path: Final = os.fspath(path)
        self._now = now
        self._last: _Reading | None = None

    def __repr__(self) -> str:
        return f"<TokenFile {self.path!r} read={self._last is not None}>"

    def read(self) -> str:
        """The current token. Costs a ``stat``.

        A file that can't be read just now (it is being written) leaves the last token in use:
        whether that one is still good is the cache's to say.

        Raises:
            InvalidConfig: there has never been a token to read.
        """
        last = self._last
        try:
            if last is not None and self._is_fresh(last):
                return last.token
            return self.reread()
        except InvalidConfig:
            if last is None:
                raise
            return last.token

    def reread(self) -> str:
        """The token that the file holds now, whatever was read before.

        Raises:
            InvalidConfig: the file can't be read or holds no token.
        """
        source = f"token file {self.path!r}"
        try:
            with open(self.path, "rb") as file:  # noqa: PTH123  os.PathLike suffices
                signature = _sign(os.fstat(file.fileno()))
                content = file.read(TOKEN_MAX_BYTES + 1)
        except OSError as error:
            raise InvalidConfig(f"{source} cannot be read: {error.strerror}") from error
        token = check_token(content.decode("latin-1"), source)
        self._last = _Reading(token, signature, self._now())
        return token

    def _is_fresh(self, last: _Reading) -> bool:
        if self._now() - last.at_s >= TOKEN_MAX_AGE_S:
            return False
        try:
            return _sign(os.stat(self.path)) == last.signature  # noqa: PTH116
        except OSError:
            return False


def _sign(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size
