"""Mending: lost chunks are named with what they are made of, and taken back by digest alone."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from strandline_contracts.events import DamageFound, DamageRepaired
from strandline_contracts.points import CODEC_RAW, Extent, Name
from strandline_contracts.shipping import Chunk, LostPage
from strandline_replica_store.checking.verify import verify
from strandline_replica_store.errors import BadChunk
from strandline_replica_store.files import segment
from strandline_replica_store.reading.reader import DamagedChunk, Reader
from strandline_replica_store.replica import mend
from strandline_replica_store.replica.replica import Replica
from strandline_runtime import outbox
from support.replicas import (
    SERVER,
    batch,
    chunk,
    content,
    inode,
    made_up,
    made_up_content,
    new_replica,
    open_of,
    open_replica,
    ship,
)

PART = 4 * 4096


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    """Two points of one file of several chunks, then all of the first point's damaged."""
    made = new_replica(tmp_path / "replica")
    for number in (1, 2):
        ship(made, f"job{number}", made_up(f"job{number}", number, 1))
    yield made
    made.close()


def damage(replica: Replica, point: int) -> list[int]:
    """Damage every chunk that is born with `point`, have it found; return their ids."""
    rows = replica.on_database(
        lambda conn: list(
            conn.execute(
                "SELECT DISTINCT id, segment, offset FROM chunk JOIN (SELECT chunk, born"
                " FROM extent UNION SELECT chunk, born FROM extent_past) ON chunk = id"
                " WHERE born = ?",
                (point,),
            )
        )
    )
    for _, number, offset in rows:
        path = segment.path_of(replica.segments_folder, number)
        with open(path, "r+b") as file:
            file.seek(offset + segment.CHUNK_HEADER_BYTES)
            file.write(b"damage")
    find(replica)
    return [row[0] for row in rows]


def find(replica: Replica) -> int:
    reader = Reader(replica.folder)
    try:
        return verify(reader, replica.newest, on_damage=replica.record_damage).damaged
    finally:
        reader.close()


def lost(replica: Replica, after: int = 0, room_bytes: int = 1 << 20) -> LostPage:
    page: LostPage = replica.on_database(lambda conn: mend.lost_page(conn, after, room_bytes))
    return page


def chunks_of(number: int) -> list[Chunk]:
    plain = made_up_content(number)
    plain += bytes(-len(plain) % 4096)
    return [chunk(plain[at : at + PART]) for at in range(0, len(plain), PART)]


def events(replica: Replica, noun: str) -> list[tuple[str, object]]:
    found = replica.on_database(lambda conn: outbox.pending(conn, 1000))
    return [(event.verb, event.data) for _, event in found if event.noun == noun]


def test_lost_chunks_are_named_with_their_pieces_page_by_page(replica: Replica) -> None:
    assert not replica.on_database(mend.has_lost)
    ids = damage(replica, 2)
    assert replica.on_database(mend.has_lost)
    page = lost(replica)
    assert [each.id for each in page.chunks] == sorted(ids)
    assert not page.more
    assert [each.digest for each in page.chunks] == [each.digest for each in chunks_of(2)]
    blocks = [piece for each in page.chunks for piece in each.pieces]
    assert blocks == [(2, at * 4, min(4, 15 - at * 4), 0) for at in range(4)]
    one_by_one: list[int] = []
    while (page := lost(replica, max(one_by_one, default=0), 1)).chunks:
        one_by_one.append(page.chunks[0].id)
        assert page.more is (len(one_by_one) < len(ids))
    assert one_by_one == sorted(ids)


def test_what_only_older_points_need_is_not_asked_of_the_source(replica: Replica) -> None:
    damage(replica, 1)
    assert not replica.on_database(mend.has_lost)
    assert lost(replica).chunks == []


def test_mended_chunks_are_whole_again_and_told(replica: Replica) -> None:
    ids = damage(replica, 1)
    folder = Path(replica.folder)
    with pytest.raises(DamagedChunk):
        content(folder, 1)
    assert sorted(replica.mend(chunks_of(1), "site-dr")) == sorted(ids)
    assert content(folder, 1) == made_up_content(1)
    assert find(replica) == 0
    told = [data for verb, data in events(replica, "damage") if verb == "repaired"]
    assert told == [DamageRepaired(chunk=each, by="site-dr", points=[1]) for each in sorted(ids)]
    # Once more: nothing is lost, so nothing is taken.
    size_bytes = folder_bytes(replica)
    assert replica.mend(chunks_of(1), "site-dr") == []
    assert folder_bytes(replica) == size_bytes


def folder_bytes(replica: Replica) -> int:
    folder = replica.segments_folder
    return sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))


def test_mended_chunks_are_there_after_opening_and_after_a_lost_index(replica: Replica) -> None:
    damage(replica, 1)
    replica.mend(chunks_of(1), "site-dr")
    replica.close()
    folder = Path(replica.folder)
    open_replica(folder).close()
    assert content(folder, 1) == made_up_content(1)
    for suffix in ("", "-wal", "-shm"):
        (folder / f"index.db{suffix}").unlink(missing_ok=True)
    open_replica(folder).close()
    assert content(folder, 1) == made_up_content(1)
    assert content(folder, 2) == made_up_content(2)


