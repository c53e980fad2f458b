"""What is told of a damaged chunk: what it harms."""

from __future__ import annotations

import apsw

from strandline_contracts.events import DamageFound
from strandline_replica_store.replica import tree
from strandline_replica_store.replica.index import ChunkRow

MAX_PATHS = 100
MAX_PATHS_BYTES = 64 * 1024
"""An event is one message: some of the paths concerned are named in it."""
MAX_POINTS = 1000
LOST = "no segment holds it"
SPOILED = "its bytes do not match their digest"
"""What is told of a chunk that lies nowhere, and of one that was found so in its segment."""


def describe(conn: apsw.Connection, row: ChunkRow, reason: str) -> DamageFound:
    """Return what is known of a damaged chunk: the recovery points and paths that it harms."""
    points = tree.points_of_chunk(conn, row.id, MAX_POINTS)
    paths: set[bytes] = set()
    room_bytes = MAX_PATHS_BYTES
    for point in points[-1:] + points[:1]:
        for file in tree.files_of_chunk(conn, point, row.id):
            path = tree.path_of(conn, point, file)
            if path is not None and path not in paths and len(path) <= room_bytes:
                paths.add(path)
                room_bytes -= len(path)
            if len(paths) >= MAX_PATHS:
                break
    return DamageFound(
        chunk=row.id,
        segment=row.segment,
        offset=row.offset,
        reason=reason,
        points=points,
        files=sorted(paths)[:MAX_PATHS],
    )
