"""Who may: the whole table, and the sentences."""

import asyncio
import itertools

import pytest

from simplecache.config import Bucket, parse_tokens
from simplecache.errors import Unauthenticated
from simplecache.model import ANONYMOUS, Caller
from simplecache.server.authenticate import OpenAuthenticator, StaticAuthenticator, bearer_token
from simplecache.server.authorise import authorise, is_read, needs_caller

PUBLIC = Bucket("public", True, None, (), None)
GUARDED = Bucket("guarded", True, None, (), ("a",))
CLOSED = Bucket("closed", True, None, (), ())
PRIVATE = Bucket("private", False, None, ("a", "b"), ("a",))
BUCKETS = (PUBLIC, GUARDED, CLOSED, PRIVATE)
CALLERS = (None, ANONYMOUS, Caller("a"), Caller("b"), Caller("c", "pod"))

MAY_READ = {bucket.name: set(CALLERS) for bucket in (PUBLIC, GUARDED, CLOSED)}
MAY_READ["private"] = {Caller("a"), Caller("b")}
MAY_WRITE = {
    "public": set(CALLERS), "guarded": {Caller("a")}, "closed": set(), "private": {Caller("a")},
}  # fmt: skip


@pytest.mark.parametrize(("bucket", "caller"), list(itertools.product(BUCKETS, CALLERS)))
@pytest.mark.parametrize("reads", [True, False])
def test_the_whole_table(bucket, caller, reads):
    verdict = authorise(bucket, caller, reads=reads)
    table = MAY_READ if reads else MAY_WRITE
    assert verdict.allowed == (caller in table[bucket.name])
    assert verdict.reason
    is_nobody = caller is None or caller.namespace is None
    assert verdict.needs_token == (not verdict.allowed and is_nobody)
    if not needs_caller(bucket, reads=reads):
        assert verdict.allowed


def test_the_sentences():
    reason = authorise(PRIVATE, Caller("c"), reads=True).reason
    assert reason == 'namespace "c" may not read bucket "private" (ReadNamespaces: a, b)'
    reason = authorise(CLOSED, Caller("c"), reads=False).reason
    assert reason == 'namespace "c" may not write bucket "closed" (WriteNamespaces: none)'
    assert "send a bearer token" in authorise(PRIVATE, None, reads=True).reason
    assert (
        authorise(PRIVATE, Caller("a"), reads=False).reason == 'namespace "a" is in WriteNamespaces'
    )


def test_which_verbs_read():
    assert [is_read(verb) for verb in (b"GET", b"HEAD", b"PUT", b"DELETE")] == [
        True,
        True,
        False,
        False,
    ]


class TestTokens:
    @pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER   "])
    def test_a_bearer_token(self, scheme):
        assert bearer_token(scheme + b"abc.def") == b"abc.def"

    @pytest.mark.parametrize(
        "field", [b"", b"Bearer", b"Bearer ", b"Bearer  ", b"Basic abc", b"abc"]
    )
    def test_what_is_none(self, field):
        with pytest.raises(Unauthenticated):
            bearer_token(field)

    def test_static(self):
        token = "a-token-that-is-long"
        tokens = parse_tokens({"Token": [{"Token": token, "Namespace": "a"}]})
        authenticator = StaticAuthenticator(tokens)
        good = b"Bearer " + token.encode()
        assert authenticator.known(good) == Caller("a")
        assert authenticator.known(b"Bearer other") is None
        assert authenticator.known(b"nonsense") is None
        assert asyncio.run(authenticator.authenticate(good)) == Caller("a")
        assert asyncio.run(authenticator.authenticate(None)) is None
        for bad in (b"Bearer other", b"nonsense", b""):
            with pytest.raises(Unauthenticated) as caught:
                asyncio.run(authenticator.authenticate(bad))
            assert "other" not in str(caught.value)

    def test_mode_none(self):
        authenticator = OpenAuthenticator()
        assert authenticator.known(b"x") == ANONYMOUS
        assert asyncio.run(authenticator.authenticate(None)) == ANONYMOUS
