"""An index made anew from damaged segments: what is sound there counts, and nothing else."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest
from blake3 import blake3

from strandline_contracts.codec import encode
from strandline_contracts.events import DamageFound
from strandline_contracts.points import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    CODEC_RAW,
    CODEC_ZSTD,
    Extent,
    Name,
)
from strandline_contracts.reading import ExtentPage, Extents
from strandline_replica_store.compaction.compact import Limits, compact
from strandline_replica_store.errors import DiskError, StoreError
from strandline_replica_store.files import segment
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.service.answers import FIRST_EXTENT, Answers
from strandline_replica_store.store.store import Store
from strandline_runtime import outbox
from strandline_runtime.bus import Request
from support.replicas import (
    SERVER,
    SOURCE,
    batch,
    chunk,
    content,
    end_of,
    inode,
    leases_at_rest,
    new_replica,
    open_of,
    open_replica,
    ship,
)

INNER_BYTES = 10 * BLOCK_BYTES


def chunk_in_file(number: int, plain: bytes) -> bytes:
    """Return a chunk as it lies in a segment."""
    return segment.pack_chunk_header(
        number, CODEC_RAW, len(plain), blake3(plain).digest(), plain
    ) + (plain)


def segment_of(plains: Sequence[bytes]) -> bytes:
    """Return a segment of chunks 1, 2, ...: what a source may hold that keeps replicas itself."""
    chunks = [chunk_in_file(number, plain) for number, plain in enumerate(plains, 1)]
    return segment.pack_segment_header(1, SOURCE) + b"".join(chunks)


def made_of(plains: Sequence[bytes], job: str = "j1") -> list[bytes]:
    """Return the batches of a job whose file 2 consists of these chunks, raw."""
    size = sum(map(len, plains))
    inodes = [inode(1, kind="d"), inode(2, size)]
    messages = [batch(job, 0, inodes=inodes, names=[Name(1, b"a", 2)])]
    start = 0
    for plain in plains:
        blocks = len(plain) // BLOCK_BYTES
        extent = Extent(2, start, blocks, 0, 0, 0)
        chunks = [chunk(plain, CODEC_RAW)]
        messages.append(batch(job, len(messages), chunks=chunks, extents=[extent]))
        start += blocks
    return messages


def cut(data: bytes) -> list[bytes]:
    """Return data in chunks of the largest size, the last filled up with zeros."""
    data += bytes(-len(data) % BLOCK_BYTES)
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]


def places(replica: Replica) -> dict[int, tuple[int, int]]:
    """Return segment and offset of each chunk."""
    rows = replica.on_database(
        lambda conn: list(conn.execute("SELECT id, segment, offset FROM chunk"))
    )
    return {number: (where, offset) for number, where, offset in rows}


def named(replica: Replica) -> tuple[int, ...]:
    """Return how many chunks recovery points name, how many are bad, and how many lie nowhere."""
    query = "SELECT count(*), sum(bad), sum(segment = 0) FROM chunk WHERE NOT staged"
    found: tuple[int, ...] = replica.on_database(lambda conn: conn.execute(query).fetchone())
    return found


def flip(folder: Path, number: int, at: int) -> None:
    path = Path(segment.path_of(str(folder / "segments"), number))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def lose_index(folder: Path) -> None:
    for path in folder.glob("index.db*"):
        path.unlink()


def test_a_damaged_header_hides_no_chunk_but_its_own(tmp_path: Path) -> None:
    """In a source that holds a replica the search behind it meets the headers of inner chunks."""
    made = random.Random(1)
    inner = [made.randbytes(INNER_BYTES) for _ in range(40)]
    replica = new_replica(tmp_path)
    outer = cut(segment_of(inner))
    ship(replica, "j1", made_of(outer))
    number, offset = places(replica)[4]
    replica.close()
    flip(tmp_path, number, offset + 70)
    lose_index(tmp_path)
    replica = open_replica(tmp_path)
    assert named(replica) == (len(outer), 1, 1)
    replica.close()


def test_an_inner_chunk_that_is_sound_replaces_none(tmp_path: Path) -> None:
    """It may have the id of one of ours: the digest that the manifest names decides."""
    made = random.Random(2)
    # The first outer chunk holds inner ones of all ids, whole.
    inner = segment_of([made.randbytes(BLOCK_BYTES) for _ in range(12)])
    outer = [*cut(inner), *(made.randbytes(INNER_BYTES) for _ in range(8))]
    replica = new_replica(tmp_path, segment_limit_bytes=3 * INNER_BYTES)
    ship(replica, "j1", made_of(outer))
    number, offset = places(replica)[1]
    replica.close()
    flip(tmp_path, number, offset + 70)
    lose_index(tmp_path)
    replica = open_replica(tmp_path)
    assert named(replica) == (len(outer), 1, 1)
    rows = replica.on_database(lambda conn: list(conn.execute("SELECT id, digest FROM chunk")))
    digests = dict(rows)
    for at, plain in enumerate(outer[1:], 2):
        assert digests[at] == blake3(plain).digest()
    replica.close()


def lies(replica: Replica) -> bytes:
    """Return the bytes of a chunk that holds others' ids and plain digests, over junk."""
    query = "SELECT id, digest FROM chunk"
    parts = [random.Random(3).randbytes(1000)]
    for number, digest in replica.on_database(lambda conn: list(conn.execute(query))):
        junk = b"%032d" % number
        parts += [segment.pack_chunk_header(number, CODEC_ZSTD, BLOCK_BYTES, digest, junk), junk]
    return b"".join(parts).ljust(CHUNK_BYTES, b".")


