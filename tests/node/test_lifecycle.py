"""A node's life: starts that fail with a sentence, reloads, restarts, and ends in good order."""

import json
import os
import select
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import (
    BUCKETS,
    TOKEN_A,
    TOKEN_B,
    TOKENS,
    Wire,
    is_alive,
    make_head,
    make_name,
    noise,
    until,
)  # fmt: skip

MIB = 1 << 20


class TestStartsThatFail:
    def fail(self, node, status, *words):
        node.spawn()
        assert node.wait() == status
        last = node.text_of_log().strip().splitlines()[-1]
        assert last.startswith("scs: "), last
        for word in words:
            assert word in last
        assert "Traceback" not in node.text_of_log()

    @pytest.mark.parametrize(
        ("document", "words"),
        [
            ("{", ["not JSON", "line 1"]),
            ("", ["not JSON"]),
            ("[]", ["expected an object"]),
            ('{"Buckets": []}', ["unknown key 'Buckets'", "Bucket"]),
            ({"Bucket": [{"Name": "UPPER", "Public": True}]}, ["Bucket[0].Name", "'UPPER'"]),
            ({"Bucket": [{"Name": "abc", "Public": "yes"}]}, ["Public", "'yes'"]),
            (
                {"Bucket": [{"Name": "abc", "Public": True, "BucketQuota": "100GB"}]},
                ["BucketQuota", "'100GB'", "100Gi"],
            ),
            ({"Bucket": [{"Name": "abc"}]}, ["abc", "AllowNamespaces"]),
        ],
    )
    def test_a_broken_configuration_is_status_2(self, make_node, document, words):
        node = make_node(buckets=document)
        self.fail(node, 2, str(node.config), *words)
        assert not list(node.root.glob("data/*"))

    def test_a_configuration_that_is_not_there(self, make_node):
        node = make_node()
        node.config.unlink()
        self.fail(node, 2, str(node.config), "No such file")

    def test_a_token_file_that_is_broken_keeps_its_tokens_to_itself(self, make_node):
        tokens = {"Token": [{"Token": TOKEN_A, "Namespace": "UPPER"}]}
        node = make_node(tokens=tokens)
        self.fail(node, 2, str(node.token_file), "Token[0].Namespace")
        assert TOKEN_A not in node.text_of_log()

    @pytest.mark.parametrize(
        ("flags", "word"),
        [
            (["--shards", "0"], "--shards"),
            (["--shards", "1000"], "--shards"),
            (["--max-uploads", "0"], "--max-uploads"),
            (["--body-timeout", "-1"], "--body-timeout"),
            (["--max-object-size", "1GB"], "--max-object-size"),
            (["--node-name", "a/b"], "--node-name"),
        ],
    )
    def test_a_flag_out_of_range_is_status_2(self, make_node, flags, word):
        if flags == ["--shards", "0"]:
            flags = ["--shards", "-3"]
        self.fail(make_node(flags=tuple(flags)), 2, word)

    def test_a_data_directory_with_another_number_of_shards(self, make_node):
        first = make_node().start()
        first.put("x", b"x")
        assert first.stop() == 0
        second = make_node(data=first.data, shards=2)
        self.fail(second, 3, str(first.data), "shards 1", "2")
        first.start()
        assert first.get("x").body == b"x"

    def test_a_data_directory_of_another_node(self, make_node):
        first = make_node().start()
        assert first.stop() == 0
        second = make_node("second", data=first.data, name="node-b")
        self.fail(second, 3, str(first.data), "'node-a'", "'node-b'")

    def test_a_data_directory_whose_mark_is_broken(self, make_node):
        node = make_node()
        node.data.mkdir()
        (node.data / "node.json").write_text("{")
        self.fail(node, 3, "node.json", "not the mark of a node", "Expecting property name")

    def test_a_data_directory_that_is_a_file(self, make_node):
        node = make_node()
        node.data.write_text("")
        self.fail(node, 3, str(node.data))

    def test_two_nodes_on_one_data_directory(self, make_node):
        first = make_node().start()
        first.put("x", b"x")
        second = make_node("second", data=first.data)
        self.fail(second, 3, "in use by another process")
        assert first.get("x").body == b"x"
        assert first.put("y", b"y").status == 201

    def test_a_port_in_use(self, make_node):
        first = make_node().start()
        port = first.addresses[0][1]
        second = make_node("second", listen=f"127.0.0.1:{port}")
        self.fail(second, 3, "shard 0 cannot start", "in use")
        assert first.put("y", b"y").status == 201

    def test_an_ops_port_in_use(self, make_node):
        first = make_node().start()
        second = make_node("second", ops=f"127.0.0.1:{first.ops_address[1]}")
        self.fail(second, 3, "cannot listen", "in use")


