"""What the tree of a recovery point was: questions to the index, on any connection."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

import apsw

from strandline_contracts.points import EXTENT_DATA, ROOT, Extent
from strandline_replica_store.replica import index
from strandline_replica_store.replica.index import ChunkRow

FEW_EXTENTS = 20_000
"""Files with at most so many extents are sorted for each page; else the chunk index is walked."""

_CHUNK_INDEX = {"extent": "extent_by_chunk", "extent_past": "past_by_chunk"}


class Entry(NamedTuple):
    """An entry of a folder and the encoded Inode that it leads to."""

    name: bytes
    file: int
    record: bytes


def inode_record(conn: apsw.Connection, point: int, file: int) -> bytes | None:
    """Return the encoded Inode of `file` in `point`, None when it is not part of it."""
    row = conn.execute(
        "SELECT record FROM inode WHERE file = ?2 AND born <= ?1 AND died > ?1"
        " ORDER BY born DESC LIMIT 1",
        (point, file),
    ).fetchone()
    return row[0] if row else None


def child(conn: apsw.Connection, point: int, parent: int, name: bytes) -> int | None:
    """Return the file that `name` in folder `parent` leads to."""
    row = conn.execute(
        "SELECT file FROM name WHERE parent = ?2 AND name = ?3 AND born <= ?1 AND died > ?1",
        (point, parent, name),
    ).fetchone()
    return row[0] if row else None


def resolve(
    conn: apsw.Connection, point: int, path: bytes
) -> tuple[list[tuple[int, bytes]], int] | None:
    """Return each (folder, name) from the root down to `path` and the file there; None: no such."""
    steps: list[tuple[int, bytes]] = []
    file = ROOT
    for name in filter(None, path.split(b"/")):
        found = child(conn, point, file, name)
        if found is None:
            return None
        steps.append((file, name))
        file = found
    return steps, file


def file_at(conn: apsw.Connection, point: int, path: bytes) -> int | None:
    """Return the file id of `path`, None when there is no such path."""
    found = resolve(conn, point, path)
    return found[1] if found is not None else None


def entries(
    conn: apsw.Connection, point: int, folder: int, after: bytes, limit: int
) -> list[Entry]:
    """Return entries of `folder` with names above `after`, rising; fewer than `limit` are the last.

    A name that leads to no inode is none.
    """
    rows = conn.execute(
        "SELECT n.name, n.file, i.record FROM name n"
        " CROSS JOIN inode i ON i.file = n.file AND i.born <= ?1 AND i.died > ?1"
        " WHERE n.parent = ?2 AND n.name > ?3 AND n.born <= ?1 AND n.died > ?1"
        " ORDER BY n.name LIMIT ?4",
        (point, folder, after, limit),
    )
    return [Entry(*row) for row in rows]


def parents(conn: apsw.Connection, point: int, file: int) -> Iterator[tuple[int, bytes]]:
    """Yield the (folder, name) of each name of `file`."""
    yield from conn.execute(
        "SELECT parent, name FROM name WHERE file = ?2 AND born <= ?1 AND died > ?1", (point, file)
    )


def path_of(conn: apsw.Connection, point: int, file: int) -> bytes | None:
    """Return one path of `file` from the root on, None when it has none."""
    names: list[bytes] = []
    while file != ROOT:
        found = next(parents(conn, point, file), None)
        if found is None or len(names) > 4096:
            return None
        file, name = found
        names.append(name)
    return b"/".join(reversed(names))


def extents(
    conn: apsw.Connection,
    point: int,
    files: Sequence[int],
    after: tuple[int, int, int],
    limit: int,
) -> list[Extent]:
    """Return data and zero extents of `files` (none: all) above the cursor.

    They, and the cursor, are ordered by (chunk, file, start). Rows that are neighbours in file and
    chunk are told as one extent, whole: an extent never goes on behind the end of a page.
    """
    # One view for both tables: what a commit ends meanwhile is neither missed nor told twice.
    with index.one_view(conn):
        wanted = _Wanted(files, after, bool(files) and _are_few(conn, files))
        live = _Table(conn, "extent", "born <= ?", (point,), wanted)
        tables = [live]
        if _has_past(conn, point):
            values = (point, point)
            tables.append(_Table(conn, "extent_past", "born <= ? AND died > ?", values, wanted))
        found = (extent for extent in _told(tables) if _cursor(extent) != after)
        return list(islice(found, limit))


def _told(tables: Sequence[_Table]) -> Iterator[Extent]:
    """Yield zero extents row by row, then data chunk by chunk."""
    zeros = heapq.merge(*(table.zeros() for table in tables))
    yield from (Extent(file, start, blocks, kind) for _, file, start, blocks, kind, _ in zeros)
    groups = heapq.merge(*(table.groups() for table in tables))
    for (chunk, file), same in groupby(groups, key=itemgetter(0, 1)):
        least, most, mask = 1 << 62, -(1 << 62), 0
        for _, _, low, high, part in same:
            least, most, mask = min(least, low), max(most, high), mask | part
        if least == most:
            # All of the file's blocks in this chunk are as far from each other as in the file.
            for first, count in spans(mask):
                yield Extent(file, least + first, count, EXTENT_DATA, chunk, first)
        else:
            yield from joined(heapq.merge(*(table.rows(chunk, file) for table in tables)))


def spans(mask: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of each row of bits that are set in `mask`."""
    first = 0
    while mask:
        zeros = (mask & -mask).bit_length() - 1
        mask >>= zeros
        first += zeros
        count = (~mask & (mask + 1)).bit_length() - 1
        yield first, count
        mask >>= count
        first += count


