"""The index: a SQLite projection of segments and manifests, deletable at any time.

A row of `inode` and `name` is part of recovery point n when born <= n < died. Extents that still
hold lie in `extent`, those that ended in `extent_past`, so that reading the newest state never
wades through dead rows. Applying a manifest touches only what it changed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

from strandline_contracts.codec import decode, encode
from strandline_contracts.points import (
    BLOCK_BYTES,
    EXTENT_HOLE,
    Extent,
    Inode,
    Name,
    RecoveryPoint,
)
from strandline_replica_store.manifest import ChunkName, Delta, Manifest
from strandline_runtime import outbox

SCHEMA_VERSION = 1
FOREVER = (1 << 63) - 1
"""`died` of a row that still holds."""
WRITER_CACHE_KIB = 16 * 1024
READER_CACHE_KIB = 4 * 1024
LOG_KEPT_BYTES = 4 * 1024 * 1024
"""To so much the write-ahead log is cut after a large transaction."""
BUSY_TIMEOUT_S = 10.0
OVERLAP_PAGE_ROWS = 4096

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS point (
    number INTEGER PRIMARY KEY, digest BLOB NOT NULL, job TEXT NOT NULL, record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS point_by_job ON point (job);
CREATE TABLE IF NOT EXISTS chunk (
    id INTEGER PRIMARY KEY, prefix INTEGER NOT NULL, digest BLOB NOT NULL,
    plain_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL, codec INTEGER NOT NULL,
    segment INTEGER NOT NULL, offset INTEGER NOT NULL,
    staged INTEGER NOT NULL, bad INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS chunk_by_digest ON chunk (prefix);
CREATE INDEX IF NOT EXISTS chunk_by_place ON chunk (segment, offset);
CREATE TABLE IF NOT EXISTS extent (
    file INTEGER NOT NULL, start INTEGER NOT NULL, born INTEGER NOT NULL, blocks INTEGER NOT NULL,
    kind INTEGER NOT NULL, chunk INTEGER NOT NULL, chunk_block INTEGER NOT NULL,
    PRIMARY KEY (file, start)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS extent_by_chunk ON extent (chunk, file, start);
CREATE TABLE IF NOT EXISTS extent_past (
    file INTEGER NOT NULL, start INTEGER NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
    blocks INTEGER NOT NULL, kind INTEGER NOT NULL, chunk INTEGER NOT NULL,
    chunk_block INTEGER NOT NULL,
    PRIMARY KEY (file, start, born)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS past_by_chunk ON extent_past (chunk, file, start, born, died);
CREATE TABLE IF NOT EXISTS inode (
    file INTEGER NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (file, born)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS name (
    parent INTEGER NOT NULL, name BLOB NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
    file INTEGER NOT NULL,
    PRIMARY KEY (parent, name, born)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS name_by_file ON name (file);
CREATE TABLE IF NOT EXISTS job (
    job TEXT PRIMARY KEY, attempt INTEGER NOT NULL, server TEXT NOT NULL, kind TEXT NOT NULL,
    parent INTEGER NOT NULL, parent_digest BLOB NOT NULL, state TEXT NOT NULL,
    durable INTEGER NOT NULL, part_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL,
    opened_at_ns INTEGER NOT NULL, code TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT '', retryable INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS batch (seq INTEGER PRIMARY KEY, digest BLOB NOT NULL);
"""


def connect(path: str) -> sqlite3.Connection:
    """Open the index for writing, making it if there is none."""
    conn = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S
    )
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute("PRAGMA synchronous=FULL")
    conn.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIB}")
    conn.execute(f"PRAGMA journal_size_limit={LOG_KEPT_BYTES}")
    # Nothing is written where nothing must be: an index on a full disk still opens.
    if conn.execute("PRAGMA user_version").fetchone() != (SCHEMA_VERSION,):
        conn.executescript(_SCHEMA)
        conn.executescript(outbox.SCHEMA)
        conn.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    return conn


def connect_to_read(path: str) -> sqlite3.Connection:
    """Open an index that a writer may have open, read-only."""
    conn = sqlite3.connect(
        f"file:{_quoted(path)}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_S,
    )
    conn.execute("PRAGMA query_only=1")
    conn.execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}")
    return conn


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


@contextmanager
def transaction(conn: sqlite3.Connection) -> Iterator[None]:
    """`with transaction(conn):` commits at the end, rolls back on any error."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        # SQLite itself has rolled back already after some errors, a full disk among them.
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


# Chunks


class ChunkRow(NamedTuple):
    """Where a chunk lies; fields as in the table, `prefix` left out."""

    id: int
    digest: bytes
    plain_bytes: int
    stored_bytes: int
    codec: int
    segment: int
    offset: int


def prefix_of(digest: bytes) -> int:
    """Return the first 8 bytes of a digest as SQLite's signed number."""
    return int.from_bytes(digest[:8], "little", signed=True)


