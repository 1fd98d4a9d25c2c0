"""``scs put``, ``get``, ``stat`` and ``rm``, in this process and as processes of their own."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simplecache import __version__
from simplecache.cli.main import main
from simplecache.cli.outfile import open_output
from simplecache.cli.progress import Progress, format_size

MIB = 1 << 20
BIG = bytes(range(256)) * (12 * MIB // 256)
SCS = [sys.executable, "-W", "error", "-m", "simplecache"]


@pytest.fixture
def scs(capfdbinary):
    """Run a command here: its status, its standard output, and the line it complained with."""

    def run(*argv):
        try:
            status = main(argv)
        except SystemExit as stop:
            status = stop.code or 0
        captured = capfdbinary.readouterr()
        return status, captured.out, captured.err.decode()

    return run


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def list_here():
    return sorted(path.name for path in Path().iterdir())


class TestPut:
    @pytest.mark.parametrize("data", [b"", b"red", BIG])
    def test_a_file_comes_back(self, node, scs, data):
        Path("in").write_bytes(data)
        assert scs("put", "in", "public/s3://h/a//b", "--content-type", "x/y") == (0, b"", "")
        assert node.objects["/v1/objects/public/s3://h/a//b"] == (data, "x/y")
        assert scs("get", "public/s3://h/a//b") == (0, data, "")
        assert scs("get", "public/s3://h/a//b", "-o", "out") == (0, b"", "")
        assert Path("out").read_bytes() == data
        assert list_here() == ["in", "out"]

    @pytest.mark.parametrize("data", [b"", b"red", BIG])
    def test_a_pipe_is_sent_in_chunks(self, node, data):
        process = subprocess.run([*SCS, "put", "-", "public/x"], input=data, capture_output=True)
        assert (process.returncode, process.stdout, process.stderr) == (0, b"", b"")
        assert node.objects["/v1/objects/public/x"][0] == data

    def test_a_redirected_file_has_a_length(self, node, monkeypatch, scs):
        Path("in").write_bytes(b"0123456789")
        with Path("in").open() as file:
            file.buffer.seek(4)
            monkeypatch.setattr(sys, "stdin", file)
            assert scs("put", "-", "public/x")[0] == 0
        assert node.objects["/v1/objects/public/x"][0] == b"456789"

    def test_if_absent(self, node, scs):
        Path("in").write_bytes(b"one")
        assert scs("put", "in", "public/x", "--if-absent")[0] == 0
        Path("in").write_bytes(b"two")
        status = scs("put", "in", "public/x", "--if-absent")
        assert status == (3, b"", "scs: public/x: already there\n")
        assert node.objects["/v1/objects/public/x"][0] == b"one"

    def test_refusals(self, node, scs):
        Path("in").write_bytes(BIG)
        node.max_object_bytes = 100
        assert scs("put", "in", "public/x") == (
            3,
            b"",
            "scs: the object is larger than allowed\n",
        )
        assert scs("put", "in", "private/x") == (3, b"", "scs: a token is needed\n")
        assert scs("put", "in", "absent/x") == (3, b"", 'scs: there is no bucket "absent"\n')

    def test_no_such_file(self, node, scs):
        assert scs("put", "in", "public/x") == (2, b"", "scs: in: No such file or directory\n")
        assert scs("put", ".", "public/x") == (2, b"", "scs: .: Is a directory\n")
        assert node.asked == []

    def test_a_token_file(self, node, scs, monkeypatch):
        Path("token").write_text("good-token\n")
        Path("in").write_bytes(b"x")
        assert scs("put", "in", "private/x", "--token-file", "token")[0] == 0
        monkeypatch.setenv("SCS_TOKEN_FILE", "token")
        assert scs("get", "private/x") == (0, b"x", "")
        assert scs("get", "private/x", "--token-file", "none") == (
            2,
            b"",
            "scs: token file 'none' cannot be read: No such file or directory\n",
        )


class TestNames:
    def test_raw_by_default(self, node, scs):
        Path("in").write_bytes(b"x")
        name = "public/file://tmp/100%.jpg?a=[1]&b='2'"
        assert scs("put", "in", name)[0] == 0
        assert list(node.objects) == [f"/v1/objects/{name}"]
        assert scs("get", name) == (0, b"x", "")

    @pytest.mark.parametrize(
        ("name", "escaped"),
        [("my file", "my%20file"), ("a#b", "a%23b"), ("りんご", "%E3%82%8A%E3%82%93%E3%81%94")],
    )
    def test_escape_is_suggested(self, node, scs, name, escaped):
        status, _, complaint = scs("get", f"public/{name}")
        assert status == 2
        assert f"--escape do it: public/{escaped}\n" in complaint
        Path("in").write_bytes(b"x")
        assert scs("put", "in", f"public/{name}", "--escape")[0] == 0
        assert list(node.objects) == [f"/v1/objects/public/{escaped}"]
        assert scs("get", f"public/{name}", "--escape") == (0, b"x", "")

    def test_a_name_that_is_not_utf_8(self, node):
        argv = [*SCS, "put", "--escape", "-", b"public/a\xffb"]
        assert subprocess.run(argv, input=b"x").returncode == 0
        assert list(node.objects) == ["/v1/objects/public/a%FFb"]

    @pytest.mark.parametrize("name", ["apple", "public/", "/x", "Public/x", "pu/x"])
    @pytest.mark.parametrize("escape", [(), ("--escape",)])
    def test_no_names(self, node, scs, name, escape):
        status, _, complaint = scs("stat", name, *escape)
        assert status == 2
        assert complaint.startswith("scs: ")
        assert complaint.count("\n") == 1


class TestGet:
    def test_not_found(self, node, scs):
        Path("out").write_bytes(b"before")
        assert scs("get", "public/x", "-o", "out") == (1, b"", "scs: public/x: not found\n")
        assert scs("get", "absent/x", "-o", "out") == (1, b"", "scs: absent/x: no such bucket\n")
        assert Path("out").read_bytes() == b"before"

    @pytest.mark.parametrize(
        ("wanted", "part"),
        [("0-0", b"0"), ("2-4", b"234"), ("7-", b"789"), ("9-100", b"9"), ("0-", b"0123456789")],
    )
    def test_ranges(self, node, scs, wanted, part):
        node.objects["/v1/objects/public/x"] = (b"0123456789", "x/y")
        assert scs("get", "public/x", "--range", wanted) == (0, part, "")

    def test_a_range_past_the_end(self, node, scs):
        node.objects["/v1/objects/public/x"] = (b"0123456789", "x/y")
        assert scs("get", "public/x", "--range", "10-20", "-o", "out") == (
            3,
            b"",
            "scs: public/x: has 10 bytes, none from 10 on\n",
        )
        assert list_here() == []

    @pytest.mark.parametrize("wanted", ["", "5", "-5", "5-4", "a-b", "0-1,3-4", "+1-2"])
    def test_no_ranges(self, node, scs, wanted):
        status, _, complaint = scs("get", "public/x", f"--range={wanted}")
        assert status == 2
        assert "A-B or A- is expected" in complaint

    def test_a_torn_object_leaves_no_file(self, scripted, scs):
        def play(peer):
            peer.read_head()
            peer.send(b"HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\n12345")

        scripted(play)
        Path("out").write_bytes(b"before")
        status, out, complaint = scs("get", "public/x", "-o", "out")
        assert (status, out) == (3, b"")
        assert "cut off 5 bytes before its end" in complaint
        assert list_here() == ["out"]
        assert Path("out").read_bytes() == b"before"

    def test_where_nothing_can_be_written(self, node, scs):
        node.objects["/v1/objects/public/x"] = (b"x", "x/y")
        assert scs("get", "public/x", "-o", "no/out") == (
            2,
            b"",
            "scs: no/out: No such file or directory\n",
        )
        assert scs("get", "public/x", "-o", ".") == (2, b"", "scs: .: Is a directory\n")

    def test_a_device_is_written_to(self, node, scs):
        node.objects["/v1/objects/public/x"] = (b"x", "x/y")
        before = Path(os.devnull).stat()
        assert scs("get", "public/x", "-o", os.devnull) == (0, b"", "")
        assert Path(os.devnull).stat().st_ino == before.st_ino
        status, _, complaint = scs("get", "public/x", "-o", "/dev/full")
        assert (status, complaint) == (3, "scs: No space left on device\n")

    def test_a_link_stays_a_link(self, node, scs):
        node.objects["/v1/objects/public/x"] = (b"x", "x/y")
        Path("real").write_bytes(b"before")
        Path("link").symlink_to("real")
        assert scs("get", "public/x", "-o", "link")[0] == 0
        assert Path("link").is_symlink()
        assert Path("real").read_bytes() == b"x"

    def test_the_file_has_the_usual_mode(self, node, scs):
        node.objects["/v1/objects/public/x"] = (b"x", "x/y")
        Path("usual").touch()
        scs("get", "public/x", "-o", "out")
        assert Path("out").stat().st_mode == Path("usual").stat().st_mode

    def test_a_closed_pipe_is_no_drama(self, node):
        node.objects["/v1/objects/public/x"] = (BIG, "x/y")
        with subprocess.Popen(
            [*SCS, "get", "public/x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout.read(10) == BIG[:10]
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141

    @pytest.mark.parametrize("argv", [["--help"], ["stat", "public/x"], ["get", "public/x"]])
    def test_a_pipe_that_is_closed_from_the_start(self, node, argv):
        node.objects["/v1/objects/public/x"] = (b"x", "x/y")
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.run([*SCS, *argv], stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert process.stderr == b""
        # argparse itself forgives a help that nobody reads, when Python does not buffer it.
        assert process.returncode in ({0, 141} if argv == ["--help"] else {141})

    def test_no_standard_output_at_all(self, node):
        node.objects["/v1/objects/public/x"] = (b"x", "x/y")
        process = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *SCS, "get", "public/x"], stderr=subprocess.PIPE
        )
        assert process.stderr == b"scs: standard output is closed\n"
        assert process.returncode == 3

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_interrupted(self, scripted, tmp_path, number, status):
        def play(peer):
            peer.read_head()
            peer.send(b"HTTP/1.1 200 X\r\nContent-Length: 2000000\r\n\r\n", b"x" * 1_000_000)
            for _ in range(2000):
                if any(path.stat().st_size for path in tmp_path.iterdir()):
                    break
                peer.sock.settimeout(0.01)
                try:
                    peer.sock.recv(1)
                except TimeoutError:
                    continue
            process.send_signal(number)
            peer.sock.settimeout(20)
            peer.wait_for_end()

        server = scripted(play)
        process = subprocess.Popen([*SCS, "get", "public/x", "-o", "out"], stderr=subprocess.PIPE)
        with process:
            assert process.stderr.read() == b""
        assert process.returncode == status
        assert list_here() == []
        assert server.errors == []


class TestStat:
    def test_facts(self, node, scs):
        node.objects["/v1/objects/public/x"] = (b"0123456789", "te\xa0xt/y")
        status, out, _ = scs("stat", "public/x", "--json")
        facts = json.loads(out)
        assert status == 0
        assert facts.pop("etag").startswith('"')
        assert facts == {
            "bucket": "public",
            "object": "x",
            "size_bytes": 10,
            "content_type": "te\xa0xt/y",
            "content_encoding": None,
            "modified_at": "2026-10-20T07:28:00+00:00",
        }
        status, out, _ = scs("stat", "public/x")
        assert status == 0
        assert b"size_bytes       10\n" in out
        assert b"content_type     te\\xa0xt/y\n" in out

    def test_not_found(self, node, scs):
        assert scs("stat", "public/x") == (1, b"", "scs: public/x: not found\n")
        assert scs("stat", "absent/x") == (1, b"", "scs: absent/x: no such bucket\n")
        assert scs("stat", "private/x")[0] == 3


class TestRm:
    def test_all_that_are_there(self, node, scs):
        for name in "ac":
            node.objects[f"/v1/objects/public/{name}"] = (b"x", "x/y")
        assert scs("rm", "public/a", "public/b", "absent/b", "public/c") == (
            1,
            b"",
            "scs: public/b: not found\nscs: absent/b: no such bucket\n",
        )
        assert node.objects == {}

    def test_all_are_checked_first(self, node, scs):
        node.objects["/v1/objects/public/a"] = (b"x", "x/y")
        assert scs("rm", "public/a", "public/b c")[0] == 2
        assert len(node.objects) == 1


class TestRoot:
    def test_version(self, scs):
        assert scs("--version") == (0, f"scs {__version__}\n".encode(), "")

    def test_help(self, scs):
        status, out, _ = scs("--help")
        assert status == 0
        for text in (b"EXAMPLES", b"Objects:\n  put ", b"  control-plane", b"  serve"):
            assert text in out

    @pytest.mark.parametrize("command", ["put", "get", "stat", "rm"])
    def test_each_command_has_examples(self, scs, command):
        status, out, _ = scs(command, "--help")
        assert status == 0
        assert b"EXAMPLES\n  " in out
        assert f"usage: scs {command} ".encode() in out

    def test_nothing_asked(self, scs):
        status, out, complaint = scs()
        assert (status, out) == (2, b"")
        assert "EXAMPLES" in complaint

    @pytest.mark.parametrize("argv", [["fly"], ["get"], ["rm"], ["put", "x"], ["get", "a/b", "-x"]])
    def test_wrong_usage(self, scs, argv):
        assert scs(*argv)[0] == 2

    def test_a_url_that_is_none(self, scs):
        assert scs("get", "public/x", "--url", "https://x")[0] == 2

    def test_nobody_listens(self, node, scs):
        node.close()
        status, _, complaint = scs("get", "public/x")
        assert status == 3
        assert complaint.startswith("scs: cannot connect to 127.0.0.1:")
        assert complaint.count("\n") == 1

    def test_help_needs_no_client(self):
        code = (
            "import sys; from simplecache.cli.main import make_parser; make_parser(); "
            "heavy = {'simplecache.client.sync', 'grpc', 'uvloop', 'httptools', 'sqlite3', 'yaml'}; "
            "print(sorted(heavy & set(sys.modules)))"
        )
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert process.stdout == "[]\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class TestProgress:
    def test_a_large_transfer(self):
        out, clock = Terminal(), Clock()
        with Progress("file", 20 * MIB, out=out, now=clock) as progress:
            progress.add(MIB)
            assert out.getvalue() == ""
            clock.now_s = 2.0
            progress.add(4 * MIB)
            line = "file  [######------------------]  25%  5.0 MiB  2.5 MiB/s  0:06 left"
            assert out.getvalue() == f"\r{line}\x1b[K"
            clock.now_s = 2.05
            progress.add(MIB)
            assert out.getvalue().count("file") == 1
            progress.restart()
            assert progress.done_bytes == 0
        assert out.getvalue().endswith("\r\x1b[K")

    def test_an_unknown_length(self):
        out, clock = Terminal(), Clock()
        with Progress("-", None, out=out, now=clock) as progress:
            clock.now_s = 1.0
            progress.add(8 * MIB)
            assert out.getvalue() == ""
            clock.now_s = 2.0
            progress.add(2 * MIB)
        assert out.getvalue() == "\r-  10.0 MiB  5.0 MiB/s\x1b[K\r\x1b[K"

    @pytest.mark.parametrize(
        ("out", "total", "quiet"),
        [(io.StringIO(), 20 * MIB, False), (Terminal(), MIB, False), (Terminal(), 20 * MIB, True)],
    )
    def test_silence(self, out, total, quiet):
        clock = Clock()
        with Progress("file", total, out=out, quiet=quiet, now=clock) as progress:
            clock.now_s = 1.0
            progress.add(total)
        assert out.getvalue() == ""

    def test_sizes(self):
        sizes = [0, 1023, 1024, 1.5 * MIB, 2 << 30, 3 << 40, 4 << 50]
        assert [format_size(size) for size in sizes] == [
            "0 B",
            "1023 B",
            "1.0 KiB",
            "1.5 MiB",
            "2.0 GiB",
            "3.0 TiB",
            "4096.0 TiB",
        ]


def test_an_output_that_fails_is_not_there():
    def write():
        with open_output("out") as file:
            file.write(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list_here() == []
