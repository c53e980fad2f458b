"""The second reader, where a header is damaged and a chunk holds what looks like chunks."""

from __future__ import annotations

import random
from pathlib import Path

from integration.reader.conftest import read
from strandline_contracts.points import BLOCK_BYTES, CODEC_RAW, Extent, Name
from strandline_replica_store.files import segment
from support.replicas import batch, chunk, inode, new_replica, ship

SIZE_BYTES = 2 * BLOCK_BYTES


def header_like(number: int, stored_bytes: int) -> bytes:
    """Return a chunk's header whose bytes are not those of its digests."""
    junk = random.Random(number).randbytes(stored_bytes)
    return segment.pack_chunk_header(number, CODEC_RAW, SIZE_BYTES, bytes(32), junk)


def test_a_damaged_header_hides_no_chunk_but_its_own(tmp_path: Path) -> None:
    """The first chunk's bytes hold a whole chunk, and a header that would step over the second."""
    made = random.Random(1)
    inner = made.randbytes(BLOCK_BYTES)
    whole = segment.pack_chunk_header(9, 1, BLOCK_BYTES, *_zstd(inner))
    first = made.randbytes(100) + whole + _zstd(inner)[1] + header_like(3, SIZE_BYTES)
    first += made.randbytes(SIZE_BYTES - len(first))
    plains = [first, *(made.randbytes(SIZE_BYTES) for _ in range(3))]
    folder = tmp_path / "replica"
    replica = new_replica(folder)
    size = len(plains) * SIZE_BYTES
    messages = [
        batch("a", 0, inodes=[inode(1, kind="d"), inode(2, size)], names=[Name(1, b"a", 2)])
    ]
    for at, plain in enumerate(plains):
        extent = Extent(2, 2 * at, 2, 0, 0, 0)
        messages.append(batch("a", at + 1, chunks=[chunk(plain, CODEC_RAW)], extents=[extent]))
    ship(replica, "a", messages)
    replica.close()
    path = folder / "segments" / "00000001.sls"
    data = bytearray(path.read_bytes())
    data[segment.SEGMENT_HEADER_BYTES + 70] ^= 1
    path.write_bytes(data)
    read("restore", folder, "--to", tmp_path / "back", code=4)
    (back,) = (tmp_path / "back").iterdir()
    assert back.read_bytes() == bytes(SIZE_BYTES) + b"".join(plains[1:])


def _zstd(plain: bytes) -> tuple[bytes, bytes]:
    """Return the plain digest and the stored bytes of a chunk."""
    made = chunk(plain)
    assert made.data is not None
    return made.digest, bytes(made.data)
