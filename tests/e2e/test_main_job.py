"""The main job by the command line: protect, change, restore any point, anywhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from support.stack import Stack, copy, differences


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def protected(stack: Stack) -> Path:
    """A tree in three states, each a recovery point with a copy `reference-N` beside it."""
    data = stack.work / "data"
    write(data / "large.img", os.urandom(3 << 20))
    write(data / "folder" / "deep" / "small.txt", b"small\n")
    write(data / "folder" / "gone.txt", b"to be deleted\n")
    write(data / "folder" / "big.bin", os.urandom(2 << 20))
    os.link(data / "large.img", data / "folder" / "hard link")
    os.symlink("../large.img", data / "folder" / "link")
    os.mkfifo(data / "pipe")
    bad = os.fsencode(data) + b"/\xff\xfe\nname"
    with open(bad, "wb") as file:
        file.write(b"odd name")
    stack.json("protect", data, "--name", "main", "--server", "here", "--wait")
    copy(data, stack.work / "reference-1")

    with (data / "large.img").open("r+b") as image:
        image.seek(1 << 20)
        image.write(os.urandom(4096))
    (data / "folder" / "gone.txt").unlink()
    stack.json("express-full", "main", "--wait")
    copy(data, stack.work / "reference-2")

    (data / "folder").rename(data / "renamed")
    os.chmod(data / "renamed" / "deep", 0o2750)
    with (data / "large.img").open("ab") as image:
        image.write(b"appended")
    stack.json("sync", "main", "--wait")
    copy(data, stack.work / "reference-3")
    return data


@pytest.mark.parametrize("point", [1, 2, 3])
def test_each_point_comes_back_as_it_was(stack: Stack, protected: Path, point: int) -> None:
    target = stack.work / f"restored-{point}"
    stack.restore("main", point, target)
    assert differences(stack.work / f"reference-{point}", target) == ""


def test_only_what_changed_travels(stack: Stack, protected: Path) -> None:
    first, second, third = (point["totals"] for point in stack.points("main")[:3])
    assert first["shipped_bytes"] >= 5 << 20
    assert 0 < second["shipped_bytes"] <= 16384
    assert third["shipped_bytes"] <= 16384, "a renamed folder ships no data"


def test_restore_by_paths(stack: Stack, protected: Path) -> None:
    target = stack.work / "by-path"
    stack.restore("main", 1, target, "--path", "folder/deep", "--path", "pipe")
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*"))
    assert found == ["folder", "folder/deep", "folder/deep/small.txt", "pipe"]
    assert (target / "folder/deep/small.txt").read_bytes() == b"small\n"


def test_restore_to_another_server(stack: Stack, protected: Path) -> None:
    target = stack.work / "elsewhere"
    stack.restore("main", 2, target, "--server", "there")
    assert differences(stack.work / "reference-2", target) == ""


def test_restore_at_a_time(stack: Stack, protected: Path) -> None:
    taken = stack.points("main")[1]["taken_at"]
    milliseconds = taken[: taken.index(".") + 4] + "Z"
    for number, time in enumerate((taken, milliseconds)):
        target = stack.work / f"at-time-{number}"
        stack.json("restore", "main", "--at", time, "--to", target, "--wait")
        assert differences(stack.work / "reference-2", target) == ""


def test_restore_refuses_a_folder_that_is_not_empty(stack: Stack, protected: Path) -> None:
    target = stack.work / "full"
    write(target / "mine.txt", b"mine")
    stack.restore("main", 1, target, code=1)
    assert sorted(os.listdir(target)) == ["mine.txt"]
    stack.restore("main", 1, target, "--overwrite")
    assert (target / "mine.txt").read_bytes() == b"mine"
    assert (target / "folder/deep/small.txt").read_bytes() == b"small\n"


def test_check_and_verify_find_nothing_wrong(stack: Stack, protected: Path) -> None:
    stack.json("check", "main", "--wait")
    newest = stack.points("main")[-1]
    assert newest["kind"] == "check"
    assert newest["totals"].get("shipped_bytes", 0) == 0
    stack.json("verify", "main", "--wait")


def test_an_agent_that_lost_its_index_ships_little(stack: Stack) -> None:
    data = stack.work / "known"
    write(data / "same", os.urandom(4 << 20))
    write(data / "changed", os.urandom(1 << 20))
    made = stack.json("protect", data, "--name", "known", "--server", "here", "--wait")
    index = stack.state / "agent-here" / "sources" / made["protected"]["id"]
    stack.kill("agent")
    shutil.rmtree(index)
    with (data / "changed").open("r+b") as file:
        file.seek(8192)
        file.write(b"changed")
    write(data / "new", b"new")
    stack.json("express-full", "known", "--wait")
    newest = stack.points("known")[-1]
    assert 0 < newest["totals"]["shipped_bytes"] <= 16384
    target = stack.work / "known-restored"
    stack.restore("known", newest["number"], target)
    assert differences(data, target) == ""


def test_browse_shows_the_tree_of_a_point(stack: Stack, protected: Path) -> None:
    at_first = stack.run("browse", "main", "folder", "--at", "1")
    assert "gone.txt" in at_first.stdout
    at_second = stack.run("browse", "main", "folder", "--at", "2")
    assert "gone.txt" not in at_second.stdout
    assert at_second.returncode == 0


def test_unknown_names_give_exit_3_and_the_nearest(stack: Stack, protected: Path) -> None:
    done = stack.run("points", "mian")
    assert done.returncode == 3
    assert "main" in done.stderr
    assert stack.run("browse", "main", "no/such/path").returncode == 3
    assert stack.run("restore", "main", "--at", "99", "--to", stack.work / "x").returncode == 3


def test_wrong_use_gives_exit_2(stack: Stack) -> None:
    assert stack.run("restore", "main").returncode == 2
    assert stack.run("no-such-command").returncode == 2


def test_jobs_and_events_tell_what_happened(stack: Stack, protected: Path) -> None:
    jobs = stack.json("jobs")["jobs"]
    assert {"express_full", "restore"} <= {job["verb"] for job in jobs}
    assert all(job["state"] == "durable" for job in jobs if job["verb"] == "express_full")
    events = stack.json("events")["events"]
    assert {"point.committed", "job.durable"} <= {f"{e['noun']}.{e['verb']}" for e in events}


def test_unprotect_keeps_the_points(stack: Stack) -> None:
    data = stack.work / "for-a-while"
    write(data / "file", b"content")
    stack.json("protect", data, "--name", "a while", "--server", "here", "--wait")
    stack.json("unprotect", "a while")
    assert stack.run("express-full", "a while", "--wait").returncode == 2
    stack.restore("a while", 1, stack.work / "a-while-restored")
    assert differences(data, stack.work / "a-while-restored") == ""
    stack.json("protect", data, "--name", "a while", "--server", "here", "--wait")
    assert len(stack.points("a while")) == 2
