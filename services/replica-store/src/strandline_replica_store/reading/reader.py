"""Reading chunks and blocks from the segments: nothing leaves unchecked.

A Reader has its own read-only connection and files and serves one thread at a time.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

import apsw
from blake3 import blake3

from strandline_contracts.points import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    EXTENT_DATA,
    Extent,
)
from strandline_contracts.reading import BlockDigestPage, StoredChunk
from strandline_replica_store.errors import BadChunk, Damaged, NoSuch
from strandline_replica_store.files import segment
from strandline_replica_store.files.chunk_check import check_chunk
from strandline_replica_store.files.segment import CHUNK_HEADER_BYTES, ChunkHeader
from strandline_replica_store.reading.buffers import Buffers
from strandline_replica_store.reading.scope import Scope
from strandline_replica_store.replica import index, tree
from strandline_replica_store.replica.index import ChunkRow

MAX_OPEN_SEGMENTS = 16
MAX_SCOPES = 8
MERGED_READ_BYTES = 2 * 1024 * 1024
RECORD_EXTRA_BYTES = 64
"""What a chunk takes in an answer beside its stored bytes."""
MAX_DIGEST_BLOCKS = 32_768
KEPT_PLAIN_CHUNKS = 8

UNREADABLE_DIGEST = bytes(BLOCK_DIGEST_BYTES)
"""Stands for a block that the store cannot read: no block has it, so it is shipped anew."""
_ZERO_DIGEST = blake3(bytes(BLOCK_BYTES)).digest(length=BLOCK_DIGEST_BYTES)


class DamagedChunk(Damaged):
    """A chunk whose bytes are not what they should be."""

    def __init__(self, row: ChunkRow, reason: str) -> None:
        super().__init__(f"chunk {row.id} is damaged: {reason}")
        self.row = row
        self.reason = reason


class Place(NamedTuple):
    """Bytes of one segment that are read at once, and the chunks in them."""

    segment: int
    offset: int
    size_bytes: int
    rows: list[ChunkRow]


class Reader:
    """Reads one replica."""

    _buffers = Buffers()
    """Shared by all readers."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._segments = os.path.join(folder, "segments")
        self.conn: apsw.Connection = index.connect_to_read(os.path.join(folder, "index.db"))
        self._files: OrderedDict[int, int] = OrderedDict()
        self._scopes: OrderedDict[tuple[int, tuple[bytes, ...]], Scope] = OrderedDict()

    def scope(self, point: int, paths: Sequence[bytes]) -> Scope:
        """Return what a grant for `paths` of `point` allows (none: all); kept for next time."""
        key = (point, tuple(paths))
        scope = self._scopes.pop(key, None) or Scope(self.conn, point, paths)
        self._scopes[key] = scope
        if len(self._scopes) > MAX_SCOPES:
            self._scopes.popitem(last=False)
        return scope

    def close(self) -> None:
        self.conn.close()
        while self._files:
            os.close(self._files.popitem()[1])

    def forget(self, number: int) -> None:
        """Close a segment that is unlinked: its room is free only then."""
        fd = self._files.pop(number, -1)
        if fd >= 0:
            os.close(fd)

    def chunks(self, ids: Sequence[int], max_bytes: int) -> list[StoredChunk]:
        """Return the chunks from the first on, as many as fit, each checked (at least one).

        Raises NoSuch, or DamagedChunk when the very first is damaged; before a later damaged one
        the answer stops.
        """
        rows: list[ChunkRow] = []
        known = tree.chunk_rows(self.conn, ids)
        for chunk in ids:
            if chunk not in known:
                raise NoSuch(f"chunk {chunk} is not here")
            row, _ = known[chunk]
            max_bytes -= row.stored_bytes + RECORD_EXTRA_BYTES
            if rows and max_bytes < 0:
                break
            rows.append(row)
        found = self._read(rows, {row.id for row in rows if known[row.id][1]})
        whole: list[StoredChunk] = []
        for row in rows:
            stored = found[row.id]
            if isinstance(stored, DamagedChunk):
                if not whole:
                    raise stored
                break
            whole.append(StoredChunk(row.id, row.digest, row.plain_bytes, row.codec, stored))
        return whole

    def _read(
        self, rows: Sequence[ChunkRow], suspects: Set[int]
    ) -> dict[int, memoryview | DamagedChunk]:
        """Return the stored bytes of each chunk, or what is wrong with it.

        `suspects` were found damaged before. They may have been read wrongly, so they are tried;
        their plain bytes are checked here as well.
        """
        found: dict[int, memoryview | DamagedChunk] = {}
        places = list(merged(sorted(rows, key=lambda row: (row.segment, row.offset))))
        room = self._buffers.take(sum(place.size_bytes for place in places))
        for place in places:
            data, room = self.read_place(place, room), room[place.size_bytes :]
            for row in place.rows:
                own = data[row.offset - place.offset :]
                try:
                    is_suspect = row.id in suspects
                    found[row.id] = checked_of(row, own)[0] if is_suspect else stored_of(row, own)
                except DamagedChunk as error:
                    found[row.id] = error
        return found

    def pread(self, number: int, offset: int, size_bytes: int) -> memoryview:
        """Return bytes of a segment; fewer at its end or before a sector that cannot be read."""
        room = memoryview(bytearray(size_bytes))
        return room[: self._read_into(room, number, offset)]

    def read_place(self, place: Place, room: memoryview) -> memoryview:
        """Read a place into the beginning of `room`; return that.

        Zeros, which no chunk's check passes, stand for what is not there or cannot be read.
        """
        data = room[: place.size_bytes]
        if self._read_into(data, place.segment, place.offset) < place.size_bytes:
            # What lies behind a sector that cannot be read is had without it.
            data[:] = bytes(place.size_bytes)
            for row in place.rows:
                first = row.offset - place.offset
                own = data[first : first + CHUNK_HEADER_BYTES + row.stored_bytes]
                self._read_into(own, row.segment, row.offset)
        return data

    def _read_into(self, room: memoryview, number: int, offset: int) -> int:
        """Fill `room` with bytes of a segment; return how many could be had."""
        try:
            return os.preadv(self._segment(number), [room], offset)
        except FileNotFoundError:
            return 0
        except OSError as error:
            # A disk that cannot read bytes has lost them: damage, which is found and mended.
            if error.errno != errno.EIO:
                raise
            return 0

    def _segment(self, number: int) -> int:
        fd = self._files.get(number)
        if fd is None:
            fd = os.open(segment.path_of(self._segments, number), os.O_RDONLY | os.O_CLOEXEC)
            self._files[number] = fd
            if len(self._files) > MAX_OPEN_SEGMENTS:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(number)
        return fd

    def block_digests(self, point: int, file: int, start: int, blocks: int) -> BlockDigestPage:
        """Return the digests of blocks of a file, read from the disk: at most 32,768 of them.

        A block of a damaged chunk has UNREADABLE_DIGEST.
        """
        end = start + min(blocks, MAX_DIGEST_BLOCKS)
        digests: list[bytes] = []
        holes: list[tuple[int, int]] = []
        plain = _PlainChunks(self)
        position = start
        for extent in tree.blocks_of(self.conn, point, file, start, end):
            first, last = max(extent.start, start), min(extent.start + extent.blocks, end)
            if first > position:
                holes.append((position, first - position))
                digests.append(_ZERO_DIGEST * (first - position))
            digests.extend(plain.digests(extent, first, last))
            position = last
        if position < end:
            holes.append((position, end - position))
            digests.append(_ZERO_DIGEST * (end - position))
        return BlockDigestPage(digests=b"".join(digests), holes=holes)


