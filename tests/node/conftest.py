"""Fixtures of the tests with a real node."""

import pytest
from harness import Node


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """A node that many tests share: they use names of their own and leave it running."""
    node = Node(tmp_path_factory.mktemp("shared-node"), flags=("--max-object-size", "16Mi"))
    try:
        yield node.start()
        assert node.stop() == 0
    finally:
        node.close()
    assert not node.temporary_files()
    assert "Traceback" not in node.text_of_log()


@pytest.fixture
def make_node(tmp_path):
    """Nodes of a test's own; ``make_node(...)`` is not started yet."""
    nodes = []

    def make(where="node", **options):
        node = Node(tmp_path / where, **options)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def name(request):
    """An object name of this test alone."""
    return request.node.name.replace(" ", "-").encode("ascii", "backslashreplace").hex()[:2000]