def with_old_chunks(folder: Path) -> Replica:
    """Return a replica of one recovery point, whose segment is not appended to any more."""
    replica = new_replica(folder)
    ship(replica, "j1", made_of([bytes([at]) * BLOCK_BYTES for at in range(1, 41)]))
    replica.leave_segment()
    return replica


def test_what_a_torn_chunk_holds_is_not_searched(tmp_path: Path) -> None:
    """A folder is attached that was copied while an agent shipped."""
    replica = with_old_chunks(tmp_path)
    before = places(replica)
    ship(replica, "j2", made_of([lies(replica)], "j2"))
    number = replica.receiving_segment
    replica.close()
    path = segment.path_of(str(tmp_path / "segments"), number)
    os.truncate(path, os.path.getsize(path) - 5000)
    (tmp_path / "manifests" / "00000002.slm").unlink()
    lose_index(tmp_path)
    replica = open_replica(tmp_path)
    assert places(replica) == before
    replica.close()


def test_a_chunk_found_behind_damage_is_what_its_plain_digest_says(tmp_path: Path) -> None:
    replica = with_old_chunks(tmp_path)
    before = places(replica)
    ship(replica, "j2", made_of([lies(replica)], "j2"))
    number = replica.receiving_segment
    replica.close()
    flip(tmp_path, number, segment.SEGMENT_HEADER_BYTES + 70)
    lose_index(tmp_path)
    replica = open_replica(tmp_path)
    after = places(replica)
    assert {chunk: after[chunk] for chunk in before} == before
    replica.close()


def test_a_chunk_found_behind_damage_takes_the_place_of_no_sound_one(tmp_path: Path) -> None:
    """Not even with the true bytes: it may go with the chunk in which it lies."""
    plains = [bytes([at]) * BLOCK_BYTES for at in range(1, 21)]
    replica = new_replica(tmp_path)
    ship(replica, "j1", made_of(plains))
    before = places(replica)
    replica.leave_segment()
    copies = b"".join(chunk_in_file(number, plain) for number, plain in enumerate(plains, 1))
    ship(replica, "j2", made_of([bytes(100) + copies.ljust(CHUNK_BYTES - 100, b".")], "j2"))
    number = replica.receiving_segment
    replica.close()
    flip(tmp_path, number, segment.SEGMENT_HEADER_BYTES + 70)
    lose_index(tmp_path)
    replica = open_replica(tmp_path)
    after = places(replica)
    assert {chunk: after[chunk] for chunk in before} == before
    replica.close()


