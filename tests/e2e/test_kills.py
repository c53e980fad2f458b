"""Invariant 10, on the whole stack: any process is killed in the middle, and it goes on by itself."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from support.stack import PROCESSES, Stack, copy, differences, until

SEED = int(os.environ.get("STRANDLINE_SEED", "20071"))


@pytest.fixture(scope="module")
def data(stack: Stack) -> Path:
    data = stack.work / "data"
    data.mkdir()
    rng = random.Random(SEED)
    for number in range(40):
        folder = data / f"folder-{number % 5}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.bin").write_bytes(rng.randbytes(rng.randrange(1, 2 << 20)))
    stack.json("protect", data, "--name", "killed", "--server", "here", "--wait")
    copy(data, stack.work / "kept-1")
    return data


def change(data: Path, rng: random.Random) -> None:
    """Rewrite a third of the files, so that a job takes a moment."""
    for path in sorted(data.glob("*/*.bin")):
        if rng.random() < 0.35:
            path.write_bytes(rng.randbytes(rng.randrange(1, 2 << 20)))


@pytest.mark.parametrize("victim", sorted(PROCESSES))
def test_invariant_10_killed_in_the_middle(stack: Stack, data: Path, victim: str) -> None:
    rng = random.Random(f"{SEED}-{victim}")
    before = len(stack.points("killed"))
    change(data, rng)
    job = stack.start("express-full", "killed", "--wait")
    time.sleep(rng.uniform(0.2, 0.8))
    stack.kill(victim)
    _, errors = job.communicate(timeout=90)
    assert job.returncode == 0, errors
    until(lambda: len(ask_points(stack)) > before, "the new point is listed")
    newest = ask_points(stack)[-1]["number"]
    copy(data, stack.work / f"kept-{newest}")
    for point in ask_points(stack):
        number = point["number"]
        reference = stack.work / f"kept-{number}"
        if reference.exists():
            target = stack.work / f"after-{victim}-{number}"
            stack.restore("killed", number, target)
            assert differences(reference, target) == ""


def ask_points(stack: Stack) -> list[dict[str, int]]:
    done = stack.run("points", "killed", "--json")
    return stack.points("killed") if done.returncode == 0 else []
