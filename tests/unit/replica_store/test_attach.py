"""A replica's folder that was brought from elsewhere becomes one of this store's."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from strandline_contracts.errors import StrandlineError
from strandline_replica_store.errors import Locked
from strandline_replica_store.files import manifest
from strandline_replica_store.store import attach
from strandline_replica_store.store.store import Store
from strandline_runtime import outbox
from support.replicas import (
    SERVER,
    SOURCE,
    content,
    made_up,
    made_up_content,
    new_replica,
    open_replica,
    ship,
)

POINTS = 3
Way = Callable[[str, str], attach.Found]


@pytest.fixture
def brought(tmp_path: Path) -> Path:
    """A replica of three recovery points as its old store has left it."""
    folder = tmp_path / "brought" / SOURCE
    folder.parent.mkdir()
    replica = new_replica(folder)
    for number in range(1, POINTS + 1):
        ship(replica, f"{number:032x}", made_up(f"{number:032x}", number, 1))
    replica.close()
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of another store, of another site, that is at rest."""
    root = tmp_path / "root"
    Store(str(root), name="store-9", site="dr").close()
    return root


def replica_in(root: Path) -> Path:
    return root / "replicas" / SOURCE


def check_whole(root: Path) -> None:
    """Open the replica as the store does, and read every recovery point."""
    store = Store(str(root), name="store-9", site="dr")
    try:
        assert store.sources() == [SOURCE]
        newest = store.replica(SOURCE).newest
        assert newest is not None
        assert newest.number == POINTS
    finally:
        store.close()
    for number in range(1, POINTS + 1):
        assert content(replica_in(root), number) == made_up_content(number)


@pytest.mark.parametrize("way", [attach.copy, attach.move])
def test_every_point_can_be_read(way: Way, root: Path, brought: Path) -> None:
    found = way(str(root), str(brought))
    assert (found.source, found.name, found.server) == (SOURCE, "data", SERVER)
    assert (found.newest, found.here) == (POINTS, False)
    check_whole(root)
    assert brought.exists() == (way is attach.copy)
    assert sorted(os.listdir(root / "replicas")) == [SOURCE]


def test_the_label_is_the_new_stores_and_a_new_era_begins(root: Path, brought: Path) -> None:
    before = json.loads((brought / "replica.json").read_text())
    attach.copy(str(root), str(brought))
    after = json.loads((replica_in(root) / "replica.json").read_text())
    assert after == before | {"store": "store-9", "era": before["era"] + 1}


@pytest.mark.parametrize("way", [attach.copy, attach.move])
def test_what_the_old_store_had_in_hand_stays_behind(way: Way, root: Path, brought: Path) -> None:
    (brought / "deleted.json").write_text("{}")
    (brought / "policies.json").write_text("{}")
    (brought / "staging" / f"{'f' * 32}.1.part").write_bytes(b"half")
    (brought / "index.db").write_bytes(b"no database")
    way(str(root), str(brought))
    left = set(os.listdir(replica_in(root)))
    assert not left & {"deleted.json", "policies.json"}
    assert os.listdir(replica_in(root) / "staging") == []
    check_whole(root)


@pytest.mark.parametrize("suffix", ["", ".new", ".old"])
@pytest.mark.parametrize("way", [attach.copy, attach.move])
def test_no_index_of_the_old_store_is_gone_on_with(
    way: Way, suffix: str, root: Path, brought: Path
) -> None:
    """Also not one that was made anew there and not yet put in its place."""
    if suffix:
        os.rename(brought / "index.db", brought / f"index.db{suffix}")
    way(str(root), str(brought))
    assert not list(replica_in(root).glob("index.db.*"))
    store = Store(str(root), name="store-9", site="dr")
    try:
        events = store.replica(SOURCE).on_database(lambda conn: outbox.pending(conn, 100))
    finally:
        store.close()
    assert {event.origin for _, event in events} == {"store-store-9"}


@pytest.mark.parametrize("dropped", [[1], [2], [1, 2]])
def test_dropped_points_stay_dropped(root: Path, brought: Path, dropped: list[int]) -> None:
    replica = open_replica(brought)
    assert replica.drop(dropped, "retention") == dropped
    replica.close()
    assert attach.copy(str(root), str(brought)).newest == POINTS
    store = Store(str(root), name="store-9", site="dr")
    try:
        with store.reader(SOURCE) as reader:
            rows = reader.conn.execute("SELECT number FROM point ORDER BY number").fetchall()
    finally:
        store.close()
    left = [number for number in range(1, POINTS + 1) if number not in dropped]
    assert [number for (number,) in rows] == left
    for number in left:
        assert content(replica_in(root), number) == made_up_content(number)


