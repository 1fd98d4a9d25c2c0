"""The metrics of a node: one table of names, and their rendering for Prometheus.

Shards send samples over their control channel; the supervisor adds the shard's number and renders
them. Every metric is in the table, and a test holds docs/metrics.md to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final

from simplecache.errors import DiskError
from simplecache.server.authenticate import Count
from simplecache.server.serve import Server

METRICS: Final = {
    "scs_requests_total": ("counter", "Requests answered, by verb and status."),
    "scs_hits_total": ("counter", "GETs answered with an object's bytes."),
    "scs_misses_total": ("counter", "GETs and HEADs of objects that are not here."),
    "scs_hit_bytes_total": ("counter", "Body bytes of hits."),
    "scs_put_bytes_total": ("counter", "Body bytes of objects stored."),
    "scs_connections": ("gauge", "Open connections."),
    "scs_uploads": ("gauge", "PUTs under way."),
    "scs_entries": ("gauge", "Objects stored, by bucket and the namespace that put them."),
    "scs_stored_bytes": ("gauge", "Allocated bytes of objects stored, by bucket and namespace."),
    "scs_used_bytes": ("gauge", "Allocated bytes of the shard: objects, directories, index."),
    "scs_limit_bytes": ("gauge", "What they may come to: capacity, or what the disk can give."),
    "scs_ring_share": ("gauge", "The shard's part of the ring, by which quotas are divided."),
    "scs_evictions_total": ("counter", "Entries let go, by the rule that chose them."),
    "scs_not_admitted_total": ("counter", "PUTs whose object was not kept: the shard is full."),
    "scs_throttled_total": ("counter", "Requests refused by a cap, by whose it is and of what."),
    "scs_fair_waits_total": (
        "counter",
        "Requests, and pieces of large bodies, that waited for their turn.",
    ),
    "scs_fair_waiting": ("gauge", "Those that wait now."),
    "scs_corrupt_total": ("counter", "Entries dropped because their sums did not fit."),
    "scs_disk_errors_total": ("counter", "System calls on the disk that failed, by error."),
    "scs_probation": ("gauge", "1 while the disk is in doubt and the shard out of the ring."),
    "scs_reconciling": ("gauge", "1 while files and index are being compared, after a crash."),
    "scs_scrubbed_bytes_total": ("counter", "Body bytes that the scrubber read and checked."),
    "scs_scrub_rounds_total": ("counter", "Rounds of the scrubber through all of the shard."),
    "scs_change_backlog": ("gauge", "Changes that wait for the writer thread or the index."),
    "scs_header_parses_total": ("counter", "Header blocks that were not in the memo."),
    "scs_shard_up": ("gauge", "1 for a shard that serves."),
    "scs_shard_restarts_total": ("counter", "Times that a shard was started again."),
    "scs_reviews_total": ("counter", "Tokens that were looked at, by what became of them."),
    "scs_apiserver_reviews_total": ("counter", "TokenReviews asked of the apiserver."),
    "scs_peer_asks_total": ("counter", "Tokens asked about at the shard that is their home."),
    "scs_peer_failures_total": ("counter", "Of these, those that had no answer."),
    "scs_config_reload_failures_total": ("counter", "Configuration files that were refused."),
}

Sample = Count


def samples(server: Server) -> list[Sample]:
    """What one shard knows of itself."""
    handler, store = server.handler, server.handler.store
    counters = handler.counters
    found: list[Sample] = [
        ("scs_hits_total", {}, counters.hits + counters.hot_hits),
        ("scs_misses_total", {}, counters.misses + counters.hot_misses),
        ("scs_hit_bytes_total", {}, counters.hit_bytes),
        ("scs_put_bytes_total", {}, counters.put_bytes),
        ("scs_connections", {}, len(server.connections)),
        ("scs_uploads", {}, handler.uploads),
        ("scs_ring_share", {}, store.evictor.shares.ring_share),
        ("scs_not_admitted_total", {}, store.evictor.refused),
        ("scs_fair_waits_total", {}, handler.turns.fair.waited),
        ("scs_fair_waiting", {}, handler.turns.fair.waiting),
        ("scs_corrupt_total", {}, store.corrupt_found),
        ("scs_probation", {}, int(store.disk.health.is_on_probation)),
        ("scs_reconciling", {}, int(not store.is_reconciled)),
        ("scs_scrubbed_bytes_total", {}, store.scrubber.scrubbed_bytes),
        ("scs_scrub_rounds_total", {}, store.scrubber.rounds),
        ("scs_change_backlog", {}, store.backlog),
        ("scs_header_parses_total", {}, server.memo.misses),
    ]
    with contextlib.suppress(DiskError):
        level = store.level
        found.append(("scs_used_bytes", {}, level.used))
        found.append(("scs_limit_bytes", {}, level.limit))
    found += [
        ("scs_disk_errors_total", {"error": error}, count)
        for error, count in store.disk.health.errors.items()
    ]
    found += [
        ("scs_requests_total", {"verb": verb, "status": str(status)}, count)
        for (verb, status), count in counters.responses().items()
    ]
    found += [
        ("scs_throttled_total", {"by": by, "of": what}, count)
        for (by, what), count in handler.accounts.refused().items()
    ]
    found += [
        ("scs_evictions_total", {"rule": rule}, count)
        for rule, count in store.evictor.evicted.items()
    ]
    found += handler.authenticator.counts()
    for (bucket, namespace), (entries, _, disk) in store.usage.snapshot().items():
        tenant = {"bucket": bucket, "namespace": namespace}
        found.append(("scs_entries", tenant, entries))
        found.append(("scs_stored_bytes", tenant, disk))
    return found


def render(found: Iterable[Sample]) -> str:
    """Samples in Prometheus' text format, each metric with its help and type."""
    by_name: dict[str, list[str]] = {}
    for name, labels, value in found:
        inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        number = f"{value:.17g}"
        by_name.setdefault(name, []).append(f"{name}{{{inside}}} {number}")
    lines: list[str] = []
    for name, (kind, text) in METRICS.items():
        if name in by_name:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *by_name[name]]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
