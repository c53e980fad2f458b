"""Ships made-up trees into a replica, without a bus: what the store's tests share."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from strandline_contracts.codec import encode
from strandline_contracts.points import (
    BLOCK_BYTES,
    CODEC_ZSTD,
    Extent,
    Inode,
    Name,
    RecoveryPoint,
    Totals,
)
from strandline_contracts.shipping import Batch, Chunk, End, Open
from strandline_replica_store.files.chunk_check import plain_of
from strandline_replica_store.files.compression import zstd
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica import tree
from strandline_replica_store.replica.replica import Identity, Replica, create
from strandline_replica_store.replica.rules import OpenVerdict
from strandline_replica_store.store.leases import LEASE_S, Leases

SOURCE = "00112233445566ff"
SERVER = "web-1"
IDENTITY = Identity(source=SOURCE, store="store-1", site="hq")


def chunk(plain: bytes, codec: int = CODEC_ZSTD, *, data: bool = True) -> Chunk:
    """Return a chunk as an agent ships it; without data when it is said to be held."""
    stored = zstd.compress(plain, 1) if codec == CODEC_ZSTD else plain
    return Chunk(blake3(plain).digest(), len(plain), codec, memoryview(stored) if data else None)


def inode(file: int, size: int = 0, kind: Any = "f", mode: int = 0o644) -> Inode:
    return Inode(file, kind, mode, 0, 0, size, 1, 2, 3, 4, 5, file)


def batch(job: str, seq: int, attempt: int = 1, **fields: Any) -> bytes:
    return encode(Batch(job=job, attempt=attempt, seq=seq, **fields))


def end_of(job: str, messages: Sequence[bytes], attempt: int = 1) -> End:
    digest = blake3()
    for message in messages:
        digest.update(blake3(message).digest())
    return End(
        job=job,
        attempt=attempt,
        seq=len(messages),
        digest=digest.digest(),
        taken_at_ns=1_000,
        consistency="crash",
        provider="none",
        tracker="scan",
        partial=False,
        totals=Totals(files=1),
    )


def open_of(replica: Replica, job: str, attempt: int = 1, kind: Any = "express_full") -> Open:
    newest = replica.newest
    return Open(
        source=SOURCE,
        job=job,
        attempt=attempt,
        kind=kind,
        parent=newest.number if newest else 0,
        parent_digest=newest.digest if newest else b"",
    )


def leases_at_rest() -> Leases:
    """Return the leases of a store that was started long ago, and that nobody reads."""
    began_ns = time.monotonic_ns() - int(LEASE_S * 1e9)
    times = itertools.chain([began_ns], itertools.repeat(None))
    return Leases(lambda: next(times) or time.monotonic_ns())


def new_replica(folder: Path, **options: Any) -> Replica:
    create(str(folder), IDENTITY, "data", "files")
    return open_replica(folder, **options)


def open_replica(folder: Path, **options: Any) -> Replica:
    return Replica.open(str(folder), IDENTITY, **{"reserve_bytes": 0, **options})


def ship(replica: Replica, job: str, messages: Sequence[bytes], group: int = 4) -> RecoveryPoint:
    """Open, take and finish a job that ends in a recovery point."""
    assert replica.open_job(SERVER, open_of(replica, job)) is OpenVerdict.FRESH
    for first in range(0, len(messages), group):
        replica.take(job, 1, messages[first : first + group])
    return replica.finish(end_of(job, messages))


def one_file(job: str, content: bytes, file: int = 2, name: bytes = b"a") -> list[bytes]:
    """Return the batches of a tree with one file, which has at most one chunk."""
    padded = content + bytes(-len(content) % BLOCK_BYTES)
    blocks = len(padded) // BLOCK_BYTES
    return [
        batch(job, 0, inodes=[inode(1, kind="d", mode=0o755), inode(file, len(content))]),
        batch(
            job,
            1,
            chunks=[chunk(padded)],
            extents=[Extent(file, 0, blocks, 0, 0, 0)],
            names=[Name(1, name, file)],
        ),
    ]


def made_up_content(number: int) -> bytes:
    """Return what file 2 holds in recovery point `number` of `made_up` jobs."""
    return random.Random(number).randbytes(60_000 + number)


def made_up(job: str, number: int, attempt: int) -> list[bytes]:
    """Return the batches of a job of several chunks, the same for the same number."""
    content = made_up_content(number)
    padded = content + bytes(-len(content) % BLOCK_BYTES)
    messages = [
        batch(
            job,
            0,
            attempt,
            inodes=[inode(1, kind="d"), inode(2, len(content))],
            names=[Name(1, b"a", 2)],
        )
    ]
    for start in range(0, len(padded), 4 * BLOCK_BYTES):
        part = padded[start : start + 4 * BLOCK_BYTES]
        extent = Extent(2, start // BLOCK_BYTES, len(part) // BLOCK_BYTES, 0, 0, 0)
        messages.append(batch(job, len(messages), attempt, chunks=[chunk(part)], extents=[extent]))
    return messages


def content(folder: Path, point: int, file: int = 2) -> bytes:
    """Read a file back by the reader, each chunk checked."""
    reader = Reader(str(folder))
    try:
        record = tree.inode_record(reader.conn, point, file)
        assert record is not None, f"file {file} is not in point {point}"
        size = msgspec.msgpack.decode(record, type=Inode).size
        data = bytearray(-(-size // 4096) * 4096)
        for extent in tree.blocks_of(reader.conn, point, file, 0, len(data) // 4096):
            if extent.kind:
                continue
            (stored,) = reader.chunks([extent.chunk], 0)
            plain = plain_of(stored.codec, stored.plain_bytes, stored.data)
            assert blake3(plain).digest() == stored.digest
            at = extent.chunk_block * 4096
            data[extent.start * 4096 : (extent.start + extent.blocks) * 4096] = plain[
                at : at + extent.blocks * 4096
            ]
        return bytes(data[:size])
    finally:
        reader.close()


def ship_next(replica: Replica, made: Callable[[str, int, int], list[bytes]]) -> int:
    """Ship what `made` makes as the next recovery point; return its number."""
    number = (replica.newest.number if replica.newest else 0) + 1
    job = f"j{number}"
    last = replica.job(job)
    attempt = last.attempt + 1 if last else 1
    messages = made(job, number, attempt)
    found = replica.open_job(SERVER, open_of(replica, job, attempt))
    assert found is OpenVerdict.FRESH, found
    for message in messages:
        replica.take(job, attempt, [message])
    return replica.finish(end_of(job, messages, attempt)).number


def doomed(newest: int) -> list[int]:
    """Return which recovery points a line up to `newest` drops: half of those that are older."""
    return [number for number in range(1, newest - 2) if number % 4 in (1, 2)]