def test_a_replica_that_is_here_is_left_as_it_is(root: Path, brought: Path) -> None:
    attach.copy(str(root), str(brought))
    before = sorted(os.listdir(replica_in(root) / "manifests"))
    for way in (attach.copy, attach.move):
        with pytest.raises(attach.AlreadyHere):
            way(str(root), str(brought))
    assert sorted(os.listdir(replica_in(root) / "manifests")) == before
    assert attach.look(str(root), str(replica_in(root))).here


def test_foreign_folders_are_refused(root: Path, brought: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(attach.NotAReplica, match="holds no replica"):
        attach.copy(str(root), str(empty))
    for text, told in (
        ("{", "cannot be read"),
        ('{"format": 2, "source": "x", "name": "", "type": ""}', "format 2"),
        ('{"format": 1, "source": "../x", "name": "", "type": ""}', "names no data source"),
    ):
        (empty / "replica.json").write_text(text)
        with pytest.raises(attach.NotAReplica, match=told):
            attach.copy(str(root), str(empty))
    shutil.copy(brought / "replica.json", empty)
    with pytest.raises(attach.NotAReplica, match="no segments and manifests"):
        attach.copy(str(root), str(empty))
    (empty / "segments").mkdir()
    (empty / "manifests").mkdir()
    with pytest.raises(attach.NotAReplica, match="no recovery point"):
        attach.copy(str(root), str(empty))
    assert os.listdir(root / "replicas") == []


def test_manifests_of_another_source_are_refused(root: Path, brought: Path) -> None:
    path = brought / "replica.json"
    about = json.loads(path.read_text()) | {"source": "ffeeddccbbaa9988"}
    path.write_text(json.dumps(about))
    with pytest.raises(StrandlineError, match="of source"):
        attach.copy(str(root), str(brought))
    assert os.listdir(root / "replicas") == []


@pytest.mark.parametrize("number", range(1, POINTS + 1))
@pytest.mark.parametrize("way", [attach.copy, attach.move])
def test_a_damaged_manifest_is_refused(way: Way, number: int, root: Path, brought: Path) -> None:
    path = Path(manifest.path_of(str(brought / "manifests"), number))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StrandlineError):
        way(str(root), str(brought))
    assert brought.is_dir()
    assert os.listdir(root / "replicas") == []


def test_a_missing_manifest_is_refused(root: Path, brought: Path) -> None:
    Path(manifest.path_of(str(brought / "manifests"), 2)).unlink()
    with pytest.raises(StrandlineError):
        attach.copy(str(root), str(brought))
    assert os.listdir(root / "replicas") == []


def test_what_an_interrupted_copy_left_is_made_anew(root: Path, brought: Path) -> None:
    left = root / "replicas" / f".copying-{SOURCE}" / "segments"
    left.mkdir(parents=True)
    (left / "00000009.sls").write_bytes(b"half")
    attach.copy(str(root), str(brought))
    check_whole(root)


def test_a_folder_in_use_is_refused(root: Path, tmp_path: Path, brought: Path) -> None:
    old = tmp_path / "old"
    store = Store(str(old), name="store-1", site="hq")
    try:
        shutil.copytree(brought, old / "replicas" / SOURCE)
        with pytest.raises(StrandlineError, match="in use by the store"):
            attach.copy(str(root), str(old / "replicas" / SOURCE))
    finally:
        store.close()
    attach.copy(str(root), str(old / "replicas" / SOURCE))
    check_whole(root)


@pytest.mark.parametrize("way", [attach.look, attach.copy, attach.move])
def test_a_folder_in_use_is_refused_by_every_path_to_it(
    way: Way, root: Path, tmp_path: Path, brought: Path
) -> None:
    """The running store may own the link that leads to the folder, or the folder itself."""
    old = tmp_path / "old"
    store = Store(str(old), name="store-1", site="hq")
    mine, link = old / "replicas" / SOURCE, tmp_path / "link"
    try:
        mine.symlink_to(brought)
        with pytest.raises(Locked):
            way(str(root), str(mine))
        mine.unlink()
        shutil.copytree(brought, mine)
        link.symlink_to(mine)
        with pytest.raises(Locked):
            way(str(root), str(link))
    finally:
        store.close()
    assert os.listdir(root / "replicas") == []


@pytest.mark.parametrize("way", [attach.copy, attach.move])
def test_a_link_brings_what_it_leads_to(
    way: Way, root: Path, tmp_path: Path, brought: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(brought)
    way(str(root), str(link))
    assert not replica_in(root).is_symlink()
    check_whole(root)
    assert brought.exists() == (way is attach.copy)


def test_one_at_a_time(root: Path, brought: Path) -> None:
    fd = os.open(root / "replicas", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(StrandlineError, match="being attached"):
            attach.copy(str(root), str(brought))
    finally:
        os.close(fd)


def test_without_room_nothing_is_begun(
    root: Path, brought: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strandline_replica_store.files.durable.free_bytes", lambda path: 1000)
    with pytest.raises(StrandlineError, match="are free for it"):
        attach.copy(str(root), str(brought))
    assert os.listdir(root / "replicas") == []
