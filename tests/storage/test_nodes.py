"""A node's data directories: missing, foreign, in use, more or fewer than before; and its checks."""

import json
import os
import subprocess
import time

import pytest
from node_process import NodeProcess, owner, scs, until
from storage_faults import flip_bit, object_files

from simplecache.errors import DataDirError
from simplecache.server.layout import LAYOUT_VERSION, Layout, plan, replan


def fill(node, count):
    bodies = {f"aaa/{i}": os.urandom(2000) for i in range(count)}
    for name, body in bodies.items():
        assert node.put(name, body) == 201
    return bodies


def served(node, bodies):
    """Names that a get finds at the shard that owns them now; never another's bytes."""
    found = set()
    for name, body in bodies.items():
        if node.states()[owner(name, node.shards)]["port"] is None:
            continue
        got = node.get(name)
        assert got in {None, body}
        if got is not None:
            found.add(name)
    return found


# -- directories that come and go ----------------------------------------------------------


@pytest.mark.parametrize("harm", ["unmounted", "no directory", "a file"])
def test_a_missing_data_directory_takes_out_its_shards_alone_and_they_come_back(tmp_path, harm):
    node = NodeProcess(tmp_path, data=("one", "two"), shards=2)
    with node:
        bodies = fill(node, 60)
    two, away = node.data[1], tmp_path / "away"
    two.rename(away)
    if harm == "unmounted":
        two.mkdir()
    elif harm == "a file":
        two.write_text("")
    with node:
        states = node.states()
        assert states[0]["ready"]
        assert not states[1]["ready"]
        assert str(two) in states[1]["reason"]
        assert json.loads(node.ops("/readyz"))["ready"]
        assert served(node, bodies) == {name for name in bodies if owner(name, 2) == 0}
        assert harm == "a file" or not list(two.glob("*"))  # nothing was written in its place
        if two.is_dir():
            two.rmdir()
        elif two.exists():
            two.unlink()
        away.rename(two)
        until(lambda: node.states()[1]["ready"], "the shard")
        node.told["listen"][1][1] = node.states()[1]["port"]
        assert served(node, bodies) == set(bodies)


def test_when_no_directory_can_be_used_the_node_says_why(tmp_path):
    node = NodeProcess(tmp_path, data=("one", "two"))
    for path in node.data:
        path.write_text("")
    began = time.monotonic()
    assert "one" in node.refuses()
    assert "Not a directory" in node.refuses()
    assert time.monotonic() - began < 20


