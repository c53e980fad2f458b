"""A disk that is really full: a small tmpfs, filled up by the store itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from strandline_replica_store.errors import Full, StoreError
from strandline_replica_store.replica.replica import Replica
from support.replicas import (
    SERVER,
    batch,
    chunk,
    content,
    new_replica,
    one_file,
    open_of,
    open_replica,
    ship,
)

pytestmark = pytest.mark.root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_fails_the_job_and_the_next_one_works(small_disk: Path) -> None:
    folder = small_disk / "replica"
    replica = new_replica(folder)
    ship(replica, "j1", one_file("j1", b"one"))
    for number in range(2, 5):
        job = f"j{number}"
        replica.open_job(SERVER, open_of(replica, job))
        error = fill(replica, job)
        assert isinstance(error, Full), error
        replica.fail(job, 1, error)
        assert replica.waited(job, 1).state in ("failed", "unknown")
    ship(replica, "j9", one_file("j9", b"nine"))
    replica.close()
    replica = open_replica(folder)
    ship(replica, "j10", one_file("j10", b"ten"))
    replica.close()
    assert [content(folder, number) for number in (1, 2, 3)] == [b"one", b"nine", b"ten"]


def fill(replica: Replica, job: str) -> StoreError | None:
    for seq in range(2000):
        message = batch(job, seq, chunks=[chunk(os.urandom(16384))])
        try:
            replica.take(job, 1, [message])
        except StoreError as error:
            return error
    return None
