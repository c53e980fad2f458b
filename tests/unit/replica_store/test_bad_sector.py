"""A sector that the disk cannot read is damage: of what lies on it, and of nothing else."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from strandline_contracts.events import DamageFound, DamageRepaired, ReplicaVerified
from strandline_contracts.points import BLOCK_BYTES, CODEC_RAW, Extent, Name
from strandline_replica_store.checking.scrub import Scrub
from strandline_replica_store.checking.verify import Report, verify
from strandline_replica_store.checking.verify_job import VerifyJob
from strandline_replica_store.compaction.compact import compact
from strandline_replica_store.errors import DiskError
from strandline_replica_store.files import manifest, segment
from strandline_replica_store.files.segment import CHUNK_HEADER_BYTES
from strandline_replica_store.pace import Pace
from strandline_replica_store.reading.reader import DamagedChunk
from strandline_replica_store.replica.index import ChunkRow
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.store.store import Store
from strandline_runtime import outbox
from support.replicas import SOURCE, batch, chunk, content, inode, leases_at_rest, one_file, ship

DAY_NS = 86_400 * 10**9
SECTOR_BYTES = 4096
CHUNK_BLOCKS = 4
CHUNKS = 4
"""Of each file."""
SIZE = CHUNKS * CHUNK_BLOCKS * BLOCK_BYTES
A, B = 2, 3


@contextmanager
def bad_sector(path: str, at: int, *, short: bool = True) -> Iterator[None]:
    """Let reads of a file fail whose disk cannot read the sector at `at`.

    A `short` read gives what lies before it; other file systems fail the whole of the read.
    """
    pread, preadv = os.pread, os.preadv
    identity = os.stat(path)

    def readable(fd: int, count: int, offset: int) -> int:
        """Return how much of a read can be had."""
        is_beside = offset >= at + SECTOR_BYTES or offset + count <= at
        if is_beside or not os.path.samestat(os.fstat(fd), identity):
            return count
        if offset < at and short:
            return at - offset
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def bad_pread(fd: int, count: int, offset: int) -> bytes:
        return pread(fd, readable(fd, count, offset), offset)

    def bad_preadv(fd: int, buffers: list[Any], offset: int) -> int:
        [buffer] = buffers
        return preadv(fd, [buffer[: readable(fd, len(buffer), offset)]], offset)

    with patch.object(os, "pread", bad_pread), patch.object(os, "preadv", bad_preadv):
        yield


class World:
    """A store with a replica of two files, `a` and `b`, whose chunks lie one after the other."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder), name="store-1", site="hq", reserve_bytes=0)
        self.store.create(SOURCE, "data", "files")
        self.contents = {file: random.Random(file).randbytes(SIZE) for file in (A, B)}
        ship(self.replica, "job1", self._batches("job1"))
        self.take_events()

    def _batches(self, job: str) -> list[bytes]:
        messages = [
            batch(
                job,
                0,
                inodes=[inode(1, kind="d"), inode(A, SIZE), inode(B, SIZE)],
                names=[Name(1, b"a", A), Name(1, b"b", B)],
            )
        ]
        for file, plain in self.contents.items():
            for start in range(0, SIZE // BLOCK_BYTES, CHUNK_BLOCKS):
                first = start * BLOCK_BYTES
                part = plain[first : first + CHUNK_BLOCKS * BLOCK_BYTES]
                extent = Extent(file, start, CHUNK_BLOCKS, 0, 0, 0)
                shipped = chunk(part, CODEC_RAW)
                messages.append(batch(job, len(messages), chunks=[shipped], extents=[extent]))
        return messages

    @property
    def replica(self) -> Replica:
        return self.store.replica(SOURCE)

    @property
    def segment(self) -> str:
        return segment.path_of(self.replica.segments_folder, 1)

    def rows(self) -> list[ChunkRow]:
        columns = "id, digest, plain_bytes, stored_bytes, codec, segment, offset"
        query = f"SELECT {columns} FROM chunk ORDER BY id"
        return [
            ChunkRow(*row) for row in self.replica.on_database(lambda c: list(c.execute(query)))
        ]

    def bad(self) -> set[int]:
        query = "SELECT id FROM chunk WHERE bad"
        rows = self.replica.on_database(lambda conn: list(conn.execute(query)))
        return {number for (number,) in rows}

    def take_events(self) -> list[Any]:
        """Return what was told since the last time."""

        def take(conn: outbox.Database) -> list[Any]:
            found = outbox.pending(conn, 1000)
            for key, _ in found:
                outbox.done(conn, key)
            return [event.data for _, event in found]

        events: list[Any] = self.replica.on_database(take)
        return events

    def verify(self) -> Report:
        """Verify as the command does."""
        job = VerifyJob(self.store, lambda _: None)
        return job._verify(SOURCE, lambda _: None, threading.Event())

    def scrub(self) -> None:
        """Scrub a whole round: on the first day the pieces are met, a year later they are due."""
        for now_ns in (DAY_NS, 365 * DAY_NS):
            self.store.now_ns = partial(int, now_ns)
            Scrub(self.store, Pace(1 << 40), days=30).work(SOURCE, threading.Event())

    def restored(self, chunks: list[int]) -> dict[int, bytes]:
        """Return the stored bytes of those chunks that can be had, by one request after another."""
        found: dict[int, bytes] = {}
        with self.store.reader(SOURCE) as reader:
            while chunks:
                try:
                    page = reader.chunks(chunks, 1 << 20)
                    found |= {each.id: bytes(each.data) for each in page}
                    chunks = chunks[len(page) :]
                except DamagedChunk:
                    chunks = chunks[1:]
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "store")
    yield made
    made.store.close()


