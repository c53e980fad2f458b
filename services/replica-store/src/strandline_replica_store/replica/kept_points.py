"""The recovery points of a replica: applied when they are committed, dropped, and written anew."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from functools import partial

import apsw

from strandline_contracts.codec import decode
from strandline_contracts.events import DamageFound, DamageRepaired, PointCommitted, PointsDropped
from strandline_contracts.points import RecoveryPoint
from strandline_replica_store.errors import Behind, Damaged, IndexDamaged, means_damage, translated
from strandline_replica_store.files import durable, manifest
from strandline_replica_store.replica import dropping, index, recovery, reindex, rewrite
from strandline_replica_store.replica.core import INCONSISTENT, ReplicaCore, at_once
from strandline_replica_store.replica.dropping import Step
from strandline_replica_store.replica.rewrite import Rewritten
from strandline_runtime import outbox


class KeptPoints(ReplicaCore):
    """The part of a Replica that keeps its recovery points and the index at one."""

    def points(self) -> list[int]:
        """Return the numbers of the recovery points, rising. Raises Damaged when one is lost."""
        with self._working():
            self._catch_up()
            if self._broken is not None:
                raise self._broken
            return self._known_points()

    def _known_points(self) -> list[int]:
        with self._working():
            rows = self._conn.execute("SELECT number FROM point ORDER BY number")
            return [number for (number,) in rows]

    def point_of(self, job: str) -> RecoveryPoint | None:
        """Return the recovery point that `job` made, None when it made none."""
        with self._working():
            self._catch_up()
            row = self._conn.execute(
                "SELECT record FROM point WHERE job = ? LIMIT 1", (job,)
            ).fetchone()
            return decode(row[0], RecoveryPoint) if row else None

    def _catch_up(self) -> None:
        """Apply manifests that the index lacks. Raises Behind when that cannot be done now."""
        self._drop_rows_ahead()
        if not self._behind:
            return
        try:
            durable.sync_folder(self.manifests_folder)
            numbers = manifest.numbers_in(self.manifests_folder)
            newer = [number for number in numbers if number not in self._leftover]
            for number in newer:
                if self._newest is None or number > self._newest.number:
                    self._apply(number)
        except Damaged as error:
            self._broken = reindex.lost(newer, self._newest, error)
        except (OSError, apsw.Error) as error:
            if means_damage(error):
                raise
            raise Behind(f"the index is behind the manifests: {error}") from error
        self._behind = False

    def _apply(self, number: int) -> None:
        path = manifest.path_of(self.manifests_folder, number)
        found = reindex.check_next(path, number, self._newest)
        with index.transaction(self._conn):
            point = index.apply_manifest(self._conn, found, manifest.deltas(path))
            self._tell_committed(self._conn, point)
        self._newest = point
        index.carry_over(self._conn)

    def _tell_committed(self, conn: apsw.Connection, point: RecoveryPoint) -> None:
        """Take note of a recovery point that is new; the caller holds the transaction."""
        conn.execute("UPDATE job SET state = 'committed' WHERE job = ?", (point.job,))
        if self._job is None or self._job.job == point.job:
            conn.execute("DELETE FROM batch")
        if point.kind == "check":
            index.put_meta(conn, INCONSISTENT, "")
        outbox.record(
            conn,
            site=self.identity.site,
            origin=self.identity.origin,
            noun="point",
            verb="committed",
            source=self.identity.source,
            time_ns=point.received_at_ns,
            data=PointCommitted(point=point),
        )

    def _drop_rows_ahead(self) -> None:
        """Forget staged chunks whose bytes were cut off; until then none may be relied on."""
        if self._rows_ahead:
            with index.transaction(self._conn):
                self._conn.executemany(
                    "DELETE FROM chunk WHERE staged AND segment = ? AND offset >= ?",
                    self._rows_ahead,
                )
            self._rows_ahead = []

    # Dropping and rewriting

    def drop(self, numbers: Collection[int], reason: str) -> list[int]:
        """Drop recovery points for good, never the newest; return which were dropped.

        Numbers that are no points are passed over. `reason` is told with the event. May be killed
        anywhere: the next opening, or drop, goes on. Raises StoreError; Busy at once while others
        rewrite: what was decided before a long wait may be wrong after it.
        """
        with at_once(self.rewriting), at_once(self.maintenance):
            steps = dropping.plan(self.points(), frozenset(numbers))
            if not steps:
                return []
            # Should the process die on the way, the event is told with this reason.
            self.on_database(lambda conn: index.put_meta(conn, "dropping", reason))
            return self._rewrite(steps, reason)

    def rewrite(self, numbers: Collection[int]) -> None:
        """Write the manifests of these recovery points anew, from the index. Raises StoreError."""
        with self.maintenance:
            self._rewrite(dropping.again(self.points(), frozenset(numbers)), "")

    def _rewrite(self, steps: list[Step], reason: str) -> list[int]:
        """Rewrite, then drop what stands between: in that order at any moment."""
        done: list[Rewritten] = []
        folders = rewrite.Folders(
            self.manifests_folder, self.staging_folder, self.damaged_folder, self.index_path
        )
        try:
            with self._reading_index():
                done.extend(rewrite.write_all(folders, steps))
        finally:
            dropped = self._settle(done, reason)
        self._sweep()
        return dropped

    def _settle(self, done: list[Rewritten], reason: str) -> list[int]:
        """Make what was rewritten true for the folder, the index and those who listen."""
        mended = [each.step.number for each in done if each.mended]
        steps = [each.step for each in done if each.step.dropped]
        dropped = [number for step in steps for number in step.dropped]
        with translated():
            for number in dropped:
                durable.remove(manifest.path_of(self.manifests_folder, number))
            if dropped:
                durable.sync_folder(self.manifests_folder)
        if dropped or mended:
            with self._working(), index.transaction(self._conn):
                self._forget_points(steps, reason)
                if mended:
                    told = DamageRepaired(chunk=0, by="index", points=mended)
                    self.tell(self._conn, "damage", "repaired", told)
        return dropped

    def _forget_points(self, steps: list[Step], reason: str) -> None:
        """Let the index forget what the steps drop; the caller holds the transaction."""
        for step in steps:
            point = index.drop_points(self._conn, step.dropped, step.number, step.parent)
            if self._newest is not None and self._newest.number == point.number:
                self._newest = point
        dropped = [number for step in steps for number in step.dropped]
        if dropped:
            told = PointsDropped(points=dropped, reason=reason)
            self.tell(self._conn, "point", "dropped", told)
            index.put_meta(self._conn, "sweep", "1")
        index.put_meta(self._conn, "dropping", "")

    def _sweep(self) -> None:
        """Delete the rows that no recovery point needs, some at a time."""
        if not self.on_database(lambda conn: index.get_meta(conn, "sweep")):
            return
        with self._reading_index(), closing(index.connect_to_read(self.index_path)) as reader:
            for table in index.PROJECTED:
                for keys in index.useless_rows(reader, table):
                    self.on_database(partial(index.delete_rows, table=table, keys=keys))
        self.on_database(lambda conn: index.put_meta(conn, "sweep", ""))

    # Damaged manifests

    def _mend_manifests(self) -> None:
        """Write manifests anew that are lost while the index knows what they said."""
        lost, self._lost = self._lost, []
        if not lost:
            return
        reason = f"manifests {lost[0]} to {lost[-1]} are damaged or missing"
        self.record_damage(DamageFound(chunk=0, segment=0, offset=0, reason=reason, points=lost))
        self._rewrite(dropping.again(self._known_points(), frozenset(lost)), "")

    def _rewrite_stale(self) -> None:
        """Write the manifests anew that name what was moved: another index is to say the same.

        Who reads page by page by chunk, as a restore does, must not find blocks at old chunks that
        it has passed.
        """
        stale = [point for (point,) in self.on_database(_stale)]
        if stale:
            self._rewrite(dropping.again(self._known_points(), frozenset(stale)), "")
            self.on_database(lambda conn: conn.execute("DELETE FROM stale"))

    def _rewrite_damaged(self) -> None:
        """Write damaged manifests anew from the index, if it can be read. Raises Damaged."""
        points = self._known_points()
        folder = self.manifests_folder
        lost = [number for number in points if not recovery.is_whole(folder, number)]
        if not lost:
            return
        try:
            self._rewrite(dropping.again(points, frozenset(lost)), "")
        except IndexDamaged as error:
            # What it does read is right, or it would say so; here it could not.
            gone = [number for number in points if number >= lost[0]]
            reason = Damaged(f"manifest {lost[0]} is damaged, and so is the index: {error}")
            raise reindex.lost(gone, None, reason) from error


def _stale(conn: apsw.Connection) -> list[tuple[int]]:
    return list(conn.execute("SELECT point FROM stale ORDER BY point"))
