"""What the commands share: help pages with examples, and flags that the environment can set."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it
Command = Callable[[argparse.Namespace], int]


def add_command(  # noqa: PLR0913 - the parts of a help page, by name
    subparsers: Subparsers[argparse.ArgumentParser],
    name: str,
    run: Command,
    *,
    summary: str,
    description: str,
    examples: tuple[str, ...],
) -> argparse.ArgumentParser:
    """A subcommand with its help page."""
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog="EXAMPLES\n" + "\n".join(f"  {line}" for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_flag(parser: argparse._ActionsContainer, flag: str, **options: Any) -> None:
    """An option whose default is the environment's ``SCS_<FLAG>``, where that is set."""
    variable = "SCS_" + flag.removeprefix("--").replace("-", "_").upper()
    value = os.environ.get(variable)
    if value:
        default = value.split(os.pathsep) if options.get("nargs") == "+" else value
        options |= {"default": default, "required": False}
    built_in = options.get("default")
    shown = f"; default: {built_in}" if built_in not in {None, ""} and not value else ""
    parser.add_argument(flag, **options | {"help": f"{options['help']} [{variable}{shown}]"})


def address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, with an IPv6 address in brackets."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} must be HOST:PORT")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of :func:`address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
