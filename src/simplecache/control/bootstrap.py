"""What an Envoy needs to know before it knows anything: who it is and whom to ask.

Everything else comes over ADS, so that this never changes and Envoys need no restart.

Admin is a Unix socket that only the owner may open, with a list of paths: it can stop the process
and shows its whole configuration. Health and metrics leave by a listener of their own.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from simplecache.control.resources import Json
from simplecache.errors import InvalidConfig

XDS_CLUSTER: Final = "xds"
ADMIN_CLUSTER: Final = "admin"
ADMIN_PATHS: Final = ("/ready", "/stats/prometheus", "/clusters", "/certs")
ADMIN_PREFIXES: Final = ("/drain_listeners", "/healthcheck/", "/config_dump", "/stats")
OPS_PATHS: Final = ("/ready", "/stats/prometheus")
SOCKET_PATH_MAX_BYTES: Final = 107
"""``sun_path`` holds 108 bytes, the closing zero included."""

CONNECTIONS_MAX: Final = 50_000
"""Clients' connections to one Envoy; the file descriptor limit must be well above twice that."""

_TYPE: Final = "type.googleapis.com/envoy."


def make_bootstrap(
    *,
    xds: tuple[str, int],
    node_id: str,
    zone: str = "",
    admin_path: str,
    ops: tuple[str, int] | None = None,
) -> Json:
    """The bootstrap document, in JSON form.

    Args:
        xds: the control plane's host and port. A name is resolved again and again, and all its
            addresses are used: that is how replicas are reached.
        node_id: distinguishes this Envoy in logs; nothing is decided by it.
        zone: where it runs; for statistics.
        admin_path: the admin socket's path.
        ops: where to serve ``/ready`` and ``/stats/prometheus``; None: nowhere.

    Raises:
        InvalidConfig: ``admin_path`` is too long for a socket.
    """
    if not 0 < len(admin_path.encode()) <= SOCKET_PATH_MAX_BYTES:
        raise InvalidConfig(
            f"admin: {admin_path!r} must have 1 to {SOCKET_PATH_MAX_BYTES} bytes to be a socket"
        )
    source: Json = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    return {
        "node": {"id": node_id, "cluster": "scs-envoy", "locality": {"zone": zone}},
        "admin": {
            "address": {"pipe": {"path": admin_path, "mode": 0o600}},
            "allow_paths": [
                *({"exact": path} for path in ADMIN_PATHS),
                *({"prefix": path} for path in ADMIN_PREFIXES),
            ],
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER}}],
            },
            # "0s" above: /ready says no until the first configuration is in force.
            "cds_config": source,
            "lds_config": source,
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPE}extensions.resource_monitors.downstream_connections.v3"
                        ".DownstreamConnectionsConfig",
                        "max_active_downstream_connections": CONNECTIONS_MAX,
                    },
                }
            ]
        },
        "layered_runtime": {
            "layers": [
                {"name": "static", "static_layer": {"scs": {"log_status": 500, "log_sample": 0}}}
            ]
        },
        "static_resources": {
            "clusters": [_xds_cluster(*xds), _admin_cluster(admin_path)],
            "listeners": [] if ops is None else [_ops_listener(*ops)],
        },
    }


def _xds_cluster(host: str, port: int) -> Json:
    return {
        "name": XDS_CLUSTER,
        "type": "STATIC" if _is_ip(host) else "STRICT_DNS",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "connection_keepalive": {"interval": "30s", "timeout": "5s"}
                    }
                },
            }
        },
        "load_assignment": _one_endpoint(
            XDS_CLUSTER, {"socket_address": {"address": host, "port_value": port}}
        ),
    }


def _admin_cluster(path: str) -> Json:
    return {
        "name": ADMIN_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": _one_endpoint(ADMIN_CLUSTER, {"pipe": {"path": path}}),
    }


def _one_endpoint(cluster: str, address: Json) -> Json:
    return {
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
    }


def _ops_listener(host: str, port: int) -> Json:
    routes = [{"match": {"path": path}, "route": {"cluster": ADMIN_CLUSTER}} for path in OPS_PATHS]
    manager: Json = {
        "@type": f"{_TYPE}extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "ops",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}extensions.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "name": "ops",
            "virtual_hosts": [{"name": "ops", "domains": ["*"], "routes": routes}],
        },
    }
    return {
        "name": "ops",
        "address": {"socket_address": {"address": host, "port_value": port}},
        # Probes and metrics must get through when clients use up all connections.
        "ignore_global_conn_limit": True,
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


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
