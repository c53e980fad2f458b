"""Measures what many express fulls cost a replica in size and in the restore of its newest state.

An image of incompressible bytes; 200 express fulls of 1 % random 4 KiB blocks each, of which the
last 64 are kept; dropping and compaction after each, as the store's housekeeping does them. Prints
stored bytes for live ones, and the time to read the newest recovery point beside that of a replica
which holds nothing else. Straight on the replica, without a bus.
Run: python tests/bench/store_compaction.py [--mib 1024] [--points 200] [--keep 64] [--folder DIR]
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec
from blake3 import blake3

from strandline_contracts.points import (
    BLOCK_BYTES,
    CHUNK_BLOCKS,
    CHUNK_BYTES,
    CODEC_RAW,
    Extent,
    Name,
)
from strandline_replica_store.compaction.compact import compact
from strandline_replica_store.files.chunk_check import check_chunk, plain_of
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica import tree
from strandline_replica_store.replica.replica import Replica
from support.replicas import (
    IDENTITY,
    SERVER,
    batch,
    chunk,
    end_of,
    inode,
    leases_at_rest,
    new_replica,
    open_of,
)

FILE = 2
CHUNKS_IN_BATCH = 12
BATCHES_IN_GROUP = 16
EXTENTS_IN_PAGE = 4096
CHUNKS_IN_READ = 16
SIZE_BAR = 1.15
RESTORE_BAR = 1.5


class Image:
    """What the server has: a file of the newest state, to compare with."""

    def __init__(self, path: Path, mib: int) -> None:
        self.blocks = (mib << 20) // BLOCK_BYTES
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        for first in range(0, self.blocks, CHUNK_BLOCKS):
            os.pwrite(self._fd, os.urandom(CHUNK_BYTES), first * BLOCK_BYTES)

    def read(self, first: int, count: int) -> bytes:
        return os.pread(self._fd, count * BLOCK_BYTES, first * BLOCK_BYTES)

    def change(self, count: int, rng: random.Random) -> list[int]:
        blocks = sorted(rng.sample(range(self.blocks), count))
        for block in blocks:
            os.pwrite(self._fd, os.urandom(BLOCK_BYTES), block * BLOCK_BYTES)
        return blocks

    def whole(self, job: str) -> Iterator[bytes]:
        """Yield the batches that ship all of it."""
        size = self.blocks * BLOCK_BYTES
        yield batch(
            job, 0, inodes=[inode(1, kind="d"), inode(FILE, size)], names=[Name(1, b"image", FILE)]
        )
        starts = range(0, self.blocks, CHUNK_BLOCKS)
        for seq, at in enumerate(range(0, len(starts), CHUNKS_IN_BATCH), start=1):
            mine = starts[at : at + CHUNKS_IN_BATCH]
            yield batch(
                job,
                seq,
                chunks=[chunk(self.read(start, CHUNK_BLOCKS), CODEC_RAW) for start in mine],
                extents=[
                    Extent(FILE, start, CHUNK_BLOCKS, 0, position, 0)
                    for position, start in enumerate(mine)
                ],
            )

    def changed(self, job: str, blocks: Sequence[int]) -> Iterator[bytes]:
        """Yield the batches that ship these blocks, as an agent packs them."""
        parts = [blocks[i : i + CHUNK_BLOCKS] for i in range(0, len(blocks), CHUNK_BLOCKS)]
        for seq, at in enumerate(range(0, len(parts), CHUNKS_IN_BATCH)):
            mine = parts[at : at + CHUNKS_IN_BATCH]
            yield batch(
                job,
                seq,
                chunks=[
                    chunk(b"".join(self.read(block, 1) for block in part), CODEC_RAW)
                    for part in mine
                ],
                extents=[
                    Extent(FILE, block, 1, 0, position, place)
                    for position, part in enumerate(mine)
                    for place, block in enumerate(part)
                ],
            )


def ship(replica: Replica, job: str, messages: Iterator[bytes]) -> None:
    """Receive a job as the store does, holding few batches at once."""
    replica.open_job(SERVER, open_of(replica, job))
    digests, seq, waiting = blake3(), 0, list[bytes]()
    for message in messages:
        digests.update(blake3(message).digest())
        seq += 1
        waiting.append(message)
        if len(waiting) == BATCHES_IN_GROUP:
            replica.take(job, 1, waiting)
            waiting = []
    if waiting:
        replica.take(job, 1, waiting)
    end = msgspec.structs.replace(end_of(job, []), seq=seq, digest=digests.digest())
    replica.finish(end)


def restore(folder: Path, point: int, target: Path | None) -> float:
    """Read a recovery point, each chunk checked, into `target` (synced) if there is one; return the
    seconds it took. The segments are cold: not in the system's cache.
    """
    for name in os.listdir(folder / "segments"):
        fd = os.open(folder / "segments" / name, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    out = os.open(target, os.O_RDWR | os.O_CREAT, 0o600) if target else -1
    reader = Reader(str(folder))
    began = time.perf_counter()
    for extents in pages(reader, point):
        for chunks in by_chunk(extents):
            read_chunks(reader, chunks, out)
    if target:
        os.fsync(out)
    seconds = time.perf_counter() - began
    reader.close()
    if target:
        os.close(out)
    return seconds


def pages(reader: Reader, point: int) -> Iterator[list[Extent]]:
    after = (-1, 0, 0)
    while True:
        found = tree.extents(reader.conn, point, [FILE], after, EXTENTS_IN_PAGE)
        if not found:
            return
        yield found
        last = found[-1]
        after = (last.chunk, last.file, last.start)


def by_chunk(extents: list[Extent]) -> Iterator[dict[int, list[Extent]]]:
    chunks: dict[int, list[Extent]] = {}
    for extent in extents:
        if extent.chunk not in chunks and len(chunks) == CHUNKS_IN_READ:
            yield chunks
            chunks = {}
        chunks.setdefault(extent.chunk, []).append(extent)
    if chunks:
        yield chunks


def read_chunks(reader: Reader, chunks: dict[int, list[Extent]], out: int) -> None:
    for stored in reader.chunks(list(chunks), 1 << 30):
        check_chunk(stored.digest, stored.plain_bytes, stored.codec, stored.data)
        if out < 0:
            continue
        plain = memoryview(plain_of(stored.codec, stored.plain_bytes, stored.data))
        for extent in chunks[stored.id]:
            first = extent.chunk_block * BLOCK_BYTES
            data = plain[first : first + extent.blocks * BLOCK_BYTES]
            os.pwrite(out, data, extent.start * BLOCK_BYTES)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


class Figures:
    """What is added up on the way."""

    def __init__(self) -> None:
        self.seconds = {"ship": 0.0, "drop": 0.0, "compact": 0.0}
        self.moved_bytes = 0
        self.rounds = 0
        self.worst = 0.0

    def timed(self, what: str, function: Any, *values: Any) -> Any:
        began = time.perf_counter()
        result = function(*values)
        self.seconds[what] += time.perf_counter() - began
        return result


def run(folder: Path, mib: int, points: int, keep: int) -> None:
    image = Image(folder / "image", mib)
    home = folder / IDENTITY.source
    replica = new_replica(home)
    leases, figures, rng = leases_at_rest(), Figures(), random.Random(5)
    ship(replica, "first", image.whole("first"))
    count = image.blocks // 100
    live_bytes = 0
    for number in range(2, points + 2):
        job = f"job{number}"
        blocks = image.change(count, rng)
        figures.timed("ship", ship, replica, job, image.changed(job, blocks))
        if number > keep:
            figures.timed("drop", replica.drop, [number - keep], "retention")
        report = figures.timed("compact", compact, replica, leases)
        figures.moved_bytes += report.moved_bytes
        figures.rounds += report.rounds
        # Each block that a kept point but the oldest has changed is live twice.
        live_bytes = (image.blocks + count * (min(number, keep) - 1)) * BLOCK_BYTES
        size = size_of(home / "segments") / live_bytes
        if number > keep:
            figures.worst = max(figures.worst, size)
        if report.rounds or number % 20 == 0:
            print(f"  point {number}: {size:.3f} of live; {report.text()}", flush=True)
    tell(figures, home, live_bytes)
    compare(replica, image, folder)
    replica.close()


def tell(figures: Figures, home: Path, live_bytes: int) -> None:
    stored_bytes = size_of(home / "segments")
    print(f"live          {live_bytes >> 20:8} MiB")
    print(f"stored        {stored_bytes / live_bytes:8.3f} x live     (bar {SIZE_BAR})")
    print(f"  at worst    {figures.worst:8.3f} x live, after any point since the first drop")
    print(f"manifests     {size_of(home / 'manifests') / live_bytes:8.3f} x live, not counted")
    index_bytes = sum(path.stat().st_size for path in home.glob("index.db*"))
    print(f"index         {index_bytes / live_bytes:8.3f} x live, not counted")
    print(f"moved         {figures.moved_bytes >> 20:8} MiB in {figures.rounds} rounds")
    for what, seconds in figures.seconds.items():
        print(f"{what:13} {seconds:8.1f} s")


def compare(replica: Replica, image: Image, folder: Path) -> None:
    """Read the newest point beside a replica that holds nothing else, in turns."""
    assert replica.newest is not None
    fresh = new_replica(folder / "fresh" / IDENTITY.source)
    ship(fresh, "fresh", image.whole("fresh"))
    found: dict[str, list[float]] = {}
    for _ in range(3):
        for name, home, point in (
            ("old", folder / IDENTITY.source, replica.newest.number),
            ("fresh", folder / "fresh" / IDENTITY.source, 1),
        ):
            found.setdefault(f"{name} read", []).append(restore(home, point, None))
            target = folder / f"{name}.out"
            found.setdefault(f"{name} restored", []).append(restore(home, point, target))
            check_same(image, target)
            target.unlink()
    fresh.close()
    for what in ("read", "restored"):
        old, new = min(found[f"old {what}"]), min(found[f"fresh {what}"])
        ratio = f"{old / new:8.2f} x a fresh one"
        print(f"newest {what:9}{ratio}   {old:.2f} s, {new:.2f} s   (bar {RESTORE_BAR})")
    print(f"peak RSS      {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10:8} MiB")


def check_same(image: Image, target: Path) -> None:
    with target.open("rb") as file:
        for first in range(0, image.blocks, 1024):
            if file.read(1024 * BLOCK_BYTES) != image.read(first, 1024):
                raise SystemExit(f"blocks {first} and on are not what was shipped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--keep", type=int, default=64)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    (folder / "fresh").mkdir()
    profiler = cProfile.Profile() if options.profile else None
    try:
        values = (folder, options.mib, options.points, options.keep)
        if profiler:
            profiler.runcall(run, *values)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        else:
            run(*values)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
