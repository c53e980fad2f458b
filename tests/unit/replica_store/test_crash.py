"""Invariant 10 for one replica: killed at any moment, what was said to be durable is there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from strandline_replica_store.checking.verify import verify
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica import index
from support import index_oracle
from support.replicas import content, doomed, made_up_content, new_replica, open_replica

ROUNDS = 12
TESTS = Path(__file__).parents[2]


def run_and_kill(folder: Path, after_s: float, script: str = "crash_child.py") -> int:
    """Let a child commit; kill it `after_s` after its first word or sign of life; return the last
    recovery point that it said was durable."""
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / script), str(folder)],
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


def test_invariant_10_killed_while_dropping_every_kept_point_is_right(tmp_path: Path) -> None:
    """Also while the index is made anew and manifests are rewritten."""
    folder = tmp_path / "replica"
    new_replica(folder).close()
    chance = random.Random(12)
    for _ in range(ROUNDS):
        said = run_and_kill(folder, chance.uniform(0.0, 0.4), "drop_child.py")
        replica = open_replica(folder)
        assert replica.newest is not None
        newest = replica.newest.number
        assert said <= newest <= said + 1
        kept = replica.points()
        assert set(range(1, newest + 1)) - set(doomed(newest)) <= set(kept)
        reader = Reader(str(folder))
        report = verify(reader, replica.newest)
        assert (report.damaged, report.manifests) == (0, len(kept))
        reader.close()
        replica.close()
        assert {n: content(folder, n) for n in kept} == {n: made_up_content(n) for n in kept}
    before = normalised(folder)
    (folder / "index.db").unlink()
    open_replica(folder).close()
    assert normalised(folder) == before


def normalised(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    conn = index.connect_to_read(str(folder / "index.db"))
    try:
        return index_oracle.normalised(conn)
    finally:
        conn.close()