def test_a_read_only_directory_takes_out_its_shards_until_it_can_be_written(tmp_path):
    node = NodeProcess(tmp_path, data=("one", "two"), shards=2)
    with node:
        bodies = fill(node, 40)
    two = node.data[1]
    bind = ["mount", "--bind", str(two), str(two)]
    if os.geteuid() or subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("only root can mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(two)], check=True)
        with node:
            assert not node.states()[1]["ready"]
            assert "Read-only" in node.states()[1]["reason"]
            assert served(node, bodies)
            subprocess.run(["mount", "-o", "remount,bind,rw", str(two)], check=True)
            until(lambda: node.states()[1]["ready"], "the shard")
            node.told["listen"][1][1] = node.states()[1]["port"]
            assert served(node, bodies) == set(bodies)
    finally:
        subprocess.run(["umount", "-l", str(two)], check=True)


def test_the_order_in_which_directories_are_named_does_not_matter(tmp_path):
    node = NodeProcess(tmp_path, data=("one", "two"), shards=3)
    with node:
        bodies = fill(node, 60)
    node.data.reverse()
    with node:
        assert served(node, bodies) == set(bodies)


# -- bad input -----------------------------------------------------------------------------


def test_directories_of_another_node_or_version_are_refused(tmp_path):
    node = NodeProcess(tmp_path)
    node.start()
    node.stop()
    mark = node.data[0] / "node.json"
    other = NodeProcess(tmp_path, name="other")
    assert "it was made with node 'node', and this node has 'other'" in other.refuses()
    assert "it was made with node" in other.refuses("--reshard")
    good = mark.read_text()
    mark.write_text(good.replace(f'"layout": {LAYOUT_VERSION}', '"layout": 99'))
    assert "it was made with layout 99" in node.refuses()
    mark.write_text("not json")
    assert "not the mark of a node" in node.refuses()
    mark.write_text(good)
    more = NodeProcess(tmp_path, shards=5)
    assert "it was made with shards 2, and this node has 5. --reshard" in more.refuses()
    with node:
        assert node.put("aaa/x", b"x") == 201


def test_a_directory_that_a_running_node_uses_is_refused(tmp_path):
    with NodeProcess(tmp_path) as node:
        assert node.put("aaa/x", b"x") == 201
        assert "in use by another process" in NodeProcess(tmp_path).refuses()
        status, output = scs("check", node.data[0], "--repair")
        assert status == 3
        assert "in use by another process" in output
        assert node.get("aaa/x") == b"x"


def test_a_check_of_nothing_is_an_error(tmp_path):
    assert scs("check", tmp_path)[0] == 3
    assert scs("check")[0] == 2
    assert scs("check", tmp_path, "--ops", "http://127.0.0.1:1")[0] == 2
    assert scs("check", "--ops", "ftp://x")[0] == 2
    assert scs("check", "--ops", "http://127.0.0.1:1")[0] == 3


# -- another number of shards --------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 2), (1, 4)])
def test_another_number_of_shards_keeps_what_it_can_and_is_never_wrong(tmp_path, before, after):
    node = NodeProcess(tmp_path, shards=before)
    with node:
        bodies = fill(node, 80)
        stays = {n for n in bodies if owner(n, before) == owner(n, after) < min(before, after)}
    node.shards = after
    assert f"it was made with shards {before}" in node.refuses()
    node.start("--reshard")
    try:
        assert served(node, bodies) == stays
        kept = {f"shard-{n:02d}" for n in range(after)}
        until(lambda: {p.name for p in node.data[0].glob("shard-*")} == kept, "the removal")
        for name, body in bodies.items():
            assert node.put(name, body) == 201
        assert served(node, bodies) == set(bodies)
    finally:
        node.stop()
    with node:  # from now on it is what it is
        assert served(node, bodies) == set(bodies)
    assert scs("check", *node.data)[0] == 0


def test_another_disk_needs_reshard_and_shards_stay_where_they_are(tmp_path):
    node = NodeProcess(tmp_path, shards=2)
    with node:
        bodies = fill(node, 60)
    node.data.append(tmp_path / "new")
    assert "it was made with directories 1, and this node has 2" in node.refuses()
    node.shards = 4
    node.start("--reshard")
    try:
        assert sorted(p.name for p in node.data[0].glob("shard-*")) == ["shard-00", "shard-01"]
        assert sorted(p.name for p in node.data[1].glob("shard-*")) == ["shard-02", "shard-03"]
        assert served(node, bodies) == {n for n in bodies if owner(n, 2) == owner(n, 4)}
    finally:
        node.stop()


# -- checks --------------------------------------------------------------------------------


def test_a_check_finds_what_is_wrong_and_repair_mends_it(tmp_path):
    node = NodeProcess(tmp_path, shards=2)
    with node:
        fill(node, 100)
        status, output = scs("check", "--ops", f"http://127.0.0.1:{node.told['ops'][1]}")
        assert (status, "0 corrupt files" in output) == (0, True), output
    shards = sorted(node.data[0].glob("shard-*"))
    files = [path for shard in shards for path in object_files(shard)]
    assert len(files) == 100
    flip_bit(files[0])
    files[1].unlink()
    (shards[0] / "tmp/leftover").write_text("x")
    (shards[1] / "objects/other").write_text("x")
    (shards[1] / "index.db").write_bytes(b"no database")
    in_one = len(object_files(shards[1]))
    status, output = scs("check", node.data[0])
    assert status == 1
    for line in ("1 corrupt files", "1 rows without a file", "2 temporary and foreign files",
                 "1 damaged indexes", f"{in_one} files without a row"):  # fmt: skip
        assert line in output, output
    assert (shards[1] / "index.db").read_bytes() == b"no database"  # a check changes nothing
    status, output = scs("check", node.data[0], "--repair")
    assert status == 0, output
    status, output = scs("check", node.data[0])
    assert (status, "98 objects" in output) == (0, True), output
    with node:
        node.await_metric("scs_reconciling", 0)
        assert (
            sum(
                int(line.rpartition(" ")[2])
                for line in node.ops("/metrics").splitlines()
                if line.startswith("scs_entries{")
            )
            == 98
        )


def test_a_running_node_checks_itself_and_tells_what_it_found(tmp_path):
    with NodeProcess(tmp_path, shards=2, flags=["--scrub-rate", "0"]) as node:
        bodies = fill(node, 100)
        for path in object_files(node.data[0] / "shard-00")[:3]:
            flip_bit(path)
        ops = f"http://127.0.0.1:{node.told['ops'][1]}"
        status, output = scs("check", "--ops", ops)
        assert status == 1
        assert "3 corrupt files" in output
        status, output = scs("check", "--ops", ops)
        assert status == 0, output
        assert len(served(node, bodies)) == 97
        node.await_metric("scs_scrub_rounds_total", 2)
        node.await_metric("scs_corrupt_total", 3, [0])


# -- the pure part -------------------------------------------------------------------------

WANTED = {"layout": LAYOUT_VERSION, "node": "n", "shards": 4, "directories": 2}


def mark(*holds):
    return {**WANTED, "holds": list(holds)}


def test_new_directories_are_dealt_in_turn(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    assert {p: list(n) for p, n in plan({a: None, b: None}, WANTED).holds.items()} == {
        a: [0, 2], b: [1, 3],
    }  # fmt: skip


def test_a_directory_that_cannot_be_read_holds_what_the_others_do_not(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    found = plan({a: OSError(5, "Input/output error"), b: mark(0, 3)}, WANTED)
    assert found.holds == {a: [1, 2], b: [0, 3]}
    assert found.failures == {a: "Input/output error"}
    assert "is its disk mounted?" in plan({a: mark(1, 2), b: None}, WANTED).failures[b]
    with pytest.raises(DataDirError, match="Input/output error"):
        plan({a: OSError(5, "Input/output error"), b: None}, WANTED)


def test_marks_that_contradict_each_other_are_refused(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for marks in ((mark(0, 1), mark(1, 2)), (mark(0, 1), mark(2))):
        with pytest.raises(DataDirError, match="do not make one node"):
            plan({a: marks[0], b: marks[1]}, WANTED)


def test_a_new_plan_moves_nothing_that_stays(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    assert replan({a: [0, 1], b: []}, 4).holds == {a: [0, 1], b: [2, 3]}
    assert replan({a: [0, 2, 9], b: [1, 2]}, 3).holds == {a: [0, 2], b: [1]}
    assert replan({a: [], b: [5]}, 2).holds == {a: [0], b: [1]}


def test_a_shard_is_not_started_in_the_place_of_a_disk_that_went_away(tmp_path):
    data = [tmp_path / "a", tmp_path / "b"]
    layout = Layout(data, "n", 2, reshard=False)
    assert layout.fault(0) == layout.fault(1) == ""
    (data[1] / "node.json").unlink()
    assert "is gone" in layout.fault(1)
    assert layout.fault(0) == ""
