"""``scs simulate``: the product's own decisions, on traces."""

from __future__ import annotations

import argparse
import sys

from simplecache.cli.flags import Subparsers, add_command
from simplecache.errors import InvalidConfig


def add_parsers(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``scs simulate``."""
    parser = add_command(
        subparsers,
        "simulate",
        run_simulate,
        summary="what eviction policies do to the hit ratio",
        description=(
            "Run every eviction policy on traces as training makes them, and print the hit ratios\n"
            "as a Markdown table beside Belady's optimum. The policies are the code that the\n"
            "cache nodes run."
        ),
        examples=("scs simulate eviction", "scs simulate eviction --objects 20000 --seed 7"),
    )
    parser.add_argument("what", choices=("eviction",), help="what to simulate")
    parser.add_argument(
        "--objects", type=int, default=4000, metavar="N", help="objects of a data set [4000]"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="for the shuffles [1]")


def run_simulate(args: argparse.Namespace) -> int:
    """Print the table; 0."""
    from simplecache.simulate.eviction import compare, table  # noqa: PLC0415
    from simplecache.simulate.traces import make_traces  # noqa: PLC0415

    if not 100 <= args.objects <= 1_000_000:
        raise InvalidConfig(f"--objects: {args.objects} must be between 100 and 1,000,000")
    results = compare(make_traces(args.objects, args.seed), progress=_progress)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print(table(results))
    return 0


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} runs", end="", file=sys.stderr, flush=True)
