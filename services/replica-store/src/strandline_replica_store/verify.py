"""Verify: re-reads and re-hashes everything that the store holds of a source.

Every chunk that the index knows (header, stored digest, plain digest), every manifest with its
place in the chain, and that every chunk which an extent names is there.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from strandline_contracts.events import DamageFound
from strandline_contracts.points import RecoveryPoint
from strandline_replica_store import index, manifest, tree
from strandline_replica_store.chunk_check import check_chunk
from strandline_replica_store.errors import BadChunk, Damaged
from strandline_replica_store.index import ChunkRow
from strandline_replica_store.reader import DamagedChunk, Reader, merged, stored_of

THREADS = 2
PAGE_ROWS = 512
MAX_DAMAGES = 1000
"""So many are described; the count goes on."""
MAX_PATHS = 100
MAX_POINTS = 1000

OnDamage = Callable[[DamageFound], None]
OnProgress = Callable[[int], None]


class Cancelled(Exception):
    """Verify was asked to stop."""


@dataclass
class Report:
    """What a verify saw; `damages` lists at most MAX_DAMAGES of `damaged`."""

    chunks: int = 0
    read_bytes: int = 0
    manifests: int = 0
    damaged: int = 0
    damages: list[DamageFound] = field(default_factory=list)
    missing_chunks: int = 0


class _Tally:
    """Collects from both threads."""

    def __init__(self, on_damage: OnDamage, on_progress: OnProgress) -> None:
        self.report = Report()
        self._on_damage = on_damage
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def good(self, rows: int, read_bytes: int) -> None:
        with self._lock:
            self.report.chunks += rows
            self.report.read_bytes += read_bytes
            self._on_progress(self.report.read_bytes)

    def bad(self, damage: DamageFound) -> None:
        with self._lock:
            self.report.damaged += 1
            if len(self.report.damages) < MAX_DAMAGES:
                self.report.damages.append(damage)
            self._on_damage(damage)


def verify(
    reader: Reader,
    newest: RecoveryPoint | None,
    *,
    on_damage: OnDamage = lambda _: None,
    on_progress: OnProgress = lambda _: None,
    stop: threading.Event | None = None,
) -> Report:
    """Check a replica up to `newest`; raise Cancelled once `stop` is set.

    Both callbacks may be called from other threads, one call at a time. Holds a few MiB.
    """
    tally = _Tally(on_damage, on_progress)
    stop = stop or threading.Event()
    numbers = [row[0] for row in reader.conn.execute("SELECT DISTINCT segment FROM chunk")]
    share: Iterator[int] = iter(sorted(numbers))
    guard = threading.Lock()
    with ThreadPoolExecutor(THREADS, "verify") as pool:
        work: list[Future[None]] = [
            pool.submit(_check_segments, reader.folder, share, guard, tally, stop)
            for _ in range(THREADS)
        ]
        for future in work:
            future.result()
    if newest is not None:
        _check_manifests(reader, newest.number, tally, stop)
        tally.report.missing_chunks = _check_extents(reader.conn, tally)
    return tally.report


def _check_segments(
    folder: str,
    share: Iterator[int],
    guard: threading.Lock,
    tally: _Tally,
    stop: threading.Event,
) -> None:
    """Check segments, the next that nobody has taken each time."""
    reader = Reader(folder)
    try:
        while True:
            with guard:
                number = next(share, None)
            if number is None:
                return
            for rows in _pages(reader.conn, number):
                if stop.is_set():
                    raise Cancelled
                _check_rows(reader, rows, tally)
    finally:
        reader.close()


def _pages(conn: sqlite3.Connection, number: int) -> Iterator[list[ChunkRow]]:
    """Yield the chunks of a segment in order of place."""
    after = -1
    while True:
        rows = conn.execute(
            "SELECT id, digest, plain_bytes, stored_bytes, codec, segment, offset FROM chunk"
            " WHERE segment = ? AND offset > ? ORDER BY offset LIMIT ?",
            (number, after, PAGE_ROWS),
        ).fetchall()
        if not rows:
            return
        yield [ChunkRow(*row) for row in rows]
        after = rows[-1][-1]


def _check_rows(reader: Reader, rows: list[ChunkRow], tally: _Tally) -> None:
    for place in merged(rows):
        data = memoryview(reader.pread(place.segment, place.offset, place.size_bytes))
        for row in place.rows:
            reason = _wrong(row, data[row.offset - place.offset :])
            if reason:
                tally.bad(describe(reader.conn, row, reason))
        tally.good(len(place.rows), sum(row.plain_bytes for row in place.rows))


def _wrong(row: ChunkRow, data: memoryview) -> str:
    try:
        check_chunk(row.digest, row.plain_bytes, row.codec, stored_of(row, data))
    except DamagedChunk as error:
        return error.reason
    except BadChunk as error:
        return error.message
    return ""


def describe(conn: sqlite3.Connection, row: ChunkRow, reason: str) -> DamageFound:
    """Return what is known of a damaged chunk: the recovery points and paths that it harms."""
    points = tree.points_of_chunk(conn, row.id, MAX_POINTS)
    paths: set[bytes] = set()
    for point in points[-1:] + points[:1]:
        for file in tree.files_of_chunk(conn, point, row.id):
            path = tree.path_of(conn, point, file)
            if path is not None:
                paths.add(path)
            if len(paths) >= MAX_PATHS:
                break
    return DamageFound(
        chunk=row.id,
        segment=row.segment,
        offset=row.offset,
        reason=reason,
        points=points,
        files=sorted(paths)[:MAX_PATHS],
    )


def _check_manifests(reader: Reader, newest: int, tally: _Tally, stop: threading.Event) -> None:
    """Check each manifest up to `newest`, and that it is the one of its recovery point."""
    folder = os.path.join(reader.folder, "manifests")
    parent = (0, b"")
    for number, digest in reader.conn.execute(
        "SELECT number, digest FROM point WHERE number <= ? ORDER BY number", (newest,)
    ).fetchall():
        if stop.is_set():
            raise Cancelled
        reason = ""
        try:
            found = manifest.check(manifest.path_of(folder, number))
            head = found.head
            if found.digest != digest or (head.parent, head.parent_digest) != parent:
                reason = f"manifest {number} is not the one that was committed"
        except (Damaged, FileNotFoundError) as error:
            reason = f"manifest {number}: {error}"
        if reason:
            tally.bad(DamageFound(chunk=0, segment=0, offset=0, reason=reason, points=[number]))
        tally.report.manifests += 1
        parent = (number, digest)


_MISSING_LIVE = (
    "SELECT DISTINCT chunk FROM extent e WHERE kind = 0"
    " AND NOT EXISTS (SELECT 1 FROM chunk c WHERE c.id = e.chunk) LIMIT ?"
)
_MISSING_PAST = _MISSING_LIVE.replace("FROM extent", "FROM extent_past")


def _check_extents(conn: sqlite3.Connection, tally: _Tally) -> int:
    """Return how many chunks extents name that the index does not know (at most MAX_DAMAGES)."""
    missing: set[int] = set()
    for query in (_MISSING_LIVE, _MISSING_PAST):
        rows = conn.execute(query, (MAX_DAMAGES,))
        missing.update(chunk for (chunk,) in rows)
    for chunk in sorted(missing):
        row = index.ChunkRow(chunk, b"", 0, 0, 0, 0, 0)
        tally.bad(describe(conn, row, "the chunk is missing"))
    return len(missing)
