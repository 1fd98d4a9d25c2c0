"""What the control plane answers on its ops port: health, metrics, and the directory of shards."""

from __future__ import annotations

import asyncio

from simplecache.control import observe
from simplecache.control.observe import Metrics
from simplecache.control.plane import Plane
from simplecache.ops import PROMETHEUS, Answer, OpsServer


class _Answers:
    """Answers from the plane's state; decides nothing."""

    def __init__(self, plane: Plane, metrics: Metrics) -> None:
        self._plane = plane
        self._metrics = metrics

    def readyz(self, _: dict[str, str]) -> Answer:
        if self._plane.snapshot is None:
            return Answer(503, b"no snapshot yet: waiting for shards that answer\n")
        return Answer(200, f"{self._plane.snapshot!r}\n".encode())

    def metrics(self, _: dict[str, str]) -> Answer:
        text = observe.render(self._metrics, asyncio.get_running_loop().time())
        return Answer(200, text.encode(), PROMETHEUS)

    def endpoints(self, fields: dict[str, str]) -> Answer:
        snapshot = self._plane.snapshot
        if snapshot is None:
            return Answer(503, b"no snapshot yet\n")
        etag = f'"{snapshot.version}"'
        if fields.get("if-none-match") == etag:
            return Answer(304, etag=etag)
        return Answer(200, snapshot.directory, "application/json", etag)


def make_ops(plane: Plane, metrics: Metrics) -> OpsServer:
    """The ops server of a control plane."""
    answers = _Answers(plane, metrics)
    return OpsServer(
        {
            "/readyz": answers.readyz,
            "/metrics": answers.metrics,
            "/v1/endpoints": answers.endpoints,
        }
    )
