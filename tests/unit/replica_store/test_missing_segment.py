"""A segment that is gone, or cut off, is found and told by whoever comes upon it first."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from strandline_contracts.events import DamageFound, Data, ReplicaVerified
from strandline_contracts.points import BLOCK_BYTES, CODEC_RAW, Extent, Name
from strandline_replica_store.checking.scrub import Scrub
from strandline_replica_store.checking.verify import verify
from strandline_replica_store.files import segment
from strandline_replica_store.pace import Pace
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica import mend
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.store.store import Store
from strandline_runtime import outbox
from support.replicas import SOURCE, batch, chunk, inode, one_file, ship

DAY_NS = 86_400 * 10**9
CHUNKS = 700
"""More than are read at once."""


class World:
    """A store with a replica whose first segment holds CHUNKS chunks of file 2."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.days = 0
        self.open()
        self.store.create(SOURCE, "data", "files")
        inodes = [inode(1, kind="d"), inode(2, CHUNKS * BLOCK_BYTES)]
        messages = [batch("j1", 0, inodes=inodes, names=[Name(1, b"a", 2)])]
        for at in range(CHUNKS):
            plain = b"%d" % at + bytes(BLOCK_BYTES - len(str(at)))
            extents = [Extent(2, at, 1, 0, 0, 0)]
            messages.append(batch("j1", at + 1, chunks=[chunk(plain, CODEC_RAW)], extents=extents))
        ship(self.replica, "j1", messages, group=100)
        self.replica.leave_segment()
        ship(self.replica, "j2", one_file("j2", b"x" * BLOCK_BYTES, file=3, name=b"b"))
        self.told()

    def open(self) -> None:
        self.store = Store(str(self.root), name="store-1", site="hq", reserve_bytes=0)

    @property
    def replica(self) -> Replica:
        return self.store.replica(SOURCE)

    @property
    def segment(self) -> str:
        return segment.path_of(self.replica.segments_folder, 1)

    def open_again(self, *, without_index: bool = False) -> None:
        self.store.close()
        if without_index:
            for path in Path(self.store.folder_of(SOURCE)).glob("index.db*"):
                path.unlink()
        self.open()

    def told(self) -> list[Data]:
        """Return what was told since the last call."""
        replica = self.replica
        found = replica.on_database(lambda conn: outbox.pending(conn, 10_000))
        for key, _ in found:
            replica.on_database(partial(outbox.done, key=key))
        return [event.data for _, event in found]

    def scrub(self) -> None:
        """Scrub until a whole round has ended."""
        for _ in range(2):
            self.days += 400
            self.store.now_ns = partial(int, self.days * DAY_NS)
            Scrub(self.store, Pace(1 << 40), days=30).work(SOURCE, threading.Event())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.store.close()


def lost(told: list[Data]) -> list[DamageFound]:
    return [each for each in told if isinstance(each, DamageFound) and each.chunk]


def test_scrub_finds_that_a_segment_is_missing(world: World) -> None:
    # Readers have it open, and could read it still.
    world.scrub()
    assert not lost(world.told())
    os.unlink(world.segment)
    world.scrub()
    told = world.told()
    assert len(lost(told)) == CHUNKS
    assert lost(told)[0].points == [1, 2]
    assert lost(told)[0].files == [b"a"]
    rounds = [each for each in told if isinstance(each, ReplicaVerified)]
    assert {each.damaged for each in rounds} == {CHUNKS}


@pytest.mark.parametrize("left_bytes", [0, 100_000])
def test_opening_tells_what_is_missing(world: World, left_bytes: int) -> None:
    path = world.segment
    if left_bytes:
        os.truncate(path, left_bytes)
    else:
        os.unlink(path)
    world.open_again()
    found = lost(world.told())
    whole = (left_bytes - segment.SEGMENT_HEADER_BYTES) // (
        segment.CHUNK_HEADER_BYTES + BLOCK_BYTES
    )
    assert len(found) == CHUNKS - max(whole, 0)
    assert found[0].points == [1, 2]
    assert found[0].files == [b"a"]
    # Once.
    world.open_again()
    world.scrub()
    assert not lost(world.told())


def test_not_each_one_is_told_where_very_many_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mend, "MAX_TOLD", 10)
    os.unlink(world.segment)
    world.open_again()
    assert len(lost(world.told())) == 10


def test_what_a_new_index_cannot_find_is_told_and_verified(world: World) -> None:
    os.unlink(world.segment)
    world.open_again(without_index=True)
    assert len(lost(world.told())) == CHUNKS
    reader = Reader(world.store.folder_of(SOURCE))
    report = verify(reader, world.replica.newest)
    reader.close()
    assert report.damaged == CHUNKS
    world.scrub()
    rounds = [each for each in world.told() if isinstance(each, ReplicaVerified)]
    assert {each.damaged for each in rounds} == {CHUNKS}


def test_an_index_made_anew_tells_again_of_nothing(world: World) -> None:
    os.unlink(world.segment)
    world.open_again()
    world.told()
    world.replica.index_is_damaged(world.replica.index_generation, "so we say")
    world.replica.points()
    assert not lost(world.told())
