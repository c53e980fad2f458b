"""Several things at once: jobs beside jobs, changes beside reading, a restore and a dead agent."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from support.stack import Stack, copy, differences, until


@pytest.fixture(scope="module")
def data(stack: Stack) -> Path:
    """72 MB that do not compress, protected as `main`."""
    data = stack.work / "data"
    data.mkdir()
    rng = random.Random(7)
    for number in range(60):
        (data / f"{number}.bin").write_bytes(rng.randbytes(1_200_000))
    stack.json("protect", data, "--name", "main", "--server", "here", "--wait")
    return data


def test_a_restore_goes_on_after_its_agent_was_killed(stack: Stack, data: Path) -> None:
    target = stack.work / "resumed"
    restore = stack.start("restore", "main", "--to", target, "--wait", "--json")
    until(lambda: target.is_dir() and written(target) > 10_000_000, "the restore is in its middle")
    stack.kill("agent")
    assert written(target) < 72_000_000, "it was killed in the middle"
    _, errors = restore.communicate(timeout=60)
    assert restore.returncode == 0, errors
    assert differences(data, target) == ""


def written(folder: Path) -> int:
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder))


def test_two_restores_at_once(stack: Stack, data: Path) -> None:
    targets = [stack.work / "first", stack.work / "second"]
    # Both agents, and the same agent twice: to be read by path, and as a whole.
    restores = [
        stack.start("restore", "main", "--to", targets[0], "--wait"),
        stack.start("restore", "main", "--to", targets[1], "--server", "there", "--wait"),
        stack.start("restore", "main", "--path", "1.bin", "--to", stack.work / "one", "--wait"),
    ]
    for restore in restores:
        _, errors = restore.communicate(timeout=60)
        assert restore.returncode == 0, errors
    assert [differences(data, target) for target in targets] == ["", ""]
    assert os.listdir(stack.work / "one") == ["1.bin"]


def test_two_express_fulls_at_once(stack: Stack, data: Path) -> None:
    before = len(stack.points("main"))
    (data / "1.bin").write_bytes(b"changed")
    copy(data, stack.work / "changed")
    jobs = [stack.start("express-full", "main", "--wait", "--json") for _ in range(2)]
    codes = []
    for job in jobs:
        output, _ = job.communicate(timeout=60)
        codes.append(job.returncode)
        assert job.returncode == 0 or '"job.older"' in output, output
    assert 0 in codes
    points = stack.points("main")[before:]
    assert len(points) == codes.count(0)
    for point in points:
        target = stack.work / f"changed-{point['number']}"
        stack.restore("main", point["number"], target)
        assert differences(stack.work / "changed", target) == ""


def test_files_that_change_and_go_while_they_are_read(stack: Stack) -> None:
    data = stack.work / "lively"
    data.mkdir()
    calm = os.urandom(1 << 20)
    for number in range(40):
        (data / f"calm-{number}").write_bytes(calm)
    (data / "lively").write_bytes(os.urandom(64 << 20))  # so that reading it takes many ticks
    stop = threading.Event()

    def keep_changing() -> None:
        number = 0
        with (data / "lively").open("r+b") as file:
            while not stop.is_set():
                number += 1
                file.seek(number * 4096 % (64 << 20))
                file.write(number.to_bytes(8, "big"))
                file.flush()
                passing = data / f"passing-{number % 200}"
                passing.write_bytes(b"soon gone")
                passing.unlink()

    changing = threading.Thread(target=keep_changing)
    changing.start()
    try:
        done = stack.run(
            "protect", data, "--name", "lively", "--server", "here", "--wait", "--json"
        )
    finally:
        stop.set()
        changing.join()
    assert done.returncode in (0, 4), done.stderr
    issues = {issue["path"]["text"]: issue["code"] for issue in json.loads(done.stdout)["issues"]}
    assert issues.get(str(data / "lively")) == "changing"
    assert "lively" in {entry["name"]["text"] for entry in changing_entries(stack)}
    stack.restore("lively", 1, stack.work / "calm")
    for number in range(40):
        assert (stack.work / "calm" / f"calm-{number}").read_bytes() == calm
    # Once it rests, the next point has it as it is.
    stack.json("express-full", "lively", "--wait")
    stack.restore("lively", 2, stack.work / "at-rest")
    assert differences(data, stack.work / "at-rest") == ""
    assert changing_entries(stack) == []


def changing_entries(stack: Stack) -> list[dict[str, Any]]:
    entries = stack.json("browse", "lively")["entries"]
    return [entry for entry in entries if entry["changing"]]


def test_a_restore_to_an_agent_that_is_away(stack: Stack, data: Path) -> None:
    """Without --wait it is refused rather than lost; with --wait it is done."""
    target = stack.work / "was-away"
    pid = stack.agent("there")
    os.kill(pid, signal.SIGSTOP)
    try:
        argv = ["restore", "main", "--path", "2.bin", "--to", str(target), "--server", "there"]
        refused = stack.json(*argv, code=1)
        assert refused["error"]["code"] == "console.not_taken"
        waiting = stack.start(*argv, "--wait")
    finally:
        os.kill(pid, signal.SIGKILL)
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, errors
    assert os.listdir(target) == ["2.bin"]
    taken = stack.json(*argv[:-4], "--to", stack.work / "taken", "--server", "there")
    assert taken["job"]
    until(lambda: (stack.work / "taken" / "2.bin").exists(), "the restore goes on by itself")
