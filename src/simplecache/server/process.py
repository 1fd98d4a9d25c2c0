"""One shard as its supervisor sees it: a process, its channel, and what became of it."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from simplecache.server import observe
from simplecache.server.channel import Channel
from simplecache.server.shard import ShardSettings

START_TIMEOUT_S: Final = 60.0
SAMPLE_TIMEOUT_S: Final = 2.0


class ShardProcess:
    """One shard as the supervisor sees it: a process, its channel, and what became of it."""

    def __init__(self, number: int, settings: Callable[[], ShardSettings]) -> None:
        self.number = number
        self._settings = settings
        self.channel: Channel | None = None
        self.pid: int | None = None
        self.port: int | None = None
        """None while the shard does not serve."""
        self.last_port = 0
        """It comes back at the port it had, also where the kernel chose it."""
        self.restarts = -1
        self.settled = asyncio.Event()
        """It has served, or is known not to start for now."""
        self.has_served = False
        self.is_homeless = False
        """Its data directory cannot be used now."""
        self.failure = ""
        """Why it did not start, or ended."""
        self.probation = ""
        """Why it is out of the ring although it serves."""

    @property
    def is_ready(self) -> bool:
        """It serves, and its disk is not in doubt."""
        return self.port is not None and not self.probation

    @property
    def state(self) -> dict[str, Any]:
        """For ``/readyz``."""
        state: dict[str, Any] = {"port": self.port, "pid": self.pid, "ready": self.is_ready}
        reason = self.probation if self.port is not None else self.failure
        return {**state, "reason": reason} if reason else state

    async def start(self) -> tuple[asyncio.subprocess.Process, str]:
        """Start the process; returns it and why it failed (empty: it serves)."""
        settings = self._settings().to_message()
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "simplecache.server.shard", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        self.pid = process.pid
        self.channel = await Channel.open(ours)
        self.channel.send(settings)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                message = await self.channel.receive()
        except TimeoutError:
            process.kill()
            message = {"failed": f"it did not start within {START_TIMEOUT_S:.0f} s"}
        if message is not None and "ready" in message:
            self.port = self.last_port = message["ready"]["port"]
            return process, ""
        return process, (message or {}).get("failed", "it ended while it started")

    async def run_once(self) -> str:
        """Start, serve until the end of the process; returns what happened in words."""
        self.restarts += 1
        process, failure = await self.start()
        assert self.channel is not None
        if not failure:
            self.has_served = True
            self.settled.set()
            while (message := await self.channel.receive()) is not None:
                self.probation = message.get("probation", self.probation)
        self.port, self.probation = None, ""
        self.channel.close()
        status = await process.wait()
        self.pid = None
        return failure or f"ended with status {status}"

    async def samples(self) -> list[observe.Sample]:
        """What the shard counts; only that it is down when it does not answer."""
        labels = {"shard": str(self.number)}
        found: list[observe.Sample] = [
            ("scs_shard_up", labels, int(self.port is not None)),
            ("scs_shard_restarts_total", labels, max(0, self.restarts)),
        ]
        if self.port is None or self.channel is None:
            return found
        try:
            answer = await self.channel.ask({"do": "samples"}, timeout_s=SAMPLE_TIMEOUT_S)
        except (ConnectionError, TimeoutError):
            return found
        return found + [(name, labels | more, value) for name, more, value in answer]

    async def check(self, *, start: bool) -> dict[str, Any]:
        """How its last check goes; ``start`` begins one if none is under way."""
        if self.port is None or self.channel is None:
            return {"state": "down"}
        question = {"do": "check", "start": start}
        try:
            answer: dict[str, Any] = await self.channel.ask(question, timeout_s=SAMPLE_TIMEOUT_S)
        except (ConnectionError, TimeoutError):
            return {"state": "down"}
        return {**answer, "pid": self.pid}
