"""The configuration files of a node: read, checked, and watched for changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simplecache.config import load, parse_buckets, parse_namespaces, parse_tokens
from simplecache.errors import InvalidConfig

log = logging.getLogger(__name__)


class Configuration:
    """The bucket and token files: read, checked, and watched."""

    def __init__(self, buckets: Path, tokens: Path | None) -> None:
        """Read both for the first time.

        Raises:
            InvalidConfig: one is wrong.
        """
        self._files: list[tuple[Path, Callable[[object], object]]] = [(buckets, _parse_config)]
        if tokens is not None:
            self._files.append((tokens, parse_tokens))
        self._stamp = self._stamps()
        self.failures = 0
        self.buckets, self.tokens = self._read()

    def _read(self) -> tuple[Any, Any]:
        documents = [load(path, _checked(parse)) for path, parse in self._files]
        return documents[0], documents[1] if len(documents) > 1 else None

    def reload(self, *, force: bool = False) -> bool:
        """Read again if a file changed; False when nothing is new. A broken one changes nothing."""
        stamp = self._stamps()
        if stamp == self._stamp and not force:
            return False
        self._stamp = stamp
        try:
            self.buckets, self.tokens = self._read()
        except InvalidConfig as error:
            self.failures += 1
            log.error("the configuration in force stays: %s", error)
            return False
        log.info("configuration read again")
        return True

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        stamps: list[tuple[int, int, int] | None] = []
        for path, _ in self._files:
            try:
                status = path.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return stamps


def _parse_config(document: object) -> object:
    return parse_buckets(document), parse_namespaces(document)


def _checked(parse: Callable[[object], object]) -> Callable[[object], object]:
    def check(document: object) -> object:
        parse(document)
        return document

    return check
