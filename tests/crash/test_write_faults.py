"""Each single write of a job fails, once or from then on, for want of room or because of the disk.

The job fails cleanly, nothing that was promised is lost, and when the disk is well again the next
job works: in the same process, and in one that is started then.

In `make soak` STRANDLINE_SEED repeats what another run has printed.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from strandline_replica_store.errors import Behind, StoreError
from support.faulty_disk import FaultyDisk, faulty_disk
from support.source_model import Shipment, Tree
from support.workload import Workload, open_again, read_points

SCRIPT = "commit commit small failed commit"
RUNS = 250
SOAK_RUNS = 5000
JOBS = 8
FAULTS = {
    "no room once": (errno.ENOSPC, False),
    "no room from then on": (errno.ENOSPC, True),
    "disk fails once": (errno.EIO, False),
    "disk fails from then on": (errno.EIO, True),
}
# SQLite hides what fails when it closes a file; a file layer in Python cannot keep silent.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
CODES = {errno.ENOSPC: {"store.full"}, errno.EIO: {"store.io", "store.full"}}
"""What a job may fail with; SQLite tells a write that failed as a lack of room, too."""


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with faulty_disk() as found:
        yield found


def job(workload: Workload, made: Shipment, tree: Tree) -> str:
    """Run a job as the receiver does; return how it ended."""
    try:
        workload.open_job(made)
    except StoreError as error:
        return error.code
    try:
        workload.ship(made, len(made.messages))
        workload.finish(made, tree)
    except Behind as error:
        return error.code
    except StoreError as error:
        try:
            workload.replica.fail(made.job, made.attempt, error)
        except StoreError as failure:
            return f"{error.code}, {failure.code} when failed"
        return error.code
    return "committed"


def one_fault(folder: Path, disk: FaultyDisk, number: int, kind: str) -> tuple[bool, str]:
    """Let write `number` of a job fail; tell whether there was such a write, and what came."""
    error, lasting = FAULTS[kind]
    workload = Workload(folder, "1", lambda _: None)
    workload.run(SCRIPT)
    made, tree = workload.prepare()
    disk.arm(number, error, lasting=lasting)
    end = job(workload, made, tree)
    reached = bool(disk.failed)
    site = f"{kind}, write {number} ({disk.failed}): {end}"
    # Whatever the disk does: what is there can be read.
    points = read_points(folder)
    assert points.items() >= kept(workload).items(), site
    disk.disarm()
    if end == Behind.code:
        workload.finish(made, tree)
        end = "committed when the disk was well"
    elif end != "committed":
        assert set(end.split(", ")[:1]) <= CODES[error], site
        assert workload.replica.waited(made.job, made.attempt).state in ("failed", "unknown"), site
        assert workload.replica.point_of(made.job) is None, site
    workload.commit()
    assert read_points(folder) == kept(workload), site
    workload.reopen()
    workload.commit()
    assert read_points(folder) == kept(workload), site
    workload.replica.close()
    for found in folder.glob("index.db*"):
        found.unlink()
    open_again(folder).close()
    assert read_points(folder) == kept(workload), site
    return reached, end


def kept(workload: Workload) -> dict[int, str]:
    return {number: workload.states[number] for number in workload.kept}


def one_fault_at_start(
    image: Path, workload: Workload, folder: Path, disk: FaultyDisk, number: int, kind: str
) -> tuple[bool, str]:
    """Let write `number` of opening a replica fail whose power failed; then open it again."""
    error, lasting = FAULTS[kind]
    shutil.copytree(image, folder)
    disk.arm(number, error, lasting=lasting)
    try:
        replica = open_again(folder)
    except StoreError as refused:
        disk.disarm()
        end = refused.code
        assert end in CODES[error] | {Behind.code}, f"{kind}, write {number} ({disk.failed}): {end}"
    else:
        disk.disarm()
        end = "opened"
        replica.close()
    open_again(folder).close()
    assert read_points(folder) == kept(workload), f"{kind}, write {number}: {end}"
    shutil.rmtree(folder)
    return bool(disk.failed), end


def every(run: Callable[[int], tuple[bool, str]]) -> Counter[str]:
    """Let each write fail, from the first to the last; return how often it ended how."""
    ends: Counter[str] = Counter()
    number = 1
    while True:
        reached, end = run(number)
        if not reached:
            return ends
        ends[end] += 1
        number += 1


def many_faults(folder: Path, disk: FaultyDisk, seed: int) -> Counter[str]:
    """Run jobs while writes fail at random, also those that clean up after others; look at all."""
    rng = random.Random(seed)
    workload = Workload(folder, str(seed), lambda _: None)
    workload.run(SCRIPT)
    ends: Counter[str] = Counter()
    for _ in range(JOBS):
        made, tree = workload.prepare()
        disk.arm_at_random(rng, rng.choice([errno.ENOSPC, errno.EIO]))
        end = job(workload, made, tree)
        disk.disarm()
        ends[end] += 1
        if end == Behind.code:
            workload.finish(made, tree)
        elif end != "committed":
            assert workload.replica.waited(made.job, 1).state in ("failed", "unknown"), seed
            assert workload.replica.point_of(made.job) is None, seed
    workload.commit()
    assert read_points(folder) == kept(workload), seed
    workload.reopen()
    workload.commit()
    assert read_points(folder) == kept(workload), seed
    workload.replica.close()
    shutil.rmtree(folder)
    return ends


def test_writes_fail_at_random(memory: Path, disk: FaultyDisk) -> None:
    at_random(memory, disk, range(RUNS))


@pytest.mark.soak
def test_writes_fail_at_random_for_long(memory: Path, disk: FaultyDisk) -> None:
    first = int(os.environ.get("STRANDLINE_SEED") or random.randrange(10**9))
    at_random(memory, disk, range(first, first + SOAK_RUNS))


def at_random(memory: Path, disk: FaultyDisk, seeds: range) -> None:
    ends: Counter[str] = Counter()
    for seed in seeds:
        ends += many_faults(memory / f"{seed}", disk, seed)
    print(f"\nat random, seeds from {seeds[0]}: {ends.total()} jobs, {dict(ends)}")


def one_fault_in(
    image: Path, made: Workload, verb: str, folder: Path, disk: FaultyDisk, number: int, kind: str
) -> tuple[bool, str]:
    """Let write `number` of dropping, compacting or reindexing fail; then do it again."""
    error, lasting = FAULTS[kind]
    shutil.copytree(image, folder)
    workload = made.moved_to(folder)
    gone = made.kept[1:3] if verb == "drop" else []
    left = {number: state for number, state in kept(made).items() if number not in gone}
    do = partial(workload.replica.drop, gone, "the test's") if gone else getattr(workload, verb)
    disk.arm(number, error, lasting=lasting)
    try:
        do()
        end = "done" if workload.compacted.is_complete else "not complete"
    except StoreError as failed:
        end = failed.code
    site = f"{verb}, {kind}, write {number} ({disk.failed}): {end}"
    assert end in CODES[error] | {"done", "not complete", Behind.code}, site
    if verb == "reindex":
        # Where the new index was not put in place, whoever uses it next does that.
        disk.disarm()
        workload.replica.on_database(lambda _: None)
    assert left.items() <= read_points(folder).items() <= kept(made).items(), site
    disk.disarm()
    do()
    assert workload.compacted.is_complete, site
    assert read_points(folder) == left, site
    workload.kept = sorted(left)
    workload.reopen()
    workload.commit()
    assert read_points(folder) == kept(workload), site
    workload.replica.close()
    shutil.rmtree(folder)
    return bool(disk.failed), end


@pytest.mark.parametrize("verb", ["drop", "compact", "reindex"])
@pytest.mark.parametrize("kind", FAULTS)
def test_each_write_of_housekeeping_fails(
    memory: Path, disk: FaultyDisk, kind: str, verb: str
) -> None:
    image = memory / "image"
    made = Workload(image, "3", lambda _: None)
    made.run("commit commit commit commit commit failed drop commit")
    made.replica.close()
    ends = every(lambda number: one_fault_in(image, made, verb, memory / "run", disk, number, kind))
    print(f"\n{verb}, {kind}: {ends.total()} writes, {dict(ends)}")
    assert ends.total() > 10


@pytest.mark.parametrize("kind", FAULTS)
def test_each_write_of_a_job_fails(memory: Path, disk: FaultyDisk, kind: str) -> None:
    ends = every(lambda number: one_fault(memory / f"{number}", disk, number, kind))
    print(f"\n{kind}: {ends.total()} writes, {dict(ends)}")
    assert ends.total() > 20


def behind(folder: Path, disk: FaultyDisk) -> Workload:
    """Make a replica whose newest recovery point is committed, but not in its index yet."""
    for number in range(1, 200):
        shutil.rmtree(folder, ignore_errors=True)
        workload = Workload(folder, "1", lambda _: None)
        workload.run(SCRIPT)
        made, tree = workload.prepare()
        disk.arm(number, errno.ENOSPC, lasting=True)
        if job(workload, made, tree) == Behind.code:
            disk.disarm()
            workload.states[workload.kept[-1] + 1] = made.state
            workload.kept.append(workload.kept[-1] + 1)
            return workload
        disk.disarm()
        workload.replica.close()
    raise AssertionError("no write of a job left the index behind")


@pytest.mark.parametrize("index", ["behind", "deleted"])
@pytest.mark.parametrize("kind", FAULTS)
def test_each_write_of_a_start_fails(memory: Path, disk: FaultyDisk, kind: str, index: str) -> None:
    workload = behind(memory / "made", disk)
    image = memory / "image"
    left_out = shutil.ignore_patterns("index.db*" if index == "deleted" else "*-shm")
    shutil.copytree(memory / "made", image, ignore=left_out)
    workload.replica.close()
    ends = every(
        lambda number: one_fault_at_start(image, workload, memory / "run", disk, number, kind)
    )
    print(f"\n{kind}, index {index}: {ends.total()} writes, {dict(ends)}")
    assert ends.total() > 5
