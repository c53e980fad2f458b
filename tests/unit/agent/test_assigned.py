"""The assignment that an agent keeps."""

from __future__ import annotations

import asyncio
from pathlib import Path

from strandline_agent.assigned import Assigned
from strandline_contracts.policy import Assignment, Source

SOURCE = Source(id="a" * 16, name="web", type="files", server="web-1", store="store-1")
FOUND = Assignment(server="web-1", revision=1, sources=[SOURCE])


async def found() -> Assignment:
    return FOUND


async def test_it_is_kept_for_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "assignment"
    await Assigned("web-1", path, found).refresh()
    assert Assigned("web-1", path, found).ids() == [SOURCE.id]


async def test_two_refreshes_at_once_keep_it_too(tmp_path: Path) -> None:
    path = tmp_path / "assignment"
    assigned = Assigned("web-1", path, found)
    await asyncio.gather(*(assigned.refresh() for _ in range(5)))
    assert Assigned("web-1", path, found).ids() == [SOURCE.id]


async def test_a_disk_that_does_not_take_it_keeps_no_job_from_running(tmp_path: Path) -> None:
    assigned = Assigned("web-1", tmp_path / "gone" / "assignment", found)
    await assigned.refresh()
    assert assigned.protected(SOURCE.id) == SOURCE
