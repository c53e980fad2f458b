"""Scrub: reads everything again, a little at a time, to find damage while it can be mended.

A replica's pieces are its segments, those that should be there and are not too, and its manifests.
When one of them has not been verified for long, a round begins: every piece is verified, the one
that was longest not verified first, and then that every chunk which an extent names is there. The
end of a round is told by an event. What was verified when lies in the index; losing it means only
to verify again.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import NamedTuple

import apsw
import msgspec

from strandline_contracts.events import DamageRepaired, ReplicaVerified
from strandline_replica_store.checking.verify import (
    Cancelled,
    Report,
    Tally,
    check_extents,
    check_manifest,
    check_segment,
    segments_of,
)
from strandline_replica_store.errors import StoreError, translated
from strandline_replica_store.files import manifest, segment
from strandline_replica_store.pace import Pace
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica import index
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.store.leases import SEGMENTS
from strandline_replica_store.store.store import Store
from strandline_runtime.logs import logger
from strandline_runtime.patience import to_its_end

SLICE_S = 30.0
"""One `run` works so long: other replicas, and other work, have their turn."""
DUE_SHARE = 0.8
"""A round begins when this share of the days is over: the rest is for working it off."""
STOP_LOOK_STEPS = 100_000
"""So often, in steps of SQLite's, a long question looks whether it is to stop."""
LOOK_EVERY_NS = 3600 * 1_000_000_000
"""So often it is looked whether a round is due."""
MANIFESTS_AT_ONCE = 64
HOLDER = "scrub"
SEGMENT = 0
MANIFEST = 1
_DAY_NS = 86_400 * 1_000_000_000


class Round(msgspec.Struct, frozen=True):
    """A round that goes on: when it began, and what it has seen so far."""

    began_at_ns: int
    chunks: int = 0
    read_bytes: int = 0
    damaged: int = 0


class Verified(NamedTuple):
    """What is known of a replica's soundness.

    `at_ns` is when the last whole round began, 0 for none: all that was there then was verified
    since. `damaged_chunks` are those that recovery points need and nobody has mended.
    """

    at_ns: int
    damaged_chunks: int


