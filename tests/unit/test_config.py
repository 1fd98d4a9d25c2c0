"""Configuration files: each wrong value is an error that names the key and the value."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplecache.config import (
    FILE_MAX_BYTES,
    Bucket,
    StaticTokens,
    load,
    parse_buckets,
    parse_size,
    parse_tokens,
)  # fmt: skip
from simplecache.errors import InvalidConfig

TALK = {
    "Bucket": [
        {"Name": "public", "Public": True, "BucketQuota": "100Gi"},
        {
            "Name": "kubecon", "Public": False, "BucketQuota": "500Gi",
            "AllowNamespaces": ["prj-kubernetes", "user-utam0k"],
        },
    ]
}  # fmt: skip
SECRET = "a-secret-token-of-somebody"


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("1", 1), (1024, 1024), ("1k", 1000), ("1Ki", 1024), ("100Gi", 100 << 30),
            ("1G", 10**9), ("1.5Ki", 1536), (" 2 Mi ", 2 << 20), ("1Ti", 1 << 40), ("1P", 10**15),
            ("3Pi", 3 << 50), ("9007199254740993", 9007199254740993),
        ],
    )  # fmt: skip
    def test_quantities(self, text, size):
        assert parse_size(text, "here") == size

    @pytest.mark.parametrize(
        "value",
        ["", "Gi", "1GB", "1gi", "1 000", "-1", "1e3", "0x10", "1,5Gi", "∞", "1Gi 2", "ten", "1K",
         1.5, True, None, [], {}, b"1", "1KiB", "1Ei"],
    )  # fmt: skip
    def test_what_is_no_size(self, value):
        with pytest.raises(InvalidConfig, match=r"here: .* is not a size") as caught:
            parse_size(value, "here")
        assert repr(value) in str(caught.value)
        assert "100Gi" in str(caught.value)

    @pytest.mark.parametrize("value", ["0", 0, "0Gi", "0.0001", "4611686018427387904", "9999999Pi"])
    def test_sizes_out_of_range(self, value):
        with pytest.raises(InvalidConfig, match="larger than zero and below 4 Ei"):
            parse_size(value, "here")


class TestBuckets:
    def test_the_form_of_the_talk(self):
        assert parse_buckets(TALK) == {
            "public": Bucket("public", True, 100 << 30, (), None),
            "kubecon": Bucket(
                "kubecon", False, 500 << 30, ("prj-kubernetes", "user-utam0k"),
                ("prj-kubernetes", "user-utam0k"),
            ),
        }  # fmt: skip

    def bucket(self, **keys):
        return parse_buckets({"Bucket": [{"Name": "bkt", **keys}]})["bkt"]

    def test_rights(self):
        both = self.bucket(AllowNamespaces=["a", "b", "a"])
        assert (both.read_namespaces, both.write_namespaces) == (("a", "b"), ("a", "b"))
        read = self.bucket(AllowNamespaces=["a"], ReadNamespaces=["b"])
        assert (read.read_namespaces, read.write_namespaces) == (("b",), ("a",))
        write = self.bucket(AllowNamespaces=["a"], WriteNamespaces=[])
        assert (write.read_namespaces, write.write_namespaces) == (("a",), ())
        alone = self.bucket(ReadNamespaces=["a"])
        assert (alone.read_namespaces, alone.write_namespaces) == (("a",), ())
        public = self.bucket(Public=True, WriteNamespaces=["a"])
        assert (public.read_namespaces, public.write_namespaces) == ((), ("a",))
        assert self.bucket(Public=True).write_namespaces is None
        assert self.bucket(Public=True).quota_bytes is None

    @pytest.mark.parametrize(
        ("document", "words"),
        [
            (None, ["configuration", "null"]),
            ([], ["configuration", "a list"]),
            ("x", ["configuration", "a string"]),
            ({}, ["Bucket is missing"]),
            ({"Bucket": [], "Buckets": []}, ["unknown key 'Buckets'", "known: Bucket"]),
            ({"Bucket": {}}, ["Bucket", "a list of buckets", "an object"]),
            ({"Bucket": ["x"]}, ["Bucket[0]", "a string"]),
            ({"Bucket": [{}]}, ["Bucket[0]", "Name is missing"]),
            ({"Bucket": [{"Name": 5}]}, ["Bucket[0].Name", "5"]),
            ({"Bucket": [{"Name": "Ab"}]}, ["Bucket[0].Name", "'Ab'", "3 to 63"]),
            ({"Bucket": [{"Name": "bkt", "public": True}]}, ["unknown key 'public'", "Public"]),
        ],
    )
    def test_wrong_documents(self, document, words):
        with pytest.raises(InvalidConfig) as caught:
            parse_buckets(document)
        for word in words:
            assert word in str(caught.value)

    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            ({"Public": "true"}, ["Public", "'true'"]),
            ({"Public": 1}, ["Public", "1"]),
            ({"Public": None}, ["Public", "None"]),
            ({"Public": True, "BucketQuota": "100GB"}, ["BucketQuota", "'100GB'", "Gi"]),
            ({"Public": True, "BucketQuota": -1}, ["BucketQuota", "-1"]),
            ({"Public": True, "BucketQuota": 0}, ["BucketQuota", "0"]),
            ({"Public": True, "BucketQuota": []}, ["BucketQuota", "[]"]),
            ({"AllowNamespaces": "prj"}, ["AllowNamespaces", "a string"]),
            ({"AllowNamespaces": None}, ["AllowNamespaces", "null"]),
            ({"AllowNamespaces": ["Upper"]}, ["AllowNamespaces", "'Upper'"]),
            ({"AllowNamespaces": [5]}, ["AllowNamespaces", "5"]),
            ({"AllowNamespaces": ["a" * 64]}, ["AllowNamespaces", "a" * 64]),
            ({"AllowNamespaces": ["-a"]}, ["AllowNamespaces", "'-a'"]),
            ({"AllowNamespaces": [""]}, ["AllowNamespaces", "''"]),
            ({"ReadNamespaces": ["*"]}, ["ReadNamespaces", "'*'"]),
            ({"AllowNamespaces": ["a"], "WriteNamespaces": {}}, ["WriteNamespaces", "an object"]),
            ({}, ["bkt", "AllowNamespaces"]),
            ({"Public": False}, ["bkt", "AllowNamespaces"]),
            ({"WriteNamespaces": ["a"]}, ["bkt", "AllowNamespaces"]),
            ({"Public": True, "AllowNamespaces": ["a"]}, ["AllowNamespaces", "WriteNamespaces"]),
            ({"Public": True, "ReadNamespaces": ["a"]}, ["ReadNamespaces", "WriteNamespaces"]),
            ({"Public": True, "Quota": "1Gi"}, ["unknown key 'Quota'", "BucketQuota"]),
        ],
    )
    def test_wrong_values_are_named_with_their_place(self, keys, words):
        document = {"Bucket": [{"Name": "first", "Public": True}, {"Name": "bkt", **keys}]}
        with pytest.raises(InvalidConfig) as caught:
            parse_buckets(document)
        for word in ["Bucket[1]", *words]:
            assert word in str(caught.value)

    def test_a_name_twice(self):
        with pytest.raises(InvalidConfig, match=r"Bucket\[1\].Name: 'bkt' is there twice"):
            parse_buckets({"Bucket": [{"Name": "bkt", "Public": True}] * 2})

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*TALK, *TALK["Bucket"][1], "x"]), inner, max_size=4)
        ),
        max_leaves=15,
    )

    @settings(deadline=None)
    @given(json_values)
    def test_whatever_it_is_the_answer_is_buckets_or_a_sentence(self, document):
        for parse in (parse_buckets, parse_tokens):
            try:
                parse(document)
            except InvalidConfig as error:
                assert str(error)  # noqa: PT017 - either is right


class TestTokens:
    def parse(self, *rows):
        return parse_tokens({"Token": list(rows)})

    def test_a_token_speaks_for_its_namespace(self):
        tokens = self.parse(
            {"Token": SECRET, "Namespace": "a"}, {"Token": SECRET + "2", "Namespace": "a"}
        )
        assert tokens.namespace(SECRET.encode()) == "a"
        assert tokens.namespace(SECRET.encode() + b"2") == "a"
        assert tokens.namespace(b"other") is None
        assert tokens.namespace(b"") is None
        assert SECRET not in repr(tokens)
        assert isinstance(tokens, StaticTokens)

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            (["x"], ["Token[0]", "a string"]),
            ([{"Token": SECRET}], ["Token[0]", "Namespace is missing"]),
            ([{"Namespace": "a"}], ["Token[0]", "Token is missing"]),
            ([{"Token": "short", "Namespace": "a"}], ["Token[0].Token", "16"]),
            ([{"Token": "a" * 8193, "Namespace": "a"}], ["Token[0].Token", "8,192"]),
            ([{"Token": SECRET + " ", "Namespace": "a"}], ["Token[0].Token", "visible"]),
            ([{"Token": SECRET + "\n", "Namespace": "a"}], ["Token[0].Token", "visible"]),
            ([{"Token": 5, "Namespace": "a"}], ["Token[0].Token"]),
            ([{"Token": SECRET, "Namespace": "A"}], ["Token[0].Namespace", "'A'"]),
            ([{"Token": SECRET, "Namespace": "a", "x": 1}], ["Token[0]", "unknown key 'x'"]),
            ([{"Token": SECRET, "Namespace": n} for n in "ab"], ["Token[1].Token", "twice"]),
        ],
    )
    def test_wrong_rows_are_named_and_tokens_never(self, rows, words):
        with pytest.raises(InvalidConfig) as caught:
            self.parse(*rows)
        for word in words:
            assert word in str(caught.value)
        assert SECRET not in str(caught.value)
        assert "short" not in str(caught.value)

    def test_wrong_documents(self):
        for document in (None, [], {}, {"Token": {}}, {"Tokens": []}):
            with pytest.raises(InvalidConfig):
                parse_tokens(document)


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "buckets.json"

    def refuse(self, path, *words, parse=parse_buckets):
        with pytest.raises(InvalidConfig) as caught:
            load(path, parse)
        assert str(caught.value).startswith(f"{path}: ")
        for word in words:
            assert word in str(caught.value)
        return str(caught.value)

    def test_json(self, path):
        path.write_text(json.dumps(TALK))
        assert set(load(path, parse_buckets)) == {"public", "kubecon"}
        path.write_text("\ufeff" + json.dumps(TALK), encoding="utf-8")
        assert set(load(path, parse_buckets)) == {"public", "kubecon"}

    @pytest.mark.parametrize("suffix", [".yaml", ".yml"])
    def test_yaml(self, tmp_path, suffix):
        path = tmp_path / f"buckets{suffix}"
        path.write_text(
            "Bucket:\n"
            "- Name: public  # everybody's\n  Public: yes\n  BucketQuota: 100Gi\n"
            "- {Name: kubecon, BucketQuota: 500Gi, AllowNamespaces: [prj-kubernetes, user-utam0k]}\n"
        )
        assert load(path, parse_buckets) == parse_buckets(TALK)
        path.write_text(json.dumps(TALK))
        assert load(path, parse_buckets) == parse_buckets(TALK)

    def test_what_cannot_be_read(self, tmp_path):
        self.refuse(tmp_path / "missing.json", "No such file")
        self.refuse(tmp_path, "Is a directory")

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"{'a': 1}", b'{"Bucket": [],}', b"\xff\xfe\xfd", b"[" * 100_000, b"nul"],
    )
    def test_what_is_not_json(self, path, content):
        path.write_bytes(content)
        self.refuse(path, "not JSON")

    def test_a_key_twice(self, path):
        path.write_text('{"Bucket": [{"Name": "abc", "Public": true, "Public": false}]}')
        self.refuse(path, "key 'Public' is there twice")
        path.write_text('{"Bucket": [], "Bucket": []}')
        self.refuse(path, "key 'Bucket' is there twice")

    @pytest.mark.parametrize(
        "content", ["Bucket: [", "a: b: c", "\t- x", "!!python/object:os.x {}"]
    )
    def test_what_is_not_yaml(self, tmp_path, content):
        path = tmp_path / "buckets.yaml"
        path.write_text(content)
        self.refuse(path, "not YAML")

    def test_yaml_runs_nothing(self, tmp_path):
        path = tmp_path / "buckets.yaml"
        path.write_text(f'!!python/object/apply:os.mkdir ["{tmp_path}/made"]')
        self.refuse(path, "not YAML")
        assert not (tmp_path / "made").exists()

    def test_a_huge_file(self, path):
        with path.open("wb") as file:
            file.truncate(FILE_MAX_BYTES + 1)
        self.refuse(path, f"larger than {FILE_MAX_BYTES} bytes")
        with path.open("wb") as file:
            file.truncate(1 << 40)
        self.refuse(path, "larger")

    def test_ten_thousand_buckets(self, path):
        rows = [{"Name": f"bucket-{n}", "AllowNamespaces": [f"prj-{n}"]} for n in range(10_000)]
        path.write_text(json.dumps({"Bucket": rows}))
        assert len(load(path, parse_buckets)) == 10_000

    def test_what_the_parser_refuses_begins_with_the_path(self, path):
        path.write_text('{"Bucket": 5}')
        self.refuse(path, "Bucket: expected a list of buckets, not 5")

    def test_a_broken_token_file_does_not_tell_its_tokens(self, path):
        path.write_text(f'{{"Token": [{{"Token": "{SECRET}" "Namespace": "a"}}]}}')
        assert SECRET not in self.refuse(path, "not JSON", parse=parse_tokens)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("x.json", '{"Bucket": ' + "9" * 5000 + "}"),
            (
                "x.json",
                '{"Bucket":[{"Name":"abc","Public":true,"BucketQuota":"' + "9" * 5000 + '"}]}',
            ),
            (
                "x.json",
                '{"Bucket":[{"Name":"abc","Public":true,"BucketQuota":"' + "9" * 400 + '.5"}]}',
            ),
            ("x.yaml", "Bucket: 2020-13-45"),
            ("x.yaml", "Bucket: 0x" + "f" * 5000),
            ("x.yaml", "Bucket:\n- Name: abc\n  Public: true\n  BucketQuota: 0x" + "f" * 5000),
            ("x.yaml", "? [a]\n: b"),
            ("x.yaml", "Bucket: " + "[" * 3000),
        ],
    )
    def test_values_that_cannot_be(self, tmp_path, name, content):
        (tmp_path / name).write_text(content)
        self.refuse(tmp_path / name)

    def test_a_key_twice_in_yaml(self, tmp_path):
        path = tmp_path / "buckets.yaml"
        path.write_text("Bucket:\n- Name: abc\n  Public: true\n  Public: false\n")
        self.refuse(path, "key 'Public' is there twice")

    def test_a_broken_yaml_token_file_does_not_tell_its_tokens(self, tmp_path):
        path = tmp_path / "tokens.yaml"
        for content in (f'Token:\n- Token: [{SECRET}\n- "x', f"Token: {SECRET}\x00"):
            path.write_text(content)
            assert SECRET not in self.refuse(path, "not YAML", parse=parse_tokens)
