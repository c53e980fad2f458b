"""What the tree of a recovery point was: questions to the index, on any connection."""

from __future__ import annotations

import heapq
import json
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from strandline_contracts.points import ROOT, Extent
from strandline_replica_store.index import ChunkRow

FEW_EXTENTS = 20_000
"""Files with at most so many extents are sorted for each page; else the chunk index is walked."""

_CHUNK_INDEX = {"extent": "extent_by_chunk", "extent_past": "past_by_chunk"}


class Entry(NamedTuple):
    """An entry of a folder and the encoded Inode that it leads to."""

    name: bytes
    file: int
    record: bytes


def inode_record(conn: sqlite3.Connection, point: int, file: int) -> bytes | None:
    """Return the encoded Inode of `file` in `point`, None when it is not part of it."""
    row = conn.execute(
        "SELECT record FROM inode WHERE file = ?2 AND born <= ?1 AND died > ?1"
        " ORDER BY born DESC LIMIT 1",
        (point, file),
    ).fetchone()
    return row[0] if row else None


def child(conn: sqlite3.Connection, point: int, parent: int, name: bytes) -> int | None:
    """Return the file that `name` in folder `parent` leads to."""
    row = conn.execute(
        "SELECT file FROM name WHERE parent = ?2 AND name = ?3 AND born <= ?1 AND died > ?1",
        (point, parent, name),
    ).fetchone()
    return row[0] if row else None


def resolve(conn: sqlite3.Connection, point: int, path: bytes) -> list[tuple[int, bytes]] | None:
    """Return each (folder, name) from the root down to `path`, None when there is no such path.

    The file of a path is that of its last step (`child`); the root has no steps.
    """
    steps: list[tuple[int, bytes]] = []
    folder = ROOT
    for name in filter(None, path.split(b"/")):
        found = child(conn, point, folder, name)
        if found is None:
            return None
        steps.append((folder, name))
        folder = found
    return steps


def file_at(conn: sqlite3.Connection, point: int, path: bytes) -> int | None:
    """Return the file id of `path`, None when there is no such path."""
    steps = resolve(conn, point, path)
    if steps is None:
        return None
    return child(conn, point, *steps[-1]) if steps else ROOT


def entries(
    conn: sqlite3.Connection, point: int, folder: int, after: bytes, limit: int
) -> list[Entry]:
    """Return entries of `folder` with names above `after`, rising."""
    rows = conn.execute(
        "SELECT n.name, n.file, (SELECT record FROM inode i WHERE i.file = n.file"
        " AND i.born <= ?1 AND i.died > ?1) FROM name n"
        " WHERE n.parent = ?2 AND n.name > ?3 AND n.born <= ?1 AND n.died > ?1"
        " ORDER BY n.name LIMIT ?4",
        (point, folder, after, limit),
    )
    return [Entry(name, file, record) for name, file, record in rows if record is not None]


def parents(conn: sqlite3.Connection, point: int, file: int) -> list[tuple[int, bytes]]:
    """Return the (folder, name) of each name of `file`, at most 1,000."""
    return conn.execute(
        "SELECT parent, name FROM name WHERE file = ?2 AND born <= ?1 AND died > ?1 LIMIT 1000",
        (point, file),
    ).fetchall()


def path_of(conn: sqlite3.Connection, point: int, file: int) -> bytes | None:
    """Return one path of `file` from the root on, None when it has none."""
    names: list[bytes] = []
    while file != ROOT:
        found = parents(conn, point, file)
        if not found or len(names) > 4096:
            return None
        file, name = found[0]
        names.append(name)
    return b"/".join(reversed(names))


def extents(
    conn: sqlite3.Connection,
    point: int,
    files: Sequence[int],
    after: tuple[int, int, int],
    limit: int,
) -> list[Extent]:
    """Return data and zero extents of `files` (none: all) above the cursor.

    They, and the cursor, are ordered by (chunk, file, start).
    """
    few = bool(files) and _are_few(conn, files)
    wanted = _Wanted(files, after, limit, few)
    live = _walk(conn, "extent", "born <= ?", (point,), wanted)
    past = _walk(conn, "extent_past", "born <= ? AND died > ?", (point, point), wanted)
    rows = islice(heapq.merge(live, past), limit)
    return [
        Extent(file, start, blocks, kind, chunk, chunk_block)
        for chunk, file, start, blocks, kind, chunk_block in rows
    ]


_COUNT_LIVE = (
    "SELECT count(*) FROM (SELECT 1 FROM extent"
    " WHERE file IN (SELECT value FROM json_each(?)) LIMIT ?)"
)
_COUNT_PAST = _COUNT_LIVE.replace("FROM extent", "FROM extent_past")


