"""What Envoy is told: one cluster, its endpoints, one listener and its routes.

Each resource is built in the JSON form of its protobuf message, which is what Envoy's own
documentation shows and what ``envoy --mode validate`` reads. ``snapshot.py`` encodes it.

Rules it keeps, each with its reason:
  * **Bytes pass untouched.** The path is the object's name: it is neither normalised nor merged
    nor unescaped, and exactly these bytes are hashed.
  * **One flat set of endpoints.** A shard's ``hash_key`` is its name, its weight its capacity.
    Localities say where an endpoint is, for statistics; they bear no weight, because weighted
    localities would change the table.
  * **No retry of a PUT.** Envoy would have to buffer the body, and answers 507 when it cannot. A
    read is retried once, on another shard: a miss there is a correct answer.
  * **No body is buffered and no body has a deadline**, only silence has.
  * **No active health checks**: the control plane probes for all. An Envoy that cannot connect
    to a shard ejects it by itself, for seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

from simplecache.control.shards import Shard, published_order
from simplecache.placement import RETRY_ATTEMPTS, RING_HASH

Json = dict[str, Any]

CLUSTER: Final = "scs"
LISTENER: Final = "data"
ROUTES: Final = "scs"
OBJECTS_PREFIX: Final = "/v1/objects/"

IDLE_TIMEOUT: Final = "330s"
"""A client's idle connection: PFIO treats one that a server closed as a miss, and data loaders
pause for minutes between epochs. The nodes keep theirs as long."""

STREAM_IDLE_TIMEOUT: Final = "120s"
"""Silence in the middle of a request or an answer."""

BUFFER_MAX_BYTES: Final = 1 << 20
"""Per connection and direction: beyond it the faster side waits."""

_TYPE: Final = "type.googleapis.com/envoy."
_ADS: Final[Json] = {
    "ads": {},
    "resource_api_version": "V3",
    # Wait for the first answer for ever: giving up would mean a cluster without endpoints.
    "initial_fetch_timeout": "0s",
}
_NOT_FOUND: Final = (
    '{"type": "about:blank", "title": "Not Found", "status": 404, '
    '"detail": "objects are under /v1/objects/{bucket}/{object}"}\n'
)


def make_cluster(lb: str, table_size: int) -> Json:
    """The cluster of all shards.

    Args:
        lb: ``maglev`` or ``ring_hash``.
        table_size: Maglev's prime number of slots, or the ring's least number of points.
    """
    return {
        "name": CLUSTER,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _ADS},
        "connect_timeout": "0.5s",
        "per_connection_buffer_limit_bytes": BUFFER_MAX_BYTES,
        "load_balancing_policy": {
            "policies": [{"typed_extension_config": _policy(lb, table_size)}]
        },
        # With the default panic threshold, Envoy would use ejected shards once half are ejected.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
        "circuit_breakers": {
            "thresholds": [
                {
                    "priority": "DEFAULT",
                    "max_connections": 65_536,
                    "max_pending_requests": 65_536,
                    "max_requests": 65_536,
                    "track_remaining": True,
                    "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 64},
                }
            ]
        },
        # Only failures to connect eject a shard: what it answers is its own business.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 3,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_time": "30s",
            "max_ejection_percent": 34,
        },
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_time": 30, "keepalive_interval": 10, "keepalive_probes": 3}
        },
        "track_cluster_stats": {"per_endpoint_stats": True},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
                # Well below the shards' own, so that Envoy is the one who closes.
                "common_http_protocol_options": {"idle_timeout": "55s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _policy(lb: str, table_size: int) -> Json:
    name = f"envoy.load_balancing_policies.{lb}"
    if lb == RING_HASH:
        config: Json = {
            "@type": f"{_TYPE}extensions.load_balancing_policies.ring_hash.v3.RingHash",
            "hash_function": "XX_HASH",
            "minimum_ring_size": table_size,
        }
    else:
        config = {
            "@type": f"{_TYPE}extensions.load_balancing_policies.maglev.v3.Maglev",
            "table_size": table_size,
        }
    return {"name": name, "typed_config": config}


def make_load_assignment(shards: Iterable[Shard]) -> Json:
    """All endpoints, in the published order, a locality for each zone."""
    zones = groupby(published_order(shards), key=lambda shard: shard.zone)
    return {
        "cluster_name": CLUSTER,
        "endpoints": [
            {"locality": {"zone": zone}, "lb_endpoints": [_endpoint(shard) for shard in members]}
            for zone, members in zones
        ],
    }


def _endpoint(shard: Shard) -> Json:
    return {
        "load_balancing_weight": shard.weight,
        "endpoint": {
            "address": {"socket_address": {"address": shard.address, "port_value": shard.port}},
            "hostname": shard.name,
        },
        "metadata": {"filter_metadata": {"envoy.lb": {"hash_key": shard.name}}},
    }


def make_listener(address: str, port: int) -> Json:
    """The listener that clients speak to, on every Envoy."""
    manager: Json = {
        "@type": f"{_TYPE}extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "scs",
        "codec_type": "AUTO",
        # The three are the defaults today; runtime flags can turn them, so they are said.
        "normalize_path": False,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "generate_request_id": False,
        "use_remote_address": True,
        "skip_xff_append": True,
        "proxy_100_continue": True,
        "server_header_transformation": "PASS_THROUGH",
        "stream_idle_timeout": STREAM_IDLE_TIMEOUT,
        "request_headers_timeout": "10s",
        "max_request_headers_kb": 60,
        "common_http_protocol_options": {
            "idle_timeout": IDLE_TIMEOUT,
            # kube-proxy balances connections, not requests: old ones are moved gently.
            "max_connection_duration": "600s",
            "headers_with_underscores_action": "ALLOW",
        },
        "http1_safe_max_connection_duration": True,
        "drain_timeout": "5s",
        "access_log": [_access_log()],
        "http_filters": [_router()],
        "rds": {"route_config_name": ROUTES, "config_source": _ADS},
    }
    return {
        "name": LISTENER,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "per_connection_buffer_limit_bytes": BUFFER_MAX_BYTES,
        "enable_reuse_port": True,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }


def _router() -> Json:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": f"{_TYPE}extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": True,
        },
    }


def _access_log() -> Json:
    """One JSON line per answer of 500 and above, and per sampled one (runtime, none by default).

    It holds no header besides method and path: never a token.
    """
    failed: Json = {"op": "GE", "value": {"default_value": 500, "runtime_key": "scs.log_status"}}
    sampled: Json = {"runtime_key": "scs.log_sample", "percent_sampled": {"numerator": 0}}
    return {
        "name": "envoy.access_loggers.stdout",
        "filter": {
            "or_filter": {
                "filters": [
                    {"status_code_filter": {"comparison": failed}},
                    {"runtime_filter": sampled},
                ]
            }
        },
        "typed_config": {
            "@type": f"{_TYPE}extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {
                "json_format": {
                    "time": "%START_TIME%",
                    "method": "%REQ(:METHOD)%",
                    "path": "%REQ(:PATH)%",
                    "status": "%RESPONSE_CODE%",
                    "flags": "%RESPONSE_FLAGS%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "received_bytes": "%BYTES_RECEIVED%",
                    "sent_bytes": "%BYTES_SENT%",
                    "duration_ms": "%DURATION%",
                    "upstream": "%UPSTREAM_HOST%",
                    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                }
            },
        },
    }


def make_routes() -> Json:
    """Reads with one retry, writes without, Envoy's own health, and 404 for all else."""
    reads: Json = {
        "name": ":method",
        "string_match": {"safe_regex": {"regex": "GET|HEAD"}},
    }
    return {
        "name": ROUTES,
        "validate_clusters": False,
        "virtual_hosts": [
            {
                "name": "scs",
                "domains": ["*"],
                "routes": [
                    {
                        "name": "healthz",
                        "match": {"path": "/healthz"},
                        "direct_response": {"status": 200},
                    },
                    {
                        "name": "read",
                        "match": {"prefix": OBJECTS_PREFIX, "headers": [reads]},
                        "route": _route() | {"retry_policy": _retry_policy()},
                    },
                    {"name": "write", "match": {"prefix": OBJECTS_PREFIX}, "route": _route()},
                    {
                        "name": "other",
                        "match": {"prefix": "/"},
                        "direct_response": {
                            "status": 404,
                            "body": {"inline_string": _NOT_FOUND},
                        },
                        "response_headers_to_add": [
                            {
                                "header": {
                                    "key": "content-type",
                                    "value": "application/problem+json",
                                },
                                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                            }
                        ],
                    },
                ],
            }
        ],
    }


def _route() -> Json:
    return {
        "cluster": CLUSTER,
        "timeout": "0s",
        "idle_timeout": STREAM_IDLE_TIMEOUT,
        "hash_policy": [{"header": {"header_name": ":path"}, "terminal": True}],
    }


def _retry_policy() -> Json:
    name = "envoy.retry_host_predicates.previous_hosts"
    kind = f"{_TYPE}extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "retry_on": "connect-failure,refused-stream,reset-before-request,reset",
        "num_retries": 1,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.02s"},
        "host_selection_retry_max_attempts": RETRY_ATTEMPTS,
        "retry_host_predicate": [{"name": name, "typed_config": {"@type": kind}}],
    }