def joined(rows: Iterable[tuple[int, ...]]) -> Iterator[Extent]:
    """Yield extents for rows (chunk, file, start, blocks, kind, chunk_block), in this order.

    Data that goes on both in its file and in its chunk is made one.
    """
    chunk = file = start = blocks = kind = chunk_block = 0
    for row in rows:
        if (
            row[0] == chunk
            and row[1] == file
            and row[2] == start + blocks
            and row[5] == chunk_block + blocks
            and chunk
        ):
            blocks += row[3]
            continue
        if blocks:
            yield Extent(file, start, blocks, kind, chunk, chunk_block)
        chunk, file, start, blocks, kind, chunk_block = row
    if blocks:
        yield Extent(file, start, blocks, kind, chunk, chunk_block)


def _cursor(extent: Extent) -> tuple[int, int, int]:
    return extent.chunk, extent.file, extent.start


def _has_past(conn: apsw.Connection, point: int) -> bool:
    """Tell whether rows that have ended may be part of `point`: of the newest they never are."""
    newest = conn.execute("SELECT max(number) FROM point").get
    return newest is None or point < int(newest)


_COUNT_LIVE = (
    "SELECT count(*) FROM (SELECT 1 FROM extent"
    " WHERE file IN (SELECT value FROM json_each(?)) LIMIT ?)"
)
_COUNT_PAST = _COUNT_LIVE.replace("FROM extent", "FROM extent_past")


def _are_few(conn: apsw.Connection, files: Sequence[int]) -> bool:
    values = (json.dumps(files), FEW_EXTENTS + 1)
    counts = (int(conn.execute(query, values).get) for query in (_COUNT_LIVE, _COUNT_PAST))
    return sum(counts) <= FEW_EXTENTS


class _Wanted(NamedTuple):
    files: Sequence[int]
    after: tuple[int, int, int]
    few: bool


class _Table:
    """The rows of one table that are wanted, in order: along the chunk index, or sorted where they
    are few."""

    def __init__(
        self,
        conn: apsw.Connection,
        table: str,
        valid: str,
        values: tuple[int, ...],
        wanted: _Wanted,
    ) -> None:
        files, few = wanted.files, wanted.few
        # A plus keeps SQLite from an index: which one is used is decided here, not by statistics.
        self._plus = "+" if few else ""
        self._from = table if few else f"{table} INDEXED BY {_CHUNK_INDEX[table]}"
        mine = f" AND {'' if few else '+'}file IN ({_marks(files)})" if files else ""
        self._valid = valid + mine
        self._values = (*values, *files)
        self._after = wanted.after
        self._conn = conn

    def _select(self, columns: str, place: str, values: tuple[int, ...], end: str) -> apsw.Cursor:
        query = f"SELECT {columns} FROM {self._from} WHERE {place} AND {self._valid} {end}"  # noqa: S608 - own words
        return self._conn.execute(query, (*values, *self._values))

    def zeros(self) -> Iterator[tuple[int, ...]]:
        """Return rows without a chunk: chunk, file, start, blocks, kind, chunk_block."""
        if self._after[0] > 0:
            return iter(())
        p = self._plus
        return self._select(
            _COLUMNS,
            f"{p}chunk = 0 AND ({p}file, {p}start) >= (?, ?)",
            self._after[1:] if self._after[0] == 0 else (0, 0),
            f"ORDER BY {p}file, {p}start",
        )

    def groups(self) -> Iterator[tuple[int, ...]]:
        """Return chunk, file, the least and the greatest distance between a block's place in the
        file and in the chunk, and the file's blocks in the chunk as a mask."""
        p = self._plus
        return self._select(
            "chunk, file, min(start - chunk_block), max(start - chunk_block),"
            " sum(((1 << blocks) - 1) << chunk_block)",
            f"({p}chunk, {p}file, {p}start) >= (?, ?, ?)",
            max(self._after, (1, 0, 0)),
            f"GROUP BY {p}chunk, {p}file ORDER BY {p}chunk, {p}file",
        )

    def rows(self, chunk: int, file: int) -> Iterator[tuple[int, ...]]:
        """Return the rows of one group."""
        p = self._plus
        return self._select(
            _COLUMNS,
            f"{p}chunk = ? AND {p}file = ? AND {p}start >= ?",
            (chunk, file, self._after[2] if self._after[:2] == (chunk, file) else 0),
            f"ORDER BY {p}start",
        )


