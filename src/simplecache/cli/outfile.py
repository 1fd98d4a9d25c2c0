"""A file that is there whole or not at all.

What is written goes to a temporary file beside the target, which takes its place at the end. After
an error, Ctrl-C or SIGTERM nothing of it is left. A target that is no regular file (``/dev/null``,
a pipe) is written to as it is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn

from simplecache.errors import InvalidConfig, SimpleCacheError


@contextlib.contextmanager
def open_output(name: str) -> Iterator[BinaryIO]:
    """Where the bytes go; they are there when the block ends without an error.

    Args:
        name: a file, or ``-`` for standard output.

    Raises:
        InvalidConfig: the file cannot be made.
    """
    if name == "-":
        yield _open_stdout()
        _open_stdout().flush()
        return
    target = Path(os.path.realpath(name))  # a symlink stays, what it leads to is replaced
    if target.exists() and not target.is_file():
        with _open(target, "wb", name) as file:
            yield file
        return
    with _ending_on_sigterm(), _replacing(target, name) as file:
        yield file


@contextlib.contextmanager
def _replacing(target: Path, name: str) -> Iterator[BinaryIO]:
    beside = target.with_name(f".{target.name[:128]}.{secrets.token_hex(8)}.part")
    file = _open(beside, "xb", name)
    try:
        with file:
            yield file
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _open(path: Path, mode: Literal["wb", "xb"], name: str) -> BinaryIO:
    try:
        return path.open(mode)
    except OSError as error:
        raise InvalidConfig(f"{name}: {error.strerror}") from error


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves through the block, so that what it holds is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _open_stdout() -> BinaryIO:
    if sys.stdout is None:
        raise SimpleCacheError("standard output is closed")
    return sys.stdout.buffer
