"""Compaction: whatever it moves and however it ends, every kept recovery point stays the same."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strandline_contracts.events import DamageFound
from strandline_contracts.points import BLOCK_BYTES, Extent
from strandline_replica_store.checking.verify import verify
from strandline_replica_store.compaction import gathering, liveness
from strandline_replica_store.compaction.compact import CompactReport, Limits, compact
from strandline_replica_store.errors import Behind, Busy, Damaged, Full, IndexDamaged, NotAllowed
from strandline_replica_store.files import durable
from strandline_replica_store.files.chunk_check import plain_of
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.reading.scope import Scope
from strandline_replica_store.replica import index, reindex, tree
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.store.leases import Leases
from strandline_runtime import outbox
from support.replicas import (
    SERVER,
    SOURCE,
    batch,
    chunk,
    content,
    end_of,
    inode,
    leases_at_rest,
    made_up,
    made_up_content,
    new_replica,
    one_file,
    open_of,
    open_replica,
    ship,
)
from support.source_model import Limits as TreeLimits
from support.source_model import Tree, change, shipment, state_of

SEGMENT_LIMIT_BYTES = 60_000
TINY = Limits(piece_bytes=8 * BLOCK_BYTES, round_bytes=200 * BLOCK_BYTES, pool_blocks=16)
TREE = TreeLimits(files=10, blocks=70, labels=300)
TESTS = Path(__file__).parents[2]


class Life:
    """A replica, and what each of its kept recovery points restores."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.replica = new_replica(folder, segment_limit_bytes=SEGMENT_LIMIT_BYTES)
        self.leases = leases_at_rest()
        self.states: dict[int, str] = {}
        self._rng = random.Random(seed)
        self._fresh = itertools.count(2)
        self._tree = Tree()
        self._jobs = itertools.count(1)

    def commit(self) -> None:
        self._commit(in_the_middle=lambda: None)

    def commit_around_a_compaction(self) -> None:
        self._commit(in_the_middle=self.compact_all)

    def _commit(self, in_the_middle: Callable[[], object]) -> None:
        before = self._tree.copy()
        for _ in range(self._rng.randrange(1, 12)):
            change(self._tree, self._rng, self._fresh, TREE)
        job = f"j{next(self._jobs)}"
        made = shipment(before, self._tree, self._rng, job)
        self.replica.open_job(SERVER, open_of(self.replica, job))
        middle = len(made.messages) // 2
        for message in made.messages[:middle]:
            self.replica.take(job, 1, [message])
        in_the_middle()
        for message in made.messages[middle:]:
            self.replica.take(job, 1, [message])
        self.states[self.replica.finish(made.end).number] = made.state

    def give_up(self) -> None:
        job = f"j{next(self._jobs)}"
        self.replica.open_job(SERVER, open_of(self.replica, job))
        self.replica.take(job, 1, [batch(job, 0, chunks=[chunk(self._rng.randbytes(8192))])])
        self.replica.fail(job, 1, RuntimeError("given up"))

    def drop(self) -> None:
        points = self.replica.points()[:-1]
        gone = self._rng.sample(points, min(len(points), self._rng.randrange(1, 4)))
        assert self.replica.drop(gone, "retention") == sorted(gone)
        for number in gone:
            del self.states[number]

    def compact_if_due(self) -> None:
        report = compact(self.replica, self.leases, limits=TINY)
        assert report.is_complete, report.reason

    def compact_all(self) -> CompactReport:
        report = compact(self.replica, self.leases, force=True, limits=TINY)
        assert report.is_complete, report.reason
        return report

    def reindex(self) -> None:
        self.replica.reindex()

    def reopen(self) -> None:
        self.replica.close()
        self.replica = open_replica(self.folder, segment_limit_bytes=SEGMENT_LIMIT_BYTES)

    def check(self) -> None:
        check(self.folder, self.states)
        with closing(Reader(str(self.folder))) as reader:
            report = verify(reader, self.replica.newest)
            assert {use.id: use.needed for use in liveness._all_uses(reader.conn)} == {
                **{number: 0 for (number,) in reader.conn.execute("SELECT id FROM chunk")},
                **named_blocks(reader),
            }
        assert report.damages == []


