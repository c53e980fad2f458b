"""One replica and its only writer, in layers: its core, its recovery points, the job it receives,
and here how it is opened and brought to rest.

The order in which things reach the disk is in docs/formats/replica.md ("Recovery points and the
moment of commit"). Every method may be called from any thread; a lock makes them one at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

import apsw

from strandline_contracts.codec import decode
from strandline_contracts.events import DamageFound, PointsDropped
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.shipping import Chunk
from strandline_replica_store.errors import Busy, Damaged, StoreError, means_damage, translated
from strandline_replica_store.files import durable, manifest, segment
from strandline_replica_store.replica import index, mend, recovery, reindex
from strandline_replica_store.replica.core import (
    RESERVE_BYTES,
    Identity,
    create,
    era_of,
    next_generation,
)
from strandline_replica_store.replica.damage import LOST, SPOILED, describe
from strandline_replica_store.replica.index import ChunkRow
from strandline_replica_store.replica.receiving import Receiving
from strandline_runtime.logs import logger

__all__ = ["RESERVE_BYTES", "Identity", "Replica", "create"]


class Replica(Receiving):
    """The writer of one replica. Use `Replica.open`, then `close`."""

    @classmethod
    def open(cls, folder: str, identity: Identity, **options: Any) -> Replica:
        """Open a replica's folder and bring it to rest after whatever happened before."""
        replica = cls(folder, identity, **options)
        try:
            with translated():
                replica._come_up()
            replica._put_right()
        except BaseException:
            replica.close()
            raise
        return replica

    def _come_up(self) -> None:
        for name in ("segments", "manifests", "staging"):
            durable.make_folder(os.path.join(self.folder, name))
        reindex.finish_swap(self.index_path)
        found = recovery.find_manifests(self.manifests_folder)
        recovery.unlink_leftovers(self.manifests_folder, found)
        self._leftover = frozenset(found.chain.leftover)
        try:
            self._open_index(found)
            self._come_to_rest()
        except index.Outdated as error:
            self._make_index_anew(str(error), is_damage=False)
            self._come_to_rest()
        except recovery.Incomplete as error:
            # What was moved is among what it lacks.
            self.order_generation = next_generation()
            self._make_index_anew(str(error), is_damage=False)
            self._come_to_rest()
        except recovery.IndexOfAnother as error:
            # Nothing that it knows is of this replica.
            self._conn.close()
            self._index = None
            reindex.remove(self.index_path)
            self._make_index_anew(str(error), is_damage=False)
            self._come_to_rest()
        except apsw.Error as error:
            if not means_damage(error):
                raise
            self._make_index_anew(str(error))
            self._come_to_rest()

    def _put_right(self) -> None:
        """Finish what was cut short and can be finished now; else the next opening does."""
        try:
            self._mend_manifests()
            self._sweep()
        except StoreError as error:
            logger().error("replica.not_put_right", source=self.identity.source, error=str(error))

    def _open_index(self, found: recovery.Found) -> None:
        """Open the index and make it agree with segments and manifests."""
        self._index = index.connect(self.index_path)
        recovery.check_begun(self._conn, self.segments_folder, found)
        self._made_anew = self._conn.execute("SELECT 1 FROM chunk LIMIT 1").fetchone() is None
        recovery.agree_with_segments(
            self._conn,
            self.segments_folder,
            self.identity.source,
            anew=self._made_anew,
            era=era_of(self.folder),
            on_lost=self._tell_lost,
        )
        differing = recovery.compare(self._conn, found)
        if differing.steps:
            reason = index.get_meta(self._conn, "dropping") or "retention"
            with index.transaction(self._conn):
                self._forget_points(differing.steps, reason)
        self._lost = differing.lost
        self._newest = index.newest_point(self._conn)
        known = recovery.lost_chunks(self._conn)
        self._behind = True
        self._catch_up()
        if recovery.lost_chunks(self._conn) > known:
            self._learn_more()

    def _learn_more(self) -> None:
        """Raise Incomplete where another index may know chunks that this one lacks, else tell.

        Behind the first damage nothing was learned; but recovery points that the index had lost may
        name what lies there.
        """
        # Where the index alone knows what manifests said it stays.
        if not self._made_anew and not self._lost:
            raise recovery.Incomplete("it lacks chunks that manifests name")
        with index.transaction(self._conn):
            for row in reindex.newly_bad(None, self._conn):
                if not row.segment:
                    self._tell_lost(self._conn, row, LOST)

    def _come_to_rest(self) -> None:
        """Cut off what is torn, and go on with the job that was being received."""
        # Before what is torn is forgotten: its id was given, and its header may still be found.
        self._find_next_chunk()
        is_whole = self._broken is None and not recovery.lost_chunks(self._conn)
        if is_whole and not self._made_anew:
            recovery.forget_torn(self._conn)
            self._segments.recover(*recovery.last_end(self._conn, self.segments_folder))
        else:
            # Nothing is cut where manifests are missing that may name it, or headers that tell it;
            # nor is anything appended where what was found may lie inside what was torn.
            if is_whole:
                recovery.forget_torn(self._conn)
            self._segments.leave()
        self._recover_job()

    def _find_next_chunk(self) -> None:
        highest = self._conn.execute("SELECT max(id) FROM chunk").get
        # Not below what was given away since the start: who moves chunks may have ids in hand.
        least = (era_of(self.folder) << index.ERA_SHIFT) + 1
        self._next_chunk = max(self._next_chunk, (highest or 0) + 1, least)

    # Making the index anew

    def _make_index_anew(self, reason: str, *, is_damage: bool = True) -> None:
        """Make another index from what it is a projection of, and put it in the place of this."""
        self._rebuilding = True
        self._index_damage = reason
        level = logger().error if is_damage else logger().warning
        level("index.made_anew", source=self.identity.source, reason=reason)
        try:
            old = self._index or reindex.connect_to_rest(self.index_path)
            if old is None or not reindex.is_settled(old):
                self.order_generation = next_generation()
            new = reindex.begin(self.index_path)
            broken = self._fill(new)
            self._put_in_place(new, old, broken, reason if is_damage else "")
            self._index_damage = ""
        finally:
            self._rebuilding = False

    def _fill(self, new: apsw.Connection, *, below: int | None = None) -> Damaged | None:
        self._made_anew = True
        return reindex.fill(
            new,
            self.segments_folder,
            self.manifests_folder,
            self.identity.source,
            era=era_of(self.folder),
            below=below,
        )

    def _first_growing(self) -> int:
        """Return from which segment on writes may be under way: without the lock half is seen."""
        with self._lock:
            newest = max(segment.numbers_in(self.segments_folder), default=0)
            return self._segments.number or newest + 1

    def _put_in_place(
        self,
        new: apsw.Connection,
        old: apsw.Connection | None,
        broken: Damaged | None,
        damage: str,
    ) -> None:
        """Let another index be the index; the lock is held."""
        told = reindex.take_over(old, new) if old is not None else set()
        with index.transaction(new):
            if self._job is not None:
                self._put_job(self._job, new)
            self._tell_difference(new, told, is_all=broken is None)
            for row in reindex.newly_bad(old, new):
                self._tell_lost(new, row, SPOILED if row.segment else LOST)
            if damage:
                reason = f"index.db: {damage}; it was made anew"
                found = DamageFound(chunk=0, segment=0, offset=0, reason=reason)
                self.tell(new, "damage", "found", found)
        reindex.seal(new, reindex.new_path(self.index_path))
        # What cannot be made anew whole may be of use to somebody yet.
        aside = os.path.join(self.damaged_folder, "index.db") if broken is not None else ""
        try:
            reindex.swap(self.index_path, aside)
        except OSError as error:
            # There may be none in its place now: whoever asks next makes it anew.
            self._index_damage = f"it was not put in its place: {error}"
            raise
        if old is not None:
            # A damaged one may fail even at that.
            with suppress(apsw.Error):
                old.close()
        self._index = index.connect(self.index_path)
        self.index_generation = next_generation()
        self._broken = broken
        self._behind, self._rows_ahead = False, []
        self._newest = index.newest_point(self._conn)
        self._find_next_chunk()

    def _tell_lost(self, conn: apsw.Connection, row: ChunkRow, reason: str) -> None:
        """Tell of a chunk that is found to be lost; the caller holds the transaction."""
        self.tell(conn, "damage", "found", describe(conn, row, reason))

    def _tell_difference(self, new: apsw.Connection, told: set[int], *, is_all: bool) -> None:
        """Tell of the points that the old index had not told of, and of those that are no more."""
        gone = set(told)
        for number, record in new.execute("SELECT number, record FROM point ORDER BY number"):
            gone.discard(number)
            if number not in told:
                self._tell_committed(new, decode(record, RecoveryPoint))
        if gone and is_all:
            reason = index.get_meta(new, "dropping") or "retention"
            self.tell(new, "point", "dropped", PointsDropped(points=sorted(gone), reason=reason))
        index.put_meta(new, "dropping", "")

    def reindex(self) -> None:
        """Make the index anew, beside work that goes on; nothing happens to one when that fails.

        Raises Damaged, naming the recovery points that are lost, when a manifest is damaged and the
        index itself is not sound enough to write it anew.
        """
        with self._working():
            pass  # a damaged one is made anew first: what follows reads it
        with self.rewriting, self.maintenance:
            self._rewrite_damaged()
            self._rewrite_stale()
            with translated():
                new = reindex.begin(self.index_path)
                broken = self._fill(new, below=self._first_growing())
            with self._working():
                # What was cut off meanwhile, then what came.
                reindex.forget_undone(self._conn, new)
                broken = broken or self._fill(new)
                if broken is not None:
                    new.close()
                    reindex.remove(reindex.new_path(self.index_path))
                    raise broken
                reindex.forget_undone(self._conn, new)
                self._put_in_place(new, self._conn, None, "")

    # What moving chunks needs (compaction/)

    def take_chunk_ids(self, count: int) -> int:
        """Return the first of `count` chunk ids that nobody else gets."""
        with self._lock:
            first = self._next_chunk
            self._next_chunk += count
            return first

    def leave_segment(self) -> None:
        """Let what is received next begin a new segment, unless a job is being received."""
        with self._lock:
            if self._job is None:
                self._segments.leave()

    @property
    def receiving_segment(self) -> int:
        """The segment at whose end received chunks are appended, 0 for none."""
        return self._segments.number

    def letting_go(self, generation: int, function: Callable[[apsw.Connection], Any]) -> Any:
        """Run a function that takes something away from the index, as one transaction.

        Only while the index knows all that the manifests say, they name nothing that was moved,
        and the index is the one of `generation`, by which the caller has chosen. Raises Behind,
        Damaged, Busy.
        """
        with self._working():
            self._catch_up()
            if self._broken is not None:
                raise self._broken
            if self.index_generation != generation:
                raise Busy("the index was made anew meanwhile")
            if self._conn.execute("SELECT 1 FROM stale LIMIT 1").fetchone() is not None:
                raise Busy("manifests name what was moved")
            return self.on_database(function)

    def named_by_job(self, chunks: Collection[int]) -> set[int]:
        """Return those of `chunks` that the job being received names so far."""
        with self._working():
            if self._part is None or not chunks:
                return set()
            wanted = set(chunks)
            named = manifest.deltas(self._part.path)
            return {name.id for delta in named for name in delta.chunks if name.id in wanted}

    # Damage

    def mend(self, chunks: Sequence[Chunk], by: str) -> list[int]:
        """Take back chunks that are lost to damage; return the ids of those that are whole again.

        Whatever else is among `chunks` changes nothing. Raises BadChunk, Full, DiskError.
        """
        with self._working():
            self._catch_up()
            self._check_room()
            try:
                rows = mend.append_lost(self._conn, self._segments, chunks)
                self._segments.flush()
                with index.transaction(self._conn):
                    self.tell_mended([row.id for row in rows], by)
                    index.add_chunks(self._conn, rows)
            except BaseException:
                self._segments.undo()
                raise
            return [row.id for row in rows]

    def close(self) -> None:
        """Let go of all files; what is being received goes on after the next opening."""
        with self._lock:
            self._closed = True
            if self._part is not None:
                self._part.close()
            self._segments.close()
            if self._index is not None:
                self._index.close()
