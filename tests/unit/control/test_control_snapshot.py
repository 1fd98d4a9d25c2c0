"""What is sent: the rules that resources keep, and versions that are content."""

import json

import pytest
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse

from simplecache.control.ads import decode_request, encode_response
from simplecache.control.bootstrap import make_bootstrap
from simplecache.control.resources import make_cluster, make_load_assignment, make_routes
from simplecache.control.session import Request, Response
from simplecache.control.shards import Shard
from simplecache.control.snapshot import CDS, EDS, LDS, RDS, TYPES, make_snapshot
from simplecache.errors import InvalidConfig

SHARDS = frozenset(Shard(f"n{i}/0", f"z{i % 2}", "10.0.0.1", 80 + i, i + 1) for i in range(5))


def snapshot(shards=SHARDS, **options):
    return make_snapshot(shards, **{"lb": "maglev", "envoy_listen": ("0.0.0.0", 80)} | options)


def versions(made):
    return {kind: made.sets[kind].version for kind in TYPES}


def changed(one, other):
    return [kind for kind in TYPES if one.sets[kind].version != other.sets[kind].version]


def test_a_version_changes_with_its_content_and_with_nothing_else():
    first = snapshot()
    assert versions(snapshot(frozenset(sorted(SHARDS, key=str)))) == versions(first)
    fewer = snapshot(frozenset(list(SHARDS)[1:]))
    assert changed(first, fewer) == [EDS]
    assert fewer.version != first.version
    assert changed(first, snapshot(table_size=9973)) == [CDS]
    assert changed(first, snapshot(lb="ring_hash")) == [CDS]
    assert changed(first, snapshot(envoy_listen=("0.0.0.0", 81))) == [LDS]
    # The table's size goes by what is listed, so that a shard that is down does not change it.
    assert changed(first, snapshot(listed=655)) == []
    assert changed(first, snapshot(listed=656)) == [CDS]


def test_an_encoded_response_is_a_whole_message_with_its_nonce():
    made = snapshot()
    for kind in TYPES:
        resources = made.sets[kind]
        response = Response(kind, resources.version, "7", resources.response)
        message = DiscoveryResponse.FromString(encode_response(response))
        assert (message.nonce, message.type_url, len(message.resources)) == ("7", kind, 1)
        assert message.version_info == resources.version
        assert message.resources[0].type_url == kind
    assignment = ClusterLoadAssignment()
    body = DiscoveryResponse.FromString(made.sets[EDS].response)
    body.resources[0].Unpack(assignment)
    assert [group.locality.zone for group in assignment.endpoints] == ["z0", "z1"]
    assert "of 5 shards" in repr(made)
    assert [made.sets[kind].name for kind in (CDS, EDS, LDS, RDS)] == ["scs", "scs", "data", "scs"]


def test_localities_bear_no_weight_and_every_endpoint_its_hash_key():
    for group in make_load_assignment(SHARDS)["endpoints"]:
        assert set(group) == {"locality", "lb_endpoints"}
        for endpoint in group["lb_endpoints"]:
            key = endpoint["metadata"]["filter_metadata"]["envoy.lb"]["hash_key"]
            assert key == endpoint["endpoint"]["hostname"]
            assert endpoint["load_balancing_weight"] == int(key[1]) + 1


def test_only_reads_are_retried_and_no_body_has_a_deadline():
    routes = {route["name"]: route for route in make_routes()["virtual_hosts"][0]["routes"]}
    assert "retry_policy" in routes["read"]["route"]
    assert "retry_policy" not in routes["write"]["route"]
    for name in ("read", "write"):
        assert routes[name]["route"]["timeout"] == "0s"
        assert routes[name]["route"]["hash_policy"] == [
            {"header": {"header_name": ":path"}, "terminal": True}
        ]
    assert json.loads(routes["other"]["direct_response"]["body"]["inline_string"])["status"] == 404


def test_panic_is_off_and_the_size_is_the_tables_or_the_rings():
    for lb, key in (("maglev", "table_size"), ("ring_hash", "minimum_ring_size")):
        cluster = make_cluster(lb, 997)
        assert cluster["common_lb_config"]["healthy_panic_threshold"] == {"value": 0}
        (policy,) = cluster["load_balancing_policy"]["policies"]
        assert policy["typed_extension_config"]["typed_config"][key] == 997


def test_the_directory_lists_shards_in_the_published_order():
    directory = json.loads(snapshot().directory)
    assert set(directory) == {"version", "lb", "table_size", "shards"}
    assert [shard["name"] for shard in directory["shards"]] == [
        "n0/0", "n2/0", "n4/0", "n1/0", "n3/0",
    ]  # fmt: skip
    assert directory["shards"][0] == {
        "name": "n0/0", "zone": "z0", "address": "10.0.0.1", "port": 80, "weight": 1,
    }  # fmt: skip


def test_a_request_is_decoded_with_its_error_trimmed():
    from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest

    message = DiscoveryRequest(
        type_url=CDS, version_info="1", response_nonce="2", resource_names=["a"]
    )
    assert decode_request(message) == Request(CDS, "1", "2", ("a",))
    message.error_detail.message = "x" * 9999
    assert decode_request(message).error == "x" * 500


@pytest.mark.parametrize(("host", "kind"), [("10.0.0.1", "STATIC"), ("xds.svc", "STRICT_DNS")])
def test_the_bootstrap_resolves_names_only(host, kind):
    made = make_bootstrap(xds=(host, 1), node_id="n", admin_path="/run/a.sock")
    assert made["static_resources"]["clusters"][0]["type"] == kind
    assert made["admin"]["address"]["pipe"] == {"path": "/run/a.sock", "mode": 0o600}


def test_a_socket_path_that_is_too_long_is_named():
    with pytest.raises(InvalidConfig, match="107 bytes"):
        make_bootstrap(xds=("x", 1), node_id="n", admin_path="/" + "a" * 107)
