"""``scs serve``: run a cache node."""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any, Final

from simplecache.cli.flags import Subparsers, add_command, add_flag, address, join_address
from simplecache.errors import InvalidConfig

log = logging.getLogger(__name__)

_LIMITS: Final = {
    "--max-connections": ("connections_max", 8192, "connections of one shard"),
    "--header-timeout": ("header_timeout_s", 10, "seconds in which a header must be whole"),
    "--body-timeout": ("body_timeout_s", 30, "seconds in which a body must bring 32 KiB more"),
    "--send-timeout": ("send_timeout_s", 60, "seconds in which a client must take bytes"),
    "--idle-timeout": ("idle_timeout_s", 330, "seconds that an idle connection is kept"),
}
"""Flag -> field of ``connection.Limits``, default, help."""


def add_parsers(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``scs serve``."""
    parser = add_command(
        subparsers,
        "serve",
        run_serve,
        summary="run a cache node",
        description=(
            "Run a cache node: a supervisor and its shards. Each shard is a process with a port\n"
            "(the first is --listen's, the others follow), a directory and an SQLite index of\n"
            "its own. SIGTERM stops in good order; SIGHUP reads the configuration again, which\n"
            "is watched anyway."
        ),
        examples=(
            "scs serve --config buckets.json --data /var/lib/scs --tokens tokens.json",
            "scs serve --config buckets.json --data /mnt/nvme0 /mnt/nvme1 --shards 4 \\",
            "    --listen 0.0.0.0:7400 --ops 0.0.0.0:7390 --auth none",
            "scs serve --config buckets.yaml --data /var/lib/scs --auth kubernetes \\",
            "    --peer-key /etc/scs-peer/key --control-plane http://scs-control-plane:21804",
        ),
    )
    add_flag(
        parser, "--config", type=Path, metavar="FILE", required=True,
        help="the buckets, JSON or YAML; read again when it changes",
    )  # fmt: skip
    add_flag(
        parser, "--data", type=Path, metavar="DIR", nargs="+", action="extend", required=True,
        help="data directories, one for each disk; made if missing",
    )  # fmt: skip
    add_flag(
        parser, "--shards", type=int, metavar="N",
        help="shards of this node (default: one per CPU, at least one per data directory); the "
        "data directories remember it",
    )  # fmt: skip
    parser.add_argument(
        "--reshard", action="store_true",
        help="take another number of shards, or other data directories, than before; shards that "
        "stay keep their entries. Give it once",
    )  # fmt: skip
    add_flag(
        parser, "--listen", type=address, metavar="HOST:PORT", default="127.0.0.1:7400",
        help="the first shard's address; the port 0 lets the kernel choose",
    )  # fmt: skip
    add_flag(
        parser, "--ops", type=address, metavar="HOST:PORT", default="127.0.0.1:7390",
        help="/healthz, /readyz and /metrics",
    )  # fmt: skip
    add_flag(
        parser, "--node-name", default=socket.gethostname(),
        help="this node's name in the ring; it must not change while the data stays",
    )  # fmt: skip
    add_flag(
        parser, "--auth", choices=("static", "kubernetes", "none"), default="static",
        help="how callers are told apart; kubernetes: by their pods' tokens (TokenReview); none "
        "opens every bucket to everybody",
    )  # fmt: skip
    add_flag(
        parser, "--tokens", type=Path, metavar="FILE",
        help="mode static: tokens and their namespaces; read again when it changes",
    )  # fmt: skip
    add_flag(
        parser, "--audience", default="scs",
        help="mode kubernetes: for whom tokens must be",
    )  # fmt: skip
    add_flag(
        parser, "--kubeconfig", type=Path, metavar="FILE",
        help="mode kubernetes: how to reach the apiserver, outside of a pod",
    )  # fmt: skip
    add_flag(
        parser, "--control-plane", metavar="URL",
        help="mode kubernetes: whose directory names the other shards, to share token reviews",
    )  # fmt: skip
    add_flag(
        parser, "--peer-key", type=Path, metavar="FILE",
        help="mode kubernetes: the key that all nodes share, to trust each other's reviews",
    )  # fmt: skip
    parser.add_argument(
        "--allow-unbound-tokens", action="store_true",
        help="mode kubernetes: take tokens that are not bound to a pod as well",
    )  # fmt: skip
    add_flag(
        parser, "--capacity", metavar="SIZE|PERCENT", default="80%",
        help="what the cache may take of each data directory's file system, shared by its shards",
    )  # fmt: skip
    add_flag(
        parser, "--fairness", choices=("on", "off"), default="on",
        help="whether namespaces that compete have equal parts of a shard's work; off: first "
        "come, first served",
    )  # fmt: skip
    add_flag(
        parser, "--scrub-rate", metavar="SIZE", default="16Mi",
        help="bytes per second that each shard reads in the background to find rot; 0: none",
    )  # fmt: skip
    add_flag(
        parser, "--max-object-size", metavar="SIZE", default="64Gi",
        help="larger objects are refused",
    )  # fmt: skip
    add_flag(
        parser, "--max-uploads", type=int, metavar="N", default=256,
        help="PUTs at the same time on one shard",
    )  # fmt: skip
    for flag, (_, default, text) in _LIMITS.items():
        add_flag(parser, flag, type=int, metavar="N", default=default, help=text)
    add_flag(
        parser, "--drain-delay", type=float, metavar="SECONDS", default=2.0,
        help="on SIGTERM, serve on for so long while /readyz says 503 already",
    )  # fmt: skip
    add_flag(
        parser, "--drain-grace", type=float, metavar="SECONDS", default=20.0,
        help="then wait at most so long for requests in progress",
    )  # fmt: skip
    parser.add_argument(
        "--announce", action="store_true",
        help="print one line of JSON on standard output when all shards serve",
    )  # fmt: skip


def run_serve(args: argparse.Namespace) -> int:
    """Serve until a signal; 0 after a graceful stop."""
    from simplecache.config import parse_size  # noqa: PLC0415 - serving alone needs the extra
    from simplecache.server.supervisor import NodeSettings, run  # noqa: PLC0415
    from simplecache.store.capacity import parse_capacity  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    data = tuple(Path(path) for path in args.data)
    shards = args.shards or max(len(os.sched_getaffinity(0)), len(data))
    _check(args, shards, data)
    settings = NodeSettings(
        config=args.config,
        data=data,
        listen=args.listen,
        ops=args.ops,
        name=args.node_name,
        shards=shards,
        auth=args.auth,
        tokens=args.tokens,
        kubernetes=_kubernetes(args) if args.auth == "kubernetes" else None,
        limits={
            field: getattr(args, flag.removeprefix("--").replace("-", "_"))
            for flag, (field, _, _) in _LIMITS.items()
        },
        uploads_max=args.max_uploads,
        object_max_bytes=parse_size(args.max_object_size, "--max-object-size"),
        capacity=parse_capacity(args.capacity),
        fairness=args.fairness == "on",
        scrub_rate=0 if args.scrub_rate == "0" else parse_size(args.scrub_rate, "--scrub-rate"),
        reshard=args.reshard,
        drain_delay_s=args.drain_delay,
        drain_grace_s=args.drain_grace,
    )
    run(settings, announce=_announce_json if args.announce else _announce)
    return 0


def _kubernetes(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "audience": args.audience,
        "kubeconfig": str(args.kubeconfig) if args.kubeconfig else None,
        "control_plane": args.control_plane.rstrip("/") if args.control_plane else None,
        "peer_key": str(args.peer_key) if args.peer_key else None,
        "require_pod_bound": not args.allow_unbound_tokens,
    }


def _check(args: argparse.Namespace, shards: int, data: tuple[Path, ...]) -> None:
    if not 1 <= shards <= 256:
        raise InvalidConfig(f"--shards: {shards} must be between 1 and 256")
    if shards < len(data):
        raise InvalidConfig(f"--shards: {shards} cannot use {len(data)} data directories")
    if len(set(data)) != len(data):
        raise InvalidConfig("--data: a directory is named twice")
    if args.auth == "static" and args.tokens is None:
        log.warning("no --tokens: only public buckets can be used")
    if args.auth == "kubernetes" and not (args.control_plane and args.peer_key):
        log.warning("no --control-plane or no --peer-key: this node reviews each token by itself")
    if not args.node_name or "/" in args.node_name:
        raise InvalidConfig(f"--node-name: {args.node_name!r} must be a name without '/'")
    for flag in (*_LIMITS, "--max-uploads"):
        value = getattr(args, flag.removeprefix("--").replace("-", "_"))
        if value < 1:
            raise InvalidConfig(f"{flag}: {value} must be at least 1")


def _announce(what: dict[str, Any]) -> None:
    failures = what["failures"]
    shards = ", ".join(
        join_address(*where) for n, where in enumerate(what["listen"]) if n not in failures
    )
    log.info("node %s serves on %s; ops on %s", what["node"], shards, join_address(*what["ops"]))
    for number, reason in failures.items():
        log.error("shard %d does not serve: %s", number, reason)


def _announce_json(what: dict[str, Any]) -> None:
    _announce(what)
    print(json.dumps(what), flush=True)
