"""A real file system with room for just so many more pages: a job ends at each of its writes.

The disk is a tmpfs; a ballast file leaves 0, 1, 2 ... pages free until the job fits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.test_write_faults import job, kept
from strandline_replica_store.errors import Behind, Full
from support.source_model import Limits
from support.workload import Workload, open_again, read_points

pytestmark = pytest.mark.root

PAGE_BYTES = 4096
LARGE = Limits(files=20, blocks=16, labels=100_000)
SCRIPT = "commit commit small failed commit"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def leave_free(disk: Path, pages: int) -> None:
    """Fill a file system up but for so many pages."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        free_bytes = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        file.write(bytes(max(0, free_bytes - pages * PAGE_BYTES)))


def test_a_job_ends_cleanly_wherever_the_room_ends(small_disk: Path) -> None:
    ends: Counter[str] = Counter()
    refused = pages = fits = 0
    while fits < 3:
        folder = small_disk / "replica"
        workload = Workload(folder, "1", lambda _: None)
        workload.run(SCRIPT)
        # Without the log's length of before, and with more to write than that.
        workload.reopen()
        made, tree = workload.prepare(40, LARGE)
        leave_free(small_disk, pages)
        end = job(workload, made, tree)
        assert read_points(folder).items() >= kept(workload).items(), f"{pages} pages: {end}"
        if end != Behind.code:
            refused += restarted_while_full(workload, end)
        (small_disk / "ballast").unlink()
        if end == Behind.code:
            workload.finish(made, tree)
            end = "committed when there was room"
        elif end == "committed":
            fits += 1
        workload.reopen()
        workload.commit()
        assert read_points(folder) == kept(workload), f"{pages} pages: {end}"
        workload.replica.close()
        shutil.rmtree(folder)
        ends[end] += 1
        pages += 1
    print(f"\n0 to {pages - 1} pages free: {dict(ends)}; {refused} restarts refused while full")
    assert ends["store.full"] > 10


def restarted_while_full(workload: Workload, end: str) -> bool:
    """Stop and start the store while the disk is full: it serves, or refuses for want of room."""
    workload.replica.close()
    try:
        workload.replica = open_again(workload.folder)
    except (Full, Behind):
        return True
    assert read_points(workload.folder) == kept(workload), end
    return False
