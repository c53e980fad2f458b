"""The job that a replica receives: its attempt is opened, takes batches, is committed or fails."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress

import apsw
from blake3 import blake3

from strandline_contracts.points import RecoveryPoint
from strandline_contracts.shipping import End, JobOnStore, Open, Waited
from strandline_replica_store.errors import (
    Aborted,
    BadDelta,
    Behind,
    Damaged,
    Fenced,
    Full,
    ParentMoved,
    StoreError,
    UnknownJob,
    as_full,
)
from strandline_replica_store.files import durable, manifest, segment
from strandline_replica_store.files.manifest import Head, ManifestWriter, Tail
from strandline_replica_store.replica import index
from strandline_replica_store.replica.kept_points import KeptPoints
from strandline_replica_store.replica.rules import JobRow, OpenVerdict, as_parent, judge_open
from strandline_replica_store.replica.staging import Group, Stager

MAX_LABEL_CHARS = 256
KEPT_JOBS = 16
"""So many jobs' ends are remembered for those who ask late; committed ones by their point."""


class Receiving(KeptPoints):
    """The part of a Replica that receives jobs."""

    def job(self, job: str) -> JobRow | None:
        """Return what is known of a job that is open or ended lately."""
        with self._working():
            for row in (self._job, self._ended):
                if row is not None and row.job == job:
                    return row
            found = self._conn.execute("SELECT * FROM job WHERE job = ?", (job,)).fetchone()
            return JobRow(*found) if found else None

    def waited(self, job: str, attempt: int) -> Waited:
        """Return how far an attempt has come."""
        row = self.job(job)
        if row is None or row.state == "committed" or self._behind:
            point = self.point_of(job)
            if point is not None:
                return Waited(state="committed", durable=row.durable if row else 0, point=point)
        if row is None or attempt > row.attempt:
            return Waited(state="unknown", durable=0)
        if attempt < row.attempt:
            return Waited(state="fenced", durable=0, code=Fenced.code, hint=Fenced.hint)
        return Waited(
            state=row.state,
            durable=row.durable,
            code=row.code,
            error=row.error,
            hint=row.hint,
            retryable=bool(row.retryable),
        )

    def holds_chunks(self) -> bool:
        """Tell whether there is any chunk, staged ones included."""
        with self._working():
            self._drop_rows_ahead()
            return self._conn.execute("SELECT 1 FROM chunk LIMIT 1").fetchone() is not None

    # Receiving

    def open_job(self, server: str, request: Open) -> RecoveryPoint | OpenVerdict:
        """Open an attempt, fencing what is open; or return its point when it is committed.

        Raises Fenced, Inconsistent, Full, Behind, Damaged.
        """
        with self._working():
            self._catch_up()
            committed = self.point_of(request.job)
            if committed is not None:
                return committed
            if self._broken is not None:
                raise self._broken
            known = self.job(request.job)
            verdict = judge_open(request, server, known, self._newest, self.inconsistent())
            if verdict is OpenVerdict.FRESH:
                self._check_room()
                self._begin(server, request)
            return verdict

    def _begin(self, server: str, request: Open) -> None:
        if self._job is not None:
            reason = f"job {request.job}, attempt {request.attempt}, has taken its place"
            self._end_job(self._job, Fenced(reason), state="fenced")
        number = (self._newest.number if self._newest else 0) + 1
        head = Head(
            format=1,
            source=self.identity.source,
            job=request.job,
            attempt=request.attempt,
            number=number,
            parent=request.parent,
            parent_digest=request.parent_digest,
            kind=request.kind,
            server=server,
        )
        job = JobRow(
            request.job, request.attempt, server, request.kind, request.parent,
            request.parent_digest, "open", 0, 0, 0, self._now_ns(),
        )  # fmt: skip
        part = ManifestWriter.begin(self._part_path(job), head)
        job = job._replace(part_bytes=part.end_bytes)
        try:
            with index.transaction(self._conn):
                self._conn.execute("DELETE FROM batch")
                self._put_job(job)
                self._conn.execute(
                    "DELETE FROM job WHERE job NOT IN"
                    " (SELECT job FROM job ORDER BY opened_at_ns DESC LIMIT ?)",
                    (KEPT_JOBS,),
                )
        except BaseException:
            part.close()
            durable.remove(part.path)
            raise
        self._job, self._part, self._batches = job, part, blake3()
        self._ended = None

    def _put_job(self, job: JobRow, conn: apsw.Connection | None = None) -> None:
        (conn or self._conn).execute(
            "INSERT OR REPLACE INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", job
        )

    def take(self, job: str, attempt: int, messages: Sequence[bytes]) -> int:
        """Make the next batches of an attempt durable; return how many are durable then.

        `messages` are encoded Batches in order of `seq`, as they came. On an error nothing of them
        is kept and the caller is to `fail` the job. Raises StoreError and BadMessage.
        """
        with self._working():
            row, part = self._opened(job, attempt)
            self._check_room()
            try:
                group = self._staged(row, messages)
                self._segments.flush()
                for delta in group.deltas:
                    part.append(delta)
                part.flush()
                row = row._replace(
                    durable=row.durable + len(messages),
                    part_bytes=part.end_bytes,
                    stored_bytes=row.stored_bytes + group.stored_bytes,
                )
                self._record(row, group)
            except BaseException:
                self._segments.undo()
                raise
            self._job = row
            for digest in group.digests:
                self._batches.update(digest)
            return row.durable

    def _staged(self, row: JobRow, messages: Sequence[bytes]) -> Group:
        stager = Stager(self._conn, self._segments, self._next_chunk)
        try:
            return stager.stage(row, messages)
        finally:
            self._next_chunk = stager.next_chunk

    def _opened(self, job: str, attempt: int) -> tuple[JobRow, ManifestWriter]:
        self._catch_up()
        if self._job is None or self._part is None:
            raise UnknownJob(f"job {job} is not open")
        if (self._job.job, self._job.attempt) != (job, attempt):
            raise Fenced(f"job {self._job.job}, attempt {self._job.attempt}, is open")
        return self._job, self._part

    def _record(self, row: JobRow, group: Group) -> None:
        with index.transaction(self._conn):
            self.tell_mended(group.mended, f"agent-{row.server}")
            index.add_chunks(self._conn, group.rows)
            first = row.durable - len(group.digests)
            self._conn.executemany(
                "INSERT INTO batch VALUES (?, ?)", enumerate(group.digests, start=first)
            )
            self._put_job(row)

    # Ending

    def finish(self, end: End) -> RecoveryPoint:
        """Commit an attempt: after this its recovery point exists. Again is harmless.

        Raises StoreError; after Behind the point exists and only the index is late: call again.
        """
        with self._working():
            self._catch_up()
            committed = self.point_of(end.job)
            if committed is not None:
                return committed
            row, part = self._opened(end.job, end.attempt)
            self._check_end(row, end)
            tail = Tail(
                digest=b"",
                frames=0,
                taken_at_ns=end.taken_at_ns,
                received_at_ns=self._now_ns(),
                consistency=end.consistency,
                provider=end.provider,
                tracker=end.tracker,
                partial=end.partial,
                totals=end.totals,
                stored_bytes=row.stored_bytes + part.end_bytes,
            )
            target = manifest.path_of(self.manifests_folder, part.head.number)
            try:
                part.finish(target, tail)
            except OSError as error:
                if not os.path.exists(target):
                    raise
                # Renamed, but perhaps not for good: from here on only forward.
                part.close()
                self._job, self._part, self._behind = None, None, True
                raise Behind(f"recovery point {part.head.number} is not settled") from error
            self._job, self._part, self._behind = None, None, True
            self._catch_up()
            assert self._newest is not None
            return self._newest

    def _check_end(self, row: JobRow, end: End) -> None:
        if len(end.provider) + len(end.tracker) > MAX_LABEL_CHARS:
            raise BadDelta("provider and tracker have names that cannot be")
        if end.seq != row.durable:
            raise BadDelta(f"{end.seq} batches were sent, {row.durable} came")
        if end.digest != self._batches.digest():
            raise BadDelta("the batches that came are not those that were sent")
        newest = as_parent(self._newest)
        if newest != (row.parent, row.parent_digest):
            raise ParentMoved(f"recovery point {newest[0]} is the newest, not {row.parent}")

    def fail(self, job: str, attempt: int, error: StoreError | Exception) -> None:
        """End an attempt that cannot go on; what it staged stays for the next, if there is room."""
        with self._working():
            if self._job is None or (self._job.job, self._job.attempt) != (job, attempt):
                return
            if isinstance(error, Full):
                # Room first: without any, the index could not even take note of the failure.
                # Where the disk fails, the cut is made before anything is appended again.
                with suppress(OSError):
                    self._cut_staged()
            self._end_job(self._job, error)
            if isinstance(error, Full):
                with suppress(apsw.Error):
                    self._drop_rows_ahead()

    def abort(self, job: str, attempt: int, server: str, reason: str) -> None:
        """End an attempt because its agent gave it up."""
        row = self.job(job)
        if row is not None and row.server == server:
            self.fail(job, attempt, Aborted(reason))

    def _end_job(self, job: JobRow, error: Exception, state: JobOnStore = "failed") -> None:
        ended = job._replace(
            state=state,
            code=getattr(error, "code", "store.error"),
            error=str(error),
            hint=getattr(error, "hint", ""),
            retryable=getattr(error, "retryable", False),
        )
        if self._part is not None:
            self._part.close()
        # Ended from here on, whatever the disk does: remembered here if not there. After a restart
        # it counts as failed for want of its part file, or is open until the next attempt.
        self._job = self._part = None
        self._ended = ended
        try:
            durable.remove(self._part_path(job))
            with index.transaction(self._conn):
                self._put_job(ended)
                self._conn.execute("DELETE FROM batch")
        except apsw.Error as failure:
            if as_full(failure) is None:
                raise

    def _cut_staged(self) -> None:
        """Cut the staged chunks off the end of what was received."""
        if self._behind or self._broken is not None:
            # A manifest that the index does not know yet may name them.
            return
        own = list(self._segments.own)
        row = self._conn.execute(
            "SELECT segment, offset + ? + stored_bytes FROM chunk WHERE NOT staged"
            " AND segment IN (SELECT value FROM json_each(?))"
            " ORDER BY segment DESC, offset DESC LIMIT 1",
            (segment.CHUNK_HEADER_BYTES, json.dumps(own)),
        ).fetchone()
        last, end_bytes = row or (0, 0)
        # Before the cut, which may fail midway: none of these may be relied on from here on.
        self._rows_ahead = [(last, end_bytes), *((number, 0) for number in own if number > last)]
        self._segments.cut(last, end_bytes)

    def _recover_job(self) -> None:
        if self._part is not None:
            self._part.close()
        self._job = self._part = None
        self._batches = blake3()
        row = self._conn.execute("SELECT * FROM job WHERE state = 'open'").fetchone()
        job = JobRow(*row) if row else None
        if job is not None:
            try:
                self._part = ManifestWriter.resume(self._part_path(job), job.part_bytes)
                self._check_held(self._part.path)
                self._job = job
                for (digest,) in self._conn.execute("SELECT digest FROM batch ORDER BY seq"):
                    self._batches.update(digest)
            except (Damaged, FileNotFoundError) as error:
                self._end_job(job, UnknownJob(f"what was received is gone: {error}"))
        mine = os.path.basename(self._part_path(self._job)) if self._job else ""
        for name in os.listdir(self.staging_folder):
            if name != mine:
                durable.remove(os.path.join(self.staging_folder, name))

    def _check_held(self, part: str) -> None:
        """Raise Damaged when a chunk that a part file names is not held any more.

        A job that failed for want of room has its chunks cut off before it counts as ended.
        """
        for delta in manifest.deltas(part):
            ids = [name.id for name in delta.chunks]
            held = self._conn.execute(
                "SELECT count(*) FROM chunk WHERE NOT bad"
                " AND id IN (SELECT value FROM json_each(?))",
                (json.dumps(ids),),
            ).get
            if held != len(ids):
                raise Damaged(f"{len(ids) - int(held)} chunks that it names were cut off")

    def _part_path(self, job: JobRow) -> str:
        return os.path.join(self.staging_folder, f"{job.job}.{job.attempt}.part")
