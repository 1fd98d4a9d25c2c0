"""Request lines: what they ask for, and what they are not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplecache.model import Key
from simplecache.server.route import PLAIN_GET, Route, route
from simplecache.server.wire import ProtocolError, Refusal

VISIBLE = bytes(byte for byte in range(0x21, 0x7F) if byte != 0x23)
names = st.lists(st.sampled_from(VISIBLE), min_size=1, max_size=100).map(bytes)


def refuse(line, status, word, kind=Refusal):
    with pytest.raises(kind) as caught:
        route(line)
    assert (caught.value.status, caught.value.word) == (status, word)
    assert isinstance(caught.value, ProtocolError) == (kind is ProtocolError)


@settings(deadline=None)
@given(st.sampled_from([b"GET", b"HEAD", b"PUT", b"DELETE"]), names, st.booleans())
def test_an_object(verb, name, is_old):
    version = b"HTTP/1.0" if is_old else b"HTTP/1.1"
    for prefix in (b"", b"http://cache", b"HTTPS://cache:80"):
        line = b"%b %b/v1/objects/bkt/%b %b" % (verb, prefix, name, version)
        assert route(line) == Route(verb, Key("bkt", name), is_old)


@settings(deadline=None)
@given(names)
def test_the_pattern_of_the_hot_way_says_the_same(name):
    line = b"GET /v1/objects/bkt/%b HTTP/1.1" % name
    match = PLAIN_GET.match(line + b"\r\n")
    assert Key.from_target(match[1]) == route(line).key
    assert match[2] == b"bkt"


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_what_the_hot_way_takes_the_other_takes_too(noise):
    line = b"GET /v1/objects/%b HTTP/1.1" % noise
    match = PLAIN_GET.match(line + b"\r\n")
    if match is not None:
        taken = match[0][:-2]
        assert route(taken) == Route(b"GET", Key.from_target(match[1]), False)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_noise_is_refused(noise):
    with pytest.raises(Refusal):
        route(noise)


@pytest.mark.parametrize("verb", [b"GET", b"HEAD"])
def test_readiness(verb):
    assert route(verb + b" /readyz HTTP/1.1") == Route(verb, None, False)
    refuse(b"PUT /readyz HTTP/1.1", 404, "no-route")
    refuse(b"GET /readyz?x HTTP/1.1", 404, "no-route")


@pytest.mark.parametrize(
    "verb", [b"POST", b"PATCH", b"OPTIONS", b"get", b"X" * 32, b"!#$%&'*+-.^_`|~"]
)
def test_other_methods(verb):
    refuse(verb + b" /v1/objects/bkt/x HTTP/1.1", 405, "method")


@pytest.mark.parametrize(
    "line",
    [b"", b"GET", b"GET /", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1",
     b"G(T / HTTP/1.1", b"X" * 33 + b" / HTTP/1.1", b"GET / HTTP/1.1\r", b"GET / http/1.1",
     b"GET / HTTP/1", b"GET / HTTP/1.10", b"GET / HTTP/ 1.1", b"GET /v1/objects/bkt/a b HTTP/1.1"],
)  # fmt: skip
def test_what_is_no_request_line(line):
    refuse(line, 400, "malformed", ProtocolError)


@pytest.mark.parametrize("version", [b"0.9", b"1.2", b"2.0", b"3.0"])
def test_other_versions(version):
    refuse(b"GET /v1/objects/bkt/x HTTP/" + version, 505, "version", ProtocolError)


@pytest.mark.parametrize(
    "target", [b"/", b"*", b"x", b"http://cache", b"http:///v1/objects/bkt/x", b"//x"]
)
def test_other_paths(target):
    refuse(b"GET %b HTTP/1.1" % target, 404, "no-route")


@pytest.mark.parametrize(
    ("target", "status", "word"),
    [
        (b"/v1/objects/bkt/" + b"a" * 4097, 414, "too-large"),
        (b"/v1/objects/bkt/", 400, "malformed"),
        (b"/v1/objects/bkt", 400, "malformed"),
        (b"/v1/objects/B/x", 400, "malformed"),
        (b"/v1/objects/bkt/a#b", 400, "malformed"),
        (b"/v1/objects/bkt/\xc3\xa9", 400, "malformed"),
        (b"/v1/objects/" + b"a" * 5000 + b"/x", 400, "malformed"),
    ],
)
def test_illegal_names(target, status, word):
    refuse(b"GET %b HTTP/1.1" % target, status, word)
