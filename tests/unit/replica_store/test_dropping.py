"""Dropping recovery points, and making the index anew: what is kept stays as it was."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from strandline_contracts.codec import decode
from strandline_contracts.events import DamageFound, DamageRepaired, PointCommitted, PointsDropped
from strandline_contracts.points import RecoveryPoint
from strandline_replica_store.checking.verify import verify
from strandline_replica_store.errors import Damaged, Full, IndexDamaged
from strandline_replica_store.files import durable, manifest, segment
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica import index, rewrite
from strandline_replica_store.replica.replica import Replica
from strandline_runtime import outbox
from support import index_oracle
from support.replicas import (
    SERVER,
    content,
    end_of,
    made_up,
    made_up_content,
    new_replica,
    one_file,
    open_of,
    open_replica,
    ship,
)

POINTS = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "replica"


@pytest.fixture
def replica(folder: Path) -> Replica:
    return filled(folder)


def filled(folder: Path, count: int = POINTS) -> Replica:
    replica = new_replica(folder, segment_limit_bytes=150_000)
    for number in range(1, count + 1):
        ship(replica, f"j{number}", made_up(f"j{number}", number, 1))
    return replica


def events(replica: Replica, kind: type[Any]) -> list[Any]:
    found = replica.on_database(lambda conn: outbox.pending(conn, 1000))
    return [event.data for _, event in found if isinstance(event.data, kind)]


def manifests(folder: Path) -> list[int]:
    return manifest.numbers_in(str(folder / "manifests"))


def rows(folder: Path, *, exact: bool = False) -> dict[str, Any]:
    """Return all that the index says of segments and manifests."""
    conn = index.connect_to_read(str(folder / "index.db"))
    try:
        if exact:
            tables = ("point", "chunk", "extent", "extent_past", "inode", "name")
            return {name: list(conn.execute(f"SELECT * FROM {name}")) for name in tables}
        # Not `staged`: chunks of dropped points are named no more, which an older index ignores.
        chunks = list(conn.execute("SELECT id, digest, codec, segment, offset, bad FROM chunk"))
        return {"chunk": chunks, **index_oracle.normalised(conn)}
    finally:
        conn.close()


def check_kept(folder: Path, kept: list[int]) -> None:
    """Each kept point reads as it was; an index made anew says the same, row for row."""
    assert manifests(folder) == kept
    assert {n: content(folder, n) for n in kept} == {n: made_up_content(n) for n in kept}
    before = rows(folder)
    assert [row[0] for row in before["point"]] == kept
    copy = folder.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (copy / name).unlink(missing_ok=True)
    replica = open_replica(copy)
    assert rows(copy) == before
    reader = Reader(str(copy))
    report = verify(reader, replica.newest)
    assert (report.damaged, report.manifests) == (0, len(kept))
    reader.close()
    replica.close()


def test_kept_points_stay_and_the_others_are_gone(folder: Path, replica: Replica) -> None:
    newest = replica.newest
    assert newest is not None
    identities = {n: points(replica)[n].digest for n in (1, 4, 6)}
    assert replica.drop([2, 3, 5, 99], "retention") == [2, 3, 5]
    check_kept(folder, [1, 4, 6])
    assert {n: point.digest for n, point in points(replica).items()} == identities
    assert points(replica)[4].parent == 1
    assert points(replica)[4].parent_digest == identities[1]
    assert events(replica, PointsDropped) == [PointsDropped(points=[2, 3, 5], reason="retention")]
    assert replica.drop([2, 3], "retention") == []
    # The line goes on, after a restart too; the oldest go, never the newest.
    ship(replica, "j7", made_up("j7", 7, 1))
    replica.close()
    replica = open_replica(folder)
    assert replica.drop([1, 4, 6, 7], "deleted") == [1, 4, 6]
    check_kept(folder, [7])
    assert points(replica)[7].parent == 0
    ship(replica, "j8", made_up("j8", 8, 1))
    check_kept(folder, [7, 8])
    replica.close()


def points(replica: Replica) -> dict[int, Any]:
    found = replica.on_database(lambda conn: list(conn.execute("SELECT number, record FROM point")))
    return {number: decode(record, RecoveryPoint) for number, record in found}


def test_a_job_being_received_is_not_disturbed(folder: Path, replica: Replica) -> None:
    messages = made_up("j7", 7, 1)
    replica.open_job(SERVER, open_of(replica, "j7"))
    replica.take("j7", 1, messages[:2])
    assert replica.drop([1, 2, 5], "retention") == [1, 2, 5]
    replica.take("j7", 1, messages[2:3])
    replica.reindex()
    replica.take("j7", 1, messages[3:])
    assert replica.finish(end_of("j7", messages)).number == 7
    check_kept(folder, [3, 4, 6, 7])
    replica.close()


def test_rewritten_manifests_say_the_same_to_an_index_made_anew(folder: Path) -> None:
    replica = filled(folder)
    before = rows(folder)
    replica.rewrite([1, 3, 6])
    assert events(replica, PointsDropped) == events(replica, DamageRepaired) == []
    check_kept(folder, [1, 2, 3, 4, 5, 6])
    assert rows(folder) == before
    replica.close()


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


STEPS = ["begin", "rename", "remove", "sync_folder", "drop_points", "delete_rows"]


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("step", STEPS)
def test_invariant_10_a_drop_cut_short_is_finished_or_never_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: int
) -> None:
    replica = filled(folder)
    before = {n: point.digest for n, point in points(replica).items()}
    with monkeypatch.context() as patch:
        kill_at(patch, step, after)
        with suppress(Killed):
            replica.drop([1, 2, 4], "deleted")
    # As the process leaves it: what was not committed is not there.
    left = folder.with_name("left")
    shutil.copytree(folder, left)
    again = open_replica(left)
    found = points(again)
    kept = sorted(found)
    assert set(before) - {1, 2, 4} <= set(kept)
    assert {n: point.digest for n, point in found.items()} == {n: before[n] for n in kept}
    told = {n for each in events(again, PointsDropped) for n in each.points}
    assert told == set(before) - set(kept)
    check_kept(left, kept)
    assert again.drop([1, 2, 4], "deleted") == [n for n in kept if n in (1, 2, 4)]
    check_kept(left, [3, 5, 6])
    again.close()
    replica.close()


def kill_at(patch: pytest.MonkeyPatch, step: str, after: int) -> None:
    owner: Any = {"begin": manifest.ManifestWriter, "drop_points": index, "delete_rows": index}.get(
        step, durable
    )
    real, calls = getattr(owner, step), iter(range(1000))

    def killing(*values: Any, **named: Any) -> Any:
        if next(calls) == after:
            raise Killed
        return real(*values, **named)

    patch.setattr(owner, step, killing)


def test_a_full_disk_drops_what_it_could_and_no_more(
    folder: Path, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rewrite._write

    def full(folders: Any, conn: Any, state: Any, step: Any) -> bool:
        if step.number == 5:
            raise OSError(28, "No space left on device")
        return real(folders, conn, state, step)

    with monkeypatch.context() as patch:
        patch.setattr(rewrite, "_write", full)
        with pytest.raises(Full):
            replica.drop([1, 4], "retention")
    check_kept(folder, [2, 3, 4, 5, 6])
    assert events(replica, PointsDropped) == [PointsDropped(points=[1], reason="retention")]
    assert replica.drop([1, 4], "retention") == [4]
    check_kept(folder, [2, 3, 5, 6])
    replica.close()


# Making the index anew


def test_the_index_deleted_is_made_anew_row_for_row(folder: Path, replica: Replica) -> None:
    replica.close()
    before = rows(folder, exact=True)
    (folder / "index.db").unlink()
    open_replica(folder).close()
    assert rows(folder, exact=True) == before


def test_reindex_keeps_what_only_the_index_knows(folder: Path, replica: Replica) -> None:
    before, sent = rows(folder, exact=True), events(replica, PointCommitted)
    damage = damage_of(replica, 2)
    replica.record_damage(damage)
    replica.mark_inconsistent("why not")
    reader = Reader(str(folder))
    generation = replica.index_generation
    replica.reindex()
    assert replica.index_generation == generation + 1
    assert replica.inconsistent() == "why not"
    assert events(replica, PointCommitted) == sent
    assert events(replica, DamageFound) == [damage]
    after = rows(folder, exact=True)
    assert [row[0] for row in after["chunk"] if row[-1]] == [2]
    assert {**after, "chunk": []} == {**before, "chunk": []}
    # Who read the old one goes on with that, and leaves the new one alone at the end.
    assert len(list(reader.conn.execute("SELECT * FROM point"))) == POINTS
    messages = one_file("j7", b"seven")
    replica.open_job(SERVER, open_of(replica, "j7", kind="check"))
    replica.take("j7", 1, messages)
    replica.finish(end_of("j7", messages))
    reader.close()
    replica.close()
    replica = open_replica(folder)
    assert content(folder, 7) == b"seven"
    replica.close()


def damage_of(replica: Replica, chunk: int) -> DamageFound:
    query = "SELECT segment, offset FROM chunk WHERE id = ?"
    found = replica.on_database(lambda conn: conn.execute(query, (chunk,)).fetchone())
    return DamageFound(chunk=chunk, segment=found[0], offset=found[1], reason="flipped", points=[1])


def test_a_swap_cut_short_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = filled(folder)
    before = rows(folder, exact=True)
    for number in range(3):
        left = folder.with_name(f"left{number}")
        with monkeypatch.context() as patch:
            kill_at(patch, "rename", number)
            with suppress(Killed):
                replica.reindex()
        shutil.copytree(folder, left)
        open_replica(left).close()
        assert [path.name for path in left.glob("index.db*")] == ["index.db"]
        assert rows(left, exact=True) == before
        replica.close()
        replica = open_replica(folder)
    replica.close()


def test_nobody_opens_an_index_while_another_takes_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader with the file of one and the log of the other would read a mixture."""
    replica = filled(folder)
    opened: list[apsw.Connection] = []
    at_swap: list[bool] = []
    thread = threading.Thread(
        target=lambda: opened.append(index.connect_to_read(str(folder / "index.db")))
    )
    sound = durable.sync_folder

    def amid_the_swap(path: str) -> None:
        if not at_swap and not (folder / "index.db").exists():
            thread.start()
            thread.join(0.2)
            at_swap.append(thread.is_alive())
        sound(path)

    monkeypatch.setattr(durable, "sync_folder", amid_the_swap)
    replica.reindex()
    thread.join(30)
    assert at_swap == [True], "it waits"
    assert opened[0].execute("SELECT count(*) FROM point").get == POINTS
    opened[0].close()
    replica.close()


