"""The endpoints file: its form, its errors, and how a change of it is noticed."""

import asyncio
import json
import logging

import pytest

from simplecache.control.endpoints import FileSource
from simplecache.control.shards import Shard, parse_endpoints, published_order
from simplecache.errors import InvalidConfig

NODE = {"Name": "node-1", "Zone": "zone-a", "Address": "127.0.0.1", "Ports": [18081, 18082]}


def test_port_i_is_shard_i():
    assert parse_endpoints({"Nodes": [NODE | {"Weight": 3}]}) == {
        Shard("node-1/0", "zone-a", "127.0.0.1", 18081, 3),
        Shard("node-1/1", "zone-a", "127.0.0.1", 18082, 3),
    }
    (shard,) = parse_endpoints({"Nodes": [{"Name": "n", "Address": "2001:DB8::1", "Ports": [1]}]})
    assert (shard.zone, shard.weight, shard.address) == ("", 1, "2001:db8::1")
    assert str(shard) == "n/0 at [2001:db8::1]:1"
    assert parse_endpoints({"Nodes": []}) == frozenset()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Weigth": 2}, r"Nodes\[0\]: unknown key 'Weigth'; known: Name, Zone"),
        ({"Name": None}, r"Nodes\[0\].Name: None is not valid"),
        ({"Name": "a/b"}, "'a/b'"),
        ({"Name": ""}, "''"),
        ({"Zone": 7}, r"Nodes\[0\].Zone: 7"),
        ({"Address": "localhost"}, r"Nodes\[0\].Address: 'localhost' must be an IP address"),
        ({"Address": 1}, "Address: 1 must be"),
        ({"Ports": []}, r"Ports: \[\] must be a list"),
        ({"Ports": 80}, "Ports: 80"),
        ({"Ports": [0]}, r"Ports\[0\]: 0 must be a whole number from 1 to 65535"),
        ({"Ports": [True]}, r"Ports\[0\]: True"),
        ({"Ports": [80, 80]}, "node-1/1 at 127.0.0.1:80 has the endpoint of node-1/0"),
        ({"Weight": 0}, "Weight: 0"),
        ({"Weight": 1.5}, "Weight: 1.5"),
        ({"Weight": 70_000}, "Weight: 70000"),
    ],
)
def test_an_error_names_key_and_value(change, text):
    with pytest.raises(InvalidConfig, match=text):
        parse_endpoints({"Nodes": [NODE | change]})


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], r"endpoints: expected an object, not \[\]"),
        ({}, "endpoints: Nodes is missing"),
        ({"Nodes": {}}, "Nodes: expected a list"),
        ({"Nodes": ["x"]}, r"Nodes\[0\]: expected an object, not 'x'"),
        ({"Nodes": [], "Node": []}, "unknown key 'Node'"),
        ({"Nodes": [NODE, NODE | {"Address": "10.0.0.1"}]}, r"Nodes\[1\].Name: 'node-1' is there"),
        ({"Nodes": [NODE, NODE | {"Name": "b"}]}, "has the endpoint of node-1/0"),
        ({"Nodes": [{"Name": "a", "Ports": [1]}]}, "Address is missing"),
    ],
)
def test_a_document_that_is_wrong_as_a_whole(document, text):
    with pytest.raises(InvalidConfig, match=text):
        parse_endpoints(document)


def test_the_published_order_is_by_zone_then_name():
    shards = [Shard(n, z, "10.0.0.1", 1) for n, z in (("a/0", "z2"), ("b/1", "z1"), ("b/0", "z1"))]
    assert [shard.name for shard in published_order(shards)] == ["b/0", "b/1", "a/0"]


def document(*ports):
    return json.dumps({"Nodes": [NODE | {"Ports": list(ports)}]})


async def follow(path, act):
    """Start a source on ``path``, do ``act``, and return the next listing's ports."""
    source = FileSource(path, poll_interval_s=0.01)
    await source.relist()
    changes = source.changes()
    following = asyncio.ensure_future(anext(changes))
    try:
        await act()
        async with asyncio.timeout(10):
            return sorted(shard.port for shard in await following)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await changes.aclose()


def test_a_file_is_followed_through_rewrites_and_the_swap_of_a_link(tmp_path):
    path = tmp_path / "endpoints.json"
    path.write_text(document(1))

    async def rewrite():
        (tmp_path / "draft").write_text(document(2, 3))
        (tmp_path / "draft").replace(path)

    assert asyncio.run(follow(path, rewrite)) == [2, 3]

    # As a ConfigMap is mounted: file -> ..data/file, and ..data is swapped.
    for name, port in (("v1", 1), ("v2", 9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "e.json").write_text(document(port))
    data, link = tmp_path / "..data", tmp_path / "e.json"
    data.symlink_to("v1")
    link.symlink_to("..data/e.json")

    async def swap():
        (tmp_path / "new").symlink_to("v2")
        (tmp_path / "new").replace(data)

    assert asyncio.run(follow(link, swap)) == [9]


def test_a_broken_or_missing_file_is_logged_once_and_changes_nothing(tmp_path, caplog):
    path = tmp_path / "endpoints.yaml"
    path.write_text("Nodes: [{Name: n, Address: 127.0.0.1, Ports: [1]}]")

    def swap_in(content):
        draft = tmp_path / "draft"
        draft.write_text(content)
        draft.replace(path)

    async def breaks():
        for count, content in enumerate(("Nodes: [", None, "Nodes: [{Name: n}]"), start=1):
            path.unlink() if content is None else swap_in(content)
            async with asyncio.timeout(10):
                while len(caplog.records) < count:
                    await asyncio.sleep(0.01)
            for _ in range(5):
                await asyncio.sleep(0.01)
        swap_in("Nodes: [{Name: n, Address: 127.0.0.1, Ports: [7]}]")

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(follow(path, breaks)) == [7]
    assert len(caplog.records) == 3
    assert "Address is missing" in caplog.text
    assert str(path) in caplog.text
    assert repr(FileSource(path)) == f"<FileSource {path}>"


def test_a_file_that_cannot_be_read_at_start_is_an_error(tmp_path):
    with pytest.raises(InvalidConfig, match="No such file"):
        asyncio.run(FileSource(tmp_path / "absent.json").relist())
