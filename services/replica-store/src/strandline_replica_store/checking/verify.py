"""Verify: re-reads and re-hashes everything that the store holds of a source.

Every chunk that the index knows (header, stored digest, plain digest), every manifest with its
place in the chain, and that every chunk which an extent names is there.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import apsw

from strandline_contracts.events import DamageFound
from strandline_contracts.points import RecoveryPoint
from strandline_replica_store.errors import Damaged
from strandline_replica_store.files import manifest, segment
from strandline_replica_store.reading.reader import (
    MERGED_READ_BYTES,
    DamagedChunk,
    Reader,
    checked_of,
    merged,
)
from strandline_replica_store.replica import index
from strandline_replica_store.replica.damage import LOST, describe
from strandline_replica_store.replica.index import ChunkRow

THREADS = 2
PAGE_ROWS = 512
MAX_DAMAGES = 1000
"""So many are described; the count goes on."""
_NOTHING = nullcontext()

OnDamage = Callable[[DamageFound], None]
OnProgress = Callable[[int], None]
BeforeRead = Callable[[int], None]
"""Is told how many bytes are going to be read; may wait, and raises Cancelled to stop."""


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
    segment_headers: list[int] = field(default_factory=list)
    """The segments whose own header is damaged: harmless, and its content is known."""
    sound_again: list[ChunkRow] = field(default_factory=list)
    """Chunks that were read as damaged once and now are what their digests say (at most
    MAX_DAMAGES of them): memory or a cable was to blame."""


class Tally:
    """Collects what was seen, from several threads."""

    def __init__(
        self, on_damage: OnDamage = lambda _: None, on_progress: OnProgress = lambda _: None
    ) -> None:
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
        """Count damage that harms a recovery point; of chunks that none needs tell only."""
        with self._lock:
            if damage.points:
                self.report.damaged += 1
                if len(self.report.damages) < MAX_DAMAGES:
                    self.report.damages.append(damage)
            self._on_damage(damage)

    def sound_again(self, row: ChunkRow) -> None:
        with self._lock:
            if len(self.report.sound_again) < MAX_DAMAGES:
                self.report.sound_again.append(row)

    def bad_segment_header(self, number: int, reason: str) -> None:
        self.bad(DamageFound(chunk=0, segment=number, offset=0, reason=reason))
        with self._lock:
            self.report.segment_headers.append(number)


def verify(
    reader: Reader,
    newest: RecoveryPoint | None,
    *,
    on_damage: OnDamage = lambda _: None,
    on_progress: OnProgress = lambda _: None,
    stop: threading.Event | None = None,
    steady: AbstractContextManager[object] = _NOTHING,
) -> Report:
    """Check a replica up to `newest`; raise Cancelled once `stop` is set.

    Within `steady` nobody rewrites manifests. Raises apsw.CorruptError when the index is damaged:
    then it is made anew first.
    Both callbacks may be called from other threads, one call at a time. Holds a few MiB.
    """
    check_index(reader.conn)
    tally = Tally(on_damage, on_progress)
    stop = stop or threading.Event()
    share: Iterator[int] = iter(segments_of(reader.conn))
    guard = threading.Lock()
    with ThreadPoolExecutor(THREADS, "verify") as pool:
        work: list[Future[None]] = [
            pool.submit(_check_segments, reader.folder, share, guard, tally, stop)
            for _ in range(THREADS)
        ]
        for future in work:
            future.result()
    if newest is not None:
        _check_manifests(reader, newest.number, tally, stop, steady)
        tally.report.missing_chunks = check_extents(reader.conn, tally)
    return tally.report


def check_index(conn: apsw.Connection) -> None:
    """Read every page of the index; raise apsw.CorruptError for one that is not sound."""
    wrong = index.check_pages(conn)
    if wrong:
        raise apsw.CorruptError(wrong)


def _check_segments(
    folder: str,
    share: Iterator[int],
    guard: threading.Lock,
    tally: Tally,
    stop: threading.Event,
) -> None:
    """Check segments, the next that nobody has taken each time."""

    def before_read(_count_bytes: int) -> None:
        if stop.is_set():
            raise Cancelled

    reader = Reader(folder)
    try:
        while True:
            with guard:
                number = next(share, None)
            if number is None:
                return
            check_segment(reader, number, tally, before_read)
    finally:
        reader.close()


def check_segment(
    reader: Reader, number: int, tally: Tally, before_read: BeforeRead = lambda _: None
) -> None:
    """Check every chunk that the index knows in a segment, and the segment's header.

    Segment 0 holds those that lie nowhere.
    """
    # It is looked for under its name: one that is open may have been unlinked since.
    reader.forget(number)
    header = reader.pread(number, 0, segment.SEGMENT_HEADER_BYTES)
    # A segment that is not there, or was only begun, is a matter of its chunks.
    reason = segment.wrong_header(header, number) if header else ""
    query = "SELECT id FROM chunk WHERE segment = ? AND bad"
    known_bad = {chunk for (chunk,) in reader.conn.execute(query, (number,))}
    for rows in _pages(reader.conn, number):
        if reason:
            tally.bad_segment_header(number, reason)
            reason = ""
        _check_rows(reader, rows, known_bad, tally, before_read)


_SEGMENTS = (
    "WITH RECURSIVE found(number) AS (SELECT min(segment) FROM chunk UNION ALL"
    " SELECT (SELECT min(segment) FROM chunk WHERE segment > number) FROM found"
    " WHERE number IS NOT NULL) SELECT number FROM found WHERE number IS NOT NULL"
)


def segments_of(conn: apsw.Connection) -> list[int]:
    """Return the segments in which the index knows chunks, rising, whether they are there or not.

    0 is among them when there are chunks of which no copy is there.
    """
    return [int(number) for (number,) in conn.execute(_SEGMENTS)]


def _pages(conn: apsw.Connection, number: int) -> Iterator[list[ChunkRow]]:
    """Yield the chunks of a segment in order of place; those that lie nowhere have the same."""
    after = (-1, 0)
    while True:
        found = conn.execute(
            "SELECT id, digest, plain_bytes, stored_bytes, codec, segment, offset FROM chunk"
            " WHERE segment = ? AND (offset, id) > (?, ?) ORDER BY offset, id LIMIT ?",
            (number, *after, PAGE_ROWS),
        )
        rows = [ChunkRow(*row) for row in found]
        if not rows:
            return
        yield rows
        after = (rows[-1].offset, rows[-1].id)


def _check_rows(
    reader: Reader,
    rows: list[ChunkRow],
    known_bad: set[int],
    tally: Tally,
    before_read: BeforeRead,
) -> None:
    room = memoryview(bytearray(MERGED_READ_BYTES))
    for place in merged(rows):
        before_read(place.size_bytes)
        data = reader.read_place(place, room)
        for row in place.rows:
            try:
                checked_of(row, data[row.offset - place.offset :])
            except DamagedChunk as error:
                reason = error.reason if row.segment else LOST
                tally.bad(describe(reader.conn, row, reason))
            else:
                if row.id in known_bad:
                    tally.sound_again(row)
        tally.good(len(place.rows), sum(row.plain_bytes for row in place.rows))


def _check_manifests(
    reader: Reader,
    newest: int,
    tally: Tally,
    stop: threading.Event,
    steady: AbstractContextManager[object],
) -> None:
    points = reader.conn.execute(
        "SELECT number FROM point WHERE number <= ? ORDER BY number", (newest,)
    )
    for (number,) in list(points):
        if stop.is_set():
            raise Cancelled
        check_manifest(reader, number, tally, steady)


def check_manifest(
    reader: Reader,
    number: int,
    tally: Tally,
    steady: AbstractContextManager[object] = _NOTHING,
) -> None:
    """Check a recovery point's manifest, and that it is the one of that recovery point.

    Within `steady` nobody rewrites manifests: what looks wrong is looked at again there.
    """
    reason = _wrong_manifest(reader, number)
    if reason:
        with steady:
            reason = _wrong_manifest(reader, number)
    if reason:
        tally.bad(DamageFound(chunk=0, segment=0, offset=0, reason=reason, points=[number]))
    tally.report.manifests += 1


_POINT = "SELECT number, digest FROM point WHERE number {which} ? ORDER BY number DESC LIMIT 1"


def _wrong_manifest(reader: Reader, number: int) -> str:
    own = reader.conn.execute(_POINT.format(which="="), (number,)).fetchone()
    if own is None:
        return ""
    parent = reader.conn.execute(_POINT.format(which="<"), (number,)).fetchone() or (0, b"")
    try:
        found = manifest.check(manifest.path_of(os.path.join(reader.folder, "manifests"), number))
    except (Damaged, FileNotFoundError) as error:
        return f"manifest {number}: {error}"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return f"manifest {number} cannot be read"
    head = found.head
    if (head.number, found.identity) != own or (head.parent, head.parent_digest) != parent:
        return f"manifest {number} is not the one that was committed"
    return ""


_MISSING_LIVE = (
    "SELECT DISTINCT chunk FROM extent e WHERE kind = 0"
    " AND NOT EXISTS (SELECT 1 FROM chunk c WHERE c.id = e.chunk) LIMIT ?"
)
_MISSING_PAST = _MISSING_LIVE.replace("FROM extent", "FROM extent_past")


def check_extents(conn: apsw.Connection, tally: Tally) -> int:
    """Return how many chunks extents name that the index does not know (at most MAX_DAMAGES)."""
    missing: set[int] = set()
    for query in (_MISSING_LIVE, _MISSING_PAST):
        rows = conn.execute(query, (MAX_DAMAGES,))
        missing.update(chunk for (chunk,) in rows)
    for chunk in sorted(missing):
        row = index.ChunkRow(chunk, b"", 0, 0, 0, 0, 0)
        tally.bad(describe(conn, row, "the chunk is missing"))
    return len(missing)