def held(conn: sqlite3.Connection, digest: bytes) -> tuple[int, int, bool] | None:
    """Return (id, plain bytes, bad) of the chunk with this plain digest; sound ones first."""
    rows = conn.execute(
        "SELECT digest, id, plain_bytes, bad FROM chunk WHERE prefix = ? ORDER BY bad",
        (prefix_of(digest),),
    )
    for found, chunk, plain_bytes, bad in rows:
        if found == digest:
            return chunk, plain_bytes, bool(bad)
    return None


def missing(conn: sqlite3.Connection, digests: Iterable[bytes]) -> list[int]:
    """Return the positions of digests that the replica does not hold soundly, rising."""
    found = (held(conn, digest) for digest in digests)
    return [position for position, chunk in enumerate(found) if chunk is None or chunk[2]]


def add_chunks(conn: sqlite3.Connection, rows: Iterable[ChunkRow]) -> None:
    """Add staged chunks; one whose id is known has a new place and is sound again."""
    conn.executemany(
        "INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 0) ON CONFLICT (id) DO UPDATE SET"
        " segment = excluded.segment, offset = excluded.offset, codec = excluded.codec,"
        " stored_bytes = excluded.stored_bytes, bad = 0",
        ((row.id, prefix_of(row.digest), *row[1:]) for row in rows),
    )


def newest_point(conn: sqlite3.Connection) -> RecoveryPoint | None:
    """Return the newest recovery point, None if there is none."""
    row = conn.execute("SELECT record FROM point ORDER BY number DESC LIMIT 1").fetchone()
    return decode(row[0], RecoveryPoint) if row else None


# Applying a manifest

_ENDED = "UPDATE {table} SET died = ? WHERE {key} AND died = ? AND born < ?"
_END_INODE = _ENDED.format(table="inode", key="file = ?")
_END_NAME = _ENDED.format(table="name", key="parent = ? AND name = ?")
_END_NAMES_IN = _ENDED.format(table="name", key="parent = ?")

_Range = tuple[int, int, int]
"""file, first block, block after the last."""
_Row = tuple[int, ...]
"""file, start, born, blocks, kind, chunk, chunk_block."""


