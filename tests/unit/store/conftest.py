"""Fixtures of the store's tests."""

import pytest
from store_harness import Stores


@pytest.fixture
def stores():
    stores = Stores()
    yield stores
    stores.shut_down()


@pytest.fixture
def store(stores, tmp_path):
    return stores.open(tmp_path / "shard")
