"""Liveness: which blocks of which chunks the kept recovery points need, and what that costs.

A block of a chunk is live when any row of the index names it: rows that no kept recovery point
needs are deleted when a point is dropped. Chunks that files share have several rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import apsw

from strandline_contracts.points import BLOCK_BYTES
from strandline_replica_store.files import segment
from strandline_replica_store.files.segment import CHUNK_HEADER_BYTES, SEGMENT_HEADER_BYTES

PAGE_CHUNKS = 2048


class Live(NamedTuple):
    """A row of `extent`: blocks of a file as they are in the newest state."""

    file: int
    start: int
    born: int
    blocks: int
    chunk: int
    chunk_block: int


class Past(NamedTuple):
    """A row of `extent_past`: blocks of a file as they were until recovery point `died`."""

    file: int
    start: int
    born: int
    died: int
    blocks: int
    chunk: int
    chunk_block: int


class ChunkUse(NamedTuple):
    """A chunk and its live blocks, one bit each from bit 0: of the newest state, and of any."""

    id: int
    plain_blocks: int
    stored_bytes: int
    segment: int
    is_staged: bool
    is_bad: bool
    newest: int
    needed: int

    @property
    def live_bytes(self) -> int:
        """Its share of the disk that live blocks have; its header counts with them."""
        all_bytes = CHUNK_HEADER_BYTES + self.stored_bytes
        return all_bytes * self.needed.bit_count() // self.plain_blocks


@dataclass
class SegmentUse:
    """A segment's length, how much of it is live, and how much would be left of it rewritten."""

    stored_bytes: int = 0
    live_bytes: int = 0
    kept_bytes: int = 0

    @property
    def dead_bytes(self) -> int:
        return max(self.stored_bytes - self.kept_bytes, 0)


@dataclass
class Survey:
    """What a replica's chunks cost. `touched_bytes` are the plain bytes of all chunks that the
    newest state has blocks in, `newest_bytes` those of these blocks."""

    segments: dict[int, SegmentUse] = field(default_factory=dict)
    newest_bytes: int = 0
    touched_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        return sum(use.stored_bytes for use in self.segments.values())

    @property
    def wasted_bytes(self) -> int:
        """What compaction could make better: dead bytes, and those touched for nothing."""
        dead = sum(use.dead_bytes for use in self.segments.values())
        return dead + self.touched_bytes - self.newest_bytes

    @property
    def live_bytes(self) -> int:
        return sum(use.live_bytes for use in self.segments.values())


def bits(first: int, count: int) -> int:
    """Return a number with `count` bits set from bit `first` on."""
    return ((1 << count) - 1) << first


def masks(rows: Iterable[tuple[int, int, int]]) -> dict[int, int]:
    """Return for each chunk the blocks that its rows (chunk, chunk_block, blocks) name."""
    found: dict[int, int] = {}
    get = found.get
    for chunk, first, count in rows:
        found[chunk] = get(chunk, 0) | ((1 << count) - 1) << first
    return found


def tally(
    uses: Iterable[ChunkUse],
    sizes: Mapping[int, int],
    *,
    is_sparse: Callable[[ChunkUse], bool],
    keep_staged: bool,
) -> Survey:
    """Add up the uses of all chunks; `sizes` are the lengths of the segments.

    A chunk that is not sparse is rewritten as it is. `keep_staged` counts staged ones as live.
    """
    survey = Survey({number: SegmentUse(size) for number, size in sizes.items()})
    for use in uses:
        if use.newest:
            survey.touched_bytes += use.plain_blocks * BLOCK_BYTES
            survey.newest_bytes += use.newest.bit_count() * BLOCK_BYTES
        mine = survey.segments.get(use.segment)
        if mine is None:
            continue
        all_bytes = CHUNK_HEADER_BYTES + use.stored_bytes
        if use.is_staged and keep_staged:
            mine.live_bytes += all_bytes
            mine.kept_bytes += all_bytes
        elif use.needed:
            mine.live_bytes += use.live_bytes
            mine.kept_bytes += use.live_bytes if is_sparse(use) else all_bytes
    for mine in survey.segments.values():
        if mine.live_bytes:
            mine.live_bytes += SEGMENT_HEADER_BYTES
            mine.kept_bytes += SEGMENT_HEADER_BYTES
    return survey