def named_blocks(reader: Reader) -> dict[int, int]:
    """Return the blocks of each chunk that any row names, the obvious way."""
    found: dict[int, int] = {}
    for table in ("extent", "extent_past"):
        rows = reader.conn.execute(f"SELECT chunk, chunk_block, blocks FROM {table} WHERE kind = 0")
        for number, first, count in rows:
            for block in range(first, first + count):
                found[number] = found.get(number, 0) | 1 << block
    return found


def check(folder: Path, states: dict[int, str]) -> None:
    with closing(Reader(str(folder))) as reader:
        points = {n for (n,) in reader.conn.execute("SELECT number FROM point")}
        assert points == states.keys()
        assert {number: state_of(reader, number) for number in states} == states


def dead_bytes(replica: Replica) -> int:
    with closing(Reader(replica.folder)) as reader:
        found = liveness.survey(
            reader.conn, replica.segments_folder, is_sparse=lambda _: True, keep_staged=False
        )
    return found.stored_bytes - found.live_bytes


def segments_of(replica: Replica) -> list[str]:
    return sorted(os.listdir(replica.segments_folder))


STEPS = (
    *["commit"] * 4,
    "commit_around_a_compaction",
    *["drop"] * 2,
    *["compact_all"] * 2,
    "compact_if_due",
    "give_up",
    "reindex",
    "reopen",
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(STEPS), min_size=4, max_size=16))
def test_whatever_happens_every_kept_point_stays(
    tmp_path: Path, seed: int, steps: list[str]
) -> None:
    shutil.rmtree(tmp_path / "replica", ignore_errors=True)
    life = Life(tmp_path / "replica", seed)
    life.commit()
    for step in steps:
        getattr(life, step)()
        life.check()
    life.compact_all()
    life.check()
    life.reopen()
    life.check()
    life.replica.close()


def test_after_a_whole_compaction_nothing_is_dead_and_the_newest_is_together(
    tmp_path: Path,
) -> None:
    life = Life(tmp_path / "replica", 1)
    for _ in range(12):
        life.commit()
    for _ in range(3):
        life.drop()
    assert dead_bytes(life.replica) > 50_000
    report = life.compact_all()
    life.check()
    assert report.freed_bytes > 50_000
    assert dead_bytes(life.replica) == 0
    assert report.stored_bytes == report.live_bytes
    again = life.compact_all()
    assert (again.moved_bytes, again.freed_bytes) == (0, 0)
    life.reindex()
    life.check()
    assert dead_bytes(life.replica) == 0
    life.replica.close()


# Scattered changes of one file