def sector_inside(row: ChunkRow) -> int:
    """Return where the first sector begins that lies wholly within a chunk."""
    return -(-(row.offset + CHUNK_HEADER_BYTES) // SECTOR_BYTES) * SECTOR_BYTES


def sector_of_end(row: ChunkRow) -> int:
    """Return where the sector begins that a chunk shares with the one behind it."""
    end = row.offset + CHUNK_HEADER_BYTES + row.stored_bytes
    return end // SECTOR_BYTES * SECTOR_BYTES


@pytest.mark.parametrize("short", [True, False])
def test_verify_names_the_files_on_it_alone(world: World, short: bool) -> None:
    rows = world.rows()
    with bad_sector(world.segment, sector_inside(rows[2]), short=short):
        report = world.verify()
    [damage] = report.damages
    assert (damage.chunk, damage.points, damage.files) == (rows[2].id, [1], [b"a"])
    assert world.bad() == {rows[2].id}


def test_scrub_ends_its_round_and_marks_exactly_what_lies_on_it(world: World) -> None:
    rows = world.rows()
    last_of_a, first_of_b = rows[CHUNKS - 1], rows[CHUNKS]
    with bad_sector(world.segment, sector_of_end(last_of_a)):
        world.scrub()
    assert world.bad() == {last_of_a.id, first_of_b.id}
    *damages, verified = world.take_events()
    assert isinstance(verified, ReplicaVerified)
    assert verified.damaged == 2
    told = {each.chunk: each.files for each in damages if isinstance(each, DamageFound)}
    assert told == {last_of_a.id: [b"a"], first_of_b.id: [b"b"]}


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("at", [0, 1, 5, 7])
def test_a_restore_gets_all_that_lies_beside_it(world: World, at: int, short: bool) -> None:
    rows = world.rows()
    plain = world.contents[A] + world.contents[B]
    size = CHUNK_BLOCKS * BLOCK_BYTES
    wanted = {row.id: plain[n * size : (n + 1) * size] for n, row in enumerate(rows) if n != at}
    with bad_sector(world.segment, sector_inside(rows[at]), short=short):
        assert world.restored([row.id for row in rows]) == wanted


def test_what_was_left_in_a_buffer_never_stands_for_it(world: World) -> None:
    """The same room is read into twice; the second time the disk fails."""
    ids = [row.id for row in world.rows()]
    assert len(world.restored(ids)) == len(ids)
    with bad_sector(world.segment, sector_inside(world.rows()[3])):
        assert len(world.restored(ids)) == len(ids) - 1


def test_block_digests_say_which_blocks_cannot_be_read(world: World) -> None:
    with (
        bad_sector(world.segment, sector_inside(world.rows()[1])),
        world.store.reader(SOURCE) as reader,
    ):
        page = reader.block_digests(1, A, 0, SIZE // BLOCK_BYTES)
    digests = [page.digests[at : at + 16] for at in range(0, len(page.digests), 16)]
    unreadable = [block for block, digest in enumerate(digests) if digest == bytes(16)]
    assert unreadable == list(range(CHUNK_BLOCKS, 2 * CHUNK_BLOCKS))


@pytest.mark.parametrize("short", [True, False])
def test_compaction_goes_on_and_leaves_what_it_cannot_read(world: World, short: bool) -> None:
    """`b` goes, so that its chunks are dead; those of `a` are moved, but for one."""
    rows = world.rows()
    ship(world.replica, "job2", [batch("job2", 0, gone_inodes=[B], gone_names=[(1, b"b")])])
    ship(world.replica, "job3", one_file("job3", b"c" * BLOCK_BYTES, file=4, name=b"c"))
    world.replica.drop([1], "retention")
    with bad_sector(world.segment, sector_inside(rows[2]), short=short):
        compact(world.replica, leases_at_rest(), force=True)
        left = {row.id: row for row in world.rows()}
        assert left[rows[2].id] == rows[2]
        assert {left[row.id].segment for row in rows[:CHUNKS] if row is not rows[2]} != {1}
        assert world.bad() == {rows[2].id}
        assert os.path.exists(world.segment)
    # A disk that reads it again: nothing was lost.
    world.verify()
    assert world.bad() == set()
    assert content(Path(world.replica.folder), 3, A) == world.contents[A]
    report = compact(world.replica, leases_at_rest(), force=True)
    assert report.is_complete
    assert not os.path.exists(world.segment)
    assert content(Path(world.replica.folder), 3, A) == world.contents[A]


@pytest.mark.parametrize("at", [0, CHUNKS])
def test_the_quarantine_ends_once_it_reads_well_again(world: World, at: int) -> None:
    with bad_sector(world.segment, sector_inside(world.rows()[at])):
        world.verify()
        assert len(world.bad()) == 1
        world.verify()
        assert len(world.bad()) == 1
    assert world.verify().damages == []
    assert world.bad() == set()
    with world.store.reader(SOURCE) as reader:
        assert verify(reader, world.replica.newest).sound_again == []


def test_an_unreadable_header_of_a_segment_is_left_as_it_is(world: World) -> None:
    """It holds nothing that is not known, and the sector takes no write of a part of it."""
    before = Path(world.segment).read_bytes()
    with bad_sector(world.segment, 0):
        report = world.verify()
    assert report.segment_headers == []
    assert [each.chunk for each in report.damages] == [world.rows()[0].id]
    assert Path(world.segment).read_bytes() == before


@contextmanager
def unreadable(path: str) -> Iterator[None]:
    """Let reads of a manifest fail, until another file has its name."""
    identity = os.stat(path)

    def opened(name: str, *args: Any, **kwargs: Any) -> Any:
        file = open(name, *args, **kwargs)  # noqa: SIM115 - as the open that it stands for
        if os.path.samestat(os.fstat(file.fileno()), identity):
            file.close()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return file

    with patch.object(manifest, "open", opened, create=True):
        yield


@pytest.mark.parametrize("look", [World.verify, World.scrub])
def test_an_unreadable_manifest_is_told_and_written_anew(
    world: World, look: Callable[[World], object]
) -> None:
    ship(world.replica, "job2", one_file("job2", b"c" * BLOCK_BYTES, file=4, name=b"c"))
    world.take_events()
    path = manifest.path_of(world.replica.manifests_folder, 1)
    with unreadable(path):
        look(world)
    told = world.take_events()
    found = [event for event in told if isinstance(event, DamageFound)]
    assert [(each.points, each.reason) for each in found] == [([1], "manifest 1 cannot be read")]
    assert [event.by for event in told if isinstance(event, DamageRepaired)] == ["index"]
    assert [event.damaged for event in told if isinstance(event, ReplicaVerified)] == [1]
    assert world.verify().damages == []
    assert content(Path(world.replica.folder), 2, A) == world.contents[A]


def test_other_errors_of_the_disk_are_no_damage(world: World) -> None:
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with (
        patch.object(os, "preadv", side_effect=error),
        patch.object(os, "pread", side_effect=error),
        pytest.raises(DiskError, match="Too many"),
    ):
        world.verify()
    assert world.bad() == set()
