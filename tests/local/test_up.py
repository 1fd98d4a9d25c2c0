"""``scs up`` as its users meet it."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from simplecache.local.cluster import Cluster

SCS = [sys.executable, "-m", "simplecache"]


class Up:
    """A running ``scs up`` and what it printed until it was ready."""

    def __init__(self, *flags):
        self.process = subprocess.Popen(
            [*SCS, "up", "--port", "0", *flags], stderr=subprocess.PIPE, text=True
        )
        self.text = ""
        while "Ctrl-C" not in self.text:
            line = self.process.stderr.readline()
            assert line, self.text
            self.text += line
        self.url = re.search(r"ready after [\d.]+ s at (\S+)", self.text)[1]
        self.pids = [int(pid) for pid in re.findall(r"pid (\d+)", self.text)]

    def stop(self, number=signal.SIGINT):
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(30)
        self.process.stderr.close()
        return status


@pytest.fixture
def up():
    started = []

    def start(*flags):
        started.append(Up(*flags))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def descendants_gone(pids, within_s=15):
    """Whether none of the processes, nor a child of theirs, is left in time."""
    deadline = time.monotonic() + within_s
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def children_of(pids):
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) in pids:
            found.append(int(status.parent.name))
    return found


def test_the_printed_lines_work_as_printed(up, tmp_path):
    running = up()
    lines = [line.strip() for line in running.text.splitlines() if line.startswith("    ")]
    script = [line for line in lines if line.startswith(("echo ", "curl ", "export "))]
    assert len(script) == 6
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "apple\napple\n")


def test_ctrl_c_stops_all_and_leaves_nothing(up):
    running = up()
    pids = [*running.pids, *children_of(running.pids)]
    assert len(pids) >= 8  # three supervisors, three shards, control plane, Envoy
    assert running.stop() == 0
    assert descendants_gone(pids)
    directory = Path(re.search(r"Logs: +(\S+)", running.text)[1]).parent
    assert not directory.exists()


def test_a_killed_scs_up_leaves_no_process(up):
    running = up()
    pids = [*running.pids, *children_of(running.pids)]
    running.stop(signal.SIGKILL)
    assert descendants_gone(pids)


def test_objects_survive_with_a_directory(up, tmp_path):
    put = urllib.request.Request("http://x", data=b"stays", method="PUT")
    first = up("--dir", str(tmp_path / "d"))
    put.full_url = f"{first.url}/v1/objects/public/a"
    assert urllib.request.urlopen(put).status == 201
    assert first.stop() == 0
    second = up("--dir", str(tmp_path / "d"))
    assert urllib.request.urlopen(f"{second.url}/v1/objects/public/a").read() == b"stays"


def test_two_clusters_do_not_meet(up):
    one, other = up(), up("--nodes", "1")
    put = urllib.request.Request(f"{one.url}/v1/objects/public/a", data=b"one", method="PUT")
    assert urllib.request.urlopen(put).status == 201
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{other.url}/v1/objects/public/a")
    assert other.stop() == 0
    assert urllib.request.urlopen(f"{one.url}/v1/objects/public/a").read() == b"one"


def test_exec_runs_a_command_and_exits_with_its_status():
    command = (
        "curl -sf -X PUT --data-binary hello $SCS_URL/v1/objects/public/x"
        " && curl -sf $SCS_URL/v1/objects/public/x"
        ' && curl -sf -o /dev/null -X PUT --data-binary x -H "Authorization: Bearer $(cat $SCS_TOKEN_FILE)"'
        " $SCS_URL/v1/objects/prj-foobar/x && exit 7"
    )
    done = subprocess.run(
        [*SCS, "up", "--port", "0", "--nodes", "2", "--exec", command],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (7, "hello")


def test_a_dead_node_and_a_dead_envoy_are_started_again(up):
    running = up()
    os.kill(running.pids[0], signal.SIGKILL)
    os.kill(running.pids[-1], signal.SIGKILL)
    back = set()
    while back != {"node-1", "envoy"}:
        line = running.process.stderr.readline()
        assert line
        if match := re.search(r"(\S+): ready", line):
            back.add(match[1])


def test_a_taken_port_is_said_in_a_sentence(cluster: Cluster):
    done = subprocess.run(
        [*SCS, "up", "--port", str(cluster.port)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3
    assert f"cannot listen on 127.0.0.1:{cluster.port}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--nodes", "0"], "--nodes: 0 must be between 1 and 64"),
        (["--port", "70000"], "--port: 70000 is not a port"),
        (["--envoy", "/nowhere/envoy"], "--envoy: /nowhere/envoy is not a program"),
    ],
)
def test_wrong_flags_are_said_in_a_sentence(flags, sentence):
    done = subprocess.run([*SCS, "up", *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip() == f"scs: {sentence}"
