"""The pure half of the reflector, by property: a mirror is a dict that tells what changed."""

from __future__ import annotations

import contextlib
import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simplecache.errors import ApiFault, Malformed
from simplecache.kube.mirror import Event, Lines, Mirror, items_of, key_of, parse_event, version_of

LINES = st.lists(
    st.binary(min_size=1, max_size=40).filter(lambda raw: raw.strip() and b"\n" not in raw)
)


@given(LINES, st.lists(st.integers(0, 2000)))
def test_lines_do_not_depend_on_how_the_stream_is_cut(lines, cuts):
    stream = b"".join(line + b"\n" for line in lines)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    splitter = Lines()
    found = []
    for start, end in itertools.pairwise(edges):
        found += splitter.feed(stream[start:end])
    assert found == lines
    assert splitter.is_whole


def test_a_line_that_has_begun_is_not_whole():
    lines = Lines()
    assert lines.feed(b"one\ntw") == [b"one"]
    assert not lines.is_whole
    assert lines.feed(b"o\n") == [b"two"]
    assert lines.is_whole


@pytest.mark.parametrize("chunk", [b"x" * 11, b"x\n" + b"y" * 11, b"y" * 11 + b"\n"])
def test_a_line_is_bounded(chunk):
    for size in (1, 7, len(chunk)):
        lines = Lines(line_max_bytes=10)
        chunks = [chunk[at : at + size] for at in range(0, len(chunk), size)]
        with pytest.raises(Malformed):
            [lines.feed(part) for part in chunks]


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_an_error_of_ours(raw):
    with pytest.raises((Malformed, ApiFault)):
        parse_event(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metadata", "name", "resourceVersion", "items", "code", "reason"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(["ADDED", "DELETED", "BOOKMARK", "ERROR"]) | JSON, JSON)
@example("ERROR", {"reason": []})
@example([], {})
def test_any_event_moves_the_mirror_or_is_an_error_of_ours(kind, body):
    mirror = Mirror(lambda _: 1)
    try:
        mirror.apply(parse_event(json.dumps({"type": kind, "object": body}).encode()))
    except (Malformed, ApiFault):
        assert not mirror.objects


@given(JSON)
def test_any_page_is_a_list_or_an_error_of_ours(body):
    if not isinstance(body, dict):
        return
    for read in (items_of, version_of, key_of):
        with contextlib.suppress(Malformed):
            read(body)


KEYS = st.sampled_from(["ns/a", "ns/b", "ns/c", "d"])
SETS = st.dictionaries(KEYS, st.integers(0, 3))


def body_of(key, value):
    namespace, _, name = key.rpartition("/")
    return {"metadata": {"namespace": namespace, "name": name, "resourceVersion": "1"}, "v": value}


@given(st.lists(st.tuples(KEYS, st.integers(0, 3) | st.none()) | SETS))
def test_changes_turn_what_was_into_what_is(steps):
    mirror = Mirror(lambda body: body["v"] or None)  # 0 is left out
    told, truth = {}, {}
    for step in steps:
        if isinstance(step, dict):
            truth = {key: value for key, value in step.items() if value}
            changes = mirror.replace(mirror.reduce(body_of(k, v) for k, v in step.items()))
        else:
            key, value = step
            kind = "DELETED" if value is None else "MODIFIED"
            changes = mirror.apply(Event(kind, "1", body_of(key, value)))
            truth.pop(key, None)
            truth |= {key: value} if value else {}
        for change in changes:
            assert told.get(change.key) == change.old != change.new
            if change.new is None:
                del told[change.key]
            else:
                told[change.key] = change.new
        assert told == truth == mirror.objects


def test_an_empty_go_slice_is_an_empty_list():
    assert items_of({"items": None}) == []