class Applier:
    """Applies the deltas of one recovery point inside a transaction that its caller holds."""

    def __init__(self, conn: sqlite3.Connection, number: int) -> None:
        self._conn = conn
        self._number = number
        # Ids above these have no rows yet, so that nothing of theirs can be ended.
        self._top_inode = self._top("SELECT max(file) FROM inode")
        self._top_folder = self._top("SELECT max(parent) FROM name")
        self._top_extent = self._top("SELECT max(file) FROM extent")

    def _top(self, query: str) -> int:
        return int(self._conn.execute(query).fetchone()[0] or 0)

    def apply(self, delta: Delta) -> None:
        """Apply one delta: first what is gone, then inodes, names and extents."""
        self._end_names(delta.gone_names)
        for file in delta.gone_inodes:
            self._end_inode(file)
        self._put_inodes(delta.inodes)
        self._put_names(delta.names)
        self._own_chunks(delta.chunks)
        self._put_extents(delta.extents)

    def _own_chunks(self, chunks: list[ChunkName]) -> None:
        self._conn.executemany(
            "UPDATE chunk SET staged = 0 WHERE id = ? AND staged", ((c.id,) for c in chunks)
        )

    def _end_names(self, names: Iterable[tuple[int, bytes]]) -> None:
        number = self._number
        keys = [key for key in names if key[0] <= self._top_folder]
        if not keys:
            return
        self._conn.executemany(
            "DELETE FROM name WHERE parent = ? AND name = ? AND born = ?",
            ((parent, name, number) for parent, name in keys),
        )
        self._conn.executemany(
            _END_NAME, ((number, parent, name, FOREVER, number) for parent, name in keys)
        )

    def _end_inode(self, file: int) -> None:
        number = self._number
        self._conn.execute("DELETE FROM inode WHERE file = ? AND born = ?", (file, number))
        self._conn.execute(_END_INODE, (number, file, FOREVER, number))
        self._conn.execute("DELETE FROM name WHERE parent = ? AND born = ?", (file, number))
        self._conn.execute(_END_NAMES_IN, (number, file, FOREVER, number))
        self._end_extents([(file, 0, FOREVER)])

    def _put_inodes(self, inodes: list[Inode]) -> None:
        number = self._number
        known = [inode for inode in inodes if inode.file <= self._top_inode]
        self._conn.executemany(_END_INODE, ((number, i.file, FOREVER, number) for i in known))
        self._conn.executemany(
            "INSERT OR REPLACE INTO inode VALUES (?, ?, ?, ?)",
            ((inode.file, number, FOREVER, encode(inode)) for inode in inodes),
        )
        sizes: dict[int, int] = {}
        for inode in inodes:
            if inode.type == "f":
                blocks = -(-inode.size // BLOCK_BYTES)
                sizes[inode.file] = min(blocks, sizes.get(inode.file, blocks))
        self._end_extents([(file, blocks, FOREVER) for file, blocks in sizes.items()])
        self._top_inode = max([self._top_inode, *(i.file for i in inodes)])

    def _put_names(self, names: list[Name]) -> None:
        number = self._number
        known = [name for name in names if name.parent <= self._top_folder]
        self._conn.executemany(
            _END_NAME, ((number, n.parent, n.name, FOREVER, number) for n in known)
        )
        self._conn.executemany(
            "INSERT OR REPLACE INTO name VALUES (?, ?, ?, ?, ?)",
            ((n.parent, n.name, number, FOREVER, n.file) for n in names),
        )
        self._top_folder = max([self._top_folder, *(n.parent for n in names)])

    def _put_extents(self, extents: list[Extent]) -> None:
        for run in _runs(extents):
            self._end_extents(_covered(run))
            self._insert(
                (e.file, e.start, self._number, e.blocks, e.kind, e.chunk, e.chunk_block)
                for e in run
                if e.kind != EXTENT_HOLE
            )
            self._top_extent = max(self._top_extent, run[-1].file)

    def _insert(self, rows: Iterable[tuple[int, ...]]) -> None:
        self._conn.executemany("INSERT INTO extent VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def _end_extents(self, ranges: list[_Range]) -> None:
        """End what the ranges hold, splitting the extents that stick out.

        The ranges are disjoint, and sorted within each file.
        """
        ended: dict[tuple[int, int], _Row] = {}
        pieces: list[_Row] = []
        for file, first, end in ranges:
            if file > self._top_extent:
                continue
            while True:
                rows = self._overlapping(file, first, end)
                for row in rows:
                    # A row that the range before has split already: go on with what was left.
                    held = pieces.pop() if row[:2] in ended else row
                    ended.setdefault((row[0], row[1]), row)
                    pieces += _sticking_out(held, first, end, self._number)
                if len(rows) < OVERLAP_PAGE_ROWS:
                    break
                self._write_ended(ended, pieces)
                ended, pieces = {}, []
        self._write_ended(ended, pieces)

    def _overlapping(self, file: int, first: int, end: int) -> list[_Row]:
        return self._conn.execute(
            "SELECT file, start, born, blocks, kind, chunk, chunk_block FROM extent"
            " WHERE file = ?1 AND start >= coalesce((SELECT max(start) FROM extent"
            " WHERE file = ?1 AND start <= ?2), ?2) AND start < ?3 AND start + blocks > ?2"
            " ORDER BY start LIMIT ?4",
            (file, first, end, OVERLAP_PAGE_ROWS),
        ).fetchall()

    def _write_ended(self, ended: dict[tuple[int, int], _Row], pieces: list[_Row]) -> None:
        if not ended:
            return
        number = self._number
        self._conn.executemany("DELETE FROM extent WHERE file = ? AND start = ?", ended)
        # Rows of this very recovery point were never part of another: they leave no past.
        self._conn.executemany(
            "INSERT INTO extent_past VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((r[0], r[1], r[2], number, *r[3:]) for r in ended.values() if r[2] != number),
        )
        self._insert(pieces)


def _runs(extents: list[Extent]) -> Iterator[list[Extent]]:
    """Cut extents into runs, each sorted and without overlap, that apply one after the other."""
    run = sorted(extents, key=_by_place)
    if all(a.file != b.file or a.start + a.blocks <= b.start for a, b in pairwise(run)):
        if run:
            yield run
        return
    for extent in extents:
        yield [extent]


def _by_place(extent: Extent) -> tuple[int, int]:
    return extent.file, extent.start


def _covered(run: list[Extent]) -> list[_Range]:
    """Return the ranges that a run covers, neighbours made one."""
    ranges: list[_Range] = []
    for extent in run:
        end = extent.start + extent.blocks
        if ranges and ranges[-1][0] == extent.file and ranges[-1][2] == extent.start:
            ranges[-1] = (extent.file, ranges[-1][1], end)
        else:
            ranges.append((extent.file, extent.start, end))
    return ranges


def _sticking_out(row: _Row, first: int, end: int, number: int) -> Iterator[_Row]:
    """Yield what is left of an extent's row on either side of the blocks that are ended."""
    file, start, _, blocks, kind, chunk, chunk_block = row
    if start < first:
        yield file, start, number, first - start, kind, chunk, chunk_block
    if start + blocks > end:
        offset = chunk_block + (end - start) if chunk else 0
        yield file, end, number, start + blocks - end, kind, chunk, offset


def apply_manifest(
    conn: sqlite3.Connection, manifest: Manifest, deltas: Iterable[Delta]
) -> RecoveryPoint:
    """Add a recovery point to the index; the caller holds the transaction."""
    point = manifest.point()
    applier = Applier(conn, point.number)
    for delta in deltas:
        applier.apply(delta)
    conn.execute(
        "INSERT INTO point VALUES (?, ?, ?, ?)",
        (point.number, point.digest, point.job, encode(point)),
    )
    return point