class Scrub:
    """Scrubs one replica after the other as it is told to."""

    def __init__(
        self,
        store: Store,
        pace: Pace,
        *,
        days: float,
        slice_s: float = SLICE_S,
    ) -> None:
        self._store = store
        self._pace = pace
        self._days = days
        self._slice_s = slice_s
        self._looked_at_ns: dict[str, int] = {}

    async def run(self, source: str) -> None:
        """Verify what is due of a source, for SLICE_S at most; the next run goes on.

        Cancelled, it stops before it reads on. Raises StoreError.
        """
        stop = threading.Event()
        await to_its_end(asyncio.to_thread(self.work, source, stop), stop.set)

    def work(self, source: str, stop: threading.Event) -> None:
        """Do the same, blocking, until `stop` is set. Raises StoreError."""
        until_s = time.monotonic() + self._slice_s
        with self._store.reader(source) as reader, translated():
            # While the reader is lent the replica stays open.
            replica = self._store.replica(source)
            current = current_round(reader.conn)
            if current is None and self._is_worth_looking(source):
                current = self._begin_if_due(replica, reader)
            while current is not None and not stop.is_set():
                current = self._step(replica, reader, current, stop)
                if time.monotonic() >= until_s:
                    return

    def _is_worth_looking(self, source: str) -> bool:
        """Tell whether it was long ago that a source's pieces were looked at."""
        now_ns = self._store.now_ns()
        looked_at_ns = self._looked_at_ns.get(source)
        every_ns = min(LOOK_EVERY_NS, int(self._days * _DAY_NS))
        if looked_at_ns is not None and looked_at_ns <= now_ns < looked_at_ns + every_ns:
            return False
        self._looked_at_ns[source] = now_ns
        return True

    def _begin_if_due(self, replica: Replica, reader: Reader) -> Round | None:
        # One that is gone is a piece as well: what was in it is lost, and that must be found.
        there = segment.numbers_in(replica.segments_folder)
        segments = sorted({*there, *segments_of(reader.conn)})
        now_ns = self._store.now_ns()
        replica.on_database(lambda conn: learn_pieces(conn, segments, now_ns))
        due_ns = due_at_ns(reader.conn, self._days)
        if due_ns is None or due_ns > now_ns:
            return None
        begun = Round(began_at_ns=now_ns)
        replica.on_database(lambda conn: put_round(conn, begun))
        return begun

    def _step(
        self, replica: Replica, reader: Reader, current: Round, stop: threading.Event
    ) -> Round | None:
        """Verify a segment, or some manifests, and take note; when all are, end the round.

        What `stop` cuts short does not count. What is moved meanwhile stays where it was until the
        step's end, but no longer: a round takes days.
        """
        source = replica.identity.source
        self._store.leases.take(source, SEGMENTS, HOLDER)
        try:
            return self._verify_some(replica, reader, current, stop)
        finally:
            self._store.leases.release(source, SEGMENTS, HOLDER)

    def _verify_some(
        self, replica: Replica, reader: Reader, current: Round, stop: threading.Event
    ) -> Round | None:
        pieces = next_pieces(reader.conn, current.began_at_ns)
        tally = Tally(replica.record_damage)
        if not pieces:
            return self._finish(replica, reader, current, tally, stop)

        def before_read(count_bytes: int) -> None:
            self._store.leases.take(replica.identity.source, SEGMENTS, HOLDER)
            self._pace.take(count_bytes, stop)
            if stop.is_set():
                raise Cancelled

        try:
            for kind, number in pieces:
                if kind == SEGMENT:
                    check_segment(reader, number, tally, before_read)
                else:
                    before_read(manifest_bytes(replica, number))
                    check_manifest(reader, number, tally, replica.maintenance)
        except Cancelled:
            return current
        mend_files(replica, tally.report)
        done = _added(current, tally)
        at_ns = max(self._store.now_ns(), current.began_at_ns)

        def note(conn: apsw.Connection) -> None:
            put_verified(conn, pieces, at_ns)
            put_round(conn, done)

        replica.on_database(note)
        return done

    def _finish(
        self,
        replica: Replica,
        reader: Reader,
        current: Round,
        tally: Tally,
        stop: threading.Event,
    ) -> Round | None:
        """Check that no chunk is missing, and end the round."""
        reader.conn.set_progress_handler(stop.is_set, STOP_LOOK_STEPS)
        try:
            missing = check_extents(reader.conn, tally)
        except apsw.InterruptError:
            return current
        finally:
            reader.conn.set_progress_handler(None)
        if missing:
            replica.mark_inconsistent(f"{missing} chunks are missing")
        end_round(replica, _added(current, tally))
        return None


def _added(current: Round, tally: Tally) -> Round:
    report = tally.report
    return Round(
        began_at_ns=current.began_at_ns,
        chunks=current.chunks + report.chunks,
        read_bytes=current.read_bytes + report.read_bytes,
        damaged=current.damaged + report.damaged,
    )


def mend_files(replica: Replica, report: Report) -> None:
    """Write anew what was found damaged and whose content is known; rely on what is sound again.

    Manifests come from the index, the damaged ones are put aside; headers of segments from their
    names. What cannot be done now is known and told: it is found again in the next round.
    """
    numbers = {n for damage in report.damages if not damage.chunk for n in damage.points}
    try:
        if numbers:
            replica.rewrite(numbers)
        for number in report.segment_headers:
            _mend_header(replica, number)
        if report.sound_again:
            replica.take_back_damage(report.sound_again)
    except StoreError as error:
        logger().error("file.not_mended", code=error.code, error=error.message)


def _mend_header(replica: Replica, number: int) -> None:
    with translated(), suppress(FileNotFoundError):
        segment.write_header_anew(replica.segments_folder, number, replica.identity.source)
        told = DamageRepaired(chunk=0, by="name")
        replica.on_database(lambda conn: replica.tell(conn, "damage", "repaired", told))