def scattered(folder: Path, blocks: int = 256, points: int = 12) -> tuple[Replica, list[bytes]]:
    """Return a replica of one file of which each recovery point has changed a tenth, at random."""
    rng = random.Random(3)
    replica = new_replica(folder, segment_limit_bytes=SEGMENT_LIMIT_BYTES)
    held = [rng.randbytes(BLOCK_BYTES) for _ in range(blocks)]
    first = one_file("j0", b"")[0]
    record = batch("j0", 0, inodes=[inode(1, kind="d"), inode(2, blocks * BLOCK_BYTES)])
    assert first != record
    messages = [record]
    for start in range(0, blocks, 32):
        data = b"".join(held[start : start + 32])
        extents = [Extent(2, start, 32, 0, 0, 0)]
        messages.append(batch("j0", len(messages), chunks=[chunk(data)], extents=extents))
    ship(replica, "j0", messages)
    for number in range(1, points):
        changed = sorted(rng.sample(range(blocks), blocks // 10))
        for block in changed:
            held[block] = rng.randbytes(BLOCK_BYTES)
        extents = [Extent(2, block, 1, 0, 0, at) for at, block in enumerate(changed)]
        data = b"".join(held[block] for block in changed)
        ship(
            replica,
            f"j{number}",
            [batch(f"j{number}", 0, chunks=[chunk(data)], extents=extents)],
        )
    return replica, held


def extents_of(folder: Path, point: int, limit: int = 100) -> list[Extent]:
    with closing(Reader(str(folder))) as reader:
        found: list[Extent] = []
        after = (-1, 0, 0)
        while page := tree.extents(reader.conn, point, [], after, limit):
            found += page
            after = (page[-1].chunk, page[-1].file, page[-1].start)
        return found


def test_the_newest_state_is_told_in_few_extents_when_it_lies_together(tmp_path: Path) -> None:
    replica, held = scattered(tmp_path / "r")
    assert len(extents_of(tmp_path / "r", 12)) > 150
    compact(replica, leases_at_rest(), force=True)
    found = extents_of(tmp_path / "r", 12)
    assert [(e.start, e.blocks, e.chunk_block) for e in found] == [
        (start, 32, 0) for start in range(0, 256, 32)
    ]
    assert found == extents_of(tmp_path / "r", 12, limit=1)
    assert content(tmp_path / "r", 12) == b"".join(held)
    replica.close()


def test_blocks_of_the_past_die_together(tmp_path: Path) -> None:
    """Dropping the oldest point after a compaction leaves hardly a chunk half dead."""
    replica, _ = scattered(tmp_path / "r")
    compact(replica, leases_at_rest(), force=True)
    replica.drop([1, 2], "retention")
    with closing(Reader(replica.folder)) as reader:
        uses = list(liveness._all_uses(reader.conn))
    partly = [use for use in uses if 0 < use.needed.bit_count() < use.plain_blocks]
    assert len([use for use in uses if not use.needed]) >= 1
    assert len(partly) <= 2
    replica.close()


def test_little_waste_is_left_alone(tmp_path: Path) -> None:
    replica, _ = scattered(tmp_path / "r")
    replica.drop(range(1, 8), "retention")
    report = compact(replica, leases_at_rest())
    assert (report.moved_bytes, report.rounds, report.is_complete) == (0, 0, True)
    replica.close()


def test_many_small_segments_become_few(tmp_path: Path) -> None:
    replica = new_replica(tmp_path / "r")
    contents = [os.urandom(3 * BLOCK_BYTES) for _ in range(gathering.MANY_CRUMBS + 2)]
    for file, data in enumerate(contents, start=2):
        job = f"j{file}"
        message = batch(
            job,
            0,
            inodes=[inode(1, kind="d"), inode(file, len(data))],
            chunks=[chunk(data)],
            extents=[Extent(file, 0, 3, 0, 0, 0)],
        )
        ship(replica, job, [message])
        replica.leave_segment()
        if file == 10:
            assert compact(replica, leases_at_rest()).moved_bytes == 0
    assert len(segments_of(replica)) == len(contents)
    compact(replica, leases_at_rest())
    assert len(segments_of(replica)) <= 2
    for file, data in enumerate(contents, start=2):
        assert content(tmp_path / "r", len(contents), file=file) == data
    replica.close()


# Leases


class Clock:
    def __init__(self) -> None:
        self.ns = 10**15

    def __call__(self) -> int:
        return self.ns


def test_a_reader_keeps_what_it_was_told_of(tmp_path: Path) -> None:
    replica, held = scattered(tmp_path / "r")
    clock = Clock()
    leases = Leases(clock)
    clock.ns += 10**13
    leases.take("00112233445566ff", 12, "reader")
    told = extents_of(tmp_path / "r", 12)
    clock.ns += 10**9
    before = set(segments_of(replica))
    report = compact(replica, leases, force=True)
    assert report.moved_bytes
    assert report.waiting_bytes
    assert before <= set(segments_of(replica))
    data = bytearray(256 * BLOCK_BYTES)
    with closing(Reader(str(tmp_path / "r"))) as reader:
        scope = Scope(reader.conn, 12, [])
        scope.check_chunks(reader.conn, [extent.chunk for extent in told])
        for extent in told:
            (stored,) = reader.chunks([extent.chunk], 0)
            plain = bytes(plain_of(stored.codec, stored.plain_bytes, stored.data))
            for at in range(extent.blocks):
                place = (extent.chunk_block + at) * BLOCK_BYTES
                block = plain[place : place + BLOCK_BYTES]
                start = (extent.start + at) * BLOCK_BYTES
                data[start : start + BLOCK_BYTES] = block
    assert bytes(data) == b"".join(held)
    clock.ns += 10**13
    report = compact(replica, leases, force=True)
    assert not report.waiting_bytes
    assert report.freed_bytes
    assert not before & set(segments_of(replica))
    with closing(Reader(str(tmp_path / "r"))) as reader, pytest.raises(NotAllowed):
        Scope(reader.conn, 12, []).check_chunks(reader.conn, [told[0].chunk])
    assert content(tmp_path / "r", 12) == b"".join(held)
    replica.close()


def test_after_a_restart_retired_segments_wait_and_then_go(tmp_path: Path) -> None:
    replica, held = scattered(tmp_path / "r")
    clock = Clock()
    fresh = Leases(clock)
    report = compact(replica, fresh, force=True)
    assert report.waiting_bytes
    count = len(segments_of(replica))
    replica.close()
    replica = open_replica(tmp_path / "r", segment_limit_bytes=SEGMENT_LIMIT_BYTES)
    assert len(segments_of(replica)) == count
    clock.ns += 10**13
    report = compact(replica, fresh)
    assert report.freed_bytes
    assert (report.moved_bytes, report.waiting_bytes) == (0, 0)
    assert content(tmp_path / "r", 12) == b"".join(held)
    replica.close()


# What is named once more


def with_dead_content(folder: Path) -> tuple[Replica, bytes]:
    """Return a replica in whose segments lies content that no point needs any more."""
    replica = new_replica(folder, segment_limit_bytes=SEGMENT_LIMIT_BYTES)
    old = random.Random(1).randbytes(20 * BLOCK_BYTES)
    for number, data in enumerate((old, os.urandom(BLOCK_BYTES)), start=1):
        job = f"j{number}"
        blocks = len(data) // BLOCK_BYTES
        record = inode(2, len(data))
        message = batch(
            job,
            0,
            inodes=[inode(1, kind="d"), record],
            chunks=[chunk(data)],
            extents=[Extent(2, 0, blocks, 0, 0, 0)],
        )
        ship(replica, job, [message])
        replica.leave_segment()
    replica.drop([1], "retention")
    return replica, old


def held_again(job: str, old: bytes) -> bytes:
    """Return a batch that names content by its digest alone."""
    return batch(
        job,
        0,
        inodes=[inode(3, len(old))],
        chunks=[chunk(old, data=False)],
        extents=[Extent(3, 0, 20, 0, 0, 0)],
    )


def test_what_a_job_has_named_stays_until_it_ends(tmp_path: Path) -> None:
    replica, old = with_dead_content(tmp_path / "r")
    message = held_again("j3", old)
    replica.open_job(SERVER, open_of(replica, "j3"))
    replica.take("j3", 1, [message])
    report = compact(replica, leases_at_rest(), force=True)
    assert report.freed_bytes == 0
    replica.finish(end_of("j3", [message]))
    compact(replica, leases_at_rest(), force=True)
    assert content(tmp_path / "r", 3, file=3) == old
    replica.close()


def test_what_is_named_while_it_waits_for_readers_stays(tmp_path: Path) -> None:
    replica, old = with_dead_content(tmp_path / "r")
    clock = Clock()
    leases = Leases(clock)
    assert compact(replica, leases, force=True).waiting_bytes > 20 * BLOCK_BYTES
    ship(replica, "j3", [held_again("j3", old)])
    clock.ns += 10**13
    report = compact(replica, leases, force=True)
    assert report.waiting_bytes == 0
    assert content(tmp_path / "r", 3, file=3) == old
    replica.drop([2], "retention")
    replica.close()
    replica = open_replica(tmp_path / "r", segment_limit_bytes=SEGMENT_LIMIT_BYTES)
    assert content(tmp_path / "r", 3, file=3) == old
    replica.close()


def test_what_files_share_is_not_moved_to_and_fro(tmp_path: Path) -> None:
    replica = new_replica(tmp_path / "r", segment_limit_bytes=SEGMENT_LIMIT_BYTES)
    rng = random.Random(2)
    shared = rng.randbytes(8 * BLOCK_BYTES)
    parts = [shared, rng.randbytes(9 * BLOCK_BYTES), rng.randbytes(9 * BLOCK_BYTES)]
    extents = []
    for file, own in ((2, 1), (3, 2)):
        extents += [Extent(file, 0, 8, 0, 0, 0), Extent(file, 8, 8, 0, own, 1)]
    records = [inode(1, kind="d"), inode(2, 16 * BLOCK_BYTES), inode(3, 16 * BLOCK_BYTES)]
    message = batch("j1", 0, inodes=records, chunks=[chunk(p) for p in parts], extents=extents)
    ship(replica, "j1", [message])
    compact(replica, leases_at_rest(), force=True)
    again = compact(replica, leases_at_rest(), force=True)
    assert again.moved_bytes == 0
    assert again.stored_bytes == again.live_bytes
    for file, own in ((2, 1), (3, 2)):
        assert content(tmp_path / "r", 1, file=file) == shared + parts[own][BLOCK_BYTES:]
    replica.close()


# What may go wrong


def test_only_one_compacts_at_a_time(tmp_path: Path) -> None:
    replica, _ = scattered(tmp_path / "r", points=2)
    with replica.rewriting, pytest.raises(Busy):
        compact(replica, leases_at_rest())
    replica.close()


def test_a_damaged_chunk_stays_where_it_is_and_is_told(tmp_path: Path) -> None:
    replica, held = scattered(tmp_path / "r")
    with closing(Reader(replica.folder)) as reader:
        victim = next(tree.blocks_of(reader.conn, 12, 2, 40, 41))
        row, _ = tree.chunk_rows(reader.conn, [victim.chunk])[victim.chunk]
    path = Path(replica.segments_folder) / f"{row.segment:08d}.sls"
    with path.open("r+b") as file:
        file.seek(row.offset + 144 + 100)
        file.write(b"\xff\x00\xff")
    report = compact(replica, leases_at_rest(), force=True)
    assert report.is_complete
    assert path.exists()
    with closing(Reader(replica.folder)) as reader:
        bad = list(reader.conn.execute("SELECT id, segment FROM chunk WHERE bad"))
        assert bad == [(victim.chunk, row.segment)]
        told = [event.data for _, event in outbox.pending(reader.conn, 100)]
        damages = [data for data in told if isinstance(data, DamageFound)]
        assert [data.chunk for data in damages] == [victim.chunk]
        good = bytearray()
        for extent in tree.blocks_of(reader.conn, 12, 2, 0, 256):
            if extent.chunk == victim.chunk:
                good += b"".join(held[extent.start : extent.start + extent.blocks])
                continue
            (stored,) = reader.chunks([extent.chunk], 0)
            first = extent.chunk_block * BLOCK_BYTES
            plain = plain_of(stored.codec, stored.plain_bytes, stored.data)
            good += bytes(plain[first : first + extent.blocks * BLOCK_BYTES])
    assert bytes(good) == b"".join(held)
    replica.close()


def test_what_a_dead_job_has_staged_is_freed(tmp_path: Path) -> None:
    replica, _ = scattered(tmp_path / "r", points=2)
    compact(replica, leases_at_rest(), force=True)
    replica.open_job(SERVER, open_of(replica, "dead"))
    for seq in range(8):
        replica.take("dead", 1, [batch("dead", seq, chunks=[chunk(os.urandom(16384))])])
    compact(replica, leases_at_rest(), force=True)
    assert dead_bytes(replica) > 100_000
    replica.fail("dead", 1, RuntimeError("its server burnt down"))
    compact(replica, leases_at_rest())
    assert dead_bytes(replica) > 100_000
    ship(replica, "next", [batch("next", 0, chunks=[chunk(os.urandom(4096))])])
    compact(replica, leases_at_rest(), force=True)
    # The segment of the highest chunk id stays: no id is given twice.
    assert dead_bytes(replica) < 100_000
    replica.close()


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str, after: int, error: Any) -> Iterator[None]:
    """Let calls of a function of `durable` fail after so many, until the end."""
    calls = itertools.count()
    real = getattr(durable, name)

    def fail(*values: Any) -> Any:
        if next(calls) >= after:
            raise error
        return real(*values)

    with monkeypatch.context() as patch:
        patch.setattr(durable, name, fail)
        yield


@pytest.mark.parametrize("after", [0, 1, 3, 8, 20, 45])
@pytest.mark.parametrize("name", ["write_all", "sync", "create"])
def test_a_full_disk_ends_it_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    replica, held = scattered(tmp_path / "r")
    replica.drop([3, 4, 7], "retention")
    size = sum(path.stat().st_size for path in Path(replica.segments_folder).iterdir())
    full = OSError(errno.ENOSPC, "No space left on device")
    with failing(monkeypatch, name, after, full):
        report = compact(replica, leases_at_rest(), force=True, limits=TINY)
    assert content(tmp_path / "r", 12) == b"".join(held)
    if not report.is_complete:
        assert "no room" in report.reason
        now = sum(path.stat().st_size for path in Path(replica.segments_folder).iterdir())
        assert now <= size + report.moved_bytes * 1.1 + 64 * len(segments_of(replica))
    report = compact(replica, leases_at_rest(), force=True, limits=TINY)
    assert report.is_complete
    assert dead_bytes(replica) == 0
    assert content(tmp_path / "r", 12) == b"".join(held)
    replica.close()


def test_without_room_only_what_is_wholly_dead_goes(tmp_path: Path) -> None:
    replica, held = scattered(tmp_path / "r", points=30)
    replica.close()
    replica = open_replica(
        tmp_path / "r", segment_limit_bytes=SEGMENT_LIMIT_BYTES, reserve_bytes=1 << 62
    )
    replica.drop(range(1, 30), "retention")
    with pytest.raises(Full):
        replica.open_job(SERVER, open_of(replica, "none"))
    before = len(segments_of(replica))
    report = compact(replica, leases_at_rest(), force=True)
    assert not report.is_complete
    assert report.moved_bytes == 0
    assert report.freed_bytes
    assert len(segments_of(replica)) < before
    assert content(tmp_path / "r", 30) == b"".join(held)
    replica.close()


def test_with_little_room_it_goes_on_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, held = scattered(tmp_path / "r", points=30)
    replica.drop(range(1, 30), "retention")
    folder = Path(replica.segments_folder)

    def size() -> int:
        return sum(path.stat().st_size for path in folder.iterdir())

    room = size() + 200_000
    monkeypatch.setattr(durable, "free_bytes", lambda _: room - size())
    for _ in range(20):
        report = compact(replica, leases_at_rest(), force=True, limits=TINY)
        assert size() < room
        if report.is_complete:
            break
    assert report.is_complete
    assert dead_bytes(replica) == 0
    assert content(tmp_path / "r", 30) == b"".join(held)
    replica.close()


class Killed(BaseException):
    """The end of a process."""


def test_killed_before_or_after_any_step_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, _ = scattered(tmp_path / "base", blocks=128, points=8)
    replica.drop([2, 5], "retention")
    replica.close()
    with closing(Reader(str(tmp_path / "base"))) as reader:
        states = {number: state_of(reader, number) for number in (1, 3, 4, 6, 7, 8)}
    limits = TINY._replace(piece_bytes=48 * BLOCK_BYTES)
    for after in itertools.count(0, 3):
        folder = tmp_path / f"killed{after}"
        shutil.copytree(tmp_path / "base", folder)
        replica = open_replica(folder, segment_limit_bytes=SEGMENT_LIMIT_BYTES)
        calls = itertools.count()
        with monkeypatch.context() as patch:
            for name in ("create", "write_all", "sync", "sync_folder", "rename", "remove"):
                patch.setattr(durable, name, _mortal(getattr(durable, name), calls, after))
            patch.setattr(Replica, "on_database", _mortal(Replica.on_database, calls, after))
            try:
                compact(replica, leases_at_rest(), force=True, limits=limits)
            except Killed:
                is_over = False
            else:
                is_over = True
        # What the process had on the disk at that moment, and nothing that it does after.
        shutil.copytree(folder, tmp_path / "left")
        replica.close()
        replica = open_replica(tmp_path / "left", segment_limit_bytes=SEGMENT_LIMIT_BYTES)
        check(tmp_path / "left", states)
        if after % 2 == 0:
            replica.reindex()
            check(tmp_path / "left", states)
        compact(replica, leases_at_rest(), force=True, limits=limits)
        check(tmp_path / "left", states)
        assert dead_bytes(replica) < 2 * SEGMENT_LIMIT_BYTES
        replica.close()
        shutil.rmtree(tmp_path / "left")
        shutil.rmtree(folder)
        if is_over:
            break
    assert after > 40


def _mortal(real: Callable[..., Any], calls: Iterator[int], after: int) -> Callable[..., Any]:
    """Let a function kill the process: some before it does anything, others when it is done."""

    def run(*values: Any) -> Any:
        number = next(calls)
        if number >= after and number % 2 == 0:
            raise Killed
        result = real(*values)
        if number >= after:
            raise Killed
        return result

    return run


def test_invariant_10_a_process_killed_while_it_compacts_loses_nothing(tmp_path: Path) -> None:
    chance = random.Random(7)
    compacted = 0
    for round_ in range(6):
        folder = tmp_path / f"r{round_}"
        new_replica(folder).close()
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "compact_child.py"), folder, str(round_)],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        child.stdout.readline()
        killer = threading.Timer(chance.uniform(0.3, 1.5), child.send_signal, [signal.SIGKILL])
        killer.start()
        said = [line.split() for line in child.stdout if line.endswith("\n")]
        assert child.wait(30) == -signal.SIGKILL
        killer.join()
        states = {int(words[0]): words[1] for words in said if words[0] != "drop"}
        dropped = {int(number) for words in said if words[0] == "drop" for number in words[1:]}
        replica = open_replica(folder, segment_limit_bytes=100_000)
        points = set(replica.points())
        assert states.keys() - dropped <= points
        known = {number: state for number, state in states.items() if number in points}
        with closing(Reader(str(folder))) as reader:
            assert {number: state_of(reader, number) for number in known} == known
        compact(replica, leases_at_rest(), force=True)
        with closing(Reader(str(folder))) as reader:
            assert {number: state_of(reader, number) for number in known} == known
        compacted += len(states) > 4
        replica.close()
    assert compacted >= 3