class TestReload:
    def test_buckets_come_and_go(self, make_node):
        node = make_node().start()
        node.put("x", b"x")
        fewer = {"Bucket": [{"Name": "other", "Public": True}]}
        node.write(node.config, fewer)
        until(lambda: node.get("x").word == "no-bucket", "the bucket is gone")
        assert node.put("x", b"x", bucket="other").status == 201
        until(lambda: not node.metric("scs_entries", bucket="public"), "its entries are gone")
        node.write(node.config, BUCKETS)
        until(lambda: node.get("x").word == "miss", "the bucket is back, and empty")
        assert node.put("x", b"x").status == 201

    def test_a_broken_file_changes_nothing_and_a_later_fix_is_taken(self, make_node):
        node = make_node().start()
        node.put("x", b"x")
        for number, broken in enumerate(
            ["{", "", '{"Bucket": 5}', '{"Bucket": [{"Name": "public", "Public": 1}]}'], start=1
        ):
            node.write(node.config, broken)
            until(
                lambda number=number: node.metric("scs_config_reload_failures_total") == number,
                "the failure is counted",
            )
            assert node.get("x").body == b"x"
            assert node.put("y", b"y").status == 201
        assert "the configuration in force stays" in node.text_of_log()
        assert str(node.config) in node.text_of_log()
        node.write(node.config, {"Bucket": [{"Name": "fixed", "Public": True}]})
        until(lambda: node.put("x", b"x", bucket="fixed").status == 201, "the fix is taken")
        assert node.get("x").word == "no-bucket"

    def test_a_file_that_goes_away_changes_nothing(self, make_node):
        node = make_node().start()
        node.config.unlink()
        until(lambda: node.metric("scs_config_reload_failures_total") == 1, "it is counted")
        assert node.put("x", b"x").status == 201
        node.write(node.config, {"Bucket": [{"Name": "back", "Public": True}]})
        until(lambda: node.put("x", b"x", bucket="back").status == 201, "it is read again")

    def test_sighup_reads_at_once(self, make_node):
        node = make_node().start()
        node.process.send_signal(signal.SIGHUP)
        until(lambda: "configuration read again" in node.text_of_log(), "it is read")

    def test_rights_change_for_callers_who_are_remembered(self, make_node):
        node = make_node().start()
        node.put("x", b"x", bucket="private", token=TOKEN_A)
        with node.wire() as wire:
            target = make_name("x", "private")
            for _ in range(3):
                assert wire.request("GET", target, token=TOKEN_A).status == 200
            moved = {"Bucket": [{"Name": "private", "AllowNamespaces": ["prj-b"]}]}
            node.write(node.config, moved)
            until(lambda: wire.request("GET", target, token=TOKEN_A).status == 403, "403")
            assert wire.request("GET", target, token=TOKEN_B).status == 200

    def test_tokens_are_read_again(self, make_node):
        node = make_node().start()
        node.put("x", b"x", bucket="private", token=TOKEN_A)
        with node.wire() as wire:
            target = make_name("x", "private")
            for _ in range(3):
                assert wire.request("GET", target, token=TOKEN_A).status == 200
            new = "another-token-for-prj-a"
            node.write(node.token_file, {"Token": [{"Token": new, "Namespace": "prj-a"}]})
            until(lambda: wire.request("GET", target, token=new).status == 200, "the new token")
            assert wire.request("GET", target, token=TOKEN_A).status == 401
            node.write(node.token_file, "{broken")
            until(lambda: node.metric("scs_config_reload_failures_total") == 1, "it is counted")
            assert wire.request("GET", target, token=new).status == 200
            node.write(node.token_file, TOKENS)
            until(lambda: wire.request("GET", target, token=TOKEN_A).status == 200, "the old")
        assert TOKEN_A not in node.text_of_log()
        assert new not in node.text_of_log()

    def test_a_shard_that_starts_in_between_is_told_too(self, make_node):
        node = make_node().start()
        node.write(node.config, {"Bucket": [{"Name": "other", "Public": True}]})
        os.kill(node.pids[0], signal.SIGKILL)
        node.process.send_signal(signal.SIGHUP)

        def is_told():
            try:
                return node.put("x", b"x", bucket="other").status == 201
            except OSError:
                return False

        until(is_told, "the new configuration")
        assert node.put("x", b"x").status == 404

    def test_yaml_of_the_same_shape(self, make_node):
        node = make_node()
        node.config = node.root / "buckets.yaml"
        node.config.write_text("Bucket:\n  - Name: from-yaml\n    Public: true\n")
        node.start()
        assert node.put("x", b"x", bucket="from-yaml").status == 201

    def test_mode_none_opens_every_bucket(self, make_node):
        node = make_node(auth="none").start()
        for bucket in ("private", "guarded", "dropbox"):
            assert node.put("x", b"x", bucket=bucket).status == 201
            assert node.get("x", bucket=bucket).body == b"x"
        assert node.put("x", b"x", bucket="unknown").status == 404


