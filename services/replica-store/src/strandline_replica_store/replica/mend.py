"""Mending: which chunks are lost to damage, and taking back the bytes that somebody still has.

Who brings them does not matter: a chunk's digest says whether they are the right ones. The server
of the source does so at the beginning of its jobs; other sites and tapes come in by the same two
calls, `lost_chunks` and `mend`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apsw

from strandline_contracts.events import DamageRepaired
from strandline_contracts.points import BLOCK_BYTES
from strandline_contracts.shipping import Chunk, LostChunk, LostPage
from strandline_replica_store.files.segment import SegmentWriter
from strandline_replica_store.replica import index, tree
from strandline_replica_store.replica.index import ChunkRow
from strandline_replica_store.replica.staging import append_chunk

MAX_LOST_IN_PAGE = 1024
MAX_PIECES = 64
"""Of one chunk, those first that cover it: files with the same content may be very many."""
LOST_BYTES = 64
PIECE_BYTES = 40
"""What a lost chunk and a piece of it take in an answer, amply."""
MAX_POINTS = 1000
"""So many recovery points are named in an event."""
MAX_TOLD = 1000
"""While more chunks than these are damaged, single ones are not told: a lost disk would push all
other events out of the public record. Their number is in the replica's state."""

_LOST = (
    "SELECT id, digest, plain_bytes FROM chunk c WHERE bad AND id > ?"
    " AND EXISTS (SELECT 1 FROM extent e WHERE e.chunk = c.id) ORDER BY id LIMIT ?"
)
_PIECES = "SELECT file, start, blocks, chunk_block FROM extent WHERE chunk = ? ORDER BY file, start"
_BAD = "SELECT id, plain_bytes, digest FROM chunk WHERE prefix = ? AND bad ORDER BY id"

Piece = tuple[int, int, int, int]
"""file, start, blocks, chunk_block."""


def has_lost(conn: apsw.Connection) -> bool:
    """Tell whether the newest recovery point needs a chunk that is damaged."""
    return conn.execute(_LOST, (0, 1)).fetchone() is not None


def are_many_bad(conn: apsw.Connection) -> bool:
    """Tell whether more than MAX_TOLD chunks are damaged."""
    counted = "SELECT count(*) FROM (SELECT 1 FROM chunk WHERE bad LIMIT ?)"
    return int(conn.execute(counted, (MAX_TOLD + 1,)).get) > MAX_TOLD


def lost_page(conn: apsw.Connection, after: int, room_bytes: int) -> LostPage:
    """Return damaged chunks that the newest recovery point needs, with ids above `after`.

    As many as fit into `room_bytes` of an answer, one at least.
    """
    found: list[LostChunk] = []
    rows = list(conn.execute(_LOST, (after, MAX_LOST_IN_PAGE + 1)))
    for chunk, digest, plain_bytes in rows[:MAX_LOST_IN_PAGE]:
        pieces = choose(conn.execute(_PIECES, (chunk,)), plain_bytes // BLOCK_BYTES)
        room_bytes -= LOST_BYTES + PIECE_BYTES * len(pieces)
        if found and room_bytes < 0:
            break
        found.append(LostChunk(chunk, digest, plain_bytes, pieces))
    return LostPage(chunks=found, more=len(found) < len(rows))


def choose(pieces: Iterator[Piece], blocks: int) -> list[Piece]:
    """Return at most MAX_PIECES pieces of a chunk of so many blocks, new blocks first. Pure."""
    covering: list[Piece] = []
    others: list[Piece] = []
    open_blocks = set(range(blocks))
    for piece in pieces:
        own = set(range(piece[3], piece[3] + piece[2]))
        if own & open_blocks:
            covering.append(piece)
            open_blocks -= own
        elif len(others) < MAX_PIECES:
            others.append(piece)
        if not open_blocks and len(covering) + len(others) >= MAX_PIECES:
            break
    return (covering + others)[:MAX_PIECES]


def append_lost(
    conn: apsw.Connection, segments: SegmentWriter, chunks: Sequence[Chunk]
) -> list[ChunkRow]:
    """Append those of `chunks` that are lost, under their old ids; return where they will stand.

    What is not lost, or has no bytes, is passed over. Raises BadChunk for bytes that are not what
    their digest says.
    """
    rows: dict[int, ChunkRow] = {}
    for chunk in chunks:
        if chunk.data is None:
            continue
        for number, *known in list(conn.execute(_BAD, (index.prefix_of(chunk.digest),))):
            if known == [chunk.plain_bytes, chunk.digest] and number not in rows:
                rows[number] = append_chunk(segments, number, chunk)
    return list(rows.values())


def repaired(conn: apsw.Connection, chunk: int, by: str) -> DamageRepaired:
    """Return what is to be told of a chunk that `by` has made whole again."""
    return DamageRepaired(chunk=chunk, by=by, points=tree.points_of_chunk(conn, chunk, MAX_POINTS))
