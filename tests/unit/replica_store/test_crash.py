"""Invariant 10 for one replica: killed at any moment, what was said to be durable is there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

from strandline_replica_store.reader import Reader
from strandline_replica_store.verify import verify
from support.replicas import content, made_up_content, new_replica, open_replica

ROUNDS = 12
TESTS = Path(__file__).parents[2]


def run_and_kill(folder: Path, after_s: float) -> int:
    """Let a child commit; kill it `after_s` after its first word or sign of life; return the last
    recovery point that it said was durable."""
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "crash_child.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    first = child.stdout.readline()
    killer = threading.Timer(after_s, child.send_signal, [signal.SIGKILL])
    killer.start()
    said = [first, *child.stdout.readlines()]
    errors = child.stderr.read()
    assert child.wait(30) == -signal.SIGKILL, errors
    killer.join()
    return max(int(line) for line in said if line.endswith("\n"))


def test_invariant_10_killed_at_random_moments_no_point_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "replica"
    new_replica(folder).close()
    chance = random.Random(11)
    newest_number = 0
    for _ in range(ROUNDS):
        said = run_and_kill(folder, chance.uniform(0.0, 0.15))
        replica = open_replica(folder)
        newest = replica.newest
        assert newest is not None
        assert said <= newest.number <= said + 1
        reader = Reader(str(folder))
        report = verify(reader, newest)
        assert (report.damaged, report.manifests) == (0, newest.number)
        reader.close()
        replica.close()
        newest_number = newest.number
    for number in range(1, newest_number + 1):
        assert content(folder, number) == made_up_content(number)
