"""Invariant 5: nothing that an agent sends deletes a state or shortens its life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strandline_contracts.points import EXTENT_HOLE, Extent
from strandline_replica_store.replica import Replica
from strandline_replica_store.rules import OpenVerdict
from support.replicas import (
    SERVER,
    batch,
    content,
    end_of,
    inode,
    made_up_content,
    new_replica,
    one_file,
    open_of,
    open_replica,
    ship,
)

WIPES: dict[str, dict[str, Any]] = {
    "everything is gone": {"gone_inodes": [1, 2], "gone_names": [(1, b"a")]},
    "the file is cut to nothing": {"inodes": [inode(2, 0)]},
    "the file is a hole": {"extents": [Extent(2, 0, 15, EXTENT_HOLE)]},
    "the name leads elsewhere": {"inodes": [inode(9, 0)], "gone_names": [(1, b"a")]},
}


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    """A replica of two recovery points."""
    replica = new_replica(tmp_path / "replica")
    for number in (1, 2):
        ship(replica, f"job-{number}", one_file(f"job-{number}", made_up_content(number)))
    return replica


def kept(folder: str) -> None:
    for number in (1, 2):
        assert content(Path(folder), number) == made_up_content(number)


@pytest.mark.parametrize("wipe", sorted(WIPES))
def test_invariant_5_a_delta_that_wipes_all_leaves_the_older_points(
    replica: Replica, wipe: str
) -> None:
    ship(replica, "wipe", [batch("wipe", 0, **WIPES[wipe])])
    kept(replica.folder)
    replica.close()
    kept(open_replica(Path(replica.folder)).folder)


def test_invariant_5_jobs_given_up_and_fenced_leave_all_points(replica: Replica) -> None:
    for attempt in (1, 2):
        opened = replica.open_job(SERVER, open_of(replica, "never", attempt))
        assert opened is OpenVerdict.FRESH
        replica.take("never", attempt, [batch("never", 0, attempt, gone_inodes=[1, 2])])
    replica.abort("never", 2, SERVER, "given up")
    kept(replica.folder)
    assert replica.newest is not None
    assert replica.newest.number == 2


def test_invariant_5_a_committed_job_cannot_be_taken_back(replica: Replica) -> None:
    replica.abort("job-2", 1, SERVER, "I did not mean it")
    replica.open_job(SERVER, open_of(replica, "job-2", 7))
    again = replica.finish(end_of("job-2", []))
    assert again.number == 2
    kept(replica.folder)
