"""The control plane's own numbers: plain integers, and one table that renders them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from simplecache.control.snapshot import SHORT_NAMES, TYPES


def _per_type() -> dict[str, int]:
    return dict.fromkeys(TYPES, 0)


@dataclass(slots=True)
class Metrics:
    """Counted where it happens, read by ``/metrics``. One event loop owns it: no locks."""

    listed: int = 0
    ready: int = 0
    published: int = 0
    streams: int = 0
    pushes: dict[str, int] = field(default_factory=_per_type)
    acks: dict[str, int] = field(default_factory=_per_type)
    nacks: dict[str, int] = field(default_factory=_per_type)
    snapshots: int = 0
    snapshot_at_s: float | None = None
    """When the snapshot in force was made, by the loop's clock; None: there is none yet."""

    relists: int = 0
    relist_errors: int = 0
    probe_rounds: int = 0
    probe_failures: int = 0
    probe_round_ms: int = 0


_Value = int | float | Mapping[str, int]

TABLE: Final[tuple[tuple[str, str, str, Callable[[Metrics, float], _Value]], ...]] = (
    ("shards_listed", "gauge", "Shards that the source lists.", lambda m, _: m.listed),
    ("shards_ready", "gauge", "Listed shards that answer their probe.", lambda m, _: m.ready),
    ("shards_published", "gauge", "Shards in the ring.", lambda m, _: m.published),
    ("streams", "gauge", "Envoys connected now.", lambda m, _: m.streams),
    ("pushes_total", "counter", "Responses sent.", lambda m, _: m.pushes),
    ("acks_total", "counter", "Responses that an Envoy accepted.", lambda m, _: m.acks),
    ("nacks_total", "counter", "Responses that an Envoy rejected.", lambda m, _: m.nacks),
    ("snapshots_total", "counter", "Snapshots made.", lambda m, _: m.snapshots),
    (
        "snapshot_age_seconds",
        "gauge",
        "Time since the snapshot in force was made; -1 before the first.",
        lambda m, now: -1 if m.snapshot_at_s is None else round(now - m.snapshot_at_s, 3),
    ),
    ("relists_total", "counter", "Fresh reads of the listing, for safety.", lambda m, _: m.relists),
    ("relist_errors_total", "counter", "Fresh reads that failed.", lambda m, _: m.relist_errors),
    ("probe_rounds_total", "counter", "Rounds of probes.", lambda m, _: m.probe_rounds),
    ("probe_failures_total", "counter", "Failed probes.", lambda m, _: m.probe_failures),
    ("probe_round_ms", "gauge", "How long the last round took.", lambda m, _: m.probe_round_ms),
)
"""Name (after ``scs_control_``), type, help, value. A mapping is one sample a resource type."""


def render(metrics: Metrics, now_s: float) -> str:
    """Prometheus' text format."""
    lines: list[str] = []
    for short, kind, text, value_of in TABLE:
        name = f"scs_control_{short}"
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        value = value_of(metrics, now_s)
        if isinstance(value, Mapping):
            lines += [f'{name}{{type="{SHORT_NAMES[key]}"}} {n}' for key, n in value.items()]
        else:
            lines.append(f"{name} {value}")
    return "\n".join(lines) + "\n"