def test_commits_go_on_while_the_index_is_made_anew(folder: Path, replica: Replica) -> None:
    done = threading.Event()

    def make_anew() -> None:
        for _ in range(3):
            replica.reindex()
        done.set()

    thread = threading.Thread(target=make_anew)
    thread.start()
    number = POINTS
    while not done.is_set() and number < 200:
        number += 1
        ship(replica, f"j{number}", made_up(f"j{number}", number, 1))
    thread.join()
    assert number > POINTS
    check_kept(folder, list(range(1, number + 1)))
    replica.close()


# Damaged manifests


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


SPOILS: dict[str, Callable[[Path], object]] = {
    "head": lambda path: flip(path, 70),
    "delta": lambda path: flip(path, 400),
    "tail": lambda path: flip(path, path.stat().st_size - 5),
    "gone": lambda path: path.unlink(),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("number", [1, 3, 6])
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_manifest_is_written_anew_from_the_index(
    folder: Path, replica: Replica, spoil: str, number: int
) -> None:
    before = {n: point.digest for n, point in points(replica).items()}
    SPOILS[spoil](folder / "manifests" / f"{number:08d}.slm")
    replica.reindex()
    check_kept(folder, [1, 2, 3, 4, 5, 6])
    assert {n: point.digest for n, point in points(replica).items()} == before
    told = DamageRepaired(chunk=0, by="index", points=[number])
    assert events(replica, DamageRepaired) == [told]
    aside = folder / "damaged" / f"{number:08d}.slm"
    assert aside.exists() == (spoil != "gone")
    replica.close()


@pytest.mark.parametrize("spoil", ["head", "gone", "empty"])
def test_a_lost_manifest_is_seen_at_opening(folder: Path, replica: Replica, spoil: str) -> None:
    replica.close()
    for number in (2, 6):
        SPOILS[spoil](folder / "manifests" / f"{number:08d}.slm")
    replica = open_replica(folder)
    check_kept(folder, [1, 2, 3, 4, 5, 6])
    (found,) = events(replica, DamageFound)
    assert found.points == [2, 6]
    ship(replica, "j7", made_up("j7", 7, 1))
    replica.close()


def test_what_is_lost_with_the_index_is_named_and_nothing_is_thrown_away(
    folder: Path, replica: Replica
) -> None:
    replica.close()
    truth = files_of(folder)
    (folder / "index.db").unlink()
    flip(folder / "manifests" / "00000004.slm", 300)
    truth["manifests/00000004.slm"] = (folder / "manifests" / "00000004.slm").read_bytes()
    replica = open_replica(folder)
    with pytest.raises(Damaged, match="lost are recovery points 4, 5, 6"):
        replica.open_job(SERVER, open_of(replica, "j7"))
    for refused in (lambda: replica.drop([1], "deleted"), lambda: replica.rewrite([1])):
        with pytest.raises(Damaged, match="4, 5, 6"):
            refused()
    with pytest.raises(Damaged, match="4, 5, 6"):
        replica.reindex()
    assert {n: content(folder, n) for n in (1, 2, 3)} == {n: made_up_content(n) for n in (1, 2, 3)}
    replica.close()
    open_replica(folder).close()
    assert files_of(folder) == truth


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in ("segments", "manifests")
        for path in sorted((folder / kind).iterdir())
    }


