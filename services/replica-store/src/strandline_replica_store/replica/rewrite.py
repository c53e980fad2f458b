"""Writes the manifests of kept recovery points anew, from the index.

What a manifest describes stays the very same state; only what it is told against changes, and in
which chunks the bytes lie (docs/formats/replica.md, "Dropping and rewriting"). However many are
written, the index is passed once, and memory holds a frame.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

import apsw

from strandline_contracts.codec import decode
from strandline_contracts.points import BLOCK_BYTES, EXTENT_HOLE, Extent, Inode, Name, RecoveryPoint
from strandline_replica_store.errors import Damaged
from strandline_replica_store.files import durable, manifest
from strandline_replica_store.files.manifest import ChunkName, Delta, Head, ManifestWriter, Tail
from strandline_replica_store.replica import index, recovery
from strandline_replica_store.replica.dropping import Step

FRAME_PLAIN_BYTES = 512 * 1024
"""About so large a frame becomes."""
UNSYNCED_BYTES = 8 * 1024 * 1024
EXTENT_BYTES = 48
CHUNK_BYTES = 48
NAME_BYTES = 24
GONE_BYTES = 10
"""What records take in a frame, amply; names and inodes beside their own bytes."""

_R = TypeVar("_R")
_Blocks = tuple[int, int, int]
"""file, start, blocks."""

# Each row belongs to the one step (n, p) with p < born <= n, or p < died <= n.
_STEP_OF = "CROSS JOIN step s ON s.n = (SELECT min(n) FROM step WHERE n >= {at}) AND {at} > s.p"
_BORN = _STEP_OF.format(at="r.born")
_DIED = _STEP_OF.format(at="r.died")

_EXTENTS = (
    f"SELECT s.n, file, start, blocks, kind, chunk, chunk_block FROM extent r {_BORN}"  # noqa: S608 - own words
    f" UNION ALL SELECT s.n, file, start, blocks, kind, chunk, chunk_block FROM extent_past r"
    f" {_BORN} AND r.died > s.n ORDER BY 1, 2, 3"
)
_ENDED = (
    f"SELECT s.n, file, start, blocks FROM extent_past r {_DIED} AND r.born <= s.p"  # noqa: S608 - own words
    " ORDER BY 1, 2, 3"
)
_INODES = f"SELECT s.n, record FROM inode r {_BORN} AND r.died > s.n ORDER BY s.n, file"  # noqa: S608 - own words
_NAMES = (
    f"SELECT s.n, parent, name, file FROM name r {_BORN} AND r.died > s.n"  # noqa: S608 - own words
    " ORDER BY s.n, parent, name"
)
_ALIVE = (
    "EXISTS (SELECT 1 FROM inode a WHERE a.file = r.{key} AND a.born <= {at} AND a.died > {at})"
)
_GONE_INODES = (
    f"SELECT s.n, file FROM inode r {_DIED} AND r.born <= s.p"  # noqa: S608 - own words
    f" WHERE NOT {_ALIVE.format(key='file', at='s.n')} ORDER BY s.n, file"
)
# Names in a folder that is gone go with it.
_GONE_NAMES = (
    f"SELECT s.n, parent, name FROM name r {_DIED} AND r.born <= s.p"  # noqa: S608 - own words
    " WHERE NOT EXISTS (SELECT 1 FROM name a WHERE a.parent = r.parent AND a.name = r.name"
    " AND a.born <= s.n AND a.died > s.n)"
    f" AND ({_ALIVE.format(key='parent', at='s.n')} OR NOT {_ALIVE.format(key='parent', at='s.p')})"
    " ORDER BY s.n, parent, name"
)


class Folders(NamedTuple):
    """Where a replica keeps what is read and written here."""

    manifests: str
    staging: str
    damaged: str
    index_path: str


class Rewritten(NamedTuple):
    """A manifest that was written anew; `mended` when the one before was damaged or missing."""

    step: Step
    mended: bool


def write_all(folders: Folders, steps: Sequence[Step]) -> Iterator[Rewritten]:
    """Write the manifest of each step anew, in order; each is yielded when its rename is durable.

    Raises OSError, apsw.Error, and Damaged when the index does not know what it must.
    """
    with closing(index.connect_to_read(folders.index_path)) as conn:
        # What other points became meanwhile must not mix in: one view from the first to the last.
        conn.execute("PRAGMA query_only=0")
        conn.execute("CREATE TEMP TABLE step (n INTEGER PRIMARY KEY, p INTEGER NOT NULL)")
        conn.executemany("INSERT INTO step VALUES (?, ?)", ((s.number, s.parent) for s in steps))
        conn.execute("BEGIN")
        state = _State(conn)
        for step in steps:
            yield Rewritten(step, _write(folders, conn, state, step))


def _write(folders: Folders, conn: apsw.Connection, state: _State, step: Step) -> bool:
    """Write one manifest anew; return whether the one before was damaged."""
    point = index.point(conn, step.number)
    parent_digest = index.point(conn, step.parent).digest if step.parent else b""
    path = manifest.path_of(folders.manifests, step.number)
    damaged = not recovery.is_whole(folders.manifests, step.number)
    staged = manifest.path_of(folders.staging, step.number)
    writer = ManifestWriter.begin(staged, _head(point, step.parent, parent_digest))
    try:
        written_bytes = writer.end_bytes
        for delta in state.deltas(step):
            writer.append(delta)
            if writer.end_bytes - written_bytes > UNSYNCED_BYTES:
                writer.flush()
                written_bytes = writer.end_bytes
        for delta in () if damaged else manifest.deltas(path):
            if delta.issues:
                writer.append(Delta(issues=delta.issues))
        if damaged:
            _set_aside(path, folders.damaged)
        writer.finish(path, _tail(point))
    except BaseException:
        writer.close()
        durable.remove(staged)
        raise
    return damaged


def _set_aside(path: str, folder: str) -> None:
    """Keep a damaged manifest under a second name: its first one is about to be taken."""
    if os.path.exists(path):
        durable.make_folder(folder)
        aside = os.path.join(folder, os.path.basename(path))
        durable.remove(aside)
        os.link(path, aside)
        durable.sync_folder(folder)


def _head(point: RecoveryPoint, parent: int, parent_digest: bytes) -> Head:
    return Head(
        format=1,
        source=point.source,
        job=point.job,
        attempt=point.attempt,
        number=point.number,
        parent=parent,
        parent_digest=parent_digest,
        kind=point.kind,
        replaces=[(point.number, point.digest)],
        server=point.server,
    )


def _tail(point: RecoveryPoint) -> Tail:
    return Tail(
        digest=b"",
        frames=0,
        taken_at_ns=point.taken_at_ns,
        received_at_ns=point.received_at_ns,
        consistency=point.consistency,
        provider=point.provider,
        tracker=point.tracker,
        partial=point.partial,
        totals=point.totals,
        stored_bytes=point.stored_bytes,
    )


class _Rows:
    """The rows of a query that gives the number of their step first, and rises with it."""

    def __init__(self, conn: apsw.Connection, query: str) -> None:
        self._rows = conn.execute(query)
        self._next: Any = next(self._rows, None)

    def of(self, number: int) -> Iterator[Any]:
        """Yield the rows of a step, that number left out; steps are asked for in rising order."""
        while self._next is not None and self._next[0] <= number:
            row = self._next
            self._next = next(self._rows, None)
            if row[0] == number:
                yield row[1:]


class _State:
    """What recovery points are made of, told as deltas against other ones."""

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn
        self._ended = _Rows(conn, _ENDED)
        self._covers = _Rows(conn, _EXTENTS)
        self._gone_names = _Rows(conn, _GONE_NAMES)
        self._gone_inodes = _Rows(conn, _GONE_INODES)
        self._inodes = _Rows(conn, _INODES)
        self._names = _Rows(conn, _NAMES)
        self._extents = _Rows(conn, _EXTENTS)

    def deltas(self, step: Step) -> Iterator[Delta]:
        """Yield the deltas of a step: first holes alone, then what is gone, then its data."""
        n = step.number
        for holes in _parcels(self._holes(step), lambda _: EXTENT_BYTES):
            yield Delta(extents=holes)
        gone_names = ((parent, name) for parent, name in self._gone_names.of(n))
        for names in _parcels(gone_names, lambda key: NAME_BYTES + len(key[1])):
            yield Delta(gone_names=names)
        for files in _parcels((file for (file,) in self._gone_inodes.of(n)), lambda _: GONE_BYTES):
            yield Delta(gone_inodes=files)
        for records in _parcels((record for (record,) in self._inodes.of(n)), len):
            yield Delta(inodes=[decode(record, Inode) for record in records])
        named = (Name(*row) for row in self._names.of(n))
        for entries in _parcels(named, lambda name: NAME_BYTES + len(name.name)):
            yield Delta(names=entries)
        placed = (Extent(*row) for row in self._extents.of(n))
        for extents in _parcels(placed, lambda _: EXTENT_BYTES + CHUNK_BYTES):
            yield Delta(chunks=self._chunks(extents), extents=extents)

    def _chunks(self, extents: list[Extent]) -> list[ChunkName]:
        wanted = sorted({extent.chunk for extent in extents if extent.chunk})
        rows = self._conn.execute(
            "SELECT id, digest, plain_bytes FROM chunk"
            " WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps(wanted),),
        )
        found = [ChunkName(*row) for row in rows]
        if len(found) != len(wanted):
            raise Damaged("the index does not know a chunk that an extent names")
        return found

    def _holes(self, step: Step) -> Iterator[Extent]:
        """Yield holes for what has ended since the parent and is not covered by what follows."""
        ended, covers = self._ended.of(step.number), self._covers.of(step.number)
        left = uncovered(ended, (cover[:3] for cover in covers))
        file, limit = -1, 0
        for found, start, blocks in joined(left):
            if found != file:
                file, limit = found, self._kept_blocks(step, found)
            if start < limit:
                yield Extent(file, start, min(blocks, limit - start), EXTENT_HOLE)

    def _kept_blocks(self, step: Step, file: int) -> int:
        """Return how many blocks of `file` its inode's own record (or its going) does not end."""
        query = "SELECT born, record FROM inode WHERE file = ?1 AND born <= ?2 AND died > ?2"
        row = self._conn.execute(query, (file, step.number)).fetchone()
        if row is None:
            was_there = self._conn.execute(query, (file, step.parent)).fetchone() is not None
            return 0 if was_there else index.FOREVER
        born, record = row
        if born > step.parent:
            inode = decode(record, Inode)
            if inode.type == "f":
                return -(-inode.size // BLOCK_BYTES)
        return index.FOREVER


def uncovered(ranges: Iterable[_Blocks], covers: Iterable[_Blocks]) -> Iterator[_Blocks]:
    """Yield what of `ranges` no cover covers; both in order of place, each without overlap."""
    others = iter(covers)
    cover = next(others, None)
    for file, first, blocks in ranges:
        start, end = first, first + blocks
        while start < end:
            while cover is not None and (cover[0], cover[1] + cover[2]) <= (file, start):
                cover = next(others, None)
            if cover is None or (cover[0], cover[1]) >= (file, end):
                yield file, start, end - start
                break
            if cover[1] > start:
                yield file, start, cover[1] - start
            start = cover[1] + cover[2]


def joined(ranges: Iterable[_Blocks]) -> Iterator[_Blocks]:
    """Join ranges that go on where the one before ends."""
    held: _Blocks | None = None
    for file, start, blocks in ranges:
        if held is not None and (held[0], held[1] + held[2]) == (file, start):
            held = (file, held[1], held[2] + blocks)
            continue
        if held is not None:
            yield held
        held = (file, start, blocks)
    if held is not None:
        yield held


def _parcels(items: Iterable[_R], size_of: Callable[[_R], int]) -> Iterator[list[_R]]:
    """Yield items in lists of about FRAME_PLAIN_BYTES."""
    parcel: list[_R] = []
    size_bytes = 0
    for item in items:
        parcel.append(item)
        size_bytes += size_of(item)
        if size_bytes >= FRAME_PLAIN_BYTES:
            yield parcel
            parcel, size_bytes = [], 0
    if parcel:
        yield parcel
