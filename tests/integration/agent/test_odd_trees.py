"""Trees that show a thing twice, or that change in the middle of a walk."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strandline_agent import known, linux, read_files, scan, walk
from strandline_agent.changes import Listed
from strandline_contracts.points import ROOT, PointKind
from support.agent_site import Site
from support.trees import differences

Mount = Callable[..., None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts as `mount` does, its last argument being the place, until the test ends."""
    places: list[str] = []

    def do(*arguments: str | Path) -> None:
        argv = ["mount", *map(str, arguments)]
        subprocess.run(argv, check=True)
        places.append(argv[-1])

    yield do
    for place in reversed(places):
        subprocess.run(["umount", "-l", place], check=True)


def ids(site: Site) -> dict[str, int]:
    """Return the id of each path in the newest recovery point."""
    state = site.store.states[len(site.store.points)]
    found: dict[str, int] = {}

    def collect(folder: int, path: str) -> None:
        for (parent, name), file in state.names.items():
            if parent == folder:
                found[path + name.decode()] = file
                collect(file, f"{path}{name.decode()}/")

    collect(ROOT, "")
    return found


async def assert_restorable(site: Site) -> None:
    out = f"out{len(site.store.points)}"
    await site.back(out)
    assert differences(site.src, site.folder / out) == ""


def wait_for_the_file_clock() -> None:
    """Wait until a change would show in the times of what was made before."""
    now = linux.file_clock_ns()
    while linux.file_clock_ns() <= now:
        time.sleep(0.001)


def make_folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name / "sub").mkdir(parents=True)
        (root / name / "sub" / "file").write_bytes(name.encode())


@pytest.mark.root
async def test_a_new_bind_mount_of_a_known_folder(site: Site, mount: Mount) -> None:
    make_folders(site.src, "a", "z")
    for name in ("0", "m", "zz"):
        (site.src / name).mkdir()
    await site.full()
    before = set(ids(site))
    for name in ("0", "m", "zz"):
        mount("--bind", site.src / "a", site.src / name)
    shown = {f"{name}{below}" for name in ("0", "m", "zz") for below in ("/sub", "/sub/file")}
    for kind in ("express_full", "express_full", "check"):
        shipped = await site.full(kind=kind)
        assert shipped.issues == []
        assert set(ids(site)) == before | shown
        await assert_restorable(site)


@pytest.mark.root
async def test_bind_mounts_of_two_folders_in_each_other(site: Site, mount: Mount) -> None:
    make_folders(site.src, "a", "z")
    for name in ("a", "z"):
        (site.src / name / "m").mkdir()
    await site.full()
    before = set(ids(site))
    mount("--bind", site.src / "a" / "sub", site.src / "z" / "m")
    mount("--bind", site.src / "z" / "sub", site.src / "a" / "m")
    for kind in ("express_full", "express_full", "check"):
        await site.full(kind=kind)
        assert set(ids(site)) == before | {"a/m/file", "z/m/file"}
        await assert_restorable(site)


async def test_a_file_that_moves_ahead_of_the_walk_is_read_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(os.urandom(300_000))
    for name in ("p", "q"):
        (site.src / name).mkdir()
        (site.src / name / name).write_bytes(content)
    await site.full()
    for name in ("p", "q"):
        (site.src / name / name).write_bytes(b"before" + content)
    scanned, read = scan.Scan._folder, read_files.Readers.read
    handed: Counter[int] = Counter()
    moved: list[str] = []

    def folder(self: Any, found: Any) -> None:
        scanned(self, found)
        if found.name in (b"p", b"q") and not moved:
            name = found.name.decode()
            other = "q" if name == "p" else "p"
            moved.append(f"{other}/{name}")
            (site.src / name / name).rename(site.src / moved[0])
            with (site.src / moved[0]).open("r+b") as file:
                file.write(b"after")

    def count(self: Any, task: Any) -> None:
        handed[task.file] += 1
        read(self, task)

    monkeypatch.setattr(scan.Scan, "_folder", folder)
    monkeypatch.setattr(read_files.Readers, "read", count)
    before = ids(site)
    await site.full()
    assert set(handed.values()) == {1}
    name = moved[0][-1]
    assert ids(site)[moved[0]] == before[f"{name}/{name}"]
    await site.full()
    await assert_restorable(site)


