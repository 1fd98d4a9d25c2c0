"""A real file system that is aborted by the kernel under a running node, and mounted anew."""

import os
import shutil
import subprocess

import pytest
from node_process import NodeProcess, owner, until


def run(*command):
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    """An ext4 of its own: (where it is mounted, mount it, let the kernel abort it)."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 160 << 20)

    def mount():
        run("mount", "-o", "loop", image, place)

    def abort():
        run("mount", "-o", "remount,abort", place)

    def remount():
        nonlocal image
        run("umount", "-l", place)
        copy = image.with_name(f"{image.name}+")  # the old one is as long as it is in use
        shutil.copy(image, copy)
        image = copy
        mount()

    try:
        run("mkfs.ext4", "-q", image)
        mount()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system of its own can be mounted here")
    yield place, abort, remount
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def test_a_disk_that_the_kernel_gives_up_leaves_the_ring_and_comes_back(tmp_path, disk):
    place, abort, remount = disk
    node = NodeProcess(tmp_path, data=("good",), shards=2, flags=["--capacity", "100%"])
    node.data.append(place)
    with node:
        bodies = {f"aaa/{i}": os.urandom(3000) for i in range(60)}
        for name, body in bodies.items():
            assert node.put(name, body) == 201
        os.sync()
        mine = [name for name in bodies if owner(name, 2) == 1]
        abort()
        assert {node.put(name, b"new") for name in mine[:8]} == {503}
        until(lambda: node.states()[1].get("reason"), "the probation")
        assert not node.states()[1]["ready"]
        assert node.states()[0]["ready"]
        assert 'scs_probation{shard="1"} 1' in node.ops("/metrics")
        for name, body in bodies.items():  # GETs are answered as well as they can be
            assert node.get(name) in {body, None}
        remount()
        until(lambda: node.states()[1]["ready"], "its way back", timeout_s=60)
        node.told["listen"][1][1] = node.states()[1]["port"]
        node.await_metric("scs_reconciling", 0)
        assert sum(node.get(name) == bodies[name] for name in mine) == len(mine)
        assert node.put(mine[0], b"new") == 201
        assert node.get(mine[0]) == b"new"
