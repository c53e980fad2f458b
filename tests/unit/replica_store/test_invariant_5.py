"""Invariant 5: nothing that an agent sends deletes a state or shortens its life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from strandline_contracts.points import EXTENT_HOLE, Extent
from strandline_contracts.policy import Retention
from strandline_replica_store.forgetting import retention
from strandline_replica_store.forgetting.forget import points_of
from strandline_replica_store.forgetting.retention import DAY_NS, Policy
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.replica.rules import OpenVerdict
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


def kept_when_taken(folder: Path, taken_at_ns: list[int]) -> list[int]:
    """Return what a policy keeps of one point a day, whose agent said these times of taking."""
    now_ns = 0
    replica = new_replica(folder, now_ns=lambda: now_ns)
    for day, taken in enumerate(taken_at_ns, start=1):
        now_ns = day * DAY_NS
        job = f"job-{day}"
        messages = one_file(job, made_up_content(day))
        assert replica.open_job(SERVER, open_of(replica, job)) is OpenVerdict.FRESH
        replica.take(job, 1, messages)
        replica.finish(msgspec.structs.replace(end_of(job, messages), taken_at_ns=taken))
    reader = Reader(str(folder))
    try:
        points = points_of(reader)
    finally:
        reader.close()
        replica.close()
    rules = Retention(last=1, days=2, daily=2, monthly=2, log_window_s=3 * 86_400)
    return list(retention.kept(points, [Policy(retention=rules)], now_ns=now_ns).rules)


def test_invariant_5_an_agents_clock_plays_no_part(tmp_path: Path) -> None:
    days = range(1, 41)
    honest = kept_when_taken(tmp_path / "honest", [day * DAY_NS for day in days])
    lies = [0 if day % 2 else (1 << 62) + day for day in days]
    assert kept_when_taken(tmp_path / "lying", lies) == honest
    assert honest == [30, 37, 38, 39, 40]
