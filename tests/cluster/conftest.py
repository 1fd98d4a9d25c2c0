"""Fixtures of the tests on a real apiserver.

They run when its binaries are there, and always in CI, which builds them. Elsewhere a first build of
some minutes is not started behind anybody's back: the tests are skipped and say what to run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.apiserver import RealCluster
from cluster.kubetools import build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    found = [item for item in items if item.path.is_relative_to(build.HERE.parent)]
    for item in found:
        item.add_marker(pytest.mark.cluster)
    if found and os.environ.get("CI"):
        build.ensure_built()  # here, for a first build takes longer than a test may


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """An apiserver with its etcd, shared by all tests: keep to a namespace of your own."""
    folder = tmp_path_factory.mktemp("cluster")
    cluster = RealCluster(_assets(), folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A cluster whose controllers run as well."""
    assets = _assets()
    if not (assets / "kube-controller-manager").exists():
        pytest.skip(f"KUBEBUILDER_ASSETS={assets} has no kube-controller-manager")
    cluster = RealCluster(assets, tmp_path_factory.mktemp("governed"), controllers=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _assets() -> Path:
    if not build.is_ready():
        pytest.skip("no kube-apiserver yet: run `python tests/cluster/kubetools/build.py` once")
    return build.ensure_built()