def test_what_the_store_wrote_has_its_id_before_what_a_file_holds(tmp_path: Path) -> None:
    """Even where no manifest says yet which of them is meant: a job is being received."""
    inner = [bytes([at]) * BLOCK_BYTES for at in range(100, 112)]
    replica = new_replica(tmp_path, segment_limit_bytes=1)
    ship(replica, "j1", made_of(cut(segment_of(inner))))
    last = max(places(replica))
    plains = [bytes([at]) * BLOCK_BYTES for at in range(1, 9)]
    messages = made_of(plains, "j2")
    replica.open_job(SERVER, open_of(replica, "j2"))
    replica.take("j2", 1, messages)
    assert last < max(places(replica)) <= len(inner)
    flip(tmp_path, 1, segment.SEGMENT_HEADER_BYTES + 70)
    replica.reindex()
    replica.finish(end_of("j2", messages))
    replica.close()
    assert content(tmp_path, 2) == b"".join(plains)


def test_half_a_write_is_not_read_while_the_index_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = with_old_chunks(tmp_path)
    ship(replica, "j2", made_of([bytes(BLOCK_BYTES)], "j2"))
    before = places(replica)
    path = segment.path_of(replica.segments_folder, replica.receiving_segment)
    fill, fills = replica._fill, 0

    def fill_meanwhile(new: apsw.Connection, **options: Any) -> Any:
        """Fill it the first time while a chunk is being written."""
        nonlocal fills
        fills += 1
        if fills > 1:
            return fill(new, **options)
        size_bytes = os.path.getsize(path)
        torn = chunk_in_file(max(before) + 1, lies(replica))[:-5000]
        with open(path, "ab") as file:
            file.write(torn + bytes(5000))
        try:
            return fill(new, **options)
        finally:
            os.truncate(path, size_bytes)
            ship(replica, "j3", made_of([lies(replica)], "j3"))

    monkeypatch.setattr(replica, "_fill", fill_meanwhile)
    replica.reindex()
    after = places(replica)
    assert {chunk: after[chunk] for chunk in before} == before
    assert named(replica)[1:] == (0, 0)
    replica.close()


def halves(folder: Path) -> int:
    """Make a replica of three segments, a chunk's header in the second damaged; return chunks."""
    plains = [bytes([at]) * CHUNK_BYTES for at in range(1, 31)]
    replica = new_replica(folder, segment_limit_bytes=10 * CHUNK_BYTES)
    ship(replica, "j1", made_of(plains))
    number, offset = places(replica)[12]
    assert number == 2
    replica.close()
    flip(folder, number, offset + 70)
    return len(plains)


@pytest.mark.parametrize("is_empty", [False, True])
def test_making_a_deleted_index_may_be_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_empty: bool
) -> None:
    count = halves(tmp_path)
    lose_index(tmp_path)
    if is_empty:
        (tmp_path / "index.db").write_bytes(b"")
    survey = segment.survey

    def unreadable(path: str, *args: Any, **options: Any) -> Any:
        if path.endswith("2.sls"):
            raise OSError(errno.EIO, "Input/output error")
        return survey(path, *args, **options)

    monkeypatch.setattr(segment, "survey", unreadable)
    with pytest.raises(DiskError):
        open_replica(tmp_path)
    monkeypatch.setattr(segment, "survey", survey)
    replica = open_replica(tmp_path)
    assert named(replica) == (count, 1, 1)
    replica.close()


def test_an_index_that_was_set_back_is_made_anew(tmp_path: Path) -> None:
    """Its log was lost, and with it where the chunks of newer points lie: one is damaged."""
    replica = new_replica(tmp_path)
    ship(replica, "j1", made_of([b"1" * BLOCK_BYTES]))
    replica.close()
    old = (tmp_path / "index.db").read_bytes()
    replica = open_replica(tmp_path)
    ship(replica, "j2", made_of([bytes([at]) * BLOCK_BYTES for at in range(10)], "j2"))
    number, offset = places(replica)[4]
    replica.close()
    flip(tmp_path, number, offset + 70)
    (tmp_path / "index.db").write_bytes(old)
    replica = open_replica(tmp_path)
    assert named(replica) == (11, 1, 1)
    told = [event.data for _, event in replica.on_database(lambda conn: outbox.pending(conn, 100))]
    assert [each.chunk for each in told if isinstance(each, DamageFound)] == [4]
    replica.close()
    # What is lost for good is no reason to do so each time.
    replica = open_replica(tmp_path)
    assert not replica._made_anew
    replica.close()


