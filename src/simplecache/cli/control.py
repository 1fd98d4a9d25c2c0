"""``scs control-plane``, ``scs envoy-bootstrap`` and ``scs locate``.

Each flag can come from the environment as well: ``--envoy-listen`` is ``SCS_ENVOY_LISTEN``. What
needs gRPC is imported by the command that needs it, so that ``scs --help`` stays quick.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from simplecache.cli.flags import Subparsers, add_command, add_flag, address, join_address
from simplecache.errors import CacheFault, InvalidConfig, InvalidName
from simplecache.model import Key

if TYPE_CHECKING:
    from simplecache.placement import Placement

LB_CHOICES: Final = ("maglev", "ring_hash")
"""As ``placement.LB_NAMES``, which cannot be imported without its dependency."""

DIRECTORY_MAX_BYTES: Final = 64 << 20
DIRECTORY_TIMEOUT_S: Final = 5.0


def add_parsers(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add all three commands to ``scs``."""
    _add_control_plane(subparsers)
    _add_bootstrap(subparsers)
    _add_locate(subparsers)


def _add_control_plane(
    subparsers: Subparsers[argparse.ArgumentParser],
) -> None:
    parser = add_command(
        subparsers,
        "control-plane",
        run_control_plane,
        summary="tell Envoys which shards there are (xDS)",
        description=(
            "Serve Envoys their configuration by gRPC (xDS, ADS), from a watched endpoints file\n"
            "or from the cache pods of a Kubernetes cluster, and from probes of each shard. Any\n"
            "number of replicas may run: they keep no state, and when all are down Envoys go on\n"
            "with what they have."
        ),
        examples=(
            "scs control-plane --endpoints endpoints.json",
            "scs control-plane --endpoints /etc/scs/endpoints.yaml \\",
            "    --listen 0.0.0.0:21803 --ops 0.0.0.0:21804 --envoy-listen 0.0.0.0:80",
            "scs control-plane --kubernetes --selector app.kubernetes.io/component=cache",
            "curl http://127.0.0.1:21804/v1/endpoints",
        ),
    )
    add_flag(parser, "--endpoints", type=Path, metavar="FILE", help="the endpoints file")
    parser.add_argument(
        "--kubernetes", action="store_true", help="take the shards from the cluster's cache pods"
    )
    add_flag(
        parser, "--namespace", default="", help="with --kubernetes: of the cache pods [our own]"
    )
    add_flag(
        parser,
        "--selector",
        default="app.kubernetes.io/component=cache",
        help="with --kubernetes: the labels of the cache pods",
    )
    add_flag(
        parser,
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="with --kubernetes: how to reach the apiserver, outside of a pod",
    )
    add_flag(
        parser,
        "--zone-from-nodes",
        choices=("true", "false"),
        default="false",
        help="with --kubernetes: read zones from the nodes, for clusters that do not put them on "
        "pods (before 1.35)",
    )
    add_flag(
        parser,
        "--listen",
        type=address,
        metavar="HOST:PORT",
        default="127.0.0.1:21803",
        help="where Envoys connect, by gRPC without TLS",
    )
    add_flag(
        parser,
        "--ops",
        type=address,
        metavar="HOST:PORT",
        default="127.0.0.1:21804",
        help="/healthz, /readyz, /metrics and /v1/endpoints",
    )
    _add_placement_flags(parser)
    add_flag(
        parser,
        "--envoy-listen",
        type=address,
        metavar="HOST:PORT",
        default="0.0.0.0:21800",
        help="where every Envoy listens for clients",
    )
    add_flag(
        parser,
        "--probe-interval",
        type=float,
        metavar="SECONDS",
        default="1",
        help="time between two probes of a shard, and the most that one may take",
    )


def run_control_plane(args: argparse.Namespace) -> int:
    """Serve until a signal; 0 after a graceful stop."""
    import asyncio  # noqa: PLC0415

    from simplecache.control.serve import (  # noqa: PLC0415
        ControlSettings,
        PodSettings,
        run,
        run_on_pods,
    )

    if args.kubernetes == bool(args.endpoints):
        raise InvalidConfig("one of --endpoints FILE and --kubernetes is needed")

    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    settings = ControlSettings(
        endpoints=args.endpoints,
        listen=args.listen,
        ops=args.ops,
        lb=args.lb or LB_CHOICES[0],
        table_size=args.table_size or 0,
        envoy_listen=args.envoy_listen,
        probe_interval_s=args.probe_interval,
        probe_timeout_s=args.probe_interval,
    )
    if args.kubernetes:
        pods = PodSettings(
            args.namespace, args.selector, args.kubeconfig, args.zone_from_nodes == "true"
        )
        asyncio.run(run_on_pods(settings, pods))
    else:
        asyncio.run(run(settings))
    return 0


def _add_bootstrap(
    subparsers: Subparsers[argparse.ArgumentParser],
) -> None:
    parser = add_command(
        subparsers,
        "envoy-bootstrap",
        run_bootstrap,
        summary="print the configuration to start an Envoy with",
        description=(
            "Print an Envoy's bootstrap configuration as JSON: its identity, its admin socket and\n"
            "where the control plane is. All else comes from there."
        ),
        examples=(
            "scs envoy-bootstrap --xds 127.0.0.1:21803 --admin ./admin.sock > envoy.json",
            "envoy -c envoy.json --disable-hot-restart",
        ),
    )
    add_flag(
        parser,
        "--xds",
        type=address,
        metavar="HOST:PORT",
        required=True,
        help="the control plane; all addresses of a name are used",
    )
    add_flag(parser, "--node-id", default=socket.gethostname(), help="this Envoy's name in logs")
    add_flag(parser, "--zone", default="", help="where it runs, for statistics")
    add_flag(
        parser,
        "--admin",
        metavar="PATH",
        default="/run/scs/admin.sock",
        help="the admin socket, for its owner only",
    )
    add_flag(
        parser,
        "--envoy-ops",
        type=address,
        metavar="HOST:PORT",
        help="where Envoy serves /ready and /stats/prometheus (default: nowhere)",
    )


