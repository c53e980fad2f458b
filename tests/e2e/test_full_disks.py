"""Disks that are really full, under the store and under a restore; and device nodes."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stack import Stack, differences

pytestmark = pytest.mark.root

SMALL_STORE = "96m"
ROOMY_STORE = "600m"


@pytest.fixture(scope="module")
def small() -> Iterator[Stack]:
    """A stack whose store lies on a small file system of its own."""
    stack = Stack("--server", "here")
    disk = stack.state / "store-1"
    disk.mkdir(parents=True)
    (stack.state / "strandline.toml").write_text("[store]\nreserve_bytes = 2097152\n")
    run("mount", "-t", "tmpfs", "-o", f"size={SMALL_STORE}", "none", disk)
    try:
        stack.up()
        yield stack
        stack.down()
    finally:
        run("umount", "-l", disk)
        stack.close()


def run(*argv: str | Path) -> None:
    done = subprocess.run(list(argv), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"


def random_file(path: Path, size_mb: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size_mb << 20))


def test_a_full_store_fails_the_job_and_loses_nothing(small: Stack) -> None:
    data = small.work / "grows"
    random_file(data / "first", 20)
    small.json("protect", data, "--name", "grows", "--server", "here", "--wait")
    random_file(data / "too-much", 150)
    job = small.json("express-full", "grows", "--wait", code=1)
    assert job["failure"]["code"] == "store.full"
    assert "Free space" in job["failure"]["hint"]
    assert [point["number"] for point in small.points("grows")] == [1]
    small.restore("grows", 1, small.work / "first-again")
    (data / "too-much").unlink()
    assert differences(data, small.work / "first-again", "--omit-dir-times") == ""

    # Less to ship is room enough: what the failed job had staged is given back.
    random_file(data / "little", 5)
    point = small.json("express-full", "grows", "--wait")["point"]
    small.restore("grows", point, small.work / "little-again")
    assert differences(data, small.work / "little-again") == ""

    random_file(data / "too-much", 150)
    run("mount", "-o", f"remount,size={ROOMY_STORE}", small.state / "store-1")
    point = small.json("express-full", "grows", "--wait")["point"]
    small.restore("grows", point, small.work / "all-again")
    assert differences(data, small.work / "all-again") == ""
    small.json("verify", "grows", "--wait")


def test_a_full_target_fails_the_restore_and_is_left_whole(small: Stack) -> None:
    run("mount", "-o", f"remount,size={ROOMY_STORE}", small.state / "store-1")
    data = small.work / "wide"
    for number in range(20):
        random_file(data / f"{number}", 2)
    small.json("protect", data, "--name", "wide", "--server", "here", "--wait")
    image, mounted = small.work / "disk.img", small.work / "disk"
    with image.open("wb") as file:
        file.truncate(80 << 20)
    mounted.mkdir()
    run("mkfs.ext4", "-q", image)
    run("mount", "-o", "loop", image, mounted)
    try:
        random_file(mounted / "in-the-way", 40)
        target = mounted / "target"
        job = small.restore("wide", 1, target, code=1)
        assert job["failure"]["code"] == "restore.failed"
        assert "No space" in job["failure"]["message"]
        assert "Make room" in job["failure"]["hint"]
        run("umount", mounted)
        run("e2fsck", "-fn", image)
        run("mount", "-o", "loop", image, mounted)
        (mounted / "in-the-way").unlink()
        small.restore("wide", 1, target, "--overwrite")
        assert differences(data, target) == ""
    finally:
        run("umount", "-l", mounted)


def test_device_nodes_are_made_only_when_asked(small: Stack) -> None:
    data = small.work / "devices"
    data.mkdir()
    (data / "file").write_bytes(b"content")
    os.mknod(data / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(data / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    small.json("protect", data, "--name", "devices", "--server", "here", "--wait")
    job = small.restore("devices", 1, small.work / "without", code=4)
    assert {issue["path"]["text"] for issue in job["issues"]} == {"null", "loop"}
    assert os.listdir(small.work / "without") == ["file"]
    small.restore("devices", 1, small.work / "with", "--devices")
    assert differences(data, small.work / "with") == ""