# What the index does not know


def test_invariant_10_nothing_goes_while_a_manifest_is_not_in_the_index(tmp_path: Path) -> None:
    """One that is damaged hides those behind it: their chunks look as if nobody needed them."""
    folder = tmp_path / SOURCE
    replica = new_replica(folder, segment_limit_bytes=SEGMENT_LIMIT_BYTES)
    for number in range(1, 7):
        ship(replica, f"j{number}", made_up(f"j{number}", number, 1))
    segments = sorted(os.listdir(folder / "segments"))
    replica.close()
    path = folder / "manifests" / "00000003.slm"
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2] + b"?" + sound[len(sound) // 2 + 1 :])
    reindex.remove(str(folder / "index.db"))
    replica = open_replica(folder, segment_limit_bytes=SEGMENT_LIMIT_BYTES)
    with pytest.raises(Damaged, match="recovery points 3, 4, 5, 6"):
        compact(replica, leases_at_rest(), force=True)
    assert sorted(os.listdir(folder / "segments")) == segments
    replica.close()
    path.write_bytes(sound)
    reindex.remove(str(folder / "index.db"))
    open_replica(folder).close()
    for number in range(1, 7):
        assert content(folder, number) == made_up_content(number)


def test_invariant_10_nothing_goes_that_a_late_commit_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is there, and the index could not take it in for want of room."""
    folder = tmp_path / SOURCE
    replica = new_replica(folder, segment_limit_bytes=1)
    once, then, other = (random.Random(seed).randbytes(40_960) for seed in range(3))
    ship(replica, "j1", one_file("j1", once))
    ship(replica, "j2", one_file("j2", then))
    ship(replica, "j3", one_file("j3", other, file=3, name=b"c"))
    replica.drop([1], "retention")
    again = [
        batch("j4", 0, inodes=[inode(2, len(once))]),
        batch("j4", 1, chunks=[chunk(once, data=False)], extents=[Extent(2, 0, 10, 0, 0, 0)]),
    ]
    replica.open_job(SERVER, open_of(replica, "j4"))
    held = [blake3(once).digest()]
    assert replica.on_database(lambda conn: index.missing(conn, held)) == []
    replica.take("j4", 1, again)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise apsw.FullError("database or disk is full")

        patch.setattr(index, "apply_manifest", full)
        with pytest.raises(Behind):
            replica.finish(end_of("j4", again))
        with pytest.raises(Behind):
            compact(replica, leases_at_rest(), force=True)
    assert replica.points() == [2, 3, 4]
    compact(replica, leases_at_rest(), force=True)
    assert content(folder, 4) == once
    replica.close()


def test_an_index_is_made_anew_after_a_compaction_and_not_beside_it(tmp_path: Path) -> None:
    """What is being moved lies there twice, and the copy may be cut off again."""
    folder = tmp_path / SOURCE
    life = Life(folder, 1)
    for _ in range(6):
        life.commit()
    replica = life.replica
    replica.drop(replica.points()[:-1], "retention")
    [point] = replica.points()
    life.states = {point: life.states[point]}
    generation = replica.index_generation
    looks = 0

    def may_go_on() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            replica.index_is_damaged(generation, "so we say")
            with pytest.raises(IndexDamaged):
                replica.points()
        return True

    segments = set(os.listdir(folder / "segments"))
    with pytest.raises(IndexDamaged):
        compact(replica, life.leases, force=True, limits=TINY._replace(may_go_on=may_go_on))
    assert looks >= 3
    assert segments <= set(os.listdir(folder / "segments"))
    assert replica.index_generation == generation
    assert replica.points() == [point]
    assert replica.index_generation != generation
    life.check()
    report = compact(replica, life.leases, force=True)
    assert report.is_complete
    assert report.freed_bytes
    life.check()
    replica.close()
