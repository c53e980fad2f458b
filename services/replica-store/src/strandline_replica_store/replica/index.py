"""The index: a SQLite projection of segments and manifests, deletable at any time.

Each of its pages has a check sum: what was changed by the disk is an error, never an answer.

A row of `inode` and `name` is part of recovery point n when born <= n < died. Extents that still
hold lie in `extent`, those that ended in `extent_past`, so that reading the newest state never
wades through dead rows. Applying a manifest touches only what it changed.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from itertools import islice, pairwise
from typing import Any, NamedTuple

import apsw
import apsw.sqlite_extra
import msgspec

from strandline_contracts.codec import decode, encode
from strandline_contracts.points import (
    BLOCK_BYTES,
    EXTENT_HOLE,
    Extent,
    Inode,
    Name,
    RecoveryPoint,
)
from strandline_replica_store.errors import Damaged, means_damage
from strandline_replica_store.files.manifest import ChunkName, Delta, Manifest
from strandline_runtime import outbox

SCHEMA_VERSION = 2
CHECKSUM_BYTES = 8
"""Kept free at the end of each page: what the check sums of SQLite's `cksumvfs` take."""
STEADY = threading.Lock()
"""Held while another index is put in the place of one, and while a reader opens one: file, log and
shared memory are found by name, one after the other, and must be of one index."""
ERA_SHIFT = 48
"""Above these bits of a chunk's id stands the era in which it was given."""
FOREVER = (1 << 63) - 1
"""`died` of a row that still holds."""
WRITER_CACHE_KIB = 16 * 1024
READER_CACHE_KIB = 4 * 1024
LOG_KEPT_BYTES = 4 * 1024 * 1024
"""To so much the write-ahead log is cut after a large transaction."""
BUSY_TIMEOUT_MS = 10_000
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
CREATE INDEX IF NOT EXISTS chunk_bad ON chunk (id) WHERE bad;
CREATE TABLE IF NOT EXISTS extent (
    file INTEGER NOT NULL, start INTEGER NOT NULL, born INTEGER NOT NULL, blocks INTEGER NOT NULL,
    kind INTEGER NOT NULL, chunk INTEGER NOT NULL, chunk_block INTEGER NOT NULL,
    PRIMARY KEY (file, start)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS extent_by_chunk
    ON extent (chunk, file, start, born, blocks, kind, chunk_block);
CREATE TABLE IF NOT EXISTS extent_past (
    file INTEGER NOT NULL, start INTEGER NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
    blocks INTEGER NOT NULL, kind INTEGER NOT NULL, chunk INTEGER NOT NULL,
    chunk_block INTEGER NOT NULL,
    PRIMARY KEY (file, start, born)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS past_by_chunk
    ON extent_past (chunk, file, start, born, died, blocks, kind, chunk_block);
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
CREATE TABLE IF NOT EXISTS verified (
    kind INTEGER NOT NULL, number INTEGER NOT NULL, seen_at_ns INTEGER NOT NULL,
    at_ns INTEGER NOT NULL,
    PRIMARY KEY (kind, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS verified_by_time ON verified (at_ns, kind, number);
CREATE TABLE IF NOT EXISTS stale (point INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS former (
    chunk INTEGER NOT NULL, file INTEGER NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
    PRIMARY KEY (chunk, file)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS retired (
    segment INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, gone INTEGER NOT NULL DEFAULT 0
);
"""


class Outdated(Exception):
    """An index of another version of its tables, or without check sums."""


@cache
def _checking_vfs() -> str:
    """Register SQLite's own checksum VFS in this process; return its name."""
    with closing(apsw.Connection(":memory:")) as conn:
        apsw.sqlite_extra.load(conn, "cksumvfs")
    return "cksmvfs"


def connect(path: str) -> apsw.Connection:
    """Open the index for writing, making it if there is none. Raises Outdated and apsw.Error."""
    conn = apsw.Connection(path, vfs=_checking_vfs())
    try:
        conn.set_busy_timeout(BUSY_TIMEOUT_MS)
        is_new = conn.execute("PRAGMA page_count").fetchone() == (0,)
        if is_new:
            conn.reserve_bytes("main", CHECKSUM_BYTES)
        conn.execute("PRAGMA journal_mode=WAL")
        conn.execute("PRAGMA synchronous=FULL")
        conn.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIB}")
        conn.execute(f"PRAGMA journal_size_limit={LOG_KEPT_BYTES}")
        # Nothing is written where nothing must be: an index on a full disk still opens.
        if is_new:
            conn.execute(_SCHEMA)
            conn.execute(outbox.SCHEMA)
            conn.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        _check_kind(conn)
        conn.execute(_OTHER_COPIES)
    except BaseException:
        conn.close()
        raise
    return conn


def connect_to_read(path: str) -> apsw.Connection:
    """Open an index that a writer may have open, read-only. Raises Outdated and apsw.Error."""
    with STEADY:
        return _connect_to_read(path)


def _connect_to_read(path: str) -> apsw.Connection:
    conn = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY, vfs=_checking_vfs())
    try:
        conn.set_busy_timeout(BUSY_TIMEOUT_MS)
        conn.execute("PRAGMA query_only=1")
        conn.execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}")
        _check_kind(conn)
    except BaseException:
        conn.close()
        raise
    return conn


def connect_unchecked(path: str) -> apsw.Connection:
    """Open an index of whichever version, read-only. Raises apsw.Error."""
    return apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY, vfs=_checking_vfs())


def _check_kind(conn: apsw.Connection) -> None:
    version = conn.execute("PRAGMA user_version").fetchone()
    if version != (SCHEMA_VERSION,):
        raise Outdated(f"the index is of version {version}, not {SCHEMA_VERSION}")
    checked = conn.execute("PRAGMA checksum_verification").fetchone()
    # A database in memory has no pages on a disk, and so no answer.
    if checked is not None and int(checked[0]) != 1:
        raise Outdated("the index has no check sums")


def carry_over(conn: apsw.Connection) -> None:
    """Bring the write-ahead log into the database, as far as readers let it: pages get their check
    sums there. What cannot be carried over now, for want of room, is later.
    """
    try:
        conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    except apsw.Error as error:
        if means_damage(error):
            raise


def check_pages(conn: apsw.Connection) -> str:
    """Read every page; return what is wrong with the first that is not sound, empty for none."""
    found = str(conn.execute("PRAGMA quick_check(1)").get)
    return "" if found == "ok" else found


@contextmanager
def transaction(conn: apsw.Connection) -> Iterator[None]:
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


@contextmanager
def one_view(conn: apsw.Connection) -> Iterator[None]:
    """`with one_view(conn):` all that is read is of one moment, whatever is written meanwhile."""
    conn.execute("SAVEPOINT one_view")
    try:
        yield
    finally:
        conn.execute("RELEASE one_view")


# Chunks


_OTHER_COPIES = (
    "CREATE TEMP TABLE other_copy (id INTEGER, digest BLOB, stored_bytes INTEGER, codec INTEGER,"
    " segment INTEGER, offset INTEGER, PRIMARY KEY (id, digest)) WITHOUT ROWID"
)


class ChunkRow(NamedTuple):
    """Where a chunk lies: the table's columns in their order, but for `prefix`, `staged`, `bad`."""

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


def held(conn: apsw.Connection, digest: bytes) -> tuple[int, int, bool] | None:
    """Return (id, plain bytes, bad) of the chunk with this plain digest; sound ones first."""
    rows = conn.execute(
        "SELECT digest, id, plain_bytes, bad FROM chunk WHERE prefix = ? ORDER BY bad",
        (prefix_of(digest),),
    )
    for found, chunk, plain_bytes, bad in rows:
        if found == digest:
            return chunk, plain_bytes, bool(bad)
    return None


def missing(conn: apsw.Connection, digests: Iterable[bytes]) -> list[int]:
    """Return the positions of digests that the replica does not hold soundly, rising."""
    found = (held(conn, digest) for digest in digests)
    return [position for position, chunk in enumerate(found) if chunk is None or chunk[2]]


def add_chunks(conn: apsw.Connection, rows: Iterable[ChunkRow]) -> None:
    """Add staged chunks; one that is known has a new place and is sound again.

    Known is one of the same id and digest. Another digest under a known id is passed over, unless
    all that is known is a torn write, whose id was given once more: what a user's file holds may
    look like a chunk.
    """
    conn.executemany(
        "INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 0) ON CONFLICT (id) DO UPDATE SET"
        " prefix = excluded.prefix, digest = excluded.digest, plain_bytes = excluded.plain_bytes,"
        " segment = excluded.segment, offset = excluded.offset, codec = excluded.codec,"
        " stored_bytes = excluded.stored_bytes, bad = 0"
        " WHERE (digest = excluded.digest AND plain_bytes = excluded.plain_bytes)"
        " OR (staged AND bad)",
        ((row.id, prefix_of(row.digest), *row[1:]) for row in rows),
    )


def add_found(conn: apsw.Connection, rows: Sequence[ChunkRow]) -> None:
    """Add chunks as they are found in segments.

    Where several lie under one id the manifest that names it says which it is; this connection
    remembers the others until then.
    """
    add_chunks(conn, rows)
    conn.executemany(
        "INSERT OR REPLACE INTO temp.other_copy SELECT ?1, ?2, ?3, ?4, ?5, ?6"
        " WHERE EXISTS (SELECT 1 FROM chunk WHERE id = ?1 AND digest != ?2)",
        (
            (row.id, row.digest, row.stored_bytes, row.codec, row.segment, row.offset)
            for row in rows
        ),
    )


def add_bad_chunk(conn: apsw.Connection, row: ChunkRow) -> None:
    """Add a chunk whose bytes are damaged, unless another copy of it is known."""
    conn.execute(
        "INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 1)",
        (row.id, prefix_of(row.digest), *row[1:]),
    )


def newest_point(conn: apsw.Connection) -> RecoveryPoint | None:
    """Return the newest recovery point, None if there is none."""
    row = conn.execute("SELECT record FROM point ORDER BY number DESC LIMIT 1").fetchone()
    return decode(row[0], RecoveryPoint) if row else None


def point(conn: apsw.Connection, number: int) -> RecoveryPoint:
    """Return a recovery point; raise Damaged when there is no such."""
    row = conn.execute("SELECT record FROM point WHERE number = ?", (number,)).fetchone()
    if row is None:
        raise Damaged(f"the index does not know recovery point {number}")
    return decode(row[0], RecoveryPoint)


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

    def __init__(self, conn: apsw.Connection, number: int) -> None:
        self._conn = conn
        self._number = number
        # Ids above these have no rows yet, so that nothing of theirs can be ended.
        self._top_inode = self._top("SELECT max(file) FROM inode")
        self._top_folder = self._top("SELECT max(parent) FROM name")
        self._top_extent = self._top("SELECT max(file) FROM extent")

    def _top(self, query: str) -> int:
        return int(self._conn.execute(query).get or 0)

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
        # One of which no copy is there lies nowhere: it is damaged, and waits to be mended. What
        # was found under its id with another digest is no copy of it; perhaps another one is.
        rows = [(c.id, prefix_of(c.digest), c.digest, c.plain_bytes) for c in chunks]
        self._conn.executemany(
            "INSERT INTO chunk VALUES (?, ?, ?, ?, 0, 0, 0, 0, 0, 1)"
            " ON CONFLICT DO UPDATE SET staged = 0 WHERE staged",
            rows,
        )
        self._conn.executemany(
            "UPDATE chunk SET prefix = ?2, digest = ?3, plain_bytes = ?4, stored_bytes = 0,"
            " codec = 0, segment = 0, offset = 0, bad = 1"
            " WHERE id = ?1 AND (digest != ?3 OR plain_bytes != ?4)",
            rows,
        )
        self._conn.executemany(
            "UPDATE chunk SET (stored_bytes, codec, segment, offset, bad) ="
            " (SELECT stored_bytes, codec, segment, offset, 0 FROM temp.other_copy o"
            " WHERE o.id = ?1 AND o.digest = ?2) WHERE id = ?1 AND segment = 0"
            " AND EXISTS (SELECT 1 FROM temp.other_copy o WHERE o.id = ?1 AND o.digest = ?2)",
            ((c.id, c.digest) for c in chunks),
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
        """End what the ranges hold; what sticks out of them goes on, born when it was.

        The ranges are disjoint, and sorted within each file.
        """
        changes = _Changes()
        for file, first, end in ranges:
            if file > self._top_extent:
                continue
            while True:
                rows = self._overlapping(file, first, end)
                for row in rows:
                    changes.end(row, first, end)
                if len(rows) < OVERLAP_PAGE_ROWS:
                    break
                self._write(changes)
                changes = _Changes()
        self._write(changes)

    def _overlapping(self, file: int, first: int, end: int) -> list[_Row]:
        rows = self._conn.execute(
            "SELECT file, start, born, blocks, kind, chunk, chunk_block FROM extent"
            " WHERE file = ?1 AND start >= coalesce((SELECT max(start) FROM extent"
            " WHERE file = ?1 AND start <= ?2), ?2) AND start < ?3 AND start + blocks > ?2"
            " ORDER BY start LIMIT ?4",
            (file, first, end, OVERLAP_PAGE_ROWS),
        )
        return list(rows)

    def _write(self, changes: _Changes) -> None:
        if not changes.rows:
            return
        number = self._number
        self._conn.executemany("DELETE FROM extent WHERE file = ? AND start = ?", changes.rows)
        # What is of this very recovery point was never part of another: it leaves no past.
        self._conn.executemany(
            "INSERT INTO extent_past VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((r[0], r[1], r[2], number, *r[3:]) for r in changes.ended if r[2] != number),
        )
        self._insert(changes.left)


class _Changes:
    """What ending some ranges does: rows that go, the parts of them that end, and what is left."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], None] = {}
        self.ended: list[_Row] = []
        self.left: list[_Row] = []

    def end(self, row: _Row, first: int, end: int) -> None:
        """End blocks `first` to `end` - 1 of a row; ranges come in rising order."""
        key = (row[0], row[1])
        # A row that the range before has split already: go on with what was left.
        held = self.left.pop() if key in self.rows else row
        self.rows[key] = None
        start, stop = held[1], held[1] + held[3]
        if start < first:
            self.left.append(_part(held, start, first))
        self.ended.append(_part(held, max(start, first), min(stop, end)))
        if stop > end:
            self.left.append(_part(held, end, stop))


def _part(row: _Row, first: int, end: int) -> _Row:
    """Return blocks `first` to `end` - 1 of an extent's row."""
    file, start, born, _, kind, chunk, chunk_block = row
    offset = chunk_block + first - start if chunk else 0
    return file, first, born, end - first, kind, chunk, offset


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


def apply_manifest(
    conn: apsw.Connection, manifest: Manifest, deltas: Iterable[Delta]
) -> RecoveryPoint:
    """Add a recovery point to the index; the caller holds the transaction."""
    made = manifest.point()
    applier = Applier(conn, made.number)
    for delta in deltas:
        applier.apply(delta)
    conn.execute(
        "INSERT INTO point VALUES (?, ?, ?, ?)",
        (made.number, made.digest, made.job, encode(made)),
    )
    return made


# Dropping recovery points

_USELESS = (
    "SELECT {key} FROM {table} r WHERE died <="
    " (SELECT number FROM point WHERE number >= r.born ORDER BY number LIMIT 1)"
)
PROJECTED = {
    "extent_past": ("file", "start", "born"),
    "inode": ("file", "born"),
    "name": ("parent", "name", "born"),
}
"""Tables with rows that end, and their keys."""
DELETED_AT_ONCE_ROWS = 5000


def drop_points(
    conn: apsw.Connection, dropped: Collection[int], number: int, parent: int
) -> RecoveryPoint:
    """Forget recovery points; `number`, the one that follows them, builds on `parent` (0: none).

    Rows that no point needs any more stay until `useless_rows` are deleted. Returns the point that
    follows as it is now. The caller holds the transaction.
    """
    conn.executemany("DELETE FROM point WHERE number = ?", ((gone,) for gone in dropped))
    digest = point(conn, parent).digest if parent else b""
    changed = msgspec.structs.replace(point(conn, number), parent=parent, parent_digest=digest)
    conn.execute("UPDATE point SET record = ? WHERE number = ?", (encode(changed), number))
    return changed


def useless_rows(conn: apsw.Connection, table: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yield, some at a time, the keys of a table's rows that no recovery point needs."""
    key = ", ".join(PROJECTED[table])
    rows = conn.execute(_USELESS.format(key=key, table=table))
    while some := list(islice(rows, DELETED_AT_ONCE_ROWS)):
        yield some


def delete_rows(conn: apsw.Connection, table: str, keys: Iterable[tuple[Any, ...]]) -> None:
    """Delete rows of a table by key."""
    match = " AND ".join(f"{column} = ?" for column in PROJECTED[table])
    conn.executemany(f"DELETE FROM {table} WHERE {match}", keys)  # noqa: S608 - own words


def get_meta(conn: apsw.Connection, key: str) -> str:
    """Return a value of `meta`, empty when there is none."""
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else ""


def put_meta(conn: apsw.Connection, key: str, value: str) -> None:
    """Set a value of `meta`; an empty one is none."""
    if value:
        conn.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
    else:
        conn.execute("DELETE FROM meta WHERE key = ?", (key,))