def survey(
    conn: apsw.Connection,
    folder: str,
    *,
    is_sparse: Callable[[ChunkUse], bool],
    keep_staged: bool,
    without: frozenset[int] = frozenset(),
) -> Survey:
    """Walk over all chunks once, in pages, with few MiB; leave out the segments `without`."""
    sizes = {}
    for number in segment.numbers_in(folder):
        if number not in without:
            sizes[number] = os.path.getsize(segment.path_of(folder, number))
    return tally(_all_uses(conn), sizes, is_sparse=is_sparse, keep_staged=keep_staged)


_CHUNKS = "SELECT id, plain_bytes, stored_bytes, segment, staged, bad FROM chunk"
_CHUNKS_AMONG = f"{_CHUNKS} WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608 - own words
_AMONG = "chunk IN (SELECT value FROM json_each(?))"
_BY_CHUNK = {
    "extent": "extent INDEXED BY extent_by_chunk",
    "extent_past": "extent_past INDEXED BY past_by_chunk",
}


def _all_uses(conn: apsw.Connection) -> Iterator[ChunkUse]:
    after = 0
    while True:
        query = f"{_CHUNKS} WHERE id > ? ORDER BY id LIMIT ?"
        chunks = list(conn.execute(query, (after, PAGE_CHUNKS)))
        if not chunks:
            return
        first, after = chunks[0][0], chunks[-1][0]
        newest = _masks_between(conn, "extent", first, after)
        past = _masks_between(conn, "extent_past", first, after)
        yield from _uses(chunks, newest, past)


def _masks_between(conn: apsw.Connection, table: str, first: int, last: int) -> dict[int, int]:
    """Return the blocks that rows of a table name, for chunks `first` to `last`.

    Added up by SQLite, which is right where no block is named twice; the others row by row.
    """
    added = conn.execute(
        "SELECT chunk, sum(((1 << blocks) - 1) << chunk_block), sum(blocks)"  # noqa: S608 - own words
        f" FROM {_BY_CHUNK[table]} WHERE chunk >= ? AND chunk <= ? GROUP BY chunk",
        (first, last),
    )
    found: dict[int, int] = {}
    again: list[int] = []
    for chunk, mask, count in added:
        if mask.bit_count() == count:
            found[chunk] = mask
        else:
            again.append(chunk)
    if again:
        rows = conn.execute(
            f"SELECT chunk, chunk_block, blocks FROM {table} WHERE {_AMONG}",  # noqa: S608 - own words
            (json.dumps(again),),
        )
        found.update(masks(rows))
    return found


def _uses(
    chunks: Iterable[tuple[int, ...]], newest: Mapping[int, int], past: Mapping[int, int]
) -> Iterator[ChunkUse]:
    for number, plain_bytes, stored_bytes, where, staged, bad in chunks:
        live = newest.get(number, 0)
        yield ChunkUse(
            number, plain_bytes // BLOCK_BYTES, stored_bytes, where, bool(staged), bool(bad),
            live, live | past.get(number, 0),
        )  # fmt: skip


class Rows(NamedTuple):
    """Some chunks, by id, and all rows that name them."""

    uses: dict[int, ChunkUse]
    live: list[Live]
    past: list[Past]


def rows_of(conn: apsw.Connection, chunks: Iterable[int]) -> Rows:
    """Return the uses of these chunks and the rows that name them."""
    ids = (json.dumps(sorted(chunks)),)
    live = [
        Live(*row)
        for row in conn.execute(
            f"SELECT file, start, born, blocks, chunk, chunk_block FROM extent WHERE {_AMONG}",  # noqa: S608 - own words
            ids,
        )
    ]
    past = [
        Past(*row)
        for row in conn.execute(
            "SELECT file, start, born, died, blocks, chunk, chunk_block FROM extent_past"  # noqa: S608 - own words
            f" WHERE {_AMONG}",
            ids,
        )
    ]
    rows = conn.execute(_CHUNKS_AMONG, ids)
    newest = masks((row.chunk, row.chunk_block, row.blocks) for row in live)
    ended = masks((row.chunk, row.chunk_block, row.blocks) for row in past)
    return Rows({use.id: use for use in _uses(rows, newest, ended)}, live, past)
