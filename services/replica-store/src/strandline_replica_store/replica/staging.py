"""What a group of batches brings, checked and appended, before any of it counts."""

from __future__ import annotations

from collections.abc import Sequence

import apsw
from blake3 import blake3

from strandline_contracts.shipping import Batch, Chunk, accept_shipment
from strandline_replica_store.errors import BadChunk, BadDelta, MissingChunk
from strandline_replica_store.files import segment
from strandline_replica_store.files.chunk_check import check_chunk
from strandline_replica_store.files.manifest import ChunkName, Delta
from strandline_replica_store.files.segment import CHUNK_HEADER_BYTES, SegmentWriter
from strandline_replica_store.replica import index
from strandline_replica_store.replica.index import ChunkRow
from strandline_replica_store.replica.rules import JobRow, check_records, resolved_extents


class Group:
    """What a group of batches adds, before any of it is on the disk."""

    def __init__(self) -> None:
        self.rows: list[ChunkRow] = []
        self.ids: dict[bytes, tuple[int, int]] = {}
        self.deltas: list[Delta] = []
        self.digests: list[bytes] = []
        self.stored_bytes = 0
        self.mended: list[int] = []
        """Chunks that were damaged, and came again."""


class Stager:
    """Stages batches; new chunks have ids from `next_chunk` on."""

    def __init__(self, conn: apsw.Connection, segments: SegmentWriter, next_chunk: int) -> None:
        self._conn = conn
        self._segments = segments
        self.next_chunk = next_chunk

    def stage(self, row: JobRow, messages: Sequence[bytes]) -> Group:
        """Check the next batches of an attempt and append what they bring.

        Raises StoreError and BadMessage; then the segments are to be undone.
        """
        group = Group()
        for seq, message in enumerate(messages, start=row.durable):
            batch = accept_shipment(message)
            due = (row.job, row.attempt, seq)
            if not isinstance(batch, Batch) or (batch.job, batch.attempt, batch.seq) != due:
                raise BadDelta(f"batch {seq} of attempt {row.attempt} of job {row.job} is due")
            check_records(batch)
            group.digests.append(blake3(message).digest())
            group.deltas.append(self._delta(batch, group))
        return group

    def _delta(self, batch: Batch, group: Group) -> Delta:
        places = [self._chunk(chunk, group) for chunk in batch.chunks]
        ids = [chunk for chunk, _ in places]
        extents = resolved_extents(batch, ids, [plain_bytes for _, plain_bytes in places])
        names = {
            chunk: ChunkName(chunk, shipped.digest, shipped.plain_bytes)
            for chunk, shipped in zip(ids, batch.chunks, strict=True)
        }
        return Delta(
            chunks=list(names.values()),
            extents=extents,
            inodes=batch.inodes,
            names=batch.names,
            gone_inodes=batch.gone_inodes,
            gone_names=batch.gone_names,
            issues=batch.issues,
        )

    def _chunk(self, chunk: Chunk, group: Group) -> tuple[int, int]:
        """Return (id, plain bytes) of a shipped chunk, appending it when it is not held."""
        place = group.ids.get(chunk.digest)
        if place is None:
            known = index.held(self._conn, chunk.digest)
            if known is not None and not known[2]:
                place = known[:2]
            elif chunk.data is None:
                raise MissingChunk(f"chunk {chunk.digest[:8].hex()} is not held")
            else:
                place = self._append(chunk, known[0] if known else self.next_chunk, group)
                if known is not None:
                    group.mended.append(known[0])
            group.ids[chunk.digest] = place
        if place[1] != chunk.plain_bytes:
            raise BadChunk(f"chunk {place[0]} has {place[1]} bytes, not {chunk.plain_bytes}")
        return place

    def _append(self, chunk: Chunk, number: int, group: Group) -> tuple[int, int]:
        """Append a chunk to the segments; a damaged one is written anew under its old id."""
        self.next_chunk = max(self.next_chunk, number + 1)
        row = append_chunk(self._segments, number, chunk)
        group.rows.append(row)
        group.stored_bytes += CHUNK_HEADER_BYTES + row.stored_bytes
        return number, row.plain_bytes


def append_chunk(segments: SegmentWriter, number: int, chunk: Chunk) -> ChunkRow:
    """Append a shipped chunk under an id; raise BadChunk for bytes that are not its digest's."""
    assert chunk.data is not None
    check_chunk(chunk.digest, chunk.plain_bytes, chunk.codec, chunk.data)
    header = segment.pack_chunk_header(
        number, chunk.codec, chunk.plain_bytes, chunk.digest, chunk.data
    )
    place = segments.append(header, chunk.data)
    return ChunkRow(number, chunk.digest, chunk.plain_bytes, len(chunk.data), chunk.codec, *place)