def moved_half_way(store: Store, *, is_stopped: bool) -> None:
    """Leave a replica whose first file's blocks compaction has just moved to a newer chunk."""
    store.create(SOURCE, "data", "files")
    replica = store.replica(SOURCE)
    replica.segment_limit_bytes = 1
    made = random.Random(4)
    one, two = made.randbytes(CHUNK_BYTES), made.randbytes(CHUNK_BYTES)
    inodes = [inode(1, kind="d"), inode(2, CHUNK_BYTES), inode(3, CHUNK_BYTES)]
    messages = [batch("j1", 0, inodes=inodes, names=[Name(1, b"a", 2), Name(1, b"b", 3)])]
    for file, plain in ((2, one), (3, two)):
        chunks = [chunk(plain, CODEC_RAW)]
        extents = [Extent(file, 0, 32, 0, 0, 0)]
        messages.append(batch("j1", file - 1, chunks=chunks, extents=extents))
    ship(replica, "j1", messages)
    replica.leave_segment()
    ship(replica, "j2", [batch("j2", 0, inodes=[inode(2, CHUNK_BYTES // 2)])])
    replica.drop([1], "retention")
    steps: list[int] = []

    def may_go_on() -> bool:
        steps.append(1)
        if is_stopped:
            return len(steps) < 2
        if len(steps) == 2:
            raise DiskError("the disk fails")
        return True

    with suppress(DiskError):
        compact(replica, leases_at_rest(), force=True, limits=Limits(may_go_on=may_go_on))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "store"), name="store-1", site="hq", reserve_bytes=0)
    yield store
    store.close()


def test_what_compaction_moved_stays_moved_when_it_gives_way(store: Store) -> None:
    moved_half_way(store, is_stopped=True)
    replica = store.replica(SOURCE)
    find = "SELECT file, start, blocks, chunk FROM extent ORDER BY file, start"
    before = replica.on_database(lambda conn: list(conn.execute(find)))
    assert before == [(2, 0, 16, 3), (3, 0, 32, 2)]
    replica.index_is_damaged(replica.index_generation, "so we say")
    assert replica.on_database(lambda conn: list(conn.execute(find))) == before
    assert not replica.order_generation


class Everyone:
    """An admission that lets everyone read."""

    async def reader(self, *_: Any) -> list[bytes]:
        return []


async def test_a_cursor_of_before_is_refused_where_blocks_have_gone_back(store: Store) -> None:
    """In order of chunk a restore has passed the place to which they went."""
    moved_half_way(store, is_stopped=False)
    replica = store.replica(SOURCE)
    with ThreadPoolExecutor(1) as threads:
        answers = Answers(store, Any, Everyone(), threads, max_answer_bytes=1 << 20)  # type: ignore[arg-type]

        async def page(caller: str, after: tuple[int, int, int], *files: int) -> list[int]:
            asked = Extents(source=SOURCE, point=2, files=list(files), after=after, limit=1)
            found = await answers.extents(Request(caller, encode(asked)))
            assert isinstance(found, ExtentPage)
            return [extent.file for extent in found.extents]

        assert await page("agent-a", FIRST_EXTENT) == [3]
        replica.index_is_damaged(replica.index_generation, "so we say")
        replica.points()
        # What is behind chunk 2 now is nothing: file 2 lies in chunk 1 again.
        with pytest.raises(StoreError) as caught:
            await page("agent-a", (2, 3, 0))
        assert (caught.value.code, caught.value.retryable) == ("store.order_lost", False)
        # Who begins now has an order of his own, others who began before do not.
        assert await page("agent-a", FIRST_EXTENT) == [2]
        assert await page("agent-a", (1, 2, 0)) == [3]
        with pytest.raises(StoreError):
            await page("agent-b", (1, 2, 0))
        with pytest.raises(StoreError):
            await page("agent-a", (1, 2, 0), 3)
