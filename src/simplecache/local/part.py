"""One part of a local cluster: a child process with a log, that does not outlive its parent."""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from simplecache.errors import SimpleCacheError

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)
LOG_TAIL_BYTES: Final = 2000


class Part:
    """A named process. It can be started again after it ended."""

    def __init__(
        self, name: str, command: list[str], log: Path, *, announces: bool = False
    ) -> None:
        """``announces``: its first line on standard output says that it is ready."""
        self.name = name
        self.announces = announces
        self.command = command
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Part {self.name} pid={self.pid} running={self.is_running}>"

    @property
    def pid(self) -> int | None:
        """Of the process that runs, or ran last."""
        return None if self.process is None else self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process, its output appended to the log.

        Raises:
            SimpleCacheError: there is no such program.
        """
        with self.log.open("ab") as log:
            try:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if self.announces else log,
                    stderr=log,
                    start_new_session=True,  # the terminal's Ctrl-C is the parent's business
                    preexec_fn=_die_with_parent,  # noqa: PLW1509 - one call, and no threads yet
                )
            except OSError as error:
                raise SimpleCacheError(f"{self.name}: {self.command[0]}: {error}") from error

    def first_line(self, timeout_s: float) -> str:
        """The first line of the process's standard output.

        Raises:
            SimpleCacheError: it ended, or said nothing in time; the text ends in its log.
        """
        assert self.process is not None
        assert self.process.stdout is not None
        deadline, text = time.monotonic() + timeout_s, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not text.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise SimpleCacheError(f"{self.name} did not start in time{self.tail()}")
                piece = os.read(self.process.stdout.fileno(), 65536)
                if not piece:
                    self.process.wait()
                    raise SimpleCacheError(f"{self.name} ended while it started{self.tail()}")
                text += piece
        return text.decode()

    def tail(self) -> str:
        """The log's last lines, for an error message."""
        try:
            text = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            text = ""
        return f"; its log ({self.log}) ends:\n{text}" if text else ""

    def signal(self, number: int) -> None:
        """Send a signal, if the process is there."""
        if self.process is not None and self.is_running:
            self.process.send_signal(number)

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the process: SIGTERM, then SIGKILL."""
        self.signal(signal.SIGTERM)
        self.reap(timeout_s)

    def reap(self, timeout_s: float = 10.0) -> None:
        """Wait for the end of a process that was told to stop; kill it if it does not."""
        if self.process is None:
            return
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
