"""What may go wrong on the way: nothing is forgotten, nothing wrong is kept (invariant 1)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from strandline_agent import read_files, scan, ship, walk
from strandline_agent.errors import SourceMissing
from strandline_agent.express_full import make_point
from strandline_agent.known import KnownIndex
from strandline_contracts.errors import StrandlineError
from support.agent_site import Site
from support.trees import change_tree, differences, make_tree


class Killed(BaseException):
    """Stands for the end of the process at this point."""


async def assert_restorable(site: Site, name: str) -> None:
    await site.back(name, devices=True)
    assert differences(site.src, site.folder / name) == ""


@pytest.mark.parametrize("step", ["publishing", "staged", "unheard"])
async def test_invariant_1_dirty_is_forgotten_only_when_durable(site: Site, step: str) -> None:
    make_tree(site.src)
    await site.full()
    change_tree(site.src, 1)

    def die() -> None:
        if step == "staged":
            raise Killed

    async def die_publishing(*_: Any, **__: Any) -> None:
        raise Killed

    publish = site.store.publish
    if step == "publishing":
        site.store.publish = die_publishing  # type: ignore[method-assign]
    site.store.lose_commit = step == "unheard"
    order = site.order()
    working = asyncio.ensure_future(make_point(site.store, order, die))
    if step == "unheard":
        while len(site.store.points) < 2:
            await asyncio.sleep(0.01)
        working.cancel()
    with pytest.raises((Killed, asyncio.CancelledError)):
        await working
    site.store.publish = publish  # type: ignore[method-assign]
    site.store.lose_commit = False

    # The same job again, as a process does that was killed; then another one.
    change_tree(site.src, 2)
    await site.full(job=order.job, attempt=2)
    await site.full()
    kinds = [point.kind for point in site.store.points]
    assert kinds == ["express_full"] * len(kinds)
    await assert_restorable(site, "out")


async def test_a_staged_epoch_of_another_job_is_merged(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    change_tree(site.src, 1)
    site.store.lose_commit = True
    working = asyncio.ensure_future(site.full())
    while len(site.store.points) < 2:
        await asyncio.sleep(0.01)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    site.store.lose_commit = False
    site.store.calls = []
    shipped = await site.full()
    assert shipped.point.kind == "express_full"
    assert "block_digests" not in site.store.calls
    await assert_restorable(site, "out")


async def test_a_lost_index_is_made_anew(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    for path in site.index.parent.iterdir():
        path.unlink()
    change_tree(site.src, 1)
    shipped = await site.full()
    assert shipped.point.kind == "check"
    assert site.store.shipped < 400_000
    await assert_restorable(site, "out")
    shipped = await site.full()
    assert shipped.point.kind == "express_full"


async def test_a_check_that_is_due_is_not_forgotten(site: Site) -> None:
    (site.src / "file").write_bytes(b"before")
    await site.full()
    for path in site.index.parent.iterdir():
        path.unlink()

    def die() -> None:
        raise Killed

    order = site.order()
    with pytest.raises(Killed):
        await make_point(site.store, order, die)
    kinds = [(await site.full(job=order.job, attempt=2)).point.kind]
    kinds.append((await site.full()).point.kind)
    assert kinds == ["check", "express_full"]


async def test_a_check_repairs_the_replica(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    state = site.store.states[1]
    big = next(file for (_, name), file in state.names.items() if name == b"big")
    state.blocks[big][3] = state.blocks[big][4]
    state.blocks[big].pop(9)
    site.store.damaged = {state.blocks[big][20][0]}
    shipped = await site.full(kind="check")
    assert shipped.point.kind == "check"
    await assert_restorable(site, "out")


async def test_a_forged_time_hides_nothing(site: Site) -> None:
    path = site.src / "file"
    path.write_bytes(b"a" * 5000)
    await site.full()
    stat = path.stat()
    path.write_bytes(b"b" * 5000)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    await site.full()
    await assert_restorable(site, "out")


@pytest.mark.parametrize("size", [0, 5000, 70 * 4096, (5 << 20) + 1])
async def test_a_file_that_shrinks_and_grows_back(site: Site, size: int) -> None:
    path = site.src / "dump"
    content = os.urandom(6 << 20)
    path.write_bytes(content)
    await site.full()
    os.truncate(path, size)
    await site.full()
    path.write_bytes(content)
    await site.full()
    await assert_restorable(site, "out")
    # Once more, with holes behind the old end, and then the same bytes again.
    os.truncate(path, size)
    await site.full()
    os.truncate(path, len(content))
    await site.full()
    await assert_restorable(site, "out2")
    path.write_bytes(content)
    await site.full()
    await assert_restorable(site, "out3")
    await site.full(kind="check")
    assert site.store.shipped == 0


async def test_a_file_that_shrinks_while_it_is_read(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site.src / "log"
    path.write_bytes(os.urandom(1 << 20))
    sizes = [70 * 4096]
    original = read_files.Readers._finish

    def finish(self: Any, worker: Any, reading: Any) -> None:
        if sizes:
            os.truncate(path, sizes.pop())
        original(self, worker, reading)

    monkeypatch.setattr(read_files.Readers, "_finish", finish)
    monkeypatch.setattr(read_files, "RETRY_WAIT_S", 0.001)
    await site.full()
    os.truncate(path, 1 << 20)
    await site.full()
    await assert_restorable(site, "out")

    # The first try meets less than the replica has, the second one holes in its place.
    path.write_bytes(os.urandom(1 << 20))
    await site.full()
    path.write_bytes(os.urandom(70 * 4096))
    sizes.append(1 << 20)
    await site.full()
    await assert_restorable(site, "out2")


async def test_a_file_that_shrinks_after_a_read_error(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site.src / "file"
    path.write_bytes(os.urandom(100_000))
    await site.full()
    with path.open("ab") as file:
        file.write(os.urandom(3 << 20))
    original = read_files._read_fully

    def fail(fd: int, view: memoryview, at: int) -> int:
        if at >= 2 << 20:
            raise OSError(5, "Input/output error")
        return original(fd, view, at)

    monkeypatch.setattr(read_files, "_read_fully", fail)
    await site.full()
    monkeypatch.undo()
    os.truncate(path, 100_000)
    os.truncate(path, 4 << 20)
    await site.full()
    await assert_restorable(site, "out")


async def test_blocks_before_a_read_error_are_known_as_sent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site.src / "file"
    content = os.urandom(3 << 20)
    path.write_bytes(content)
    await site.full()
    path.write_bytes(bytes(1 << 20) + content[1 << 20 :])
    original = read_files._read_fully

    def fail(fd: int, view: memoryview, at: int) -> int:
        if at >= 2 << 20:
            raise OSError(5, "Input/output error")
        return original(fd, view, at)

    monkeypatch.setattr(read_files, "_read_fully", fail)
    await site.full()
    monkeypatch.undo()
    path.write_bytes(content)
    await site.full()
    await assert_restorable(site, "out")


@pytest.mark.parametrize("way", ["moved", "second path"])
async def test_a_former_root_folder_below_the_new_one(site: Site, way: str) -> None:
    make_tree(site.src)
    await site.full()
    if way == "moved":
        site.src.rename(site.folder / "old")
        site.src.mkdir()
        (site.folder / "old").rename(site.src / "old")
    else:
        (site.folder / "etc").mkdir()
        site.paths.append(os.fsencode(site.folder / "etc"))
    for kind in ("express_full", "express_full", "check"):
        shipped = await site.full(kind=kind)
        assert shipped.issues == []
        assert 1 not in site.store.states[shipped.point.number].names.values()
        out = f"out{shipped.point.number}"
        await site.back(out, devices=True)
        below = site.folder / out
        if way != "moved":
            below = below.joinpath(*site.src.parts[1:])
        assert differences(site.src, below) == ""


async def test_a_job_ends_that_is_cancelled_while_digests_are_asked(site: Site) -> None:
    (site.src / "small").write_bytes(b"before")
    await site.full(index_max_bytes=1)
    (site.src / "small").write_bytes(b"after")
    asked = asyncio.Event()

    async def answer_never(_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    original = site.store.on_block_digests
    site.store.on_block_digests = answer_never  # type: ignore[method-assign,assignment]
    working = asyncio.ensure_future(site.full())
    await asked.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(working, 10)
    site.store.on_block_digests = original  # type: ignore[method-assign]
    await site.full()
    await assert_restorable(site, "out")


async def test_a_second_name_made_during_a_walk(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (site.src / name).mkdir()
        (site.src / name / "file").write_bytes(os.urandom(5000))
    original = scan.Scan._folder
    made: list[Path] = []

    def folder(self: Any, found: Any) -> None:
        original(self, found)
        if found.name in (b"a", b"b") and not made:
            made.append(site.src / ("b" if found.name == b"a" else "a") / "link")
            os.link(os.path.join(os.fsdecode(found.path), "file"), made[0])

    monkeypatch.setattr(scan.Scan, "_folder", folder)
    await site.full()
    made[0].chmod(0o600)
    for kind in ("express_full", "check"):
        shipped = await site.full(kind=kind)
        state = site.store.states[shipped.point.number]
        regular = [inode for inode in state.inodes.values() if inode.type == "f"]
        assert len(regular) == 2
        await assert_restorable(site, kind)


async def test_lost_and_refused_batches_are_sent_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "STALL_S", 0.1)
    monkeypatch.setattr(ship, "WAIT_MS", 50)
    make_tree(site.src)
    site.store.drop = 3
    site.store.full = 2
    await site.full()
    await assert_restorable(site, "out")


async def test_dropped_digests_are_asked_from_the_store(site: Site) -> None:
    make_tree(site.src)
    await site.full(index_max_bytes=1)
    change_tree(site.src, 1)
    await site.full()
    assert "block_digests" in site.store.calls
    assert site.store.shipped < 400_000
    await assert_restorable(site, "out")


async def test_a_file_that_changes_while_it_is_read(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site.src / "busy"
    path.write_bytes(os.urandom(20_000))
    original = read_files._read_fully

    def busy(fd: int, view: memoryview, at: int) -> int:
        got = original(fd, view, at)
        with path.open("ab") as file:
            file.write(b"more")
        return got

    monkeypatch.setattr(read_files, "_read_fully", busy)
    monkeypatch.setattr(read_files, "RETRY_WAIT_S", 0.001)
    shipped = await site.full()
    assert [issue.code for issue in shipped.issues] == ["changing"]
    assert not shipped.point.partial
    assert any(inode.changing for inode in site.store.states[1].inodes.values())
    monkeypatch.setattr(read_files, "_read_fully", original)
    shipped = await site.full()
    assert shipped.issues == []
    await assert_restorable(site, "out")


async def test_unreadable_files_are_left_out_or_kept_older(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.src / "old").write_bytes(b"first")
    (site.src / "other").write_bytes(b"other")
    await site.full()
    (site.src / "old").write_bytes(b"second")
    (site.src / "new").write_bytes(b"new")
    (site.src / "gone").write_bytes(b"gone")
    original = walk.open_file

    def refuse(folder: int, name: bytes) -> int:
        if name == b"gone":
            raise FileNotFoundError(2, "No such file or directory")
        if name in (b"old", b"new"):
            raise PermissionError(13, "Permission denied")
        return original(folder, name)

    monkeypatch.setattr(scan, "open_file", refuse)
    shipped = await site.full()
    assert shipped.point.partial
    found = {(Path(os.fsdecode(issue.path)).name, issue.code) for issue in shipped.issues}
    assert found == {("old", "stale"), ("new", "unreadable"), ("gone", "vanished")}
    await site.back("out")
    assert (site.folder / "out" / "old").read_bytes() == b"first"
    assert sorted(os.listdir(site.folder / "out")) == ["old", "other"]
    monkeypatch.undo()
    await site.full()
    await assert_restorable(site, "out2")


async def test_a_new_file_that_cannot_be_read_leaves_no_name(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.src / "good").write_bytes(b"good")
    await site.full()
    (site.src / "bad").write_bytes(b"bad")
    original = read_files._read_fully

    def fail(fd: int, view: memoryview, at: int) -> int:
        if len(view) == 3:
            raise OSError(5, "Input/output error")
        return original(fd, view, at)

    monkeypatch.setattr(read_files, "_read_fully", fail)
    await site.full()
    assert [name for _, name in site.store.states[2].names] == [b"good"]
    assert len(site.store.states[2].inodes) == 2
    await site.back("out")
    monkeypatch.undo()
    await site.full()
    await assert_restorable(site, "out2")


async def test_a_read_error_in_the_middle(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.src / "bad").write_bytes(os.urandom(3 << 20))
    (site.src / "good").write_bytes(b"good")
    os.link(site.src / "bad", site.src / "bad too")
    original = read_files._read_fully

    def fail(fd: int, view: memoryview, at: int) -> int:
        if at >= 1 << 20:
            raise OSError(5, "Input/output error")
        return original(fd, view, at)

    monkeypatch.setattr(read_files, "_read_fully", fail)
    shipped = await site.full()
    assert shipped.point.partial
    assert "unreadable" in {issue.code for issue in shipped.issues}
    await site.back("out")
    assert os.listdir(site.folder / "out") == ["good"]
    monkeypatch.undo()
    await site.full()
    await assert_restorable(site, "out2")


async def test_a_missing_source_fails_clearly(site: Site) -> None:
    site.paths = [os.fsencode(site.folder / "nothing")]
    with pytest.raises(SourceMissing, match="nothing"):
        await site.full()
    site.paths.append(os.fsencode(site.src))
    shipped = await site.full()
    assert shipped.point.partial


async def test_an_error_that_stays_ends_the_job(site: Site) -> None:
    make_tree(site.src)

    async def refuse(*_: Any, **__: Any) -> None:
        raise StrandlineError("too large", code="bus.too_large")

    site.store.publish = refuse  # type: ignore[method-assign]
    with pytest.raises(StrandlineError, match="too large"):
        await site.full()


async def test_a_broken_index_file_is_thrown_away(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    site.index.write_bytes(b"no database at all" * 1000)
    shipped = await site.full()
    assert shipped.point.kind == "check"
    index = KnownIndex(site.index)
    assert index.mirrored[0] == shipped.point.number
    index.close()
