"""Object names through a real Envoy, byte for byte: each spelling is its own object."""

import socket

import cluster_harness as harness
import pytest

NAMES = [
    b"100%.jpg", b"what?1.jpg", b"what?2.jpg", b"what", b"a+b;c=d", b"(x)[y]{z}", b"a//b", b"a/b",
    b"//", b"/", b"..", b"../x", b"x/../y", b"y", b"./y", b"%2e%2e/y", b"..%2f..%2fetc/passwd", b"%2F", b"%2f",
    b"%5C", b"\\", b"a\\b", b"%00", b"%zz", b"%", b"a|b", b"'\"`", b"s3://ozone/bkt/a//b.zip/pfio-zipfs/x",
    b"file://tmp/100%.jpg", b"http://x/v1/objects/public/y", b"?", b"??", b"?a=b&c=d", b"n" * 4096, b"/" * 4096,
]  # fmt: skip


def test_every_name_is_its_own_object(cluster):
    targets = [b"/v1/objects/public/" + name for name in NAMES]
    bodies = [b"I am " + name[:80] + b" %d" % len(name) for name in NAMES]
    puts = [harness.request(b"PUT", t, b) for t, b in zip(targets, bodies, strict=True)]
    assert [status for status, _ in harness.pipelined(cluster.port, puts)] == [201] * len(NAMES)
    gets = [harness.request(b"GET", target) for target in targets]
    assert harness.pipelined(cluster.port, gets) == [(200, body) for body in bodies]
    table = harness.placement_of(cluster)
    assert [harness.holders(cluster, t) for t in targets] == [[table.owner(t)] for t in targets]
    gone = [harness.request(b"DELETE", target) for target in targets]
    assert [status for status, _ in harness.pipelined(cluster.port, gone)] == [204] * len(NAMES)


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/objects/public/a b", b"/v1/objects/public/caf\xc3\xa9", b"/v1/objects/public/x#y",
        b"/v1/objects/public/\x01", b"/v1/objects/public/\x7f", b"/v1/objects/public/",
        b"/v1/objects/UPPER/x", b"/v1/objects/a/x", b"/v1/objects/-ab/x", b"/v1/objects/public",
        b"/v1/objects/" + b"b" * 64 + b"/x", b"/v1/objects//x", b"/v1/objects/a%2Fb/x",
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_is_a_400(cluster, target):
    for port in (cluster.port, cluster.announced["node-1"]["listen"][0][1]):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(harness.request(b"GET", target))
            assert sock.makefile("rb").readline().split()[1] == b"400"


def test_a_name_of_4097_bytes_is_a_414(cluster):
    wanted = [harness.request(b"GET", b"/v1/objects/public/" + b"n" * 4097)]
    assert harness.pipelined(cluster.port, wanted)[0][0] == 414


@pytest.mark.parametrize(
    "target",
    [b"/", b"/etc/passwd", b"/v1/objects", b"/v1/../v1/objects/public/x", b"//v1/objects/public/x"],
)
def test_other_paths_are_404(cluster, target):
    for port in (cluster.port, cluster.announced["node-1"]["listen"][0][1]):
        assert harness.pipelined(port, [harness.request(b"GET", target)])[0][0] == 404