class TestDrain:
    def test_an_idle_node_stops_at_once(self, make_node):
        node = make_node(shards=2).start()
        with node.wire() as idle:
            assert idle.request("GET", make_name("x")).status == 404
            node.process.send_signal(signal.SIGTERM)
            assert idle.read_to_end() == b""
        assert node.wait() == 0
        assert "Traceback" not in node.text_of_log()

    def test_uploads_and_downloads_in_progress_are_finished(self, make_node):
        node = make_node().start()
        body = noise(24 * MIB)
        node.put("there", body)
        upload, download = node.wire(), node.wire()
        download.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        download.send(make_head("GET", make_name("there")))
        download.read_head()
        upload.send(make_head("PUT", make_name("new"), "Expect: 100-continue", body=body))
        assert upload.response().status == 100
        upload.send(body[:MIB])
        node.process.send_signal(signal.SIGTERM)
        until(lambda: self.is_refused(node), "the port is closed")
        assert node.process.poll() is None
        upload.send(body[MIB:])
        got = upload.response()
        assert (got.status, got.fields["connection"]) == (201, "close")
        assert download.read(len(body)) == body
        assert node.wait() == 0
        node.start()
        assert node.get("new").body == body

    @staticmethod
    def is_refused(node):
        try:
            Wire(node.addresses[0]).sock.close()
        except OSError:
            return True
        return False

    def test_while_it_drains_it_says_so(self, make_node):
        node = make_node(flags=("--drain-delay", "30")).start()
        node.put("x", b"x")
        with node.wire() as wire:
            assert wire.request("GET", make_name("x")).status == 200
            node.process.send_signal(signal.SIGTERM)

            def ready():
                with Wire(node.addresses[0]) as other:
                    return other.request("GET", "/readyz")

            until(lambda: ready().status == 503, "the shard says 503")
            assert ready().word == "draining"
            assert node.ask_ops("/readyz").status == 503
            got = wire.request("GET", make_name("x"))
            assert (got.body, got.fields["connection"]) == (b"x", "close")
            assert wire.read_to_end() == b""
            assert node.put("y", b"y").status == 201
        node.kill()

    def test_what_does_not_end_is_cut_and_leaves_nothing(self, make_node):
        node = make_node(flags=("--drain-grace", "0.3")).start()
        node.put("x", b"old")
        wire = node.wire()
        wire.send(make_head("PUT", make_name("x"), "Expect: 100-continue", body=bytes(8 * MIB)))
        assert wire.response().status == 100
        wire.send(bytes(5 * MIB))
        until(node.temporary_files, "the upload's file")
        node.process.send_signal(signal.SIGTERM)
        assert node.wait() == 0
        assert not node.temporary_files()
        assert "Traceback" not in node.text_of_log()
        node.start()
        assert node.get("x").body == b"old"

    def test_sigint_is_as_good(self, make_node):
        node = make_node().start()
        assert node.stop(signal.SIGINT) == 0


