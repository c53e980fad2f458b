"""Moves blocks to new chunks and chunks to new segments: copies, then says so in the index.

Nothing is taken away here: what was copied stays where it was until compact.py has settled it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import apsw
from blake3 import blake3

from strandline_contracts.points import BLOCK_BYTES, CODEC_RAW
from strandline_replica_store.compaction.gathering import (
    Moved,
    Run,
    moves,
    points_naming,
    repointed,
)
from strandline_replica_store.errors import Full, translated
from strandline_replica_store.files import segment
from strandline_replica_store.files.compression import compressed
from strandline_replica_store.files.segment import CHUNK_HEADER_BYTES, SegmentWriter
from strandline_replica_store.reading.reader import DamagedChunk, Reader, checked_of
from strandline_replica_store.replica import index
from strandline_replica_store.replica.damage import describe
from strandline_replica_store.replica.index import FOREVER, ChunkRow
from strandline_replica_store.replica.replica import Replica

KEPT_PLAIN_CHUNKS = 256
"""32 MiB: the changes of so many recovery points are each read once while a file is gathered."""
PENDING_BYTES = 4 * 1024 * 1024


class Whole(NamedTuple):
    """A chunk that was copied as it is, and where it lies now."""

    row: ChunkRow
    segment: int
    offset: int


@dataclass
class Copied:
    """What was copied and is on the disk, but in the index not yet."""

    chunks: list[ChunkRow] = field(default_factory=list)
    moved: dict[int, list[Moved]] = field(default_factory=dict)
    whole: list[Whole] = field(default_factory=list)
    plain_bytes: int = 0


class _Plain(NamedTuple):
    codec: int
    data: memoryview


class Mover:
    """Copies within one replica; used by one thread. Its segments are its own."""

    def __init__(self, replica: Replica, reader: Reader) -> None:
        self._replica = replica
        self._reader = reader
        self._newest = self._writer()
        self._past = self._writer()
        self._plain: OrderedDict[int, _Plain | None] = OrderedDict()
        self._places: dict[int, ChunkRow] = {}

    def _writer(self) -> SegmentWriter:
        replica = self._replica
        return SegmentWriter(
            replica.segments_folder,
            replica.identity.source,
            replica.segment_limit_bytes,
            replica.segment_numbers,
        )

    @property
    def segments(self) -> set[int]:
        """The segments that may still grow."""
        return {self._newest.number, self._past.number}

    def close(self) -> None:
        self._newest.close()
        self._past.close()

    def gather(self, chunks: Sequence[Sequence[Run]], *, newest: bool) -> int:
        """Make new chunks of these runs; return how many plain bytes were copied.

        Blocks of damaged chunks are left out. Raises StoreError; then nothing has moved.
        """
        writer = self._newest if newest else self._past
        return self._in_one_step(writer, lambda copied: self._gather(writer, chunks, copied))

    def carry(self, chunks: Iterable[int], *, newest: bool) -> int:
        """Copy chunks as they are, under their ids; else as `gather`."""
        writer = self._newest if newest else self._past
        return self._in_one_step(writer, lambda copied: self._carry(writer, chunks, copied))

    def _in_one_step(self, writer: SegmentWriter, copy: Callable[[Copied], None]) -> int:
        copied = Copied()
        before = (writer.number, writer.end_bytes)
        with translated():
            try:
                copy(copied)
                writer.flush()
            except BaseException:
                writer.cut(*before)
                raise
            try:
                self._replica.on_database(lambda conn: apply(conn, copied))
            except Full:
                # What the index took nothing of need not wait for the next opening.
                if not self._is_told(copied):
                    writer.cut(*before)
                raise
        return copied.plain_bytes

    def _is_told(self, copied: Copied) -> bool:
        """Tell whether the index knows of any of it."""
        places = [row[-2:] for row in copied.chunks[:1]] + [w[1:] for w in copied.whole[:1]]
        query = "SELECT 1 FROM chunk WHERE segment = ? AND offset = ?"
        conn = self._reader.conn
        return any(conn.execute(query, place).fetchone() is not None for place in places)

    def _gather(
        self, writer: SegmentWriter, chunks: Sequence[Sequence[Run]], copied: Copied
    ) -> None:
        self._places = self._look_up({run.chunk for runs in chunks for run in runs})
        first = self._replica.take_chunk_ids(len(chunks))
        for number, wanted in enumerate(chunks, start=first):
            found = [(run, self._plain_of(run.chunk)) for run in wanted]
            whole = [(run, plain) for run, plain in found if plain is not None]
            if not whole:
                continue
            row = self._write(writer, number, whole)
            copied.chunks.append(row)
            copied.plain_bytes += row.plain_bytes
            for chunk, moved in moves(number, (run for run, _ in whole)):
                copied.moved.setdefault(chunk, []).append(moved)
            if writer.pending_bytes > PENDING_BYTES:
                writer.write()
        for each in copied.moved.values():
            each.sort()

    def _look_up(self, chunks: set[int]) -> dict[int, ChunkRow]:
        """Return where chunks lie, without those known to be damaged."""
        rows = self._reader.conn.execute(
            "SELECT id, digest, plain_bytes, stored_bytes, codec, segment, offset FROM chunk"
            " WHERE NOT bad AND id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(chunks)),),
        )
        return {row[0]: ChunkRow(*row) for row in rows}

    def _write(
        self, writer: SegmentWriter, number: int, parts: Sequence[tuple[Run, _Plain]]
    ) -> ChunkRow:
        data = b"".join(
            plain.data[run.first * BLOCK_BYTES : (run.first + run.blocks) * BLOCK_BYTES]
            for run, plain in parts
        )
        codec, stored = CODEC_RAW, data
        # What nobody could compress in its old chunk is not tried again.
        if any(plain.codec != CODEC_RAW for _, plain in parts):
            codec, stored = compressed(data)
        digest = blake3(data).digest()
        header = segment.pack_chunk_header(number, codec, len(data), digest, stored)
        where = writer.append(header, stored)
        return ChunkRow(number, digest, len(data), len(stored), codec, *where)

    def _plain_of(self, chunk: int) -> _Plain | None:
        """Return a chunk's plain bytes, checked; None (and told, once) for one that is damaged."""
        if chunk in self._plain:
            self._plain.move_to_end(chunk)
            return self._plain[chunk]
        found = None
        row = self._places.get(chunk)
        if row is not None and (checked := self._checked(row)) is not None:
            found = _Plain(row.codec, memoryview(checked[1]))
        self._plain[chunk] = found
        if len(self._plain) > KEPT_PLAIN_CHUNKS:
            self._plain.popitem(last=False)
        return found

    def _checked(self, row: ChunkRow) -> tuple[memoryview, bytes | memoryview] | None:
        """Return a chunk's stored and plain bytes, checked; None (and told) when it is damaged."""
        size_bytes = CHUNK_HEADER_BYTES + row.stored_bytes
        try:
            return checked_of(row, self._reader.pread(row.segment, row.offset, size_bytes))
        except DamagedChunk as error:
            self._replica.record_damage(describe(self._reader.conn, row, error.reason))
            return None

    def _carry(self, writer: SegmentWriter, chunks: Iterable[int], copied: Copied) -> None:
        for row in self._look_up(set(chunks)).values():
            checked = self._checked(row)
            if checked is None:
                continue
            stored, _ = checked
            header = segment.pack_chunk_header(
                row.id, row.codec, row.plain_bytes, row.digest, stored
            )
            copied.whole.append(Whole(row, *writer.append(header, stored)))
            copied.plain_bytes += row.plain_bytes
            if writer.pending_bytes > PENDING_BYTES:
                writer.write()