async def test_what_was_read_behind_the_old_end_before_an_error_is_not_kept(
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
    shipped = await site.full()
    assert [issue.code for issue in shipped.issues] == ["stale"]
    monkeypatch.undo()
    # The check asks the store up to the file's size only; what lay behind must be a hole.
    os.truncate(path, 100_000)
    os.truncate(path, 4 << 20)
    await site.full(kind="check")
    await assert_restorable(site)


async def test_inode_numbers_of_64_bits(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def far(stat: os.stat_result) -> os.stat_result:
        fields = list(stat)
        fields[1] += 2**63
        times = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
        return os.stat_result(fields, {name: getattr(stat, name) for name in times})

    listing = walk.Walk.entries

    def entries(self: Any, folder: Any, fd: int) -> Any:
        listed, bad = listing(self, folder, fd)
        return [Listed(entry.name, far(entry.stat)) for entry in listed], bad

    monkeypatch.setattr(walk.Walk, "entries", entries)
    make_folders(site.src, "a", "b")
    os.link(site.src / "a" / "sub" / "file", site.src / "link")
    await site.full()
    before = ids(site)
    (site.src / "a" / "sub").rename(site.src / "moved")
    await site.full()
    after = ids(site)
    assert after["moved"] == before["a/sub"]
    assert after["moved/file"] == after["link"] == before["link"]
    await assert_restorable(site)


@pytest.mark.root
@pytest.mark.parametrize("first", ["original", "both"])
async def test_two_file_systems_of_one_uuid(site: Site, mount: Mount, first: str) -> None:
    """As a snapshot beside its original, or a copy made by dd."""
    images = [site.folder / "original.img", site.folder / "clone.img"]
    with images[0].open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", images[0]], check=True)
    places = [site.src / "data", site.src / "clone"]
    for place in places:
        place.mkdir()
    mount("-o", "loop", images[0], places[0])
    (places[0] / "file").write_bytes(b"old" * 2000)
    os.link(places[0] / "file", places[0] / "link")
    (places[0] / "folder").mkdir()
    (places[0] / "folder" / "other").write_bytes(b"old")
    if first == "original":
        await site.full()
    os.sync()
    shutil.copy(images[0], images[1])
    mount("-o", "loop", images[1], places[1])
    (places[0] / "file").write_bytes(b"new" * 2000)
    (places[0] / "folder" / "other").write_bytes(b"new")
    for kind in ("express_full", "express_full", "check"):
        shipped = await site.full(kind=kind)
        assert shipped.issues == []
        found = ids(site)
        assert found["data/file"] != found["clone/file"]
        await assert_restorable(site)


@pytest.mark.parametrize("kind", ["express_full", "check"])
@pytest.mark.parametrize("way", ["known", "index lost"])
async def test_a_damaged_chunk_of_what_is_a_hole_now(site: Site, kind: PointKind, way: str) -> None:
    path = site.src / "file"
    path.write_bytes(os.urandom(40 * 4096))
    await site.full()
    blocks = site.store.states[1].blocks[ids(site)["file"]]
    site.store.damaged = {chunk for chunk, _ in blocks.values()}
    if way == "index lost":
        for state in site.index.parent.iterdir():
            state.unlink()
    os.truncate(path, 0)
    os.truncate(path, 40 * 4096)
    await site.full(kind=kind)
    assert site.store.states[2].blocks[ids(site)["file"]] == {}
    restored = await site.back("out")
    assert restored.issues == []


async def test_an_index_lost_twice_at_one_reading_of_the_clock(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where no battery keeps the time: it is the same after each boot."""
    monkeypatch.setattr(known, "time", SimpleNamespace(time=lambda: 1_700_000_000))
    (site.src / "first").write_bytes(b"first")
    await site.full()
    for name in ("a", "b"):
        for state in site.index.parent.iterdir():
            state.unlink()
        make_folders(site.src, name)
        await site.full()
        assert len(set(ids(site).values())) == len(ids(site))
        await assert_restorable(site)


async def test_a_second_name_made_while_the_first_is_read(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folders(site.src, "p", "q")
    wait_for_the_file_clock()
    original = walk.open_file
    made: list[Path] = []

    def open_file(folder: int, name: bytes) -> int:
        fd = original(folder, name)
        if not made:
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            made.append(site.src / ("q" if "p" in path.parts else "p") / "link")
            os.link(path, made[0])
            wait_for_the_file_clock()
        return fd

    monkeypatch.setattr(scan, "open_file", open_file)
    await site.full()
    await site.full()
    state = site.store.states[2]
    assert len([inode for inode in state.inodes.values() if inode.type == "f"]) == 2
    await assert_restorable(site)


@pytest.mark.parametrize("other", ["pipe", "folder", "link"])
@pytest.mark.parametrize("is_known", [False, True])
async def test_something_else_in_the_place_of_a_listed_file(
    site: Site, monkeypatch: pytest.MonkeyPatch, other: str, is_known: bool
) -> None:
    path = site.src / "file"
    (site.src / "good").write_bytes(b"good")
    if is_known:
        path.write_bytes(b"before")
        await site.full()
    path.write_bytes(b"after")
    original = walk.open_file

    def open_file(folder: int, name: bytes) -> int:
        if name == b"file":
            path.unlink()
            if other == "pipe":
                os.mkfifo(path)
            elif other == "folder":
                path.mkdir()
            else:
                path.symlink_to("good")
        return original(folder, name)

    monkeypatch.setattr(scan, "open_file", open_file)
    shipped = await site.full()
    assert [issue.code for issue in shipped.issues] == ["vanished"]
    assert set(ids(site)) == {"good"}
    monkeypatch.undo()
    assert (await site.full()).issues == []
    await assert_restorable(site)


async def test_a_page_changed_by_mmap_while_it_is_dirty(site: Site) -> None:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", site.src], check=True, capture_output=True, text=True
    ).stdout.strip()
    # Without write-out nothing tells of it (docs/limits.md): a check, which reads all, finds it.
    has_write_out = kind not in ("tmpfs", "ramfs", "overlayfs")
    path = site.src / "database"
    path.write_bytes(bytes(1 << 17))
    os.sync()
    wait_for_the_file_clock()
    await site.full()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:3] = b"one"
        wait_for_the_file_clock()
        await site.full()
        # The page is mapped for writing, and stays so until it is on its way to the disk.
        mapped[:3] = b"two"
        wait_for_the_file_clock()
        await site.full()
        mapped[:3] = b"six"
        mapped.flush()
    await site.full(kind="express_full" if has_write_out else "check")
    await assert_restorable(site)
