"""Fixtures for all tests: a real Envoy, and a real cluster around it."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from simplecache.local.cluster import Cluster
from simplecache.local.envoy import find_envoy

# A test's time says something about the machine, which is shared; its examples are bounded anyway.
settings.register_profile("bounded", deadline=None)
settings.load_profile("bounded")


@pytest.fixture(scope="session")
def envoy_bin() -> str:
    """A real Envoy; installed if there is none, and a failure if that cannot be."""
    wanted = os.environ.get("SCS_ENVOY")
    return str(find_envoy(Path(wanted) if wanted else None))


@pytest.fixture(scope="session")
def cluster(envoy_bin, tmp_path_factory):
    """Three nodes, control plane and Envoy, for tests that kill nothing."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), envoy=Path(envoy_bin), port=0)
    cluster.start()
    yield cluster
    cluster.stop()
