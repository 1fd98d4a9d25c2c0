"""Fixtures of the tests of the wire."""

import pytest
from wire_harness import World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "shard")
    yield world
    world.close()


@pytest.fixture
def make_world(tmp_path):
    worlds = []

    def make(**limits):
        worlds.append(World(tmp_path / f"shard-{len(worlds)}", **limits))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture(scope="module")
def lasting_world(tmp_path_factory):
    """One world for many examples."""
    world = World(tmp_path_factory.mktemp("lasting") / "shard")
    yield world
    world.close()
