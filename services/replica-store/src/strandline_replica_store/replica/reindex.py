"""Makes the index of a replica anew, beside the old one, and puts it in its place.

An index under `index.db` is whole: it is made under another name, and renamed. What only the old
one knew (events that were not sent, the job being received, what was found damaged or verified) is
taken over, as far as it can be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import apsw

from strandline_contracts.points import RecoveryPoint
from strandline_replica_store.errors import Damaged
from strandline_replica_store.files import durable, manifest
from strandline_replica_store.replica import index, mend, recovery
from strandline_replica_store.replica.index import ChunkRow
from strandline_replica_store.replica.rules import as_parent
from strandline_runtime.logs import logger

TAKEN_OVER = ("outbox_numbers", "outbox", "job", "batch", "meta", "verified")
"""Tables that no segment or manifest holds."""
NAMED_POINTS = 1000
CACHE_KIB = 64 * 1024


def new_path(path: str) -> str:
    """Return where the index that is to lie at `path` is made."""
    return path + ".new"


def begin(path: str) -> apsw.Connection:
    """Begin an index that counts as none until `seal`, under the other name."""
    remove(new_path(path))
    conn = index.connect(new_path(path))
    conn.execute("PRAGMA user_version=0")
    # It is thrown away if the process dies: nothing need be safe on the disk before it is sealed.
    conn.execute("PRAGMA synchronous=OFF")
    conn.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    return conn


def fill(
    conn: apsw.Connection,
    segments_folder: str,
    manifests_folder: str,
    source: str,
    *,
    era: int,
    below: int | None = None,
) -> Damaged | None:
    """Bring an index up to what segments and manifests hold; again, to what was added since.

    Segments from `below` on are left for the next time. Returns what keeps the newest of the
    recovery points out of it, None when all are in.
    """
    recovery.agree_with_segments(conn, segments_folder, source, anew=True, era=era, below=below)
    found = recovery.find_manifests(manifests_folder)
    known = index.newest_point(conn)
    newer = sorted({*found.heads, *found.chain.lost} - {*found.chain.leftover})
    for number in newer:
        if known is None or number > known.number:
            try:
                known = apply(conn, manifests_folder, number, known)
            except (Damaged, FileNotFoundError) as error:
                return lost(newer, known, error)
    return None


def lost(numbers: Iterable[int], known: RecoveryPoint | None, error: Exception) -> Damaged:
    """Return the error that names the recovery points after `known`, which cannot be had."""
    newer = sorted(number for number in numbers if known is None or number > known.number)
    named = ", ".join(map(str, newer[:NAMED_POINTS]))
    more = f" and {len(newer) - NAMED_POINTS} more" if len(newer) > NAMED_POINTS else ""
    return Damaged(f"lost are recovery points {named}{more}: {error}")


def apply(
    conn: apsw.Connection, folder: str, number: int, newest: RecoveryPoint | None
) -> RecoveryPoint:
    """Apply the manifest that follows recovery point `newest`, in a transaction; raise Damaged."""
    path = manifest.path_of(folder, number)
    found = check_next(path, number, newest)
    with index.transaction(conn):
        return index.apply_manifest(conn, found, manifest.deltas(path))


def check_next(path: str, number: int, newest: RecoveryPoint | None) -> manifest.Manifest:
    """Return the manifest of point `number`, which is to follow `newest`; raise Damaged."""
    found = manifest.check(path)
    before = as_parent(newest)
    head = found.head
    if (head.parent, head.parent_digest, head.number) != (*before, number):
        raise Damaged(f"manifest {number} does not follow recovery point {before[0]}")
    return found


def take_over(old: apsw.Connection, conn: apsw.Connection) -> set[int]:
    """Take over what only the old index knows; return the numbers of the points it had told of.

    What cannot be read of it is left out, and logged.
    """
    with index.transaction(conn):
        for table in TAKEN_OVER:
            columns = len(list(conn.execute(f"PRAGMA table_info({table})")))
            insert = f"INSERT INTO {table} VALUES ({','.join('?' * columns)})"  # noqa: S608 - own words
            rows = _readable(old, f"SELECT * FROM {table}")  # noqa: S608 - own words
            conn.executemany(insert, (row for row in rows if len(row) == columns))
        conn.executemany(
            "UPDATE chunk SET bad = 1 WHERE id = ? AND segment = ? AND offset = ?",
            _readable(old, "SELECT id, segment, offset FROM chunk WHERE bad"),
        )
    return {number for (number,) in _readable(old, "SELECT number FROM point")}


def newly_bad(old: apsw.Connection | None, new: apsw.Connection) -> list[ChunkRow]:
    """Return damaged chunks of recovery points of which perhaps nobody was told.

    The old index did not call them damaged, or knew no place of theirs. At most MAX_TOLD are looked
    at: where very many are damaged not each one is told.
    """
    rows = [ChunkRow(*row) for row in new.execute(_BAD, (mend.MAX_TOLD,))]
    return [row for row in rows if old is None or not _was_bad(old, row.id)]


_BAD = (
    "SELECT id, digest, plain_bytes, stored_bytes, codec, segment, offset FROM chunk"
    " WHERE bad AND NOT staged ORDER BY id LIMIT ?"
)


def _was_bad(old: apsw.Connection, chunk: int) -> bool:
    try:
        query = "SELECT 1 FROM chunk WHERE id = ? AND bad AND segment > 0"
        return old.execute(query, (chunk,)).get is not None
    except apsw.Error:
        return False


def is_settled(old: apsw.Connection) -> bool:
    """Tell whether manifests surely name the very chunks that an index does."""
    try:
        return old.execute("SELECT 1 FROM stale LIMIT 1").fetchone() is None
    except apsw.Error:
        return False


def forget_undone(old: apsw.Connection, conn: apsw.Connection) -> None:
    """Forget staged chunks that the old index does not know: their batch was taken back."""
    staged = conn.execute("SELECT id, segment, offset FROM chunk WHERE staged")
    known = "SELECT 1 FROM chunk WHERE id = ? AND segment = ? AND offset = ?"
    undone = [row[:1] for row in staged if old.execute(known, row).fetchone() is None]
    with index.transaction(conn):
        conn.executemany("DELETE FROM chunk WHERE id = ?", undone)


def _readable(old: apsw.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    try:
        yield from old.execute(query)
    except apsw.Error as error:
        logger().warning("index.not_taken_over", query=query, error=str(error))


def seal(conn: apsw.Connection, path: str) -> None:
    """Close an index that was begun, its bytes safe: from here on it counts."""
    conn.execute(f"PRAGMA user_version={index.SCHEMA_VERSION}")
    conn.execute("PRAGMA synchronous=FULL")
    conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    conn.close()
    durable.sync_path(path)


def swap(path: str, aside: str = "") -> None:
    """Put the sealed index in the place of the old one, which is removed, or kept as `aside`.

    Who has the old one open goes on with it, and may close it later: SQLite sees that it was moved
    and leaves the files of the new one alone. Between the renames there is none at `path`; then the
    next opening goes on here.
    """
    with index.STEADY:
        if os.path.exists(path):
            durable.rename(path, path + ".old")
        # The log of the old one must not become that of the new one.
        durable.remove(path + "-wal")
        durable.remove(path + "-shm")
        durable.sync_folder(os.path.dirname(path))
        durable.rename(new_path(path), path)
    if aside and os.path.exists(path + ".old"):
        durable.make_folder(os.path.dirname(aside))
        durable.rename(path + ".old", aside)
    durable.remove(path + ".old")


def finish_swap(path: str) -> None:
    """Go on with a swap that was cut short, or forget an index that was not sealed."""
    if not os.path.exists(path) and _is_sealed(new_path(path)):
        swap(path)
    remove(new_path(path))
    durable.remove(path + ".old")
    if not os.path.exists(path):
        remove(path)


def _is_sealed(path: str) -> bool:
    if not os.path.exists(path):
        return False
    try:
        index.connect_to_read(path).close()
    except (index.Outdated, apsw.Error):
        return False
    return True


def connect_to_rest(path: str) -> apsw.Connection | None:
    """Open what an index that cannot be relied on still has, read-only; None when nothing."""
    try:
        return index.connect_unchecked(path)
    except apsw.Error:
        return None


def remove(path: str) -> None:
    """Remove an index that nobody has open."""
    for suffix in ("", "-wal", "-shm"):
        durable.remove(path + suffix)


def remove_all(path: str) -> None:
    """Remove an index, the one that was to take its place, and the one whose place it took."""
    for each in (path, new_path(path), path + ".old"):
        remove(each)
