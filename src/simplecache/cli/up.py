"""``scs up``: a whole cluster on this machine."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from simplecache.cli.flags import Subparsers, add_command, add_flag

if TYPE_CHECKING:
    from simplecache.local.cluster import Cluster
    from simplecache.local.part import Part

HEALTH_S: Final = 1.0
RESTART_PAUSE_S: Final = 1.0


def add_parsers(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``scs up``."""
    parser = add_command(
        subparsers,
        "up",
        run_up,
        summary="run a whole cluster on this machine: nodes, control plane, Envoy",
        description=(
            "Run cache nodes, the control plane and a real Envoy on this machine, without root\n"
            "and without Kubernetes. Prints how to use it, then the parts' health as it changes.\n"
            "Ctrl-C stops everything. A part that dies is started again."
        ),
        examples=(
            "scs up",
            "scs up --nodes 5 --port 9090 --dir ./cache      # objects stay for the next time",
            "scs up --exec 'python train.py'                 # SCS_URL is set; then stop",
        ),
    )
    add_flag(parser, "--nodes", type=int, metavar="N", default=3, help="cache nodes")
    add_flag(parser, "--shards", type=int, metavar="N", default=1, help="shards of each node")
    add_flag(
        parser, "--port", type=int, metavar="PORT", default=8080,
        help="Envoy's port; 0 takes a free one",
    )  # fmt: skip
    add_flag(parser, "--host", metavar="ADDRESS", default="127.0.0.1", help="Envoy's address")
    add_flag(
        parser, "--dir", type=Path, metavar="DIR",
        help="where objects, configuration and logs live; without it in a temporary directory "
        "that is removed at the end",
    )  # fmt: skip
    add_flag(
        parser, "--lb", choices=("maglev", "ring_hash"), default="maglev",
        help="how Envoy spreads keys",
    )  # fmt: skip
    add_flag(
        parser, "--envoy", type=Path, metavar="PATH",
        help="an Envoy binary; without it that of the environment, of PATH, or one is installed",
    )  # fmt: skip
    parser.add_argument(
        "--exec", metavar="CMD", dest="shell_command",
        help="run CMD by the shell once all is ready, with SCS_URL and SCS_TOKEN_FILE set; then "
        "stop everything and exit with its status",
    )  # fmt: skip


def run_up(args: argparse.Namespace) -> int:
    """Run until Ctrl-C, or until ``--exec``'s command ends; returns the exit status."""
    from simplecache.errors import InvalidConfig  # noqa: PLC0415
    from simplecache.local.cluster import Cluster  # noqa: PLC0415
    from simplecache.local.envoy import find_envoy  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for flag, value in (("--nodes", args.nodes), ("--shards", args.shards)):
        if not 1 <= value <= 64:
            raise InvalidConfig(f"{flag}: {value} must be between 1 and 64")
    if not 0 <= args.port <= 65_535:
        raise InvalidConfig(f"--port: {args.port} is not a port")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    envoy = find_envoy(args.envoy)
    directory = args.dir or Path(tempfile.mkdtemp(prefix="scs-up-"))
    began = time.monotonic()
    try:
        cluster = Cluster(
            directory.absolute(), envoy=envoy, nodes=args.nodes, shards=args.shards,
            host=args.host, port=args.port, lb=args.lb,
        )  # fmt: skip
        try:
            _say(f"Starting {args.nodes} cache nodes, the control plane and Envoy ...")
            cluster.start()
            _say(_how_to(cluster, time.monotonic() - began))
            return _execute(cluster, args.shell_command) if args.shell_command else _watch(cluster)
        except KeyboardInterrupt:
            return 130 if args.shell_command else 0
        finally:
            _ignore_interrupts()
            _say("Stopping ...")
            cluster.stop()
    finally:
        if args.dir is None:
            shutil.rmtree(directory, ignore_errors=True)


def _how_to(cluster: Cluster, took_s: float) -> str:
    objects, directory = f"{cluster.url}/v1/objects", cluster.directory
    bearer = '-H "Authorization: Bearer $TOKEN"'
    health = "".join(
        f"    {part.name:<14} {cluster.health()[part.name]:<10} pid {part.pid}\n"
        for part in cluster.parts
    )
    return f"""
Simple Cache Service is ready after {took_s:.1f} s at {cluster.url}

{health}
  A public bucket:
    echo apple > apple.txt
    curl -X PUT --data-binary @apple.txt {objects}/public/apple
    curl {objects}/public/apple

  A private bucket (namespace prj-foobar):
    export TOKEN=$(cat {cluster.token_file})
    curl {bearer} -X PUT --data-binary @apple.txt {objects}/prj-foobar/apple
    curl {bearer} {objects}/prj-foobar/apple

  PFIO:    pfio.v2.from_url("s3://bucket/data.zip", http_cache="{objects}/public")
  Owners:  scs locate public/apple --control-plane http://127.0.0.1:{cluster.ops_port}
  Buckets: {directory}/buckets.json (read again when it changes)
  Logs:    {directory}/logs

  Ctrl-C stops everything.
"""


def _execute(cluster: Cluster, command: str) -> int:
    environment = os.environ | {
        "SCS_URL": cluster.url,
        "SCS_TOKEN_FILE": str(cluster.token_file),
        "SCS_CONTROL_PLANE": f"http://127.0.0.1:{cluster.ops_port}",
    }
    status = subprocess.call(command, shell=True, env=environment)  # noqa: S602 - the user's own
    return status if status >= 0 else 128 - status


def _watch(cluster: Cluster) -> int:
    """Print changes of health, and start again what has died, until an interrupt."""
    known = cluster.health()
    while True:
        time.sleep(HEALTH_S)
        health = cluster.health()
        for part in cluster.parts:
            if health[part.name] != known[part.name]:
                _say(f"{time.strftime('%H:%M:%S')} {part.name}: {health[part.name]}")
            if not part.is_running:
                time.sleep(RESTART_PAUSE_S)
                _restart(cluster, part)
        known = health


def _restart(cluster: Cluster, part: Part) -> None:
    from simplecache.errors import SimpleCacheError  # noqa: PLC0415

    try:
        if part in cluster.nodes:
            cluster.start_node(part)
        else:
            part.start()
    except SimpleCacheError as error:
        _say(f"{part.name}: {error}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _ignore_interrupts() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