# In the index


def apply(conn: apsw.Connection, copied: Copied) -> None:
    """Let the index say where copied blocks and chunks lie; the caller holds the transaction.

    Rows are found by chunk, not as they were when the copy was made: a commit may have ended or
    split them since, or named an old chunk once more. The bytes are the same in both places.
    """
    conn.executemany(
        "UPDATE chunk SET segment = ?, offset = ? WHERE id = ? AND segment = ? AND offset = ?",
        ((w.segment, w.offset, w.row.id, w.row.segment, w.row.offset) for w in copied.whole),
    )
    if copied.chunks:
        _add_chunks(conn, copied.chunks)
        born = _repoint(conn, "extent", copied.moved) | _repoint(conn, "extent_past", copied.moved)
        kept = [number for (number,) in conn.execute("SELECT number FROM point ORDER BY number")]
        conn.executemany(
            "INSERT OR IGNORE INTO stale VALUES (?)",
            ((number,) for number in points_naming(born, kept)),
        )


def _add_chunks(conn: apsw.Connection, chunks: Iterable[ChunkRow]) -> None:
    # One that is there already was found in its segment by a reindex.
    conn.executemany(
        "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0)",
        ((row.id, index.prefix_of(row.digest), *row[1:]) for row in chunks),
    )


_AMONG = "chunk IN (SELECT value FROM json_each(?))"
_PUT_FORMER = (
    "INSERT INTO former VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
    " born = min(born, excluded.born), died = max(died, excluded.died)"
)


_LIFE = {"extent": ("born",), "extent_past": ("born", "died")}


def _repoint(conn: apsw.Connection, table: str, moved: Mapping[int, list[Moved]]) -> set[int]:
    """Re-point the rows of a table; return the births of those that changed."""
    life = ", ".join(_LIFE[table])
    marks = ", ".join("?" * len(_LIFE[table]))
    rows = conn.execute(
        f"SELECT file, start, blocks, chunk, chunk_block, {life} FROM {table} WHERE {_AMONG}",  # noqa: S608 - own words
        (json.dumps(list(moved)),),
    )
    changed, added, former = [], [], _Former()
    born_found: set[int] = set()
    for file, start, blocks, chunk, chunk_block, born, *died in rows:
        first, *more = repointed(start, blocks, chunk, chunk_block, moved[chunk])
        if not more and first.chunk == chunk:
            continue
        changed.append((first.blocks, first.chunk, first.chunk_block, file, start, born))
        added += [(file, p.start, born, *died, p.blocks, p.chunk, p.chunk_block) for p in more]
        former.add(chunk, file, born, *died)
        born_found.add(born)
    conn.executemany(
        f"UPDATE {table} SET blocks = ?, chunk = ?, chunk_block = ?"  # noqa: S608 - own words
        " WHERE file = ? AND start = ? AND born = ?",
        changed,
    )
    conn.executemany(f"INSERT INTO {table} VALUES (?, ?, {marks}, ?, 0, ?, ?)", added)  # noqa: S608 - own words
    conn.executemany(_PUT_FORMER, former.rows())
    return born_found


class _Former:
    """Which files had bytes in which chunks, and in which recovery points at most."""

    def __init__(self) -> None:
        self._spans: dict[tuple[int, int], tuple[int, int]] = {}

    def add(self, chunk: int, file: int, born: int, died: int = FOREVER) -> None:
        known = self._spans.get((chunk, file), (born, died))
        self._spans[chunk, file] = (min(known[0], born), max(known[1], died))

    def rows(self) -> Iterator[tuple[int, int, int, int]]:
        for key, span in self._spans.items():
            yield *key, *span
