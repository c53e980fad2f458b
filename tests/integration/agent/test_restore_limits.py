"""A restore writes nowhere else (invariant 6), nothing unchecked (3), and goes on after a kill."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from strandline_agent import restore as restoring
from strandline_agent.errors import HostileReplica, RestoreRefused
from strandline_agent.restore_tree import TargetTree
from strandline_contracts.points import Inode
from support.agent_site import Site
from support.trees import differences, make_tree


def child(site: Site, name: bytes) -> tuple[tuple[int, bytes], int]:
    state = site.store.states[1]
    return next((key, file) for key, file in state.names.items() if key[1] == name)


def rename(site: Site, name: bytes, to: bytes) -> None:
    key, file = child(site, name)
    del site.store.states[1].names[key]
    site.store.states[1].names[key[0], to] = file


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"../../evil", b"/etc/evil", b"a\0b"])
async def test_invariant_6_hostile_names(site: Site, name: bytes) -> None:
    make_tree(site.src)
    await site.full()
    rename(site, b"big" if name != b".." else b"d2", name)
    before = sorted(os.listdir(site.folder))
    if name == b"":  # comes first in its folder, as any cursor begins behind it
        site.store.on_list = _with_empty(site.store.on_list)  # type: ignore[method-assign]
    with pytest.raises(HostileReplica):
        await site.back("out")
    assert sorted(os.listdir(site.folder)) == before


def _with_empty(on_list: Any) -> Any:
    async def listed(request: Any) -> Any:
        page = await on_list(request)
        first = msgspec.structs.replace(page.names[0], name=b"")
        return msgspec.structs.replace(page, names=[first, *page.names[1:]])

    return listed


async def test_invariant_6_cycles_and_two_parents(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    names = site.store.states[1].names
    key, file = child(site, b"d1")
    names[file, b"again"] = file
    with pytest.raises(HostileReplica):
        await site.back("out")
    del names[file, b"again"]
    names[child(site, b"d2")[1], b"d1 too"] = file
    with pytest.raises(HostileReplica):
        await site.back("out2")
    names[file, b"root"] = 1
    with pytest.raises(HostileReplica):
        await site.back("out3")
    assert key[0] == 1


def state_of(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return everything below a folder, and itself: mode, owner, time and content."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = stat.st_mode, stat.st_uid, stat.st_mtime_ns, content
    return found


async def test_invariant_6_a_link_swapped_in_is_not_followed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(site.src)
    (site.src / "text two").write_bytes(os.urandom(5000))
    await site.full()
    # Outside lies what the restore would find if it followed: folders and files of these names.
    outside = site.folder / "outside"
    for path in (site.src / "d2").rglob("*"):
        copy = outside / path.relative_to(site.src / "d2")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            copy.write_bytes(b"safe")
    for name in ("one", "linked"):
        (outside / name).write_bytes(b"safe")
        (outside / name).chmod(0o640)
    before = state_of(outside)
    out = site.folder / "out"
    original = restoring._Restore._make

    def swap(self: Any) -> None:
        original(self)
        # After the tree is made: a folder and files become links that lead outside.
        (out / "d2").rename(out / "d2 away")
        (out / "d2").symlink_to(outside)
        for name in ("one", "text"):
            (out / name).unlink()
            (out / name).symlink_to(outside / "one")
        for name in ("text two", "empty"):
            (out / name).unlink()
            os.link(outside / "linked", out / name)
        for tree in self._trees:
            tree.close()

    monkeypatch.setattr(restoring._Restore, "_make", swap)
    restored = await site.back("out", devices=True)
    assert restored.issue_count > 0
    assert state_of(outside) == before


async def test_links_in_the_target_are_replaced(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    outside = site.folder / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"safe")
    out = site.folder / "out"
    out.mkdir()
    (out / "big").symlink_to(outside / "victim")
    (out / "d1").symlink_to(outside)
    os.link(outside / "victim", out / "text")
    with pytest.raises(RestoreRefused) as refused:
        await site.back("out", devices=True)
    assert refused.value.code == "restore.not_empty"
    assert "--overwrite" in refused.value.hint
    restored = await site.back("out", devices=True, overwrite=True)
    assert restored.issues == []
    assert differences(site.src, out) == ""
    assert os.listdir(outside) == ["victim"]
    assert (outside / "victim").read_bytes() == b"safe"


async def test_no_device_without_being_asked(site: Site) -> None:
    (site.src / "file").write_bytes(b"x")
    await site.full()
    state = site.store.states[1]
    _, file = child(site, b"file")
    device = Inode(file, "c", 0o666, 0, 0, 0, 0, 0, 0, 0, 1, 1, rdev=os.makedev(1, 3))
    state.inodes[file] = device
    restored = await site.back("out")
    assert [issue.code for issue in restored.issues] == ["unsupported"]
    assert os.listdir(site.folder / "out") == []


async def test_invariant_3_damaged_chunks_are_never_written(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    state = site.store.states[1]
    _, big = child(site, b"big")
    site.store.damaged = {state.blocks[big][40][0]}
    restored = await site.back("out", devices=True)
    assert {issue.code for issue in restored.issues} == {"damaged"}
    made = (site.folder / "out" / "big").read_bytes()
    assert b"\xff" * 100 not in made


@pytest.mark.parametrize("target", [b"relative", b"/a/../b", b""])
async def test_targets_that_are_refused(site: Site, target: bytes) -> None:
    make_tree(site.src)
    await site.full()
    with pytest.raises(RestoreRefused):
        await site.back("out", to=target)


async def test_a_target_without_a_parent_is_refused(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    with pytest.raises(RestoreRefused) as refused:
        await site.back("out", to=os.fsencode(site.folder / "no" / "such"))
    assert refused.value.code == "restore.no_parent"


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("where", ["make", "write", "finish"])
async def test_a_killed_restore_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    make_tree(site.src)
    await site.full()
    count = 0
    method = {"make": "make_file", "write": "writable", "finish": "finish_file"}[where]
    original = getattr(TargetTree, method)

    def die(self: TargetTree, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == 20:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TargetTree, method, die)
    with pytest.raises(Killed):
        await site.back("out", devices=True)
    monkeypatch.undo()
    site.store.calls = []
    restored = await site.back("out", devices=True)
    assert "list" not in site.store.calls
    assert restored.issues == []
    assert differences(site.src, site.folder / "out") == ""
    assert not list(Path(site.folder / "state").glob("*.plan*"))


async def test_what_was_wrong_before_a_kill_is_still_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(site.src)
    await site.full()
    _, file = child(site, b"fifo")
    inode = site.store.states[1].inodes[file]
    site.store.states[1].inodes[file] = msgspec.structs.replace(inode, type="c")

    def die(self: TargetTree, node: Any) -> Any:
        raise Killed

    monkeypatch.setattr(TargetTree, "finish_file", die)
    with pytest.raises(Killed):
        await site.back("out")
    monkeypatch.undo()
    restored = await site.back("out")
    assert b"fifo" in {issue.path for issue in restored.issues}