# Damaged segments, and no index


@pytest.mark.parametrize("at", [10, 64 + 5, 64 + 144 + 50, 64 + 100])
@pytest.mark.parametrize("which", [0, -1])
def test_damage_in_a_segment_costs_one_chunk(
    folder: Path, replica: Replica, at: int, which: int
) -> None:
    """An index made anew finds what lies behind the damage; nothing is cut off."""
    replica.close()
    path = sorted((folder / "segments").iterdir())[which]
    size = path.stat().st_size
    flip(path, at)
    (folder / "index.db").unlink()
    replica = open_replica(folder)
    assert path.stat().st_size == size
    bad = replica.on_database(lambda conn: list(conn.execute("SELECT id FROM chunk WHERE bad")))
    assert len(bad) == (0 if at < segment.SEGMENT_HEADER_BYTES else 1)
    reader = Reader(str(folder))
    assert verify(reader, replica.newest).damaged == len(bad)
    reader.close()
    ship(replica, "j7", made_up("j7", 7, 1))
    replica.close()
    assert content(folder, 7) == made_up_content(7)


def test_a_damaged_index_and_a_request_that_meets_it(folder: Path, replica: Replica) -> None:
    """The request fails so that it may be tried again; the next one is answered rightly."""
    before = rows(folder)
    replica.on_database(index.check_pages)
    generation = replica.index_generation
    replica.index_is_damaged(generation, "a page")
    replica.index_is_damaged(generation - 1, "an index of before")
    assert replica.point_of("j3") is not None
    assert replica.index_generation == generation + 1
    assert rows(folder) == before
    (found,) = events(replica, DamageFound)
    assert "index.db" in found.reason
    replica._rebuilding = True
    with pytest.raises(IndexDamaged) as caught:
        replica.point_of("j3")
    assert caught.value.retryable
    replica._rebuilding = False
    replica.close()
    assert os.listdir(folder / "staging") == []


