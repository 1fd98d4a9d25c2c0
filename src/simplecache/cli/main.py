"""The ``scs`` command: finds the subcommand, and makes exit statuses of what it raises.

A subcommand's module has ``add_parsers(subparsers)``; each of its parsers has a help, a
description, an epilog with examples and ``set_defaults(run=function)``, where ``function(args)``
returns the exit status. At import time these modules load nothing heavy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Final

from simplecache import __version__
from simplecache.cli import check, control, objects, operate, serve, simulate, up
from simplecache.errors import InvalidConfig, InvalidName, SimpleCacheError

GROUPS: Final = (
    ("Objects", (objects,)),
    ("A cluster", (serve, control, operate, check)),
    ("One machine", (up, simulate)),
)
"""Where subcommands are listed in the help, and the modules that bring them."""

EXAMPLES: Final = """\
EXAMPLES
  scs put apple.jpg public/apple.jpg     store a file
  scs get public/apple.jpg -o copy.jpg   and fetch it again
  scs COMMAND --help                     more, with examples for each command

Exit status: 0 done, 1 not found, 2 wrong usage, 3 refused or a fault, 130 interrupted."""

EXIT_USAGE: Final = 2
EXIT_FAULT: Final = 3
EXIT_INTERRUPTED: Final = 130
EXIT_PIPE: Final = 141
"""128 + SIGPIPE: what a command says that was ended because nobody reads it."""


def main(argv: Sequence[str] | None = None) -> int:  # noqa: PLR0911 - one for each kind of end
    """Run ``scs`` with ``argv`` (default: the process's) and return its exit status.

    Raises:
        SystemExit: argparse has printed the help, the version or a wrong usage.
    """
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, not at exit, where a broken pipe is a traceback
    except BrokenPipeError:
        _drop_stdout()
        return EXIT_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        return _complain(
            f"module {error.name!r} is not installed; the whole system comes with "
            "pip install 'simple-cache-service[local]'",
            EXIT_USAGE,
        )
    except (InvalidConfig, InvalidName) as error:
        return _complain(str(error), EXIT_USAGE)
    except SimpleCacheError as error:
        return _complain(str(error), EXIT_FAULT)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _complain(f"{name}{error.strerror or error}", EXIT_FAULT)


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``scs``, with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="scs",
        usage="scs [--version] COMMAND ...",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"scs {__version__}")
    # Hidden, for argparse would list all in one heap: the description lists them in groups.
    subparsers = parser.add_subparsers(prog="scs", dest="command", help=argparse.SUPPRESS)
    listing = ["Simple Cache Service: the NVMe of all nodes as one HTTP cache."]
    for title, modules in GROUPS:
        known = set(subparsers.choices)
        for module in modules:
            module.add_parsers(subparsers)
        listing += ["", f"{title}:"]
        listing += [
            f"  {action.dest:<16} {action.help}"
            for action in subparsers._get_subactions()  # noqa: SLF001  only there are the helps
            if action.dest not in known
        ]
    parser.description = "\n".join(listing)
    return parser


def _run(argv: Sequence[str] | None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    status: int = args.run(args)
    return status


def _complain(text: str, status: int) -> int:
    print(f"scs: {text}", file=sys.stderr)
    return status


def _drop_stdout() -> None:
    """Let what is still buffered go nowhere, or Python complains about it at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
