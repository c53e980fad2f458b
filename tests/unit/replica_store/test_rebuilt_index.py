"""An index that is made anew from damaged segments: what is sound there counts, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from strandline_contracts.points import BLOCK_BYTES, CHUNK_BYTES, CODEC_RAW, Extent, Name
from strandline_replica_store.files import segment
from strandline_replica_store.replica.replica import Replica
from support.replicas import SOURCE, batch, chunk, content, inode, new_replica, open_replica, ship

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
    for at, plain in enumerate(outer[1:], 2):
        (row,) = replica.on_database(
            lambda conn, at=at: list(conn.execute("SELECT digest FROM chunk WHERE id = ?", (at,)))
        )
        assert row == (blake3(plain).digest(),)
    replica.close()