def note_verified(replica: Replica, segments: Sequence[int], newest: int, whole: Round) -> None:
    """Note that `segments` and all manifests up to `newest` were verified at once."""

    def change(conn: apsw.Connection) -> None:
        learn_pieces(conn, segments, whole.began_at_ns)
        put_verified(conn, [(SEGMENT, number) for number in segments], whole.began_at_ns)
        conn.execute(
            "UPDATE verified SET at_ns = max(at_ns, ?) WHERE kind = ? AND number <= ?",
            (whole.began_at_ns, MANIFEST, newest),
        )

    replica.on_database(change)
    end_round(replica, whole)


# What was verified when: tables of the index


_DAMAGED = (
    "SELECT count(*) FROM chunk c WHERE bad AND (EXISTS (SELECT 1 FROM extent e"
    " WHERE e.chunk = c.id) OR EXISTS (SELECT 1 FROM extent_past p WHERE p.chunk = c.id))"
)


def verified(conn: apsw.Connection) -> Verified:
    """Return what is known of a replica's soundness."""
    damaged = conn.execute(_DAMAGED).get
    return Verified(int(index.get_meta(conn, "verified") or 0), int(damaged))


def learn_pieces(conn: apsw.Connection, segments: Sequence[int], now_ns: int) -> None:
    """Make the list of pieces those that there are; when each was first met is kept."""
    conn.execute(
        "DELETE FROM verified WHERE kind = ? AND number NOT IN (SELECT value FROM json_each(?))",
        (SEGMENT, json.dumps(segments)),
    )
    conn.execute(
        "DELETE FROM verified WHERE kind = ? AND number NOT IN (SELECT number FROM point)",
        (MANIFEST,),
    )
    conn.executemany(
        "INSERT OR IGNORE INTO verified VALUES (?, ?, ?, 0)",
        ((SEGMENT, number, now_ns) for number in segments),
    )
    conn.execute(
        "INSERT OR IGNORE INTO verified SELECT ?, number, ?, 0 FROM point", (MANIFEST, now_ns)
    )


def put_verified(conn: apsw.Connection, pieces: Iterable[tuple[int, int]], at_ns: int) -> None:
    """Note that these pieces (kind, number) were verified."""
    conn.executemany(
        "UPDATE verified SET at_ns = max(at_ns, ?) WHERE kind = ? AND number = ?",
        ((at_ns, *piece) for piece in pieces),
    )


def next_pieces(conn: apsw.Connection, before_ns: int) -> list[tuple[int, int]]:
    """Return the segment, or the manifests, that were longest not verified; none since then."""
    rows = conn.execute(
        "SELECT kind, number FROM verified WHERE at_ns < ? ORDER BY at_ns, kind, number LIMIT ?",
        (before_ns, MANIFESTS_AT_ONCE),
    )
    found = [(int(kind), int(number)) for kind, number in rows]
    if found and found[0][0] == SEGMENT:
        return found[:1]
    return list(takewhile(lambda piece: piece[0] == MANIFEST, found))


def due_at_ns(conn: apsw.Connection, days: float) -> int | None:
    """Return when a round is to begin; None when there is nothing to verify."""
    first = conn.execute("SELECT min(max(seen_at_ns, at_ns)) FROM verified").get
    return None if first is None else int(first + days * DUE_SHARE * _DAY_NS)


def current_round(conn: apsw.Connection) -> Round | None:
    """Return the round that goes on."""
    text = index.get_meta(conn, "scrub")
    return msgspec.json.decode(text, type=Round) if text else None


def put_round(conn: apsw.Connection, current: Round | None) -> None:
    text = msgspec.json.encode(current).decode() if current is not None else ""
    index.put_meta(conn, "scrub", text)


def end_round(replica: Replica, ended: Round) -> None:
    """Note, and tell, that everything was verified since the round began."""

    def change(conn: apsw.Connection) -> None:
        put_round(conn, None)
        index.put_meta(conn, "verified", str(ended.began_at_ns))
        told = ReplicaVerified(
            chunks=ended.chunks,
            read_bytes=ended.read_bytes,
            damaged=ended.damaged,
            began_at_ns=ended.began_at_ns,
        )
        replica.tell(conn, "replica", "verified", told)

    replica.on_database(change)


def manifest_bytes(replica: Replica, number: int) -> int:
    """Return the size of a manifest's file, 0 when there is none."""
    path = manifest.path_of(replica.manifests_folder, number)
    return os.path.getsize(path) if os.path.exists(path) else 0
