"""The store has lost chunks: what the source still has comes back, what it has not is shipped."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from strandline_agent.mending import is_covered, protected
from strandline_contracts.errors import StrandlineError
from strandline_contracts.shipping import LostChunk
from support.agent_site import Site
from support.trees import differences, make_tree


def damage_all(site: Site) -> set[int]:
    """Damage every chunk that the newest point needs."""
    state = site.store.states[len(site.store.points)]
    site.store.damaged = {
        where[0] for held in state.blocks.values() for where in held.values() if where != -1
    }
    return set(site.store.damaged)


async def whole(site: Site, point: int, copy: Path) -> None:
    restored = await site.back(f"out{point}", point, devices=True)
    assert restored.issues == []
    assert differences(copy, site.folder / f"out{point}") == ""


async def test_everything_that_was_lost_comes_back(site: Site) -> None:
    make_tree(site.src)
    await site.full()
    lost = damage_all(site)
    await site.full()
    assert (site.store.damaged, set(site.store.mended)) == (set(), lost)
    assert site.store.shipped == 0
    await whole(site, 1, site.src)
    await whole(site, 2, site.src)


async def test_it_comes_back_by_a_check_too_and_from_several_paths(site: Site) -> None:
    for name in ("one", "two"):
        (site.src / name).mkdir()
        (site.src / name / "file").write_bytes(random.Random(name).randbytes(300_000))
    single = site.src / "single"
    single.write_bytes(b"a file that is protected by itself")
    site.paths = [os.fsencode(path) for path in (*site.src.glob("[ot]*"), single)]
    await site.full()
    lost = damage_all(site)
    assert len(lost) > 3
    await site.full(kind="check")
    assert (site.store.damaged, set(site.store.mended)) == (set(), lost)


async def test_what_has_changed_stays_lost_and_the_new_point_is_whole(site: Site) -> None:
    """One small file of a chunk that many share has changed: all the others are shipped anew."""
    make_tree(site.src)
    await site.full()
    state = site.store.states[1]
    chunk = state.blocks[_file(site, b"f7")][0][0]
    shared = {
        each
        for each, held in state.blocks.items()
        if any(where != -1 and where[0] == chunk for where in held.values())
    }
    assert len(shared) > 3
    site.store.damaged = {chunk}
    changed = next(site.src.glob("d*/e*/f7"))
    changed.write_bytes(b"something else")
    await site.full()
    assert site.store.damaged == {chunk}
    assert site.store.mended == []
    assert all(
        where == -1 or where[0] != chunk
        for held in site.store.states[2].blocks.values()
        for where in held.values()
    )
    await whole(site, 2, site.src)
    # Nothing is asked for again, and nothing is read.
    site.store.calls.clear()
    await site.full()
    assert "lost_chunks" not in site.store.calls
    assert site.store.shipped == 0


def _file(site: Site, name: bytes) -> int:
    return next(file for (_, found), file in site.store.states[1].names.items() if found == name)


async def test_a_link_in_the_place_of_a_folder_is_not_followed(site: Site) -> None:
    inside = site.src / "folder"
    inside.mkdir()
    (inside / "secret").write_bytes(random.Random(1).randbytes(50_000))
    await site.full()
    damage_all(site)
    elsewhere = site.folder / "elsewhere"
    inside.rename(elsewhere)
    inside.symlink_to(elsewhere)
    await site.full()
    assert site.store.mended == []


async def test_a_store_that_cannot_be_mended_stops_no_job(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(site.src)
    await site.full()
    damage_all(site)

    async def broken(_: object) -> object:
        raise StrandlineError("no such call")

    monkeypatch.setattr(site.store, "on_lost_chunks", broken)
    assert (await site.full()).point.number == 2


async def test_a_job_mends_no_more_than_its_share(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strandline_agent.mending.MAX_MENDED_BYTES", 1 << 20)
    make_tree(site.src)
    await site.full()
    lost = damage_all(site)
    await site.full()
    first = len(site.store.mended)
    assert 0 < first < len(lost)
    for _ in range(8):
        await site.full()
    assert site.store.damaged == set()


def test_pieces_must_make_up_the_chunk() -> None:
    def of(*pieces: tuple[int, int, int, int], plain_bytes: int = 8192) -> bool:
        return is_covered(LostChunk(1, b"", plain_bytes, list(pieces)))

    assert of((2, 0, 2, 0))
    assert of((2, 0, 1, 1), (3, 7, 1, 0), (4, 0, 2, 0))
    assert not of()
    assert not of((2, 0, 1, 0))
    assert not of((2, 0, 3, 0))
    assert not of((2, -1, 2, 0))
    assert not of((2, 0, 2, -1), (2, 0, 2, 0))
    assert not of((2, 0, 0, 0), (2, 0, 2, 0))
    assert not of((2, 0, 2, 0), plain_bytes=8191)
    assert not of((2, 0, 64, 0), plain_bytes=64 * 4096)
    assert not of((2, 0, 1, 0), plain_bytes=0)


def test_where_the_way_to_a_file_begins(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    assert protected([b"a", b"b"], [folder]) == (folder, [b"a", b"b"])
    paths = [folder, b"/srv/single"]
    names = folder.strip(b"/").split(b"/")
    assert protected([*names, b"a"], paths) == (folder, [b"a"])
    assert protected([b"srv", b"single"], paths) == (b"/srv", [b"single"])
    with pytest.raises(FileNotFoundError):
        protected([b"etc", b"passwd"], paths)
