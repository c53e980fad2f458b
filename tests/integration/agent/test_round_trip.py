"""What is shipped comes back the same: bytes and metadata, judged by rsync."""

from __future__ import annotations

import os
import shutil

import pytest

from strandline_agent.restore_tree import MAX_OPEN_FOLDERS
from support.agent_site import Site
from support.trees import change_tree, differences, make_deep, make_huge, make_tree


async def test_every_kind_of_file_comes_back(site: Site) -> None:
    make_tree(site.src)
    shipped = await site.full()
    assert shipped.issues == []
    assert not shipped.point.partial
    restored = await site.back("out", devices=True)
    assert restored.issues == []
    assert differences(site.src, site.folder / "out") == ""


async def test_every_point_comes_back_after_changes(site: Site) -> None:
    make_tree(site.src)
    copies = []
    for number in range(1, 4):
        shipped = await site.full()
        assert shipped.issues == []
        copies.append(site.folder / f"copy{number}")
        os.system(f"cp -a '{site.src}' '{copies[-1]}'")
        change_tree(site.src, number)
    for number, copy in enumerate(copies, 1):
        await site.back(f"out{number}", number, devices=True)
        assert differences(copy, site.folder / f"out{number}") == ""


async def test_an_unchanged_tree_is_not_read(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    await site.full()  # files whose ctime was too fresh are read once more
    shipped = await site.full()
    assert shipped.point.totals.scanned_bytes == 0
    assert site.store.batches == []


async def test_a_renamed_folder_ships_no_data(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    (site.src / "d0").rename(site.src / "d1" / "moved")
    shipped = await site.full()
    assert shipped.point.totals.dirty_bytes == 0
    assert site.store.shipped == 0
    await site.back("out", devices=True)
    assert differences(site.src, site.folder / "out") == ""


async def test_one_changed_block_ships_one_block(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    with (site.src / "big").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"x")
    await site.full()
    assert site.store.shipped == 4096


async def test_a_copied_file_ships_no_data(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    shutil.copy(site.src / "big", site.src / "big again")
    await site.full()
    assert site.store.shipped < 40_000


async def test_paths_deeper_than_a_path_may_be_long(site: Site) -> None:
    make_deep(site.src)
    await site.full()
    await site.back("out")
    way = b"/".join([b"p" * 200] * 40)
    fd = os.open(site.folder / "out", os.O_RDONLY)
    for part in way.split(b"/"):
        below = os.open(part, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    bottom = os.open("bottom", os.O_RDONLY, dir_fd=fd)
    assert os.read(bottom, 100) == b"deep"
    os.close(bottom)
    os.close(fd)


@pytest.mark.parametrize("depth", [MAX_OPEN_FOLDERS + more for more in (-1, 0, 1)])
async def test_a_hard_link_between_deep_branches(site: Site, depth: int) -> None:
    # Opening the way to one of the names closes the folders on the way to the other.
    one, other = (site.src.joinpath(side, *("d" * depth)) for side in ("a", "b"))
    last_made = site.src.joinpath("c", *("d" * 3 * MAX_OPEN_FOLDERS))
    for folder in (one, other, last_made):
        folder.mkdir(parents=True)
    (one / "file").write_bytes(b"once")
    os.link(one / "file", other / "link")
    await site.full()
    restored = await site.back("out")
    assert restored.issues == []
    assert differences(site.src, site.folder / "out") == ""


async def test_a_sparse_file_of_1_tib(site: Site) -> None:
    make_huge(site.src / "huge")
    await site.full()
    assert site.store.shipped <= 3 * 4096
    with (site.src / "huge").open("r+b") as file:
        file.seek(1 << 38)
        file.write(b"more")
    await site.full()
    await site.back("out")
    made = site.folder / "out" / "huge"
    assert made.stat().st_size == 1 << 40
    assert made.stat().st_blocks * 512 < 1 << 20
    for offset, text in ((0, b"begin"), ((1 << 39) + 77, b"middle"), (1 << 38, b"more")):
        with made.open("rb") as file:
            file.seek(offset)
            assert file.read(len(text)) == text


async def test_a_block_that_becomes_a_hole_or_zeros(site: Site) -> None:
    path = site.src / "file"
    path.write_bytes(os.urandom(40 * 4096))
    await site.full()
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(bytes(4096 * 4))
        file.flush()
        # Punch a hole: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE.
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.fallocate64(
            file.fileno(), 3, ctypes.c_longlong(4096 * 10), ctypes.c_longlong(4096 * 20)
        ) == 0  # fmt: skip
    await site.full()
    assert site.store.shipped == 0
    await site.back("out")
    assert differences(site.src, site.folder / "out") == ""
    made = site.folder / "out" / "file"
    assert made.stat().st_blocks == path.stat().st_blocks


async def test_several_paths_and_a_path_that_is_a_file(site: Site) -> None:
    make_tree(site.src / "one")
    (site.src / "two").mkdir()
    (site.src / "two" / "file").write_bytes(b"file")
    (site.src / "left out").write_bytes(b"no")
    site.paths = [os.fsencode(site.src / "one"), os.fsencode(site.src / "two" / "file")]
    await site.full()
    await site.back("out", devices=True)
    below = site.folder / "out" / str(site.src)[1:]
    assert sorted(path.name for path in below.iterdir()) == ["one", "two"]
    assert differences(site.src / "one", below / "one") == ""
    assert differences(site.src / "two", below / "two") == ""


async def test_restore_by_paths(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    await site.back("out", paths=(b"d1/e1", b"text", b"d1/e1/f1"))
    out = site.folder / "out"
    assert sorted(path.name for path in out.iterdir()) == ["d1", "text"]
    assert [path.name for path in (out / "d1").iterdir()] == ["e1"]
    assert differences(site.src / "d1" / "e1", out / "d1" / "e1") == ""


async def test_excludes_and_own_state(site: Site) -> None:
    make_tree(site.src)
    (site.src / "keep.tmp").write_bytes(b"k")
    (site.src / "d2" / "drop.tmp").write_bytes(b"d")
    (site.src / "state").mkdir()
    (site.src / "state" / "known.db").write_bytes(b"d")
    own = (site.src / "state").stat()
    site.excludes = ["*.tmp", "!keep.tmp", "/d3/", "big"]
    await site.full(own_state=frozenset({(own.st_dev, own.st_ino)}))
    names = {name for _, name in site.store.states[1].names}
    assert b"keep.tmp" in names
    assert not names & {b"drop.tmp", b"state", b"d3", b"known.db", b"big"}


async def test_100_000_entries_in_a_folder(site: Site) -> None:
    fd = os.open(site.src, os.O_RDONLY)
    for number in range(100_000):
        os.mknod(f"name {number}", 0o100644, dir_fd=fd)
    os.close(fd)
    shipped = await site.full()
    assert shipped.point.totals.files == 100_001
    assert len(site.store.states[1].names) == 100_000
