"""Which shard lives in which data directory, and what the directories remember of it.

Each data directory bears a mark, ``node.json``: whose it is, of how many shards and directories the
node has, and which shards it **holds**. So shards are found where they are, in whatever order the
directories are given; a directory that is missing takes out just the shards that the others do not
hold; and an empty one where others bear marks is a disk that was not mounted, not a new cache.

``--reshard`` makes another number of shards or another set of directories of it: shards that exist
keep their place and their entries, the others are dealt out evenly, what is left over is removed.
It cannot make a wrong answer: a shard answers from files that bear the very name it was asked for,
so a key that has another owner now is a miss there, and an entry nobody asks for any more ages out.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from simplecache.errors import DataDirError, InvalidConfig
from simplecache.store.capacity import CapacityWish
from simplecache.store.directory import lock

log = logging.getLogger(__name__)

LAYOUT_VERSION: Final = 2
MARK: Final = "node.json"
REMOVED: Final = ".removed"
"""Ends the name of a shard's directory that is being removed."""
_SHARD = re.compile(r"shard-(\d{2,3})")

Mark = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which data directory holds which shards, and which cannot be used now, with the reason."""

    holds: Mapping[Path, Sequence[int]]
    failures: Mapping[Path, str]


def plan(found: Mapping[Path, Mark | OSError | None], wanted: Mark) -> Plan:
    """What the marks of the data directories say. Pure.

    Args:
        found: each directory's mark, None for none, or why it could not be read.
        wanted: what marks must say of this node.

    Raises:
        DataDirError: a mark is another node's, or of another layout; or no directory can be used.
    """
    shards, count = wanted["shards"], len(found)
    marks = {path: mark for path, mark in found.items() if isinstance(mark, dict)}
    for path, mark in marks.items():
        _check(path, mark, wanted)
    errors = {path: error for path, error in found.items() if isinstance(error, OSError)}
    if not marks:
        for path, error in errors.items():
            raise DataDirError(f"{path}: {error.strerror}")
        return Plan({path: range(i, shards, count) for i, path in enumerate(found)}, {})
    failures = {
        path: error.strerror or str(error)
        if isinstance(error, OSError)
        else f"it has no {MARK} while other data directories have one: is its disk mounted? "
        "A new disk is taken into use by --reshard"
        for path, error in found.items()
        if path not in marks
    }
    holds: dict[Path, Sequence[int]] = {path: mark["holds"] for path, mark in marks.items()}
    held = [number for numbers in holds.values() for number in numbers]
    missing = [number for number in range(shards) if number not in held]
    if len(set(held)) != len(held) or (missing and not failures):
        raise DataDirError(
            f"the marks of {', '.join(map(str, marks))} do not make one node of {shards} shards; "
            "--reshard makes a new one of them"
        )
    for i, path in enumerate(failures):
        holds[path] = missing[i :: len(failures)]
    return Plan(holds, failures)


def replan(existing: Mapping[Path, Sequence[int]], shards: int) -> Plan:
    """Another number of shards, or other directories. Pure.

    Args:
        existing: the shards that have a directory in each data directory.
        shards: how many there are to be.
    """
    holds: dict[Path, list[int]] = {path: [] for path in existing}
    taken: set[int] = set()
    for path, numbers in existing.items():
        holds[path] = [n for n in sorted(numbers) if n < shards and n not in taken]
        taken.update(holds[path])
    for number in range(shards):
        if number not in taken:
            min(holds.values(), key=len).append(number)
    return Plan(holds, {})


class Layout:
    """The data directories of one node."""

    def __init__(self, data: Sequence[Path], node: str, shards: int, *, reshard: bool) -> None:
        """Take the directories for this node, or find that they are its already.

        Raises:
            DataDirError: they are another node's or of another layout, or none can be used.
        """
        self._data = data
        self._wanted: Mark = {
            "layout": LAYOUT_VERSION, "node": node, "shards": shards, "directories": len(data),
        }  # fmt: skip
        self._shards = shards
        found = {path: _read(path) for path in data}
        self._plan = self._reshard(found) if reshard else plan(found, self._wanted)
        for path, numbers in self._plan.holds.items():
            if path not in self._plan.failures:
                mark = {**self._wanted, "holds": list(numbers)}
                if mark != found[path]:
                    _write(path, mark)

    def _reshard(self, found: Mapping[Path, Mark | OSError | None]) -> Plan:
        for path, mark in found.items():
            if isinstance(mark, OSError):
                raise DataDirError(f"{path}: {mark.strerror}; --reshard needs all directories")
            if mark is not None:
                _check(path, mark, {key: self._wanted[key] for key in ("layout", "node")})
        return replan({path: list(_shards_in(path)) for path in found}, self._shards)

    def home(self, shard: int) -> Path:
        """The data directory of a shard."""
        return next(path for path, numbers in self._plan.holds.items() if shard in numbers)

    def directory(self, shard: int) -> Path:
        """A shard's own directory."""
        return self.home(shard) / f"shard-{shard:02d}"

    def fault(self, shard: int) -> str:
        """Why a shard cannot be started now; empty: it can. Reads the marks again: may block."""
        if self._plan.failures:
            self._plan = plan({path: _read(path) for path in self._data}, self._wanted)
        path = self.home(shard)
        if path in self._plan.failures:
            return f"{path}: {self._plan.failures[path]}"
        mark = _read(path)
        if isinstance(mark, dict) and shard in mark.get("holds", ()):
            return ""
        reason = mark.strerror if isinstance(mark, OSError) else f"its {MARK} is gone"
        return f"{path}: {reason}"

    def capacity_bytes(self, shard: int, wish: CapacityWish) -> int:
        """A shard's part of what its file system may give to this node.

        Raises:
            InvalidConfig: more is wished for than the file system has.
            OSError: the directory cannot be used.
        """
        path = self.home(shard)
        system = os.statvfs(path)
        total = system.f_blocks * system.f_frsize
        wanted = wish.of(total)
        if wanted > total:
            raise InvalidConfig(f"--capacity: {wanted} bytes are more than {path} has ({total})")
        device = path.stat().st_dev
        together = sum(
            len(numbers)
            for other, numbers in self._plan.holds.items()
            if other not in self._plan.failures and other.stat().st_dev == device
        )
        return wanted // max(1, together)

    def check_capacity(self, wish: CapacityWish) -> None:
        """Raise InvalidConfig if a directory that can be used has less than is wished for."""
        for path, numbers in self._plan.holds.items():
            if path not in self._plan.failures and numbers:
                self.capacity_bytes(numbers[0], wish)

    def remove_leftovers(self) -> None:
        """Remove directories of shards that the node has no more. Takes as long as it takes."""
        for path, numbers in self._plan.holds.items():
            if path in self._plan.failures:
                continue
            for number, directory in _shards_in(path).items():
                if number not in numbers:
                    _retire(directory)
            for directory in path.glob(f"shard-*{REMOVED}"):
                log.info("removing %s", directory)
                shutil.rmtree(directory, ignore_errors=True)


