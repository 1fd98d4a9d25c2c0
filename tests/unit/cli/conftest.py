import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "client"))

import peers


@pytest.fixture
def node(monkeypatch):
    """A cache that the commands find by SCS_URL."""
    fake = peers.FakeNode()
    monkeypatch.setenv("SCS_URL", fake.url)
    monkeypatch.delenv("SCS_TOKEN_FILE", raising=False)
    yield fake
    fake.close()


@pytest.fixture
def scripted(monkeypatch):
    """Makes a server that lies; the commands find it by SCS_URL."""
    servers = []

    def make(*plays):
        servers.append(peers.Scripted(*plays))
        monkeypatch.setenv("SCS_URL", servers[-1].url)
        return servers[-1]

    yield make
    for server in servers:
        server.__exit__()