def _are_few(conn: sqlite3.Connection, files: Sequence[int]) -> bool:
    values = (json.dumps(files), FEW_EXTENTS + 1)
    counts = (
        int(conn.execute(query, values).fetchone()[0]) for query in (_COUNT_LIVE, _COUNT_PAST)
    )
    return sum(counts) <= FEW_EXTENTS


class _Wanted(NamedTuple):
    files: Sequence[int]
    after: tuple[int, int, int]
    limit: int
    few: bool


def _walk(
    conn: sqlite3.Connection, table: str, valid: str, values: tuple[int, ...], wanted: _Wanted
) -> Iterator[tuple[int, ...]]:
    """Yield rows of one table in order: along the chunk index, or sorted where they are few."""
    files, few = wanted.files, wanted.few
    marks = _marks(files)
    # A plus keeps SQLite from an index: which one is used is decided here, not by statistics.
    plus = "+" if few else ""
    chosen = "" if few else f" INDEXED BY {_CHUNK_INDEX[table]}"
    mine = f" AND {'' if few else '+'}file IN ({marks})" if files else ""
    query = (
        f"SELECT chunk, file, start, blocks, kind, chunk_block FROM {table}{chosen}"  # noqa: S608 - own words
        f" WHERE ({plus}chunk, {plus}file, {plus}start) > (?, ?, ?) AND {valid}{mine}"
        f" ORDER BY {plus}chunk, {plus}file, {plus}start LIMIT ?"
    )
    yield from conn.execute(query, (*wanted.after, *values, *files, wanted.limit))


def blocks_of(
    conn: sqlite3.Connection, point: int, file: int, start: int, end: int
) -> Iterator[Extent]:
    """Yield the extents of `file` that touch blocks `start` to `end` - 1, in order."""
    live = conn.execute(
        "SELECT file, start, blocks, kind, chunk, chunk_block FROM extent WHERE file = ?1"
        " AND start >= coalesce((SELECT max(start) FROM extent WHERE file = ?1 AND start <= ?2),"
        " ?2) AND start < ?3"
        " AND start + blocks > ?2 AND born <= ?4 ORDER BY start",
        (file, start, end, point),
    )
    past = conn.execute(
        "SELECT file, start, blocks, kind, chunk, chunk_block FROM extent_past"
        " WHERE file = ?1 AND start < ?3"
        " AND start + blocks > ?2 AND born <= ?4 AND died > ?4 ORDER BY start",
        (file, start, end, point),
    )
    for row in heapq.merge(live, past):
        yield Extent(*row)


def chunk_rows(conn: sqlite3.Connection, ids: Sequence[int]) -> dict[int, tuple[ChunkRow, bool]]:
    """Return where chunks lie and whether each is known to be damaged; of those that there are."""
    query = (
        "SELECT id, digest, plain_bytes, stored_bytes, codec, segment, offset, bad"  # noqa: S608 - own words
        f" FROM chunk WHERE id IN ({_marks(ids)})"
    )
    return {row[0]: (ChunkRow(*row[:7]), bool(row[7])) for row in conn.execute(query, ids)}


def chunks_of_point(conn: sqlite3.Connection, point: int, ids: Sequence[int]) -> set[int]:
    """Return those of the chunks `ids` that some file of `point` has bytes in."""
    query = (
        f"SELECT id FROM chunk c WHERE id IN ({_marks(ids)}) AND (EXISTS"  # noqa: S608 - own words
        " (SELECT 1 FROM extent e WHERE e.chunk = c.id AND e.born <= ?) OR EXISTS"
        " (SELECT 1 FROM extent_past p WHERE p.chunk = c.id AND p.born <= ? AND p.died > ?))"
    )
    return {chunk for (chunk,) in conn.execute(query, (*ids, point, point, point))}


def _marks(values: Sequence[int]) -> str:
    return ",".join("?" * len(values))


def files_of_chunk(conn: sqlite3.Connection, point: int, chunk: int) -> Iterator[int]:
    """Yield the files whose bytes in `point` are in `chunk`; a file may come more than once."""
    for query in (
        "SELECT file FROM extent WHERE chunk = ?2 AND born <= ?1",
        "SELECT file FROM extent_past WHERE chunk = ?2 AND born <= ?1 AND died > ?1",
    ):
        for (file,) in conn.execute(query, (point, chunk)):
            yield file


def points_of_chunk(conn: sqlite3.Connection, chunk: int, limit: int) -> list[int]:
    """Return numbers of recovery points that need `chunk`, rising."""
    rows = conn.execute(
        "SELECT number FROM point WHERE EXISTS (SELECT 1 FROM extent e WHERE e.chunk = ?1"
        " AND e.born <= number) OR EXISTS (SELECT 1 FROM extent_past p WHERE p.chunk = ?1"
        " AND p.born <= number AND p.died > number) ORDER BY number LIMIT ?2",
        (chunk, limit),
    )
    return [number for (number,) in rows]