def _retire(directory: Path) -> None:
    """Give a shard's directory a name by which nobody uses it, unless a process still does."""
    try:
        fd = lock(directory)
        try:
            directory.rename(directory.with_name(f"{directory.name}{REMOVED}"))
        finally:
            os.close(fd)
    except (DataDirError, OSError) as error:
        log.error("%s is left over and cannot be removed: %s", directory, error)


def _check(path: Path, mark: Mark, wanted: Mark) -> None:
    for key, value in wanted.items():
        if mark.get(key) != value:
            way = (
                "--reshard makes another number of it, and keeps the shards that stay"
                if key in {"shards", "directories"}
                else "To start with an empty cache, remove the directory"
            )
            raise DataDirError(
                f"{path}: it was made with {key} {mark.get(key)!r}, and this node has {value!r}. "
                f"{way}"
            )


def _shards_in(path: Path) -> dict[int, Path]:
    """Shards that have a directory there."""
    matches = ((_SHARD.fullmatch(entry.name), entry) for entry in path.glob("shard-*"))
    return {int(match[1]): entry for match, entry in matches if match}


def _read(directory: Path) -> Mark | OSError | None:
    try:
        text = (directory / MARK).read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    try:
        mark = json.loads(text)
        holds = mark["holds"] if mark["layout"] == LAYOUT_VERSION else []
        if not all(isinstance(number, int) for number in holds):
            raise ValueError("holds")
    except (ValueError, TypeError, KeyError) as error:
        raise DataDirError(f"{directory / MARK}: not the mark of a node: {error}") from error
    return dict(mark)


def _write(directory: Path, mark: Mark) -> None:
    """Put a mark there so that a power loss leaves the old one or the new one."""
    temporary = directory / f"{MARK}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            file.write(json.dumps(mark) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(directory / MARK)
    except OSError as error:
        raise DataDirError(f"{directory}: {error.strerror}") from error
