"""docs/behaviour.md, line by line, against a real node."""

import base64
import hashlib
import json
from email.utils import parsedate_to_datetime

import pytest
from harness import TOKEN_A, TOKEN_B, Wire, make_chunks, make_head, make_name, noise

KIB, MIB = 1 << 10, 1 << 20
SIZES = (
    0, 1, 4 * KIB, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 300 * KIB, 700 * KIB,
    MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 7,
)  # fmt: skip


@pytest.fixture
def wire(node):
    with Wire(node.addresses[0]) as wire:
        yield wire


class TestPutAndGet:
    def test_a_new_object_is_201_and_comes_back(self, node, name):
        put = node.put(name, b"an apple")
        assert (put.status, put.body) == (201, b"")
        got = node.get(name)
        assert (got.status, got.body) == (200, b"an apple")

    def test_a_replaced_object_is_201_too(self, wire, name):
        for body in (b"old", b"new and longer", b""):
            assert wire.request("PUT", make_name(name), body=body).status == 201
            assert wire.request("GET", make_name(name)).body == body

    def test_the_fields_of_an_answer(self, wire, name):
        put = wire.request("PUT", make_name(name), body=b"x" * 10)
        fields = wire.request("GET", make_name(name)).fields
        assert fields["content-length"] == "10"
        assert fields["content-type"] == "application/octet-stream"
        assert fields["accept-ranges"] == "bytes"
        assert fields["etag"] == put.fields["etag"]
        assert fields["etag"].startswith('"')
        modified = parsedate_to_datetime(fields["last-modified"])
        assert abs((parsedate_to_datetime(fields["date"]) - modified).total_seconds()) < 30
        assert "connection" not in fields
        assert "content-encoding" not in fields

    def test_equal_bytes_have_equal_etags(self, wire, name):
        etags = [
            wire.request("PUT", make_name(f"{name}-{i}"), body=body).fields["etag"]
            for i, body in enumerate((b"same", b"same", b"other"))
        ]
        assert etags[0] == etags[1] != etags[2]

    @pytest.mark.parametrize("size", SIZES)
    def test_every_size_whole_and_chunked(self, wire, name, size):
        body = noise(size, seed=size)
        target = make_name(name)
        put = wire.request("PUT", target, body=body)
        assert put.status == 201
        assert wire.request("GET", target).body == body
        head = wire.request("HEAD", target)
        assert (head.status, head.fields["content-length"]) == (200, str(size))
        wire.send(make_head("PUT", target, "Transfer-Encoding: chunked"), make_chunks(body, 70_000))
        again = wire.response()
        assert (again.status, again.fields["etag"]) == (201, put.fields["etag"])
        assert wire.request("GET", target).body == body

    @pytest.mark.parametrize("size", SIZES[1:])
    def test_ranges_of_every_size(self, wire, name, size):
        body = noise(size, seed=size)
        target = make_name(name)
        assert wire.request("PUT", target, body=body).status == 201
        spans = {(0, 0), (0, size - 1), (size - 1, size - 1), (size // 3, size // 2)}
        for edge in (256 * KIB, MIB, 2 * MIB):
            spans |= {(edge - 1, edge), (edge, edge), (edge - 2, size - 1), (1, edge)}
        for first, last in sorted(spans):
            if not 0 <= first <= last or first >= size:
                continue
            got = wire.request("GET", target, f"Range: bytes={first}-{last}")
            assert got.status == 206
            assert got.body == body[first : last + 1]
            assert got.fields["content-range"] == f"bytes {first}-{min(last, size - 1)}/{size}"

    def test_chunked_extensions_and_trailers_are_ignored(self, wire, name):
        wire.send(
            make_head("PUT", make_name(name), "Transfer-Encoding: chunked", "Trailer: X-Sum"),
            make_chunks(b"0123456789", 3, b';a="b"', b"X-Sum: 1\r\nX-Other: 2\r\n"),
        )
        assert wire.response().status == 201
        got = wire.request("GET", make_name(name))
        assert got.body == b"0123456789"
        assert "x-sum" not in got.fields

    def test_type_and_encoding_are_kept(self, wire, name):
        fields = ("Content-Type: image/png; a=b", "Content-Encoding: zstd")
        assert wire.request("PUT", make_name(name), *fields, body=b"x").status == 201
        for verb in ("GET", "HEAD"):
            got = wire.request(verb, make_name(name))
            assert got.fields["content-type"] == "image/png; a=b"
            assert got.fields["content-encoding"] == "zstd"

    @pytest.mark.parametrize(("field", "limit"), [("Content-Type", 256), ("Content-Encoding", 64)])
    def test_kept_fields_are_bounded(self, wire, name, field, limit):
        assert (
            wire.request("PUT", make_name(name), f"{field}: {'a' * limit}", body=b"").status == 201
        )
        assert wire.request("GET", make_name(name)).fields[field.lower()] == "a" * limit
        long = wire.request("PUT", make_name(name), f"{field}: {'a' * (limit + 1)}", body=b"")
        assert (long.status, long.word) == (400, "malformed")

    def test_there_are_no_partial_puts(self, wire, name):
        got = wire.request("PUT", make_name(name), "Content-Range: bytes 0-1/10", body=b"xx")
        assert (got.status, got.word) == (400, "malformed")
        assert wire.request("GET", make_name(name)).status == 404

    def test_a_put_says_its_length(self, wire, name):
        got = wire.request("PUT", make_name(name))
        assert (got.status, got.word) == (411, "length-required")
        assert wire.request("GET", make_name(name)).status == 404

    def test_delete_is_204_once(self, wire, name):
        wire.request("PUT", make_name(name), body=b"x")
        first = wire.request("DELETE", make_name(name))
        assert (first.status, first.body) == (204, b"")
        assert "content-length" not in first.fields
        assert wire.request("GET", make_name(name)).status == 404
        second = wire.request("DELETE", make_name(name))
        assert (second.status, second.word) == (404, "miss")

    def test_head_is_get_without_a_body(self, wire, name):
        wire.request("PUT", make_name(name), "Content-Type: a/b", body=noise(5000))
        got, head = (wire.request(verb, make_name(name)) for verb in ("GET", "HEAD"))
        assert head.status == 200
        assert {**head.fields, "date": ""} == {**got.fields, "date": ""}
        ranged = wire.request("HEAD", make_name(name), "Range: bytes=0-0")
        assert (ranged.status, ranged.fields["content-length"]) == (200, "5000")
        missing = wire.request("HEAD", make_name(name + "-not"))
        assert (missing.status, missing.word) == (404, "miss")

    @pytest.mark.parametrize(
        "verb", ["POST", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "BREW", "X-~!#"]
    )
    def test_other_methods_are_405(self, wire, name, verb):
        got = wire.request(verb, make_name(name), body=b"abc")
        assert (got.status, got.word) == (405, "method")
        assert got.fields["allow"] == "GET, HEAD, PUT, DELETE"
        assert wire.request("GET", make_name(name)).status == 404


class TestDigests:
    BODY = noise(2 * MIB + 5, seed=9)

    def digest(self, algorithm, body=None):
        text = base64.b64encode(hashlib.new(algorithm, body or self.BODY).digest()).decode()
        named = {"sha256": "sha-256", "sha512": "sha-512", "md5": "md5"}[algorithm]
        return f"{named}=:{text}:"

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512", "md5"])
    def test_content_digest_is_checked(self, wire, name, algorithm):
        good = f"Content-Digest: {self.digest(algorithm)}"
        assert wire.request("PUT", make_name(name), good, body=self.BODY).status == 201
        for other in (self.BODY[:-1] + b"!", b"", b"small"):
            wrong = wire.request("PUT", make_name(name), good, body=other)
            assert (wrong.status, wrong.word) == (400, "digest")
            assert wire.request("GET", make_name(name)).body == self.BODY

    def test_content_md5_is_checked(self, wire, name):
        text = base64.b64encode(hashlib.md5(b"abc").digest()).decode()
        field = f"Content-MD5: {text}"
        wrong = wire.request("PUT", make_name(name), field, body=b"abd")
        assert (wrong.status, wrong.word) == (400, "digest")
        assert wire.request("GET", make_name(name)).status == 404
        assert wire.request("PUT", make_name(name), field, body=b"abc").status == 201

    def test_each_of_several_is_checked(self, wire, name):
        field = f"Content-Digest: {self.digest('sha256', b'abc')}, {self.digest('md5', b'abd')}"
        assert wire.request("PUT", make_name(name), field, body=b"abc").word == "digest"

    def test_other_algorithms_are_ignored(self, wire, name):
        field = f"Content-Digest: crc32c=:AAAAAA==:, {self.digest('sha256', b'abc')}"
        assert wire.request("PUT", make_name(name), field, body=b"abc").status == 201

    @pytest.mark.parametrize(
        "field",
        [
            "Content-Digest: sha-256=abc",
            "Content-Digest: sha-256=:!!!!:",
            "Content-Digest: sha-256=:AAAA:",
            "Content-Digest: nonsense",
            "Content-MD5: short",
            "Content-MD5: AAAA",
        ],
    )
    def test_malformed_digests_are_refused(self, wire, name, field):
        got = wire.request("PUT", make_name(name), field, body=b"abc")
        assert (got.status, got.word) == (400, "malformed")
        assert wire.request("GET", make_name(name)).status == 404


class TestConditions:
    def test_put_if_it_is_not_there(self, wire, name):
        condition = "If-None-Match: *"
        assert wire.request("PUT", make_name(name), condition, body=b"first").status == 201
        second = wire.request("PUT", make_name(name), condition, body=b"second")
        assert (second.status, second.word) == (412, "precondition")
        assert wire.request("GET", make_name(name)).body == b"first"

    def test_put_if_it_is_there(self, wire, name):
        missing = wire.request("PUT", make_name(name), "If-Match: *", body=b"x")
        assert (missing.status, missing.word) == (412, "precondition")
        etag = wire.request("PUT", make_name(name), body=b"first").fields["etag"]
        assert wire.request("PUT", make_name(name), "If-Match: *", body=b"second").status == 201
        stale = wire.request("PUT", make_name(name), f"If-Match: {etag}", body=b"third")
        assert (stale.status, stale.word) == (412, "precondition")
        etag = wire.request("HEAD", make_name(name)).fields["etag"]
        several = f'If-Match: "not-ours", {etag}'
        assert wire.request("PUT", make_name(name), several, body=b"third").status == 201
        assert wire.request("GET", make_name(name)).body == b"third"

    @pytest.mark.parametrize("shape", ["W/{}", '"zz"', "{upper}", '"{inner} "'])
    def test_put_with_an_etag_that_is_not_exactly_ours(self, wire, name, shape):
        etag = wire.request("PUT", make_name(name), body=b"a").fields["etag"]
        upper = etag.upper()
        assert upper != etag
        field = "If-Match: " + shape.format(etag, upper=upper, inner=etag.strip('"'))
        assert wire.request("PUT", make_name(name), field, body=b"b").status == 412
        assert wire.request("GET", make_name(name), field).status == 412

    @pytest.mark.parametrize("field", ['If-None-Match: "abc"', "If-Match: abc"])
    def test_conditions_that_mean_nothing_on_a_put(self, wire, name, field):
        got = wire.request("PUT", make_name(name), field, body=b"x")
        assert (got.status, got.word) == (400, "malformed")

    def test_get_if_it_changed(self, wire, name):
        etag = wire.request("PUT", make_name(name), body=b"x").fields["etag"]
        for value in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            for verb in ("GET", "HEAD"):
                got = wire.request(verb, make_name(name), f"If-None-Match: {value}")
                assert (got.status, got.body) == (304, b"")
                assert got.fields["etag"] == etag
        assert wire.request("GET", make_name(name), 'If-None-Match: "other"').status == 200
        assert wire.request("GET", make_name(name + "-not"), "If-None-Match: *").status == 404

    def test_get_if_it_is_still_the_same(self, wire, name):
        etag = wire.request("PUT", make_name(name), body=b"x").fields["etag"]
        assert wire.request("GET", make_name(name), f"If-Match: {etag}").status == 200
        assert wire.request("GET", make_name(name), "If-Match: *").status == 200
        got = wire.request("GET", make_name(name), 'If-Match: "other"')
        assert (got.status, got.word) == (412, "precondition")


class TestRanges:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("bytes=0-3", b"0123"),
            ("bytes=4-", b"456789"),
            ("bytes=-3", b"789"),
            ("bytes=-100", b"0123456789"),
            ("bytes=9-100", b"9"),
            ("bytes=0-0", b"0"),
        ],
    )
    def test_a_part(self, wire, name, value, expected):
        wire.request("PUT", make_name(name), body=b"0123456789")
        got = wire.request("GET", make_name(name), f"Range: {value}")
        assert (got.status, got.body) == (206, expected)
        start = b"0123456789".index(expected)
        wanted = f"bytes {start}-{start + len(expected) - 1}/10"
        assert got.fields["content-range"] == wanted
        assert got.fields["content-length"] == str(len(expected))

    @pytest.mark.parametrize(
        "value",
        ["bytes=0-1,3-4", "bytes=5-4", "bytes=", "bytes=-", "bytes=a-b", "lines=1-2", "bytes 0-1",
         "bytes=0-99999999999999999999999999", "bytes=+1-2", "bytes=1--2", "", "bytes=0x0-0x1"],
    )  # fmt: skip
    def test_what_is_no_single_range_of_bytes_is_ignored(self, wire, name, value):
        wire.request("PUT", make_name(name), body=b"0123456789")
        got = wire.request("GET", make_name(name), f"Range: {value}")
        assert (got.status, got.body) == (200, b"0123456789")

    @pytest.mark.parametrize("value", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=999999-"])
    def test_nothing_in_reach_is_416(self, wire, name, value):
        wire.request("PUT", make_name(name), body=b"0123456789")
        got = wire.request("GET", make_name(name), f"Range: {value}")
        assert (got.status, got.word) == (416, "range")
        assert got.fields["content-range"] == "bytes */10"
        wire.request("PUT", make_name(name), body=b"")
        got = wire.request("GET", make_name(name), "Range: bytes=0-")
        assert got.fields["content-range"] == "bytes */0"

    def test_if_range_takes_the_etag(self, wire, name):
        etag = wire.request("PUT", make_name(name), body=b"0123456789").fields["etag"]
        for value, status in ((etag, 206), ('"other"', 200), (f"W/{etag}", 200)):
            got = wire.request("GET", make_name(name), "Range: bytes=0-1", f"If-Range: {value}")
            assert got.status == status

    def test_two_range_fields_are_refused(self, wire, name):
        got = wire.request("GET", make_name(name), "Range: bytes=0-1", "Range: bytes=2-3")
        assert (got.status, got.word) == (400, "malformed")


class TestNames:
    FAMILIES = (
        "what?1.jpg", "what?2.jpg", "what?", "what", "a%2Fb", "a%2fb", "a/b", "a//b", "a/b/",
        "x/../y", "y", "./y", "..", ".", "../..", "%2e%2e/%2e%2e", "..%2f..", "..\\..", "/", "//",
        "100%.jpg", "100%25.jpg", "%", "%zz", "%00", "a+b;c=d", "(1)", "~!$&'*,:@", '"<>[]^`{|}',
        "s3://host/bkt/a//b.zip/pfio-zipfs/x", "file://tmp/100%.jpg", "?", "a=b&c=d?e",
    )  # fmt: skip

    def test_every_spelling_is_an_object_of_its_own(self, wire):
        for number, spelling in enumerate(self.FAMILIES):
            body = f"{number} {spelling}".encode()
            assert wire.request("PUT", make_name(spelling), body=body).status == 201
        for number, spelling in enumerate(self.FAMILIES):
            got = wire.request("GET", make_name(spelling))
            assert got.body == f"{number} {spelling}".encode()
        for spelling in self.FAMILIES[::2]:
            assert wire.request("DELETE", make_name(spelling)).status == 204
        for number, spelling in enumerate(self.FAMILIES):
            wanted = 404 if number % 2 == 0 else 200
            assert wire.request("GET", make_name(spelling)).status == wanted

    def test_every_visible_byte_is_a_name(self, wire):
        for byte in range(0x21, 0x7F):
            if byte != 0x23:
                spelling = b"byte-" + bytes([byte])
                assert wire.request("PUT", make_name(spelling), body=spelling).status == 201
        for byte in range(0x21, 0x7F):
            if byte != 0x23:
                spelling = b"byte-" + bytes([byte])
                assert wire.request("GET", make_name(spelling)).body == spelling

    def test_up_to_4096_bytes(self, wire):
        for size in (1, 4095, 4096):
            spelling = noise(size // 2 + 1, seed=size).hex()[:size]
            assert wire.request("PUT", make_name(spelling), body=spelling.encode()).status == 201
            assert wire.request("GET", make_name(spelling)).body == spelling.encode()
        for verb in ("GET", "PUT"):
            got = wire.request(verb, make_name("a" * 4097), body=b"")
            assert (got.status, got.word) == (414, "too-large")

    @pytest.mark.parametrize(
        "spelling", ["a#b", "#", "", "a\x7fb", "a\x00b", "a\tb", "\xe9", "a\xff"]
    )
    def test_illegal_names_are_400(self, node, spelling):
        for verb in ("GET", "PUT", "DELETE", "HEAD"):
            got = node.request(verb, make_name(spelling), body=b"")
            assert (got.status, got.word) == (400, "malformed")

    def test_a_raw_space_is_400(self, node):
        got = node.request("GET", make_name("a b"))
        assert (got.status, got.word) == (400, "malformed")

    @pytest.mark.parametrize(
        "bucket", ["ab", "a" * 64, "Upper", "-dash", "dash-", ".dot", "dot.", "under_score", "a%2eb",
                   "a..", "", "..", "%70ublic", "b\xfcck"]
    )  # fmt: skip
    def test_illegal_buckets_are_400(self, wire, bucket):
        target = b"/v1/objects/%b/x" % bucket.encode("latin-1")
        for verb in ("GET", "PUT"):
            got = wire.request(verb, target, body=b"")
            assert (got.status, got.word) == (400, "malformed")

    @pytest.mark.parametrize("target", ["/v1/objects/public", "/v1/objects/", "/v1/objects//x"])
    def test_targets_without_a_name_are_400(self, wire, target):
        assert wire.request("GET", target).status == 400

    @pytest.mark.parametrize(
        "target", ["/", "/v1/objects", "/v2/objects/public/x", "/V1/objects/public/x", "*", "x",
                   "//v1/objects/public/x", "/v1//objects/public/x", "/v1/../v1/objects/public/x"]
    )  # fmt: skip
    def test_other_paths_are_404(self, wire, target):
        got = wire.request("GET", target)
        assert (got.status, got.word) == (404, "no-route")

    def test_the_absolute_form_names_the_same_object(self, wire, name):
        target = make_name(name)
        assert wire.request("PUT", b"http://cache:80" + target, body=b"x").status == 201
        assert wire.request("GET", target).body == b"x"
        assert wire.request("GET", b"HTTPS://other" + target).body == b"x"


class TestWhoMay:
    def ask(self, node, verb, bucket, name, token=None, body=None):  # noqa: PLR0917
        return node.request(verb, make_name(name, bucket), token=token, body=body)

    @pytest.mark.parametrize(
        ("bucket", "verb", "nobody", "prj_a", "prj_b"),
        [
            ("public", "PUT", 201, 201, 201),
            ("public", "GET", 200, 200, 200),
            ("private", "PUT", 401, 201, 403),
            ("private", "GET", 401, 200, 403),
            ("private", "HEAD", 401, 200, 403),
            ("shared", "PUT", 401, 201, 403),
            ("shared", "GET", 401, 200, 200),
            ("shared", "DELETE", 401, 204, 403),
            ("guarded", "PUT", 401, 201, 403),
            ("guarded", "GET", 200, 200, 200),
            ("guarded", "DELETE", 401, 204, 403),
            ("dropbox", "PUT", 401, 201, 403),
            ("dropbox", "GET", 401, 403, 200),
            ("unknown", "PUT", 404, 404, 404),
            ("unknown", "GET", 404, 404, 404),
        ],
    )
    def test_each_right(self, node, name, bucket, verb, nobody, prj_a, prj_b):  # noqa: PLR0917
        if verb in {"GET", "HEAD", "DELETE"} and bucket != "unknown":
            assert self.ask(node, "PUT", bucket, name, TOKEN_A, b"x").status == 201
        for token, wanted in ((None, nobody), (TOKEN_B, prj_b), (TOKEN_A, prj_a)):
            body = b"x" if verb == "PUT" else None
            for _ in range(2):  # what is remembered of a caller must not change the answer
                got = self.ask(node, verb, bucket, name, token, body)
                assert got.status == wanted
                if verb == "DELETE":
                    break
            if wanted == 401:
                assert got.fields["www-authenticate"].startswith("Bearer")
                assert got.word == "unauthenticated"
            if wanted == 403:
                assert got.word == "forbidden"

    def test_what_one_may_read_another_may_not(self, node, name):
        """A caller who was let through is remembered: for that bucket, and alone."""
        self.ask(node, "PUT", "private", name, TOKEN_A, b"secret")
        with Wire(node.addresses[0]) as wire:
            for _ in range(3):
                target = make_name(name, "private")
                assert wire.request("GET", target, token=TOKEN_A).body == b"secret"
                assert wire.request("GET", target, token=TOKEN_B).status == 403
                assert wire.request("GET", target).status == 401
                assert wire.request("GET", make_name(name, "dropbox"), token=TOKEN_A).status == 403

    @pytest.mark.parametrize(
        "field",
        ["Basic dXNlcjpwYXNz", "Bearer", "Bearer  ", "Bearer unknown-token-here", TOKEN_A,
         f"Bearer {TOKEN_A}x", f"Bearer {TOKEN_A},", f"Bearer {TOKEN_A} {TOKEN_A}", ""],
    )  # fmt: skip
    def test_tokens_that_are_not_good(self, wire, name, field):
        got = wire.request("GET", make_name(name, "private"), f"Authorization: {field}")
        assert (got.status, got.word) == (401, "unauthenticated")
        got = wire.request("GET", make_name(name, "public"), f"Authorization: {field}")
        assert got.status == 404, "a token is not looked at where none is needed"

    def test_the_scheme_is_spelled_in_any_case(self, wire, name):
        for scheme in ("bearer", "BEARER"):
            field = f"Authorization: {scheme} {TOKEN_A}"
            assert wire.request("GET", make_name(name, "private"), field).status == 404

    def test_two_authorizations_are_refused(self, node, name):
        fields = [f"Authorization: Bearer {token}" for token in (TOKEN_A, TOKEN_B)]
        assert node.get(name, *fields, bucket="private").status == 400

    def test_the_sentence_names_both(self, wire, name):
        got = wire.request("GET", make_name(name, "private"), token=TOKEN_B)
        detail = json.loads(got.body)["detail"]
        assert '"prj-b"' in detail
        assert '"private"' in detail
        assert TOKEN_B not in got.body.decode()

    def test_entries_are_counted_by_who_put_them(self, node, name):
        body = noise(10_000)
        self.ask(node, "PUT", "guarded", name, TOKEN_A, body)
        labels = {"bucket": "guarded", "namespace": "prj-a"}
        assert node.metric("scs_entries", **labels) >= 1
        assert node.metric("scs_stored_bytes", **labels) >= len(body)


class TestExpect:
    @pytest.mark.parametrize(
        ("target", "lines", "length", "wanted"),
        [
            (make_name("x", "private"), (), 10, 401),
            (make_name("x", "private"), (f"Authorization: Bearer {TOKEN_B}",), 10, 403),
            (make_name("x", "unknown"), (), 10, 404),
            (b"/elsewhere", (), 10, 404),
            (make_name("expect-there"), ("If-None-Match: *",), 10, 412),
            (make_name("x"), ("If-Match: *",), 10, 412),
            (make_name("x"), (), (16 << 20) + 1, 413),
            (make_name("x"), ("Content-MD5: AAAA",), 10, 400),
            (make_name("x"), ("Content-Range: bytes 0-9/20",), 10, 400),
        ],
    )
    def test_a_refusal_comes_before_the_body(self, node, target, lines, length, wanted):
        node.put("expect-there", b"x")
        with Wire(node.addresses[0]) as wire:
            expect = "Expect: 100-continue"
            wire.send(make_head("PUT", target, *lines, f"Content-Length: {length}", expect))
            got = wire.response()
            assert got.status == wanted
            assert got.fields["connection"] == "close"
            assert wire.read_to_end() == b""

    def test_a_refusal_without_a_length_comes_too(self, node):
        got = node.request("PUT", make_name("x"), "Expect: 100-continue")
        assert got.status == 411

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    def test_the_body_is_asked_for(self, wire, name, framing):
        body = noise(300_000)
        lines = ["Expect: 100-Continue"]
        if framing == "chunked":
            lines.append("Transfer-Encoding: chunked")
            wire.send(make_head("PUT", make_name(name), *lines))
        else:
            wire.send(make_head("PUT", make_name(name), *lines, body=body))
        assert wire.response().status == 100
        assert wire.is_silent()
        wire.send(make_chunks(body) if framing == "chunked" else body)
        assert wire.response().status == 201
        assert wire.request("GET", make_name(name)).body == body

    def test_an_empty_body_is_not_asked_for(self, wire, name):
        assert wire.request("PUT", make_name(name), "Expect: 100-continue", body=b"").status == 201

    def test_a_client_that_does_not_wait_is_served(self, wire, name):
        wire.send(make_head("PUT", make_name(name), "Expect: 100-continue", body=b"abc"), b"abc")
        assert wire.response().status == 201
        assert wire.request("GET", make_name(name)).body == b"abc"

    def test_http_10_knows_no_continue(self, node, name):
        with node.wire() as wire:
            head = make_head(
                "PUT", make_name(name), "Expect: 100-continue", body=b"abc", version="1.0"
            )
            wire.send(head)
            wire.send(b"abc")
            assert wire.response().status == 201

    def test_another_expectation_is_417(self, node, name):
        got = node.put(name, b"x", "Expect: the-unexpected")
        assert (got.status, got.word) == (417, "expectation")


ERROR_WORDS = {
    "malformed": 400, "unauthenticated": 401, "forbidden": 403, "miss": 404, "no-bucket": 404,
    "no-route": 404, "method": 405, "length-required": 411, "precondition": 412, "range": 416,
    "expectation": 417, "unsupported": 501, "version": 505, "digest": 400,
}  # fmt: skip


class TestErrors:
    def provoke(self, wire, word, name):
        target = make_name(name)
        wire.request("PUT", target, body=b"x")
        requests = {
            "malformed": ("GET", make_name("a#b"), (), {}),
            "unauthenticated": ("GET", make_name(name, "private"), (), {}),
            "forbidden": ("GET", make_name(name, "private"), (), {"token": TOKEN_B}),
            "miss": ("GET", make_name(name + "-not"), (), {}),
            "no-bucket": ("GET", make_name(name, "unknown"), (), {}),
            "no-route": ("GET", "/favicon.ico", (), {}),
            "method": ("POST", target, (), {}),
            "length-required": ("PUT", target, (), {}),
            "precondition": ("PUT", target, ("If-None-Match: *",), {"body": b"y"}),
            "range": ("GET", target, ("Range: bytes=7-",), {}),
            "expectation": ("GET", target, ("Expect: gold",), {}),
            "unsupported": ("PUT", target, ("Transfer-Encoding: gzip",), {}),
            "version": ("GET", target, (), {"version": "2.0"}),
            "digest": ("PUT", target, ("Content-MD5: AAAAAAAAAAAAAAAAAAAAAA==",), {"body": b"y"}),
        }
        verb, target, lines, options = requests[word]
        return wire.request(verb, target, *lines, **options)

    @pytest.mark.parametrize("word", ERROR_WORDS)
    def test_an_error_is_a_problem_document(self, wire, name, word):
        got = self.provoke(wire, word, name)
        assert (got.status, got.word) == (ERROR_WORDS[word], word)
        assert got.fields["content-type"] == "application/problem+json"
        assert "date" in got.fields
        document = json.loads(got.body)
        assert document["status"] == got.status
        assert document["type"] == "about:blank"
        assert document["title"]
        assert len(document["detail"]) > 10

    @pytest.mark.parametrize("version", ["2.0", "1.2", "0.9", "3.0", "9.9"])
    def test_other_versions_are_505(self, node, version):
        assert node.request("GET", make_name("x"), version=version).status == 505

    @pytest.mark.parametrize(
        "line",
        [b"GET", b"GET /x", b"GET  /x HTTP/1.1", b"GET /x HTTP/1.1 ", b" GET /x HTTP/1.1",
         b"GET /x http/1.1", b"GET /x HTTP/1", b"GET /x HTTP/11.1", b"GET\t/x\tHTTP/1.1",
         b"G@T /x HTTP/1.1", b"GET /x HTTQ/1.1", b"\x16\x03\x01\x02\x00\x01", b"{}",
         b"PRI * HTTP/2.0"],
    )  # fmt: skip
    def test_request_lines_that_are_none(self, node, line):
        with node.wire() as wire:
            wire.send(line, b"\r\nHost: x\r\n\r\n")
            got = wire.response()
            assert got.status == (505 if b"HTTP/2.0" in line else 400)
            assert got.fields["connection"] == "close"
            assert wire.read_to_end() == b""

    def test_a_host_is_needed_in_http_11(self, node):
        got = node.request("GET", make_name("x"), host=None)
        assert (got.status, got.word) == (400, "malformed")
        assert node.request("GET", make_name("x"), "Host: other").status == 400


class TestConnections:
    def test_a_connection_serves_many_requests(self, wire, name):
        for number in range(50):
            assert wire.request("PUT", make_name(name), body=b"%d" % number).status == 201
            assert wire.request("GET", make_name(name)).body == b"%d" % number

    def test_pipelined_answers_come_in_order(self, wire, name):
        big = noise(700_000)
        verbs = []
        for number in range(20):
            target = make_name(f"{name}-{number}")
            body = big if number % 5 == 0 else b"%d" % number
            wire.send(make_head("PUT", target, body=body), body)
            wire.send(make_head("GET", target), make_head("HEAD", target))
            wire.send(make_head("GET", target, "Range: bytes=0-0"))
            wire.send(make_head("DELETE", target), make_head("GET", target))
            verbs.append((body, number))
        for body, _ in verbs:
            assert wire.response().status == 201
            assert wire.response().body == body
            assert wire.response("HEAD").fields["content-length"] == str(len(body))
            assert wire.response().body == body[:1]
            assert wire.response().status == 204
            assert wire.response().status == 404
        assert wire.is_silent()

    def test_requests_before_the_end_of_sending_are_answered(self, node, name):
        with node.wire() as wire:
            wire.send(make_head("PUT", make_name(name), body=b"abc"), b"abc")
            wire.send(make_head("GET", make_name(name)), make_head("DELETE", make_name(name)))
            wire.send(make_head("GET", make_name(name)))
            wire.end_sending()
            assert [wire.response().status for _ in range(4)] == [201, 200, 204, 404]
            assert wire.read_to_end() == b""

    def test_a_client_may_ask_for_the_end(self, node, name):
        node.put(name, b"x")
        with node.wire() as wire:
            got = wire.request("GET", make_name(name), "Connection: close")
            assert (got.body, got.fields["connection"]) == (b"x", "close")
            assert wire.read_to_end() == b""

    def test_http_10_closes_unless_asked_to_keep(self, node, name):
        node.put(name, b"x")
        with node.wire() as wire:
            for _ in range(2):
                got = wire.request("GET", make_name(name), "Connection: keep-alive", version="1.0")
                assert (got.body, got.fields["connection"]) == (b"x", "keep-alive")
            got = wire.request("GET", make_name(name), version="1.0", host=None)
            assert (got.body, got.fields["connection"]) == (b"x", "close")
            assert wire.read_to_end() == b""

    def test_a_small_refused_body_is_dropped(self, wire, name):
        for _ in range(3):
            got = wire.request("PUT", make_name(name, "unknown"), body=noise(1 << 20))
            assert got.status == 404
            assert "connection" not in got.fields

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    def test_the_answer_to_a_large_refused_body_arrives(self, node, name, framing):
        body = noise(8 << 20)
        with node.wire() as wire:
            target = make_name(name, "unknown")
            if framing == "length":
                wire.send(make_head("PUT", target, body=body))
            else:
                wire.send(make_head("PUT", target, "Transfer-Encoding: chunked"))
                body = make_chunks(body, 1 << 20)
            wire.send_all_you_can(body)
            got = wire.response()
            assert (got.status, got.fields["connection"]) == (404, "close")

    def test_empty_lines_before_a_request(self, wire, name):
        wire.request("PUT", make_name(name), body=b"x")
        for _ in range(3):
            wire.send(b"\r\n\r\n", make_head("GET", make_name(name)))
            assert wire.response().body == b"x"

    def test_one_byte_at_a_time(self, wire, name):
        for byte in make_head("PUT", make_name(name), body=b"abc") + b"abc":
            wire.send(bytes([byte]))
        assert wire.response().status == 201
        for byte in make_head("GET", make_name(name), "Range: bytes=1-1"):
            wire.send(bytes([byte]))
        assert wire.response().body == b"b"


class TestHealth:
    def test_a_shard_says_that_it_is_ready(self, wire):
        for verb in ("GET", "HEAD"):
            got = wire.request(verb, "/readyz")
            assert (got.status, got.body) == (200, b"")

    def test_the_ops_port(self, node):
        assert node.ask_ops("/healthz").status == 200
        ready = node.ask_ops("/readyz")
        assert ready.status == 200
        states = json.loads(ready.body)["shards"]
        assert states == {
            "node-a/0": {"port": node.addresses[0][1], "pid": node.pids[0], "ready": True}
        }
        assert node.ask_ops("/nothing").status == 404
        assert node.ask_ops("/metrics", verb="HEAD").body == b""

    def test_metrics_count(self, node, name):
        labels = {"verb": "GET", "status": "200"}
        node.put(name, b"x" * 100)
        before = [node.metric("scs_requests_total", **labels), node.metric("scs_hit_bytes_total")]
        for _ in range(3):
            node.get(name)
        after = [node.metric("scs_requests_total", **labels), node.metric("scs_hit_bytes_total")]
        assert [new - old for new, old in zip(after, before, strict=True)] == [3, 300]
        assert node.metric("scs_shard_up") == 1
        assert node.metric("scs_uploads") == 0
        text = node.ask_ops("/metrics")
        assert text.fields["content-type"].startswith("text/plain; version=0.0.4")
        assert b"# TYPE scs_requests_total counter" in text.body
