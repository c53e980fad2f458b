"""Measures the replica store in one process, without a bus.

Prints MB/s (10^6 plain bytes) of ingest, of commits and of verify on half-compressible data.
Run: python tests/bench/store_ingest.py [--mib 1024] [--folder DIR] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec
from blake3 import blake3

from strandline_contracts.points import BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES, Extent, Name
from strandline_replica_store.checking import verify
from strandline_replica_store.reading.reader import Reader
from support.replicas import IDENTITY, SERVER, batch, chunk, end_of, inode, new_replica, open_of

CHUNKS_IN_BATCH = 12
BATCHES_IN_GROUP = 32
FILE = 2


def half_compressible(count: int) -> bytes:
    return os.urandom(count // 2) + b"\x5a" * (count - count // 2)


def image_batches(job: str, mib: int) -> Iterator[bytes]:
    """Yield the batches of one file of `mib` MiB."""
    yield batch(
        job,
        0,
        inodes=[inode(1, kind="d"), inode(FILE, mib << 20)],
        names=[Name(1, b"image", FILE)],
    )
    chunks = (mib << 20) // CHUNK_BYTES
    for seq, first in enumerate(range(0, chunks, CHUNKS_IN_BATCH), start=1):
        mine = range(first, min(first + CHUNKS_IN_BATCH, chunks))
        yield batch(
            job,
            seq,
            chunks=[chunk(half_compressible(CHUNK_BYTES)) for _ in mine],
            extents=[
                Extent(FILE, number * CHUNK_BLOCKS, CHUNK_BLOCKS, 0, position, 0)
                for position, number in enumerate(mine)
            ],
        )


def changed_batches(job: str, mib: int, count: int) -> list[bytes]:
    """Return the batches that change `count` random blocks of the image."""
    blocks = sorted(random.Random(7).sample(range((mib << 20) // BLOCK_BYTES), count))
    found = []
    for seq, first in enumerate(range(0, count, 10 * CHUNK_BLOCKS)):
        mine = blocks[first : first + 10 * CHUNK_BLOCKS]
        parts = [mine[i : i + CHUNK_BLOCKS] for i in range(0, len(mine), CHUNK_BLOCKS)]
        found.append(
            batch(
                job,
                seq,
                chunks=[chunk(half_compressible(len(part) * BLOCK_BYTES)) for part in parts],
                extents=[
                    Extent(FILE, block, 1, 0, position, place)
                    for position, part in enumerate(parts)
                    for place, block in enumerate(part)
                ],
            )
        )
    return found


def small_batches(job: str, count: int) -> list[bytes]:
    """Return the batches of `count` new small files in folders of 500."""
    found = []
    for seq, first in enumerate(range(0, count, 1024)):
        files = range(first + 1000, min(first + 1024, count) + 1000)
        folders = [file for file in files if file % 500 == 0]
        packed = [files[i : i + CHUNK_BLOCKS] for i in range(0, len(files), CHUNK_BLOCKS)]
        found.append(
            batch(
                job,
                seq,
                chunks=[chunk(half_compressible(len(part) * BLOCK_BYTES)) for part in packed],
                extents=[
                    Extent(file, 0, 1, 0, position, place)
                    for position, part in enumerate(packed)
                    for place, file in enumerate(part)
                ],
                inodes=[inode(file, 4000) for file in files]
                + [inode(10_000_000 + file, kind="d") for file in folders],
                names=[Name(10_000_000 + file // 500 * 500, b"f%d" % file, file) for file in files],
            )
        )
    return found


class Clock:
    def __init__(self, profile: bool) -> None:
        self.profile = profile
        self.seconds = 0.0

    def __call__(self, function: Callable[..., Any], *values: Any) -> Any:
        profiler = cProfile.Profile() if self.profile else None
        began = time.perf_counter()
        result = profiler.runcall(function, *values) if profiler else function(*values)
        self.seconds = time.perf_counter() - began
        if profiler and self.seconds > 0.2:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(12)
        return result


def take_all(replica: Any, job: str, batches: list[bytes]) -> None:
    for first in range(0, len(batches), BATCHES_IN_GROUP):
        replica.take(job, 1, batches[first : first + BATCHES_IN_GROUP])


def run(folder: Path, mib: int, *, profile: bool) -> None:
    replica = new_replica(folder / IDENTITY.source)
    clock = Clock(profile)
    replica.open_job(SERVER, open_of(replica, "first"))
    ingest_s, sent = 0.0, []
    waiting: list[bytes] = []
    end = None
    digests = blake3()
    for message in image_batches("first", mib):
        waiting.append(message)
        digests.update(blake3(message).digest())
        sent.append(b"")
        if len(waiting) == BATCHES_IN_GROUP:
            clock(replica.take, "first", 1, waiting)
            ingest_s += clock.seconds
            waiting = []
    if waiting:
        clock(replica.take, "first", 1, waiting)
        ingest_s += clock.seconds
    print(f"ingest        {(mib << 20) / 1e6 / ingest_s:8.0f} MB/s of plain bytes")
    end = end_of("first", sent)
    end = msgspec.structs.replace(end, digest=digests.digest())
    clock(replica.finish, end)
    print(f"commit first  {clock.seconds:8.2f} s   {mib} MiB image")

    changed = changed_batches("second", mib, 10_000)
    replica.open_job(SERVER, open_of(replica, "second"))
    clock(take_all, replica, "second", changed)
    print(f"take          {clock.seconds:8.2f} s   10,000 changed blocks")
    clock(replica.finish, end_of("second", changed))
    print(f"commit        {clock.seconds:8.2f} s   10,000 changed extents")

    small = small_batches("third", 200_000)
    replica.open_job(SERVER, open_of(replica, "third"))
    clock(take_all, replica, "third", small)
    print(f"take          {clock.seconds:8.2f} s   200,000 small files")
    clock(replica.finish, end_of("third", small))
    print(f"commit        {clock.seconds:8.2f} s   200,000 small files")

    reader = Reader(str(folder / IDENTITY.source))
    report = clock(verify.verify, reader, replica.newest)
    print(f"verify        {report.read_bytes / 1e6 / clock.seconds:8.0f} MB/s of plain bytes")
    reader.close()
    replica.close()
    print(f"peak RSS      {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10:8} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        run(folder, options.mib, profile=options.profile)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