class _PlainChunks:
    """The last few chunks in plain: neighbouring extents often share one."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._kept: OrderedDict[int, memoryview | None] = OrderedDict()

    def digests(self, extent: Extent, first: int, last: int) -> Iterator[bytes]:
        """Yield the digest of each block `first` to `last` - 1 of the extent's file."""
        if extent.kind != EXTENT_DATA:
            yield _ZERO_DIGEST * (last - first)
            return
        plain = self._plain(extent.chunk)
        if plain is None:
            yield UNREADABLE_DIGEST * (last - first)
            return
        begin = (extent.chunk_block + first - extent.start) * BLOCK_BYTES
        for offset in range(begin, begin + (last - first) * BLOCK_BYTES, BLOCK_BYTES):
            yield blake3(plain[offset : offset + BLOCK_BYTES]).digest(length=BLOCK_DIGEST_BYTES)

    def _plain(self, chunk: int) -> memoryview | None:
        if chunk in self._kept:
            self._kept.move_to_end(chunk)
            return self._kept[chunk]
        plain: memoryview | None
        try:
            (stored,) = self._reader.chunks([chunk], 0)
            plain = memoryview(
                check_chunk(stored.digest, stored.plain_bytes, stored.codec, stored.data)
            )
        except (Damaged, BadChunk, NoSuch):
            plain = None
        self._kept[chunk] = plain
        if len(self._kept) > KEPT_PLAIN_CHUNKS:
            self._kept.popitem(last=False)
        return plain


def merged(rows: Sequence[ChunkRow]) -> Iterator[Place]:
    """Yield places that hold these chunks (sorted by place), neighbours read at once."""
    group: list[ChunkRow] = []
    end = 0
    for row in rows:
        size_bytes = CHUNK_HEADER_BYTES + row.stored_bytes
        near = group and row.segment == group[0].segment and row.offset <= end
        if near and row.offset + size_bytes - group[0].offset <= MERGED_READ_BYTES:
            group.append(row)
        else:
            if group:
                yield Place(group[0].segment, group[0].offset, end - group[0].offset, group)
            group, end = [row], 0
        end = max(end, row.offset + size_bytes)
    if group:
        yield Place(group[0].segment, group[0].offset, end - group[0].offset, group)


def stored_of(row: ChunkRow, data: memoryview) -> memoryview:
    """Return the stored bytes of the chunk at the start of `data`; raise DamagedChunk."""
    return _found(row, data)[1]


def checked_of(row: ChunkRow, data: memoryview) -> tuple[memoryview, bytes | memoryview]:
    """Return stored and plain bytes of the chunk at the start of `data`; raise DamagedChunk."""
    header, stored = _found(row, data)
    try:
        plain = check_chunk(
            row.digest, row.plain_bytes, row.codec, stored, stored_digest=header.stored_digest
        )
    except BadChunk as error:
        raise DamagedChunk(row, error.message) from error
    return stored, plain


def _found(row: ChunkRow, data: memoryview) -> tuple[ChunkHeader, memoryview]:
    """Return header and stored bytes, which match, of this very chunk."""
    try:
        header, stored = segment.check_stored(data)
    except Damaged as error:
        raise DamagedChunk(row, error.message) from error
    if (header.id, header.plain_digest, header.plain_bytes, header.codec) != (
        row.id,
        row.digest,
        row.plain_bytes,
        row.codec,
    ):
        raise DamagedChunk(row, "another chunk lies in its place")
    return header, stored