def run_bootstrap(args: argparse.Namespace) -> int:
    """Print the document; 0."""
    from simplecache.control.bootstrap import make_bootstrap  # noqa: PLC0415

    document = make_bootstrap(
        xds=args.xds,
        node_id=args.node_id,
        zone=args.zone,
        admin_path=args.admin,
        ops=args.envoy_ops,
    )
    print(json.dumps(document, indent=2))
    return 0


def _add_locate(
    subparsers: Subparsers[argparse.ArgumentParser],
) -> None:
    parser = add_command(
        subparsers,
        "locate",
        run_locate,
        summary="tell which shard owns an object",
        description=(
            "Print the owner of each object, one line each: the shard's name and its address. The\n"
            "owner is computed, exactly as Envoy does; whether the object is there is not asked.\n"
            "A name is taken byte for byte: 'what?1.jpg' and 'a%2Fb' mean just that."
        ),
        examples=(
            "scs locate prj-foobar/apple --control-plane http://127.0.0.1:21804",
            "scs locate 'prj-foobar/s3://bucket/a.zip' --endpoints endpoints.json --json",
        ),
    )
    parser.add_argument("objects", nargs="+", metavar="BUCKET/OBJECT", help="the object's name")
    add_directory_flags(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list instead")


def add_directory_flags(parser: argparse.ArgumentParser) -> None:
    """Where the shards are told: what :func:`load_directory` reads."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--endpoints",
        type=Path,
        metavar="FILE",
        help="an endpoints file: all its shards are taken to be up [SCS_ENDPOINTS]",
    )
    where.add_argument(
        "--control-plane",
        metavar="URL",
        help="a control plane's ops address, to ask for the shards in force [SCS_CONTROL_PLANE]",
    )
    _add_placement_flags(parser)


def run_locate(args: argparse.Namespace) -> int:
    """Print each object's owner; 0."""
    targets = [_target(name) for name in args.objects]
    placement, addresses = load_directory(args)
    rows = []
    for name, target in zip(args.objects, targets, strict=True):
        owner = placement.owner(target)
        rows.append({"object": name, "owner": owner, "address": addresses[owner]})
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(row["owner"], row["address"])
    return 0


def _target(name: str) -> bytes:
    """``BUCKET/OBJECT`` as the shell gave it -> the request target."""
    bucket, slash, rest = os.fsencode(name).partition(b"/")
    if not slash:
        raise InvalidName(f"{name!r}: expected BUCKET/OBJECT")
    return Key(bucket.decode("ascii", "backslashreplace"), rest).target


def load_directory(args: argparse.Namespace) -> tuple[Placement, dict[str, str]]:
    """The placement, and where each shard listens."""
    from simplecache.config import load  # noqa: PLC0415
    from simplecache.control.shards import parse_endpoints, published_order  # noqa: PLC0415
    from simplecache.placement import make_placement  # noqa: PLC0415

    # A flag wins over the environment, whichever of the two sources that names.
    url, path = args.control_plane, args.endpoints
    if not url and not path:
        url, path = os.environ.get("SCS_CONTROL_PLANE"), os.environ.get("SCS_ENDPOINTS")
    if url:
        document = _fetch(url)
        try:
            lb, size = args.lb or document["lb"], args.table_size or document["table_size"]
            rows = [(s["name"], s["weight"], s["address"], s["port"]) for s in document["shards"]]
        except (KeyError, TypeError) as error:
            raise CacheFault(f"{url}: its answer lacks {error}") from error
    elif path:
        lb, size = args.lb or LB_CHOICES[0], args.table_size or 0
        shards = published_order(load(Path(path), parse_endpoints))
        rows = [(s.name, s.weight, s.address, s.port) for s in shards]
    else:
        raise InvalidConfig("--endpoints FILE or --control-plane URL is needed")
    if not rows:
        raise InvalidConfig("no shard is listed")
    placement = make_placement(lb, [(name, weight) for name, weight, _, _ in rows], size)
    return placement, {name: join_address(host, port) for name, _, host, port in rows}


def _fetch(url: str) -> Any:
    import http.client  # noqa: PLC0415

    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidConfig(f"--control-plane: {url!r} must be http://HOST:PORT")
    connection = http.client.HTTPConnection(
        parts.hostname, parts.port or 80, timeout=DIRECTORY_TIMEOUT_S
    )
    try:
        connection.request("GET", "/v1/endpoints")
        answer = connection.getresponse()
        body = answer.read(DIRECTORY_MAX_BYTES)
        if answer.status != 200:
            text = body[:200].decode("utf-8", "replace").strip()
            raise CacheFault(f"{url}: it answers {answer.status}: {text}")
        return json.loads(body)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CacheFault(f"{url}: {error}") from error
    finally:
        connection.close()


def _add_placement_flags(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--lb", choices=LB_CHOICES, help="how keys are spread (default: maglev)")
    add_flag(
        parser,
        "--table-size",
        type=int,
        metavar="N",
        help="slots of the table: a prime well above 100 a shard; of a ring, its least number of "
        "points (default: by the number of listed shards)",
    )
