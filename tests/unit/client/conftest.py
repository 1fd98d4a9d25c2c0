import peers
import pytest


@pytest.fixture
def scripted():
    """Makes scripted servers; what goes wrong in a script fails the test."""
    servers = []

    def make(*plays):
        servers.append(peers.Scripted(*plays))
        return servers[-1]

    yield make
    for server in servers:
        server.__exit__()
    assert [error for server in servers for error in server.errors] == []


@pytest.fixture
def node():
    fake = peers.FakeNode()
    yield fake
    fake.close()