def test_an_index_of_another_version_is_made_anew_and_is_no_damage(
    folder: Path, replica: Replica
) -> None:
    before, told = rows(folder, exact=True), events(replica, PointCommitted)
    replica.on_database(lambda conn: conn.execute("PRAGMA user_version=1"))
    replica.close()
    replica = open_replica(folder)
    assert events(replica, PointCommitted) == told
    assert events(replica, DamageFound) == []
    replica.close()
    assert rows(folder, exact=True) == before


def test_an_index_of_another_replica_is_made_anew(folder: Path, replica: Replica) -> None:
    replica.close()
    before = rows(folder, exact=True)
    other = new_replica(folder.with_name("other"))
    for number in range(1, 4):
        ship(other, f"k{number}", one_file(f"k{number}", b"other"))
    other.drop([2], "retention")
    other.close()
    shutil.copy(folder.with_name("other") / "index.db", folder / "index.db")
    open_replica(folder).close()
    assert rows(folder, exact=True) == before


def test_a_drop_cut_short_is_told_by_an_index_made_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = filled(folder)
    with monkeypatch.context() as patch, suppress(Killed):
        kill_at(patch, "remove", 1)
        replica.drop([2, 3], "deleted")
    left = folder.with_name("left")
    shutil.copytree(folder, left)
    replica.close()
    conn = index.connect(str(left / "index.db"))
    conn.execute("PRAGMA user_version=1")
    conn.close()
    again = open_replica(left)
    assert again.points() == [1, 4, 5, 6]
    assert events(again, PointsDropped) == [PointsDropped(points=[2, 3], reason="deleted")]
    check_kept(left, [1, 4, 5, 6])
    again.close()


def test_index_and_manifest_damaged_at_once_is_told_and_kept(
    folder: Path, replica: Replica
) -> None:
    replica.close()
    for at in range(4096 + 900, (folder / "index.db").stat().st_size, 4096):
        flip(folder / "index.db", at)
    flip(folder / "manifests" / "00000004.slm", 300)
    replica = open_replica(folder)
    with pytest.raises(Damaged, match="lost are recovery points 4, 5, 6"):
        replica.points()
    replica.close()
    assert (folder / "damaged" / "index.db").exists()
    assert manifests(folder) == [1, 2, 3, 4, 5, 6]
