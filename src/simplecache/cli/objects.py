"""``scs put``, ``scs get``, ``scs stat`` and ``scs rm``: objects from the command line.

Exit status: 0 done, 1 not found, 2 wrong usage, 3 refused or a fault (``main.py`` makes 2 and 3
of errors). The client is imported by the command that runs, so that ``scs --help`` stays quick.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from simplecache.cli.flags import Subparsers, add_command, add_flag
from simplecache.errors import CacheFault, InvalidConfig, InvalidName, NoSuchBucket
from simplecache.model import Key

if TYPE_CHECKING:
    from simplecache.cli.progress import Progress
    from simplecache.client.answer import Stat
    from simplecache.client.sync import Client, Stream

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TIMEOUT_S: Final = 30.0
"""Longer than the library's: a person waits and may press Ctrl-C, a job goes to the origin."""

_NAMES = (
    "An object's name is sent byte for byte, so names as PFIO makes them can be given as they\n"
    "are. What may not appear in a request (space, '#', control characters, non-ASCII) needs\n"
    "--escape, which spells a name as the Python client does: then '%' is escaped, too."
)


def add_parsers(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the four commands to ``scs``."""
    _add_put(subparsers)
    _add_get(subparsers)
    _add_stat(subparsers)
    _add_rm(subparsers)


def _add_put(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "put",
        run_put,
        summary="store a file as an object",
        description="Store a file, or standard input, as an object. One that is there is replaced.",
        examples=(
            "scs put apple.jpg public/apple.jpg --content-type image/jpeg",
            "tar c photos | scs put - public/photos.tar",
            "scs put 'my file' 'public/my file' --escape --if-absent",
        ),
    )
    parser.add_argument("file", metavar="FILE", help="what to store; - is standard input")
    parser.add_argument("object", metavar="BUCKET/OBJECT", help="under which name")
    parser.add_argument("--content-type", metavar="TYPE", help="what a GET will say it is")
    parser.add_argument(
        "--if-absent", action="store_true", help="refuse (status 3) when the object is there"
    )
    _add_quiet(parser)
    _add_common(parser)


def _add_get(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "get",
        run_get,
        summary="fetch an object",
        description=(
            "Write an object to standard output or to a file. The file appears when the object\n"
            "is whole; until then, and after any error, the file that was there stays."
        ),
        examples=(
            "scs get public/apple.jpg -o apple.jpg",
            "scs get public/photos.tar | tar x",
            "scs get public/photos.tar --range 0-1023 -o head.bin",
        ),
    )
    parser.add_argument("object", metavar="BUCKET/OBJECT", help="what to fetch")
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="-", help="where to; - is standard output"
    )
    parser.add_argument(
        "--range",
        type=_parse_range,
        metavar="A-B",
        help="only bytes A to B, both included, counted from 0; 'A-' is from A to the end",
    )
    _add_quiet(parser)
    _add_common(parser)


def _add_stat(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "stat",
        run_stat,
        summary="show an object's size, type, tag and age",
        description="Show what the cache knows of an object.",
        examples=("scs stat public/apple.jpg", "scs stat public/apple.jpg --json | jq .size_bytes"),
    )
    parser.add_argument("object", metavar="BUCKET/OBJECT", help="which object")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    _add_common(parser)


def _add_rm(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "rm",
        run_rm,
        summary="delete objects",
        description="Delete objects: all that are named, also when some of them are not there.",
        examples=("scs rm public/apple.jpg public/pear.jpg",),
    )
    parser.add_argument("object", metavar="BUCKET/OBJECT", nargs="+", help="which objects")
    _add_common(parser)


def run_put(args: argparse.Namespace) -> int:
    """Store a file or standard input."""
    key = _parse_key(args.object, escape=args.escape)
    with (
        _make_client(args) as client,
        _open_input(args.file) as file,
        _show(args.file, _measure(file), quiet=args.quiet) as progress,
    ):
        stored = client.put(
            key,
            cast("BinaryIO", _Watched(file, progress)),
            content_type=args.content_type,
            if_absent=args.if_absent,
        )
    if not stored:
        _complain(f"{key}: already there")
        return 3
    return 0


def run_get(args: argparse.Namespace) -> int:
    """Write an object to a file or to standard output."""
    key = _parse_key(args.object, escape=args.escape)
    start, end = args.range or (0, None)
    try:
        with (
            _make_client(args) as client,
            client.get_stream(key, start=start, end=end) as stream,
        ):
            if stream is None:
                return _report_missing(key)
            if args.range is not None and stream.length_bytes == 0:
                raise CacheFault(f"{key}: has {stream.stat.size_bytes} bytes, none from {start} on")
            _write(stream, args.output, quiet=args.quiet)
    except NoSuchBucket as error:
        return _report_missing(key, error)
    return 0


def run_stat(args: argparse.Namespace) -> int:
    """Print what the cache knows of an object."""
    key = _parse_key(args.object, escape=args.escape)
    try:
        with _make_client(args) as client:
            found = client.head(key)
    except NoSuchBucket as error:
        return _report_missing(key, error)
    if found is None:
        return _report_missing(key)
    facts = _tell(key, found)
    if args.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            shown = "-" if value is None else ascii(value).strip("'")
            print(f"{name:<16} {shown}")
    return 0


def run_rm(args: argparse.Namespace) -> int:
    """Delete objects."""
    keys = [_parse_key(text, escape=args.escape) for text in args.object]
    status = 0
    with _make_client(args) as client:
        for key in keys:
            try:
                if not client.delete(key):
                    status = _report_missing(key)
            except NoSuchBucket as error:
                status = _report_missing(key, error)
    return status


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Add what all four commands have."""
    parser.description = f"{parser.description}\n\n{_NAMES}"
    add_flag(
        parser, "--url", metavar="URL", default=DEFAULT_URL, help="the cache, http://host:port"
    )
    add_flag(parser, "--token-file", metavar="FILE", help="a file with the bearer token")
    parser.add_argument(
        "--escape", action="store_true", help="escape the object's name as the client does"
    )


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _parse_key(text: str, *, escape: bool) -> Key:
    from simplecache.client.message import make_key  # noqa: PLC0415

    if escape:
        return make_key(text)
    bucket, slash, name = text.partition("/")
    if not slash:
        raise InvalidName(f"{text!r} is not of the form BUCKET/OBJECT")
    try:
        return Key(bucket, os.fsencode(name))
    except InvalidName as error:
        try:
            escaped = make_key(text)
        except InvalidName:
            raise error from None
        raise InvalidName(f"{error}, or let --escape do it: {escaped}") from error


def _parse_range(text: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})?", text)
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise argparse.ArgumentTypeError(f"{text!r}: A-B or A- is expected, with A <= B")
    return int(match[1]), int(match[2]) + 1 if match[2] else None


