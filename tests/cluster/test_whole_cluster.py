"""The rendered chart, run whole on a real apiserver: what users and operators are promised."""

from __future__ import annotations

import pytest

from cluster.apiserver import RealCluster
from cluster.kubetools import build
from cluster.world import OTHERS, TEAM, World

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def whole(envoy_bin, tmp_path_factory):
    cluster = RealCluster(build.ensure_built(), tmp_path_factory.mktemp("whole"), controllers=True)
    world = World(cluster, envoy_bin)
    try:
        cluster.start()
        world.start()
        yield world
    finally:
        world.stop()
        cluster.stop()
    assert not world.kubelet.faults


@pytest.fixture
def world(whole):
    """The cluster as a test may expect it; a test that breaks something finds it whole again."""
    whole.heal()
    return whole


def test_a_pods_token_puts_and_gets_through_envoy(world):
    client = world.client()
    assert world.ask("PUT", f"{TEAM}/apple", client, body=b"an apple")[0] == 201
    for number in range(3):
        assert world.ask("GET", f"{TEAM}/apple", client, at=world.envoy(number)) == (
            200,
            b"an apple",
        )
    other = world.client(OTHERS)
    assert world.ask("GET", f"{TEAM}/apple", other)[0] == 403
