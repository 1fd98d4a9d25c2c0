"""Keys: what is a name, what is none, and that nothing is ever rewritten."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplecache.errors import InvalidName
from simplecache.model import ANONYMOUS, NAME_MAX_BYTES, Caller, Key, Verdict, is_bucket_name

VISIBLE = bytes(byte for byte in range(0x21, 0x7F) if byte != 0x23)
names = st.lists(st.sampled_from(VISIBLE), min_size=1, max_size=200).map(bytes)
buckets = st.from_regex(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", fullmatch=True)


@settings(deadline=None)
@given(buckets, names)
def test_a_key_and_its_target_say_the_same(bucket, name):
    key = Key(bucket, name)
    assert key.target == b"/v1/objects/" + bucket.encode() + b"/" + name
    assert Key.from_target(key.target) == key
    assert str(key) == f"{bucket}/{name.decode()}"


@settings(deadline=None)
@given(buckets, names, buckets, names)
def test_two_keys_never_share_a_target(bucket, name, other_bucket, other_name):
    first, second = Key(bucket, name), Key(other_bucket, other_name)
    assert (first == second) == (first.target == second.target)


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_a_name_is_visible_ascii_without_hash(name):
    if name and set(name) <= set(VISIBLE):
        assert Key("bkt", name).name == name
    else:
        with pytest.raises(InvalidName):
            Key("bkt", name)


@settings(deadline=None)
@given(st.text(max_size=70))
def test_a_bucket_name_follows_the_rules(name):
    inner = set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    wanted = (
        3 <= len(name) <= 63 and set(name) <= inner and name[0] not in ".-" and name[-1] not in ".-"
    )
    assert is_bucket_name(name) == wanted


@pytest.mark.parametrize(
    "name",
    ["ab", "a" * 64, "Abc", "-abc", "abc-", ".abc", "abc.", "a_c", "äbc", "abc\n", "a/c", ""],
)
def test_illegal_buckets(name):
    assert not is_bucket_name(name)
    with pytest.raises(InvalidName, match="3 to 63"):
        Key(name, b"x")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (b"", "empty"),
        (b"a" * (NAME_MAX_BYTES + 1), "4097"),
        (b"ab c", "0x20 at offset 2"),
        (b"#", "0x23 at offset 0"),
        (b"a\x00", "0x00 at offset 1"),
        (b"a\x7f", "0x7f"),
        (b"\xc3\xa9", "0xc3"),
        (b"ok\n", "0x0a at offset 2"),
    ],
)
def test_the_sentence_says_what_is_wrong(name, word):
    with pytest.raises(InvalidName, match=word):
        Key("bkt", name)


@pytest.mark.parametrize(
    "target",
    [b"", b"/", b"/v1/objects/", b"/v1/objects/bkt", b"/v1/objects/bkt/", b"/v1/objects//x",
     b"/v2/objects/bkt/x", b"v1/objects/bkt/x", b"/v1/objects/\xff\xff\xff/x"],
)  # fmt: skip
def test_targets_that_name_nothing(target):
    with pytest.raises(InvalidName):
        Key.from_target(target)


def test_names_are_not_rewritten():
    for name in (b"a//b", b"../x", b"%2F", b"%2f", b"a?b=c", b"s3://h/b", b".", b"/"):
        assert Key.from_target(Key("bkt", name).target).name == name


def test_values_are_frozen():
    for value, field in (
        (Key("bkt", b"x"), "name"), (Caller("ns"), "namespace"), (Verdict(True, "x"), "allowed"),
    ):  # fmt: skip
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)
    assert ANONYMOUS.namespace is None
