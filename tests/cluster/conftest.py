"""Fixtures of the tests on a real apiserver.

Its binaries are built when there are none yet, which takes minutes, once: before the first test, for
a build is longer than a test may take. ``make test`` builds them beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.apiserver import RealCluster
from cluster.kubetools import build


def _is_ours(item: pytest.Item) -> bool:
    return item.path.is_relative_to(build.HERE.parent)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in filter(_is_ours, items):
        item.add_marker(pytest.mark.cluster)


def pytest_collection_finish(session: pytest.Session) -> None:
    """After -k and -m have chosen."""
    if any(map(_is_ours, session.items)) and not session.config.option.collectonly:
        build.ensure_built()


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """An apiserver with its etcd, shared by all tests: keep to a namespace of your own."""
    folder = tmp_path_factory.mktemp("cluster")
    cluster = RealCluster(build.ensure_built(), folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A cluster whose controllers run as well."""
    assets = build.ensure_built()
    if not (assets / "kube-controller-manager").exists():
        pytest.fail(f"KUBEBUILDER_ASSETS={assets} has no kube-controller-manager")
    cluster = RealCluster(assets, tmp_path_factory.mktemp("governed"), controllers=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