def _make_client(args: argparse.Namespace) -> Client:
    from simplecache.client.sync import Client  # noqa: PLC0415

    return Client(args.url, token_file=args.token_file, timeout_s=TIMEOUT_S, fail_open=False)


def _show(label: str, total_bytes: int | None, *, quiet: bool) -> Progress:
    from simplecache.cli.progress import Progress  # noqa: PLC0415

    return Progress(label, total_bytes, quiet=quiet)


def _write(stream: Stream, output: str, *, quiet: bool) -> None:
    from simplecache.cli.outfile import open_output  # noqa: PLC0415

    with (
        _show(output, stream.length_bytes, quiet=quiet) as progress,
        open_output(output) as file,
    ):
        for piece in stream:
            file.write(piece)
            progress.add(len(piece))
        if progress.done_bytes != stream.length_bytes:
            raise CacheFault(f"{progress.done_bytes} bytes came of {stream.length_bytes}")


@contextlib.contextmanager
def _open_input(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        if sys.stdin is None:
            raise InvalidConfig("standard input is closed")
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")  # noqa: PTH123, SIM115  closed below
    except OSError as error:
        raise InvalidConfig(f"{name}: {error.strerror}") from error
    with file:
        yield file


def _measure(file: BinaryIO) -> int | None:
    """How much will be read, for the progress bar."""
    try:
        status = os.fstat(file.fileno())
        return status.st_size - file.tell() if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError):
        return None


class _Watched:
    """A file that tells the progress bar what is read of it."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file = file
        self._progress = progress
        self._read: Callable[[int], bytes] = getattr(file, "read1", file.read)
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        piece = self._read(size)
        self._progress.add(len(piece))
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._progress.restart()
        return self._file.seek(offset, whence)


def _tell(key: Key, found: Stat) -> dict[str, str | int | None]:
    return {
        "bucket": key.bucket,
        "object": key.name.decode("ascii"),
        "size_bytes": found.size_bytes,
        "content_type": found.content_type,
        "content_encoding": found.content_encoding,
        "etag": found.etag,
        "modified_at": found.modified_at.isoformat() if found.modified_at else None,
    }


def _report_missing(key: Key, error: NoSuchBucket | None = None) -> int:
    _complain(f"{key}: not found" if error is None else f"{key}: no such bucket")
    return 1


def _complain(text: str) -> None:
    print(f"scs: {text}", file=sys.stderr)