class TestDeaths:
    def test_shards_leave_when_the_supervisor_is_killed(self, make_node):
        node = make_node(shards=3).start()
        node.put("x", b"x")
        os.kill(node.process.pid, signal.SIGKILL)
        assert node.wait() == -signal.SIGKILL
        assert not any(map(is_alive, node.pids))
        node.start()
        assert node.get("x").body == b"x"

    def test_a_killed_shard_comes_back_at_its_port_with_its_objects(self, make_node):
        node = make_node(shards=2).start()
        for shard in (0, 1):
            assert node.put(f"x{shard}", b"x" * 1000, shard=shard).status == 201
        os.kill(node.pids[1], signal.SIGKILL)
        assert node.get("x0", shard=0).body == b"x" * 1000, "the other shard serves on"

        def is_back():
            state = node.states()[1]
            return state["port"] is not None and state["pid"] not in {None, node.pids[1]}

        until(is_back, "the shard's return")
        assert node.states()[1]["port"] == node.addresses[1][1]
        assert node.get("x1", shard=1).body == b"x" * 1000
        assert node.metric("scs_shard_restarts_total", shard="1") == 1
        assert node.metric("scs_shard_restarts_total", shard="0") == 0

    def test_a_shard_that_is_down_is_shown(self, make_node):
        node = make_node(shards=2).start()
        os.kill(node.pids[0], signal.SIGSTOP)
        try:
            assert node.get("x", shard=1).status == 404
            assert node.ask_ops("/healthz").status == 200
            os.kill(node.pids[1], signal.SIGKILL)
            until(lambda: node.states()[1]["pid"] != node.pids[1], "the death is noticed")
        finally:
            os.kill(node.pids[0], signal.SIGCONT)
        assert node.ask_ops("/readyz").status == 200

    def test_objects_survive_a_restart_and_are_counted(self, make_node):
        node = make_node(shards=2).start()
        for number in range(30):
            assert node.put(f"object-{number}", noise(1000, number), shard=number % 2).status == 201
        counted = node.metric("scs_stored_bytes")
        assert node.stop() == 0
        node.start()
        assert node.metric("scs_entries") == 30
        assert node.metric("scs_stored_bytes") == counted
        assert all(
            node.get(f"object-{number}", shard=number % 2).body == noise(1000, number)
            for number in range(30)
        )

    def test_an_index_that_is_lost_or_broken_is_made_anew(self, make_node):
        node = make_node().start()
        for number in range(20):
            node.put(f"object-{number}", noise(1000, number))
        for harm in (b"this is no database", None):
            assert node.stop() == 0
            index = node.data / "shard-00" / "index.db"
            index.unlink() if harm is None else index.write_bytes(harm * 1000)
            node.start()
            assert node.get("object-7").body == noise(1000, 7)
            until(lambda: node.metric("scs_entries") == 20, "all are counted again")

    def test_several_data_directories(self, make_node, tmp_path):
        node = make_node(shards=3, flags=("--data", str(tmp_path / "second")))
        node.start()
        for shard in range(3):
            assert node.put("x", b"x%d" % shard, shard=shard).status == 201
        shards = sorted(path.name for path in tmp_path.glob("*/shard-*")) + sorted(
            path.name for path in tmp_path.glob("node/data/shard-*")
        )
        assert shards == ["shard-01", "shard-00", "shard-02"]
        node.stop()
        node.start()
        assert [node.get("x", shard=shard).body for shard in range(3)] == [b"x0", b"x1", b"x2"]


class TestReplacing:
    @pytest.mark.parametrize("size", [3000, 200_000, 1_500_000])
    def test_every_read_is_one_whole_version(self, node, name, size):
        """Writers replace one object while readers read it, inline and by sendfile."""
        stop = threading.Event()

        def make_body(version):
            return b"%08d" % version * (size // 8)

        def write(first):
            with Wire(node.addresses[0]) as wire:
                for version in range(first, first + 60):
                    assert wire.request("PUT", target, body=make_body(version)).status == 201

        def read():
            count = 0
            with Wire(node.addresses[0]) as wire:
                while not stop.is_set():
                    got = wire.request("GET", target)
                    assert got.status == 200
                    assert got.body == make_body(int(got.body[:8]))
                    count += 1
            return count

        target = make_name(name)
        assert node.put(name, make_body(0)).status == 201
        with ThreadPoolExecutor() as pool:
            readers = [pool.submit(read) for _ in range(3)]
            try:
                list(pool.map(write, (0, 1000)))
            finally:
                stop.set()
            assert all(reader.result() > 0 for reader in readers)

    def test_an_acknowledged_version_is_what_is_read_next(self, node, name):
        with node.wire() as writer, node.wire() as reader:
            for version in range(300):
                assert writer.request("PUT", make_name(name), body=b"%d" % version).status == 201
                assert reader.request("GET", make_name(name)).body == b"%d" % version

    def test_a_reader_keeps_the_version_it_began_with(self, node, name):
        old, new = noise(8 * MIB, 1), noise(8 * MIB, 2)
        node.put(name, old)
        with node.wire() as wire:
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
            wire.send(make_head("GET", make_name(name)))
            wire.read_head()
            node.put(name, new)
            assert wire.read(len(old)) == old
        assert node.get(name).body == new
        with node.wire() as wire:
            wire.send(make_head("GET", make_name(name)))
            wire.read_head()
            assert node.request("DELETE", make_name(name)).status == 204
            assert wire.read(len(new)) == new
        assert node.get(name).status == 404


class TestAnnouncement:
    def test_one_line_of_json(self, make_node):
        node = make_node(shards=2).start()
        assert not select.select([node.process.stdout], [], [], 0)[0]
        assert len(node.addresses) == 2
        assert len(set(node.pids)) == 2
        document = json.loads(node.ask_ops("/readyz").body)
        assert document["ready"] is True
        assert set(document["shards"]) == {"node-a/0", "node-a/1"}
