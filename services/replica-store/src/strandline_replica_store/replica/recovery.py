"""Opening: makes index, segments and manifests of a replica agree, whatever happened before.

Segments and manifests are the truth: what the index lacks of them it learns, what it has beyond
them it forgets (docs/formats/replica.md, "Recovery points and the moment of commit").
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import apsw

from strandline_contracts.codec import decode
from strandline_contracts.points import RecoveryPoint
from strandline_replica_store.errors import Damaged
from strandline_replica_store.files import durable, manifest, segment
from strandline_replica_store.files.manifest import Head
from strandline_replica_store.files.segment import CHUNK_HEADER_BYTES, SEGMENT_HEADER_BYTES
from strandline_replica_store.replica import dropping, index, mend
from strandline_replica_store.replica.dropping import Chain, Step

LEARNED_AT_ONCE_ROWS = 4096

OnLost = Callable[[apsw.Connection, index.ChunkRow, str], None]
"""Is told, inside the transaction that notes it, of a chunk that is found to be lost, and why; not
of each one where very many are (mend.MAX_TOLD)."""


# Segments


def agree_with_segments(
    conn: apsw.Connection,
    folder: str,
    source: str,
    *,
    anew: bool,
    era: int,
    below: int | None = None,
    on_lost: OnLost = lambda *_: None,
) -> None:
    """Make chunk rows agree with segments: learn chunks, forget those whose bytes are not there.

    Committed chunks without bytes are damaged, and told `on_lost`, staged ones are forgotten.
    `anew` makes rows of all that the segments hold, damage passed over; else what lies behind the
    first damage that the index does not know was never relied on. Segments from `below` on are left
    alone. Raises OSError, and Damaged for a segment of another source.
    """
    conn.execute(_DOUBTFUL)
    retired = _retired(conn, folder)
    numbers = segment.numbers_in(folder)
    known = list(conn.execute("SELECT DISTINCT segment FROM chunk"))
    for (missing,) in known:
        if missing not in numbers:
            _forget_bytes(conn, missing, 0, on_lost)
    for number in numbers:
        if number in retired or (below is not None and number >= below):
            continue
        path = segment.path_of(folder, number)
        size_bytes, end_bytes = os.path.getsize(path), known_end(conn, number)
        if size_bytes < end_bytes:
            _forget_bytes(conn, number, size_bytes, on_lost)
        elif size_bytes > end_bytes:
            learn(conn, path, number, source, end_bytes, anew=anew, era=era)


def last_end(conn: apsw.Connection, folder: str) -> tuple[int, int]:
    """Return segment and offset behind the last chunk that the index knows, zeros for none."""
    for number in reversed(segment.numbers_in(folder)):
        end_bytes = known_end(conn, number)
        if end_bytes:
            return number, end_bytes
    return 0, 0


def known_end(conn: apsw.Connection, number: int) -> int:
    """Return where the last chunk that the index knows in a segment ends, 0 for none."""
    row = conn.execute(
        "SELECT offset + ? + stored_bytes FROM chunk WHERE segment = ?"
        " ORDER BY offset DESC LIMIT 1",
        (CHUNK_HEADER_BYTES, number),
    ).fetchone()
    return int(row[0]) if row else 0


def _retired(conn: apsw.Connection, folder: str) -> set[int]:
    """Unlink what was to be unlinked; return the segments of which nothing is needed."""
    for number, gone in list(conn.execute("SELECT segment, gone FROM retired")):
        if gone:
            durable.remove(segment.path_of(folder, number))
    with index.transaction(conn):
        conn.execute("DELETE FROM retired WHERE gone")
    return {number for (number,) in conn.execute("SELECT segment FROM retired")}


def learn(
    conn: apsw.Connection,
    path: str,
    number: int,
    source: str,
    start: int,
    *,
    anew: bool,
    era: int,
) -> None:
    """Add the chunks from `start` of a segment on, as staged; those that are damaged as bad."""
    _check_owner(path, number, source)
    # What a killed process wrote may be in memory alone: from here on it is relied on.
    durable.sync_path(path)
    sound: list[index.ChunkRow] = []
    with index.transaction(conn):
        for found in segment.survey(path, max(start, SEGMENT_HEADER_BYTES), to_the_end=anew):
            head = found.header
            row = index.ChunkRow(
                head.id, head.plain_digest, head.plain_bytes, head.stored_bytes,
                head.codec, number, found.offset,
            )  # fmt: skip
            if found.in_sequence and found.is_sound:
                sound.append(row)
                if len(sound) < LEARNED_AT_ONCE_ROWS:
                    continue
            _add_sound(conn, sound)
            sound = []
            if not found.is_sound:
                index.add_bad_chunk(conn, row)
            # An id of a later era is none of this replica: part of a file that looks like a chunk.
            elif not found.in_sequence and head.id >> index.ERA_SHIFT <= era:
                _add_doubtful(conn, row)
        _add_sound(conn, sound)


_DOUBTFUL = "CREATE TEMP TABLE IF NOT EXISTS doubtful (id INTEGER PRIMARY KEY)"
"""The ids of which nothing was known before a chunk was found behind damage that has them."""
_IS_DOUBTFUL = "SELECT 1 FROM temp.doubtful WHERE id = ?"
_ADD_OTHER = "INSERT OR REPLACE INTO temp.other_copy VALUES (?, ?, ?, ?, ?, ?)"
_PUT_ASIDE = (
    "INSERT OR REPLACE INTO temp.other_copy"
    " SELECT id, digest, stored_bytes, codec, segment, offset FROM chunk WHERE id = ? AND staged"
)


def _add_sound(conn: apsw.Connection, rows: Sequence[index.ChunkRow]) -> None:
    """Add chunks found in sequence: the store wrote them. What is doubtful makes way for them."""
    if conn.execute("SELECT 1 FROM temp.doubtful LIMIT 1").fetchone() is not None:
        for row in rows:
            if conn.execute(_IS_DOUBTFUL, row[:1]).fetchone() is not None:
                conn.execute(_PUT_ASIDE, row[:1])
                conn.execute("DELETE FROM chunk WHERE id = ? AND staged", row[:1])
                conn.execute("DELETE FROM temp.doubtful WHERE id = ?", row[:1])
    index.add_found(conn, rows)


def _add_doubtful(conn: apsw.Connection, row: index.ChunkRow) -> None:
    """Add a sound chunk found behind damage: it may be part of a file that holds such bytes.

    It counts where no other sound one of its id is known, and where a manifest names its digest.
    """
    known = conn.execute("SELECT digest, bad FROM chunk WHERE id = ?", row[:1]).fetchone()
    if known is None:
        conn.execute("INSERT OR IGNORE INTO temp.doubtful VALUES (?)", row[:1])
    if known is None or known == (row.digest, 1):
        index.add_chunks(conn, [row])
    elif known[0] != row.digest:
        place = (row.stored_bytes, row.codec, row.segment, row.offset)
        conn.execute(_ADD_OTHER, (row.id, row.digest, *place))


def _check_owner(path: str, number: int, source: str) -> None:
    with open(path, "rb") as file:
        data = file.read(SEGMENT_HEADER_BYTES)
    try:
        found = segment.parse_segment_header(data)
    except Damaged:
        # Each chunk has a header of its own that says enough.
        return
    if found != (number, source):
        raise Damaged(f"{path} is segment {found[0]} of source {found[1]}")


def lost_chunks(conn: apsw.Connection) -> int:
    """Return how many chunks manifests name of which no segment has a copy that can be told."""
    return int(conn.execute("SELECT count(*) FROM chunk WHERE segment = 0").get)


class Incomplete(Exception):
    """An index that lacks what segments and manifests hold: more than one that is late does."""


def check_begun(conn: apsw.Connection, folder: str, found: Found) -> None:
    """Raise Incomplete for an index that holds nothing beside segments or manifests.

    It is made anew beside, not here: what is filled only in part looks like one that is late.
    """
    known = conn.execute("SELECT EXISTS (SELECT 1 FROM chunk) OR EXISTS (SELECT 1 FROM point)").get
    if not known and (found.heads or segment.numbers_in(folder)):
        raise Incomplete("there was none")


def forget_torn(conn: apsw.Connection) -> None:
    """Forget chunks that are damaged and that no manifest names: writes that were torn."""
    with index.transaction(conn):
        conn.execute("DELETE FROM chunk WHERE staged AND bad")


def _forget_bytes(conn: apsw.Connection, number: int, size_bytes: int, on_lost: OnLost) -> None:
    """Drop staged chunks that lie behind `size_bytes`; committed ones there are damaged."""
    behind = (number, size_bytes - CHUNK_HEADER_BYTES)
    reason = f"segment {number} {'ends before it' if size_bytes else 'is missing'}"
    with index.transaction(conn):
        conn.execute(
            "DELETE FROM chunk WHERE staged AND segment = ? AND offset + stored_bytes > ?", behind
        )
        lost = list(conn.execute(_SOUND_BEHIND, (*behind, mend.MAX_TOLD - _bad_chunks(conn))))
        conn.execute(
            "UPDATE chunk SET bad = 1 WHERE segment = ? AND offset + stored_bytes > ?", behind
        )
        for row in lost:
            on_lost(conn, index.ChunkRow(*row), reason)


_SOUND_BEHIND = (
    "SELECT id, digest, plain_bytes, stored_bytes, codec, segment, offset FROM chunk"
    " WHERE segment = ? AND offset + stored_bytes > ? AND NOT bad ORDER BY offset LIMIT ?"
)


def _bad_chunks(conn: apsw.Connection) -> int:
    """Return how many chunks are damaged, at most MAX_TOLD."""
    counted = "SELECT count(*) FROM (SELECT 1 FROM chunk WHERE bad LIMIT ?)"
    return int(conn.execute(counted, (mend.MAX_TOLD,)).get)


# Manifests


class Found(NamedTuple):
    """The manifests of a folder: their heads, None for what is no manifest, and their chain."""

    heads: Mapping[int, Head | None]
    chain: Chain


def find_manifests(folder: str) -> Found:
    """Read the heads of all manifests. Raises OSError."""
    heads = {number: _head(folder, number) for number in manifest.numbers_in(folder)}
    parents = {number: head.parent if head else None for number, head in heads.items()}
    return Found(heads, dropping.chain(parents))


def _head(folder: str, number: int) -> Head | None:
    try:
        head = manifest.head_of(manifest.path_of(folder, number))
    except Damaged:
        return None
    return head if head.number == number else None


def unlink_leftovers(folder: str, found: Found) -> None:
    """Unlink manifests of points that were dropped, where what follows them is whole."""
    if not found.chain.leftover:
        return
    for number in found.chain.kept:
        head = found.heads[number]
        parent = head.parent if head else number
        between = [each for each in found.chain.leftover if parent < each < number]
        if between and is_whole(folder, number):
            for each in between:
                durable.remove(manifest.path_of(folder, each))
    durable.sync_folder(folder)


def is_whole(folder: str, number: int) -> bool:
    """Tell whether the manifest of a recovery point is there and undamaged. Raises OSError.

    One that the disk cannot read is not whole: what the index knows is written anew elsewhere.
    """
    try:
        manifest.check(manifest.path_of(folder, number))
    except (Damaged, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    return True


class Agreement(NamedTuple):
    """What the index is to do to agree with the chain: points to drop, manifests to write anew."""

    steps: list[Step]
    lost: list[int]


def compare(conn: apsw.Connection, found: Found) -> Agreement:
    """Return how the index's points differ from the chain's. Raises IndexOfAnother."""
    known = {
        point.number: point for point in (decode(row[0], RecoveryPoint) for row in _records(conn))
    }
    kept = [number for number in found.chain.kept if number in known]
    for number in kept:
        head = found.heads[number]
        if head is not None:
            _check_same(known, head)
    parents = {number: head.parent for number in kept if (head := found.heads[number])}
    steps = [
        Step(number, parent, tuple(sorted(each for each in known if parent < each < number)))
        for number, parent in parents.items()
    ]
    steps = [step for step in steps if step.dropped or known[step.number].parent != step.parent]
    dropped = {each for step in steps for each in step.dropped}
    return Agreement(steps, sorted(set(known) - set(kept) - dropped))


def _records(conn: apsw.Connection) -> Iterator[tuple[bytes]]:
    yield from conn.execute("SELECT record FROM point ORDER BY number")


class IndexOfAnother(Exception):
    """An index that was not made from these manifests."""


def _check_same(known: Mapping[int, RecoveryPoint], head: Head) -> None:
    point, parent = known[head.number], known.get(head.parent)
    other_job = (point.job, point.attempt) != (head.job, head.attempt)
    if other_job or (head.replaces and head.replaces[0][1] != point.digest):
        raise IndexOfAnother(f"the index knows another recovery point {head.number}")
    if head.parent and (parent is None or parent.digest != head.parent_digest):
        raise IndexOfAnother(f"the index knows another parent of recovery point {head.number}")
