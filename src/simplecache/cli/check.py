"""``scs check``: whether every byte of a node is what it should be."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from simplecache.cli.flags import Subparsers, add_command, add_flag
from simplecache.cli.progress import Progress, format_size
from simplecache.errors import CacheFault, InvalidConfig

if TYPE_CHECKING:
    from simplecache.store.repair import Findings

POLL_S: Final = 0.5
TIMEOUT_S: Final = 10.0
LINES: Final = {
    "corrupt": "corrupt files",
    "unreadable": "unreadable files",
    "without_row": "files without a row",
    "without_file": "rows without a file",
    "wrong_rows": "rows that do not fit their file",
    "strays": "temporary and foreign files",
    "wrong_figures": "tenants miscounted",
    "index_faults": "damaged indexes",
}
"""Kind of finding -> how it is told."""


def add_parsers(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``scs check``."""
    parser = add_command(
        subparsers,
        "check",
        run_check,
        summary="check every object's bytes and the accounting of a node",
        description=(
            "Read all objects of data directories that no node uses, check their sums, and\n"
            "compare files, index and accounting. --repair removes what is corrupt and mends the\n"
            "rest.\n"
            "With --ops, ask a running node to do the same to itself now, at half a thread's time\n"
            "for each shard; it mends what it finds.\n"
            "\n"
            "Exit status 0: all is well (or was mended), 1: something was found, 3: a fault."
        ),
        examples=(
            "scs check /mnt/nvme0/scs /mnt/nvme1/scs",
            "scs check /var/lib/scs --repair",
            "scs check --ops http://127.0.0.1:7390",
        ),
    )
    parser.add_argument(
        "data", metavar="DATA", type=Path, nargs="*", help="a data directory, or a shard's"
    )
    parser.add_argument("--repair", action="store_true", help="mend what is found")
    add_flag(parser, "--ops", metavar="URL", help="the ops port of a running node")


def run_check(args: argparse.Namespace) -> int:
    """Check; 0 if all is well."""
    if bool(args.data) == bool(args.ops):
        raise InvalidConfig("say either data directories, or --ops of a running node")
    if args.ops:
        if args.repair:
            raise InvalidConfig("--repair is for directories: a running node mends by itself")
        return _check_running(args.ops)
    return _check_directories(args.data, repair=args.repair)


def _check_directories(data: list[Path], *, repair: bool) -> int:
    from simplecache.store.check import shards_of  # noqa: PLC0415 - needs the extra

    logging.basicConfig(level=logging.CRITICAL)  # the summary says it all
    shards = [shard for each in data for shard in shards_of(each)]
    found = _check_all(shards, mends=repair)
    print(_tell(found))
    if found.total and repair:
        print("mended; checking again")
        found = _check_all(shards, mends=False)
        print(_tell(found))
    return int(found.total > 0)


def _check_all(shards: list[Path], *, mends: bool) -> Findings:
    from simplecache.store.check import check_shard, stored_bytes  # noqa: PLC0415
    from simplecache.store.repair import Findings  # noqa: PLC0415

    total = Findings()
    drawing = threading.Lock()
    for shard in shards:
        with Progress(shard.name, stored_bytes(shard)) as progress:

            def add(size: int, progress: Progress = progress) -> None:
                with drawing:
                    progress.add(size)

            found = check_shard(shard, mends=mends, progress=add)
        print(f"{shard}: {_in_short(found.entries, found.disk, found.total)}")
        total += found
    return total


def _tell(found: Findings) -> str:
    """The summary of a check of directories."""
    lines = [f"{_in_short(found.entries, found.disk, found.total)} in all"]
    lines += [f"  {getattr(found, kind):8} {text}" for kind, text in LINES.items()]
    lines += [f"  {problem}" for problem in found.problems]
    return "\n".join(lines)


def _in_short(entries: int, disk: int, total: int) -> str:
    verdict = "clean" if not total else f"{total} finding{'s' * (total > 1)}"
    return f"{entries} objects, {format_size(disk)}: {verdict}"


def _check_running(url: str) -> int:
    _ask(url, "POST")
    shards = _follow(url)
    total = {kind: sum(shard["found"][kind] for shard in shards.values()) for kind in LINES}
    for number, shard in shards.items():
        found = shard["found"]
        findings = sum(found[kind] for kind in LINES)
        print(f"shard {number}: {_in_short(found['entries'], found['disk'], findings)}")
        for problem in found["problems"]:
            print(f"  {problem}")
    for kind, text in LINES.items():
        print(f"  {total[kind]:8} {text}")
    return int(any(total.values()))


def _follow(url: str) -> dict[str, Any]:
    """Wait until every shard's check is done; returns what they found."""
    is_drawn = sys.stderr.isatty()
    pids: dict[str, int] = {}
    while True:
        shards: dict[str, Any] = _ask(url, "GET")["shards"]
        for number, shard in shards.items():
            if (
                shard["state"] in {"down", "none"}
                or pids.setdefault(number, shard["pid"]) != (shard["pid"])
            ):
                raise CacheFault(f"shard {number} does not serve, or was started anew")
        if is_drawn:
            share = sum(shard["share"] for shard in shards.values()) / len(shards)
            filled = int(share * 24)
            bar = f"[{'#' * filled}{'-' * (24 - filled)}] {share:4.0%}"
            print(f"\rcheck  {bar}\x1b[K", end="", file=sys.stderr, flush=True)
        if all(shard["state"] == "done" for shard in shards.values()):
            if is_drawn:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            return shards
        time.sleep(POLL_S)


def _ask(url: str, verb: str) -> dict[str, Any]:
    import http.client  # noqa: PLC0415

    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidConfig(f"--ops: {url!r} must be http://HOST:PORT")
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_S)
    try:
        connection.request(verb, "/check")
        answer = connection.getresponse()
        body = answer.read(1 << 20)
        if answer.status != 200:
            raise CacheFault(f"{url} answers {answer.status}: is it a node's ops port?")
        found: dict[str, Any] = json.loads(body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise CacheFault(f"{url}: {error}") from error
    finally:
        connection.close()
    return found
