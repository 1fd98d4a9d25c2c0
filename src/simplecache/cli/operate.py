"""``scs why`` and ``scs purge``: questions and deeds of operators."""

from __future__ import annotations

import argparse
import json
import os
from urllib.parse import urlsplit

from simplecache.cli.control import add_directory_flags, load_directory
from simplecache.cli.flags import Subparsers, add_command, add_flag
from simplecache.errors import CacheFault, InvalidConfig, InvalidName
from simplecache.model import Key, is_bucket_name

TIMEOUT_S = 60.0


def add_parsers(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add both commands to ``scs``."""
    parser = add_command(
        subparsers,
        "why",
        run_why,
        summary="tell why an object is, or is not, in the cache",
        description=(
            "Ask the shard that owns an object whether it has it, and if not, what became of it:\n"
            "never put, put but not kept, evicted (when, by which rule, in whose favour), purged,\n"
            "expired, deleted or corrupt. A name is taken byte for byte."
        ),
        examples=(
            "scs why public/apple",
            "scs why 'prj-foobar/s3://bucket/a.zip/pfio-zipfs/x.jpg' --token-file token",
        ),
    )
    parser.add_argument("object", metavar="BUCKET/OBJECT", help="the object's name")
    add_flag(parser, "--url", default="http://127.0.0.1:8080", help="an Envoy, or a shard")
    add_flag(parser, "--token-file", metavar="FILE", help="for a private bucket")

    parser = add_command(
        subparsers,
        "purge",
        run_purge,
        summary="remove all objects of a bucket, or those that begin with a prefix",
        description=(
            "Tell every shard to remove a bucket's objects whose name begins with PREFIX. Whoever\n"
            "may write the bucket may purge it. Prints what each shard removed."
        ),
        examples=(
            "scs purge public/datasets/v1/ --control-plane http://127.0.0.1:21804",
            "scs purge prj-foobar --endpoints endpoints.json --token-file token",
        ),
    )
    parser.add_argument("what", metavar="BUCKET[/PREFIX]", help="whose objects, or which of them")
    add_directory_flags(parser)
    add_flag(parser, "--token-file", metavar="FILE", help="for a bucket with limited writers")


def run_why(args: argparse.Namespace) -> int:
    """Print what the owner says; 0 if the object is there, 1 if not."""
    bucket, slash, name = os.fsencode(args.object).partition(b"/")
    if not slash:
        raise InvalidName(f"{args.object!r}: expected BUCKET/OBJECT")
    key = Key(bucket.decode("ascii", "backslashreplace"), name)
    parts = urlsplit(args.url)
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidConfig(f"--url: {args.url!r} must be http://HOST:PORT")
    fields = {"SCS-Why": "yes", **_bearer(args.token_file)}
    status, why, body = _ask(parts.hostname, parts.port or 80, "HEAD", key.target.decode(), fields)
    if status in {200, 404}:
        print(f"{args.object}: {why or body or 'no such bucket'}")
        return int(status != 200)
    raise CacheFault(f"{args.url} answers {status}")


def run_purge(args: argparse.Namespace) -> int:
    """Purge on every shard; 0 if all did."""
    bucket, _, prefix = args.what.partition("/")
    if not is_bucket_name(bucket):
        raise InvalidName(f"{bucket!r} is not a bucket name")
    _, addresses = load_directory(args)
    total = 0
    for shard, address in addresses.items():
        host, _, port = address.rpartition(":")
        target = f"/v1/buckets/{bucket}/{prefix}"
        status, _, body = _ask(
            host.strip("[]"), int(port), "DELETE", target, _bearer(args.token_file)
        )
        if status != 200:
            raise CacheFault(f"{shard} answers {status}: {body.strip()}")
        removed = json.loads(body)["removed"]
        print(f"{shard}: {removed} removed")
        total += removed
    print(f"{total} removed in all")
    return 0


def _bearer(token_file: str | None) -> dict[str, str]:
    if token_file is None:
        return {}
    from simplecache.client.token import TokenFile  # noqa: PLC0415

    return {"Authorization": f"Bearer {TokenFile(token_file).read()}"}


def _ask(
    host: str, port: int, verb: str, target: str, fields: dict[str, str]
) -> tuple[int, str | None, str]:
    """(status, ``SCS-Why``, body) of one request."""
    import http.client  # noqa: PLC0415

    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request(verb, target, headers=fields)
        answer = connection.getresponse()
        return answer.status, answer.getheader("SCS-Why"), answer.read(1 << 20).decode()
    except (OSError, http.client.HTTPException) as error:
        raise CacheFault(f"{host}:{port}: {error}") from error
    finally:
        connection.close()