_COLUMNS = "chunk, file, start, blocks, kind, chunk_block"


def blocks_of(
    conn: apsw.Connection, point: int, file: int, start: int, end: int
) -> Iterator[Extent]:
    """Yield the extents of `file` that touch blocks `start` to `end` - 1, in order."""
    with index.one_view(conn):
        live = conn.execute(
            "SELECT file, start, blocks, kind, chunk, chunk_block FROM extent WHERE file = ?1"
            " AND start >= coalesce("
            "(SELECT max(start) FROM extent WHERE file = ?1 AND start <= ?2), ?2) AND start < ?3"
            " AND start + blocks > ?2 AND born <= ?4 ORDER BY start",
            (file, start, end, point),
        )
        past: Iterable[tuple[int, ...]] = ()
        if _has_past(conn, point):
            past = conn.execute(
                "SELECT file, start, blocks, kind, chunk, chunk_block FROM extent_past"
                " WHERE file = ?1 AND start < ?3"
                " AND start + blocks > ?2 AND born <= ?4 AND died > ?4 ORDER BY start",
                (file, start, end, point),
            )
        for row in heapq.merge(live, past):
            yield Extent(*row)


def chunk_rows(conn: apsw.Connection, ids: Sequence[int]) -> dict[int, tuple[ChunkRow, bool]]:
    """Return where chunks lie and whether each is known to be damaged; of those that there are."""
    query = (
        "SELECT id, digest, plain_bytes, stored_bytes, codec, segment, offset, bad"  # noqa: S608 - own words
        f" FROM chunk WHERE id IN ({_marks(ids)})"
    )
    return {row[0]: (ChunkRow(*row[:7]), bool(row[7])) for row in conn.execute(query, ids)}


def chunks_of_point(conn: apsw.Connection, point: int, ids: Sequence[int]) -> set[int]:
    """Return those of the chunks `ids` that some file of `point` has, or lately had, bytes in."""
    query = (
        f"SELECT id FROM chunk c WHERE id IN ({_marks(ids)}) AND (EXISTS"  # noqa: S608 - own words
        " (SELECT 1 FROM extent e WHERE e.chunk = c.id AND e.born <= ?) OR EXISTS"
        " (SELECT 1 FROM extent_past p WHERE p.chunk = c.id AND p.born <= ? AND p.died > ?)"
        " OR EXISTS (SELECT 1 FROM former f WHERE f.chunk = c.id AND f.born <= ? AND f.died > ?))"
    )
    return {chunk for (chunk,) in conn.execute(query, (*ids, *[point] * 5))}


def former_files_of_chunk(conn: apsw.Connection, point: int, chunk: int) -> Iterator[int]:
    """Yield the files whose bytes in `point` were in `chunk` until they were moved.

    Who was told of it before may still ask for it.
    """
    query = "SELECT file FROM former WHERE chunk = ?2 AND born <= ?1 AND died > ?1"
    for (file,) in conn.execute(query, (point, chunk)):
        yield file


def _marks(values: Sequence[int]) -> str:
    return ",".join("?" * len(values))


def files_of_chunk(conn: apsw.Connection, point: int, chunk: int) -> Iterator[int]:
    """Yield the files whose bytes in `point` are in `chunk`; a file may come more than once."""
    for query in (
        "SELECT file FROM extent WHERE chunk = ?2 AND born <= ?1",
        "SELECT file FROM extent_past WHERE chunk = ?2 AND born <= ?1 AND died > ?1",
    ):
        for (file,) in conn.execute(query, (point, chunk)):
            yield file


def points_of_chunk(conn: apsw.Connection, chunk: int, limit: int) -> list[int]:
    """Return numbers of recovery points that need `chunk`, rising."""
    rows = conn.execute(
        "SELECT number FROM point WHERE EXISTS (SELECT 1 FROM extent e WHERE e.chunk = ?1"
        " AND e.born <= number) OR EXISTS (SELECT 1 FROM extent_past p WHERE p.chunk = ?1"
        " AND p.born <= number AND p.died > number) ORDER BY number LIMIT ?2",
        (chunk, limit),
    )
    return [number for (number,) in rows]