def test_a_kill_before_the_index_knows_changes_nothing(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are on the disk, the transaction is not: opening finds them."""
    damage(replica, 1)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(mend, "repaired", killed)
    # A killed process undoes nothing.
    monkeypatch.setattr(segment.SegmentWriter, "undo", lambda _: None)
    with pytest.raises(Killed):
        replica.mend(chunks_of(1), "site-dr")
    monkeypatch.undo()
    replica.close()
    again = open_replica(Path(replica.folder))
    try:
        assert content(Path(again.folder), 1) == made_up_content(1)
        assert find(again) == 0
        assert again.mend(chunks_of(1), "site-dr") == []
    finally:
        again.close()


def test_forged_bytes_are_refused_and_leave_no_trace(replica: Replica) -> None:
    damage(replica, 1)
    size_bytes = folder_bytes(replica)
    good, other = chunks_of(1)[:2]
    assert good.data is not None
    forged = [
        Chunk(good.digest, good.plain_bytes, good.codec, other.data),
        Chunk(good.digest, good.plain_bytes, CODEC_RAW, memoryview(bytes(good.plain_bytes))),
        Chunk(good.digest, good.plain_bytes, 9, good.data),
        Chunk(good.digest, good.plain_bytes, good.codec, good.data[:-1]),
    ]
    for each in forged:
        with pytest.raises(BadChunk):
            replica.mend([other, each], "agent-evil")
    # Another length, an unknown digest, no bytes: passed over.
    strange = [
        Chunk(good.digest, 4096, good.codec, good.data),
        chunk(random.Random(9).randbytes(4096)),
        Chunk(good.digest, good.plain_bytes, good.codec, None),
    ]
    assert replica.mend(strange, "agent-evil") == []
    assert folder_bytes(replica) == size_bytes
    assert [verb for verb, _ in events(replica, "damage")].count("repaired") == 0


def test_mending_beside_an_open_job(replica: Replica) -> None:
    damage(replica, 1)
    messages = made_up("job3", 3, 1)
    replica.open_job(SERVER, open_of(replica, "job3"))
    replica.take("job3", 1, messages[:2])
    replica.mend(chunks_of(1)[:2], "agent-web-1")
    replica.take("job3", 1, messages[2:3])
    replica.mend(chunks_of(1)[2:], "agent-web-1")
    replica.abort("job3", 1, SERVER, "enough")
    assert content(Path(replica.folder), 1) == made_up_content(1)
    ship(replica, "job4", made_up("job4", 4, 1))
    assert content(Path(replica.folder), 4) == made_up_content(4)
    assert find(replica) == 0


def test_a_piece_found_elsewhere_is_no_news(replica: Replica) -> None:
    """A verify that looked at the old place of a chunk, which was mended meanwhile."""
    seen: list[DamageFound] = []
    damage(replica, 1)
    replica.on_database(lambda conn: conn.execute("UPDATE chunk SET bad = 0"))
    reader = Reader(replica.folder)
    verify(reader, replica.newest, on_damage=seen.append)
    reader.close()
    for each in seen:
        replica.record_damage(each)
    replica.mend(chunks_of(1), "agent-web-1")
    before = events(replica, "damage")
    for each in seen:
        replica.record_damage(each)
    assert events(replica, "damage") == before
    assert content(Path(replica.folder), 1) == made_up_content(1)


def test_what_a_job_ships_again_is_told_as_mended_too(replica: Replica) -> None:
    ids = damage(replica, 1)
    ship(replica, "job3", made_up("job3", 1, 1))
    assert content(Path(replica.folder), 1) == made_up_content(1)
    told = [data for verb, data in events(replica, "damage") if verb == "repaired"]
    assert told == [
        DamageRepaired(chunk=each, by=f"agent-{SERVER}", points=[1]) for each in sorted(ids)
    ]


def test_where_very_many_are_damaged_not_each_is_told(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mend, "MAX_TOLD", 3)
    assert len(damage(replica, 1) + damage(replica, 2)) == 8
    assert [verb for verb, _ in events(replica, "damage")] == ["found"] * 3
    for number in (1, 2):
        for each in chunks_of(number):
            replica.mend([each], "agent-web-1")
    assert find(replica) == 0
    assert [verb for verb, _ in events(replica, "damage")] == ["found"] * 3 + ["repaired"] * 3


def test_a_chunk_of_very_many_files_is_named_by_a_few_that_cover_it(tmp_path: Path) -> None:
    replica = new_replica(tmp_path / "many")
    plain = random.Random(1).randbytes(2 * 4096)
    files = range(2, 302)
    messages = [
        batch(
            "job1",
            0,
            inodes=[inode(1, kind="d"), *(inode(file, 4096) for file in files)],
            names=[Name(1, b"f%d" % file, file) for file in files],
            chunks=[chunk(plain)],
            extents=[Extent(file, 0, 1, 0, 0, 1 if file == 301 else 0) for file in files],
        )
    ]
    ship(replica, "job1", messages)
    damage(replica, 1)
    [found] = lost(replica).chunks
    assert found.digest == blake3(plain).digest()
    assert len(found.pieces) == mend.MAX_PIECES
    assert found.pieces[:2] == [(2, 0, 1, 0), (301, 0, 1, 1)]
    replica.close()
