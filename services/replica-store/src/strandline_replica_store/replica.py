"""One replica and its only writer: open, take batches, commit, fail, recover.

The order in which things reach the disk is in docs/formats/replica.md ("Recovery points and the
moment of commit"). Every method may be called from any thread; a lock makes them one at a time.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from blake3 import blake3

from strandline_contracts.codec import decode
from strandline_contracts.events import DamageFound, PointCommitted
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.shipping import (
    Batch,
    Chunk,
    End,
    JobOnStore,
    Open,
    Waited,
    accept_shipment,
)
from strandline_replica_store import durable, index, manifest, segment
from strandline_replica_store.chunk_check import check_chunk
from strandline_replica_store.errors import (
    Aborted,
    BadChunk,
    BadDelta,
    Behind,
    Damaged,
    DiskError,
    Fenced,
    Full,
    MissingChunk,
    ParentMoved,
    StoreError,
    UnknownJob,
    as_full,
)
from strandline_replica_store.manifest import ChunkName, Delta, Head, ManifestWriter, Tail
from strandline_replica_store.rules import (
    JobRow,
    OpenVerdict,
    check_records,
    judge_open,
    resolved_extents,
)
from strandline_runtime import outbox

KEPT_JOBS = 16
"""So many jobs' ends are remembered for those who ask late; committed ones by their point."""
ERA_SHIFT = 48
RESERVE_BYTES = 256 * 1024 * 1024

ABOUT = (
    "A Strandline replica: every kept state of one data source. Segments and manifests hold all of"
    " it; index.db is made from them. How to read it: docs/formats/replica.md of Strandline."
)


class Identity(NamedTuple):
    """Whose replica this is, and in whose name it tells events."""

    source: str
    store: str
    site: str

    @property
    def origin(self) -> str:
        return f"store-{self.store}"


class _Group:
    """What a group of batches adds, before any of it is on the disk."""

    def __init__(self) -> None:
        self.rows: list[index.ChunkRow] = []
        self.ids: dict[bytes, tuple[int, int]] = {}
        self.deltas: list[Delta] = []
        self.digests: list[bytes] = []
        self.stored_bytes = 0


def create(folder: str, identity: Identity, name: str, kind: str) -> None:
    """Make the folder of a replica; harmless when it is there already."""
    durable.make_folder(folder)
    path = os.path.join(folder, "replica.json")
    if not os.path.exists(path):
        about = {
            "format": 1,
            "source": identity.source,
            "name": name,
            "type": kind,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "store": identity.store,
            "era": 0,
            "about": ABOUT,
        }
        durable.write_file_atomically(path, json.dumps(about, indent=2).encode() + b"\n")


class Replica:
    """The writer of one replica. Use `Replica.open`, then `close`."""

    def __init__(
        self,
        folder: str,
        identity: Identity,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        segment_limit_bytes: int = segment.SEGMENT_LIMIT_BYTES,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.segments_folder = os.path.join(folder, "segments")
        self.manifests_folder = os.path.join(folder, "manifests")
        self.staging_folder = os.path.join(folder, "staging")
        self.index_path = os.path.join(folder, "index.db")
        self._reserve_bytes = reserve_bytes
        self._now_ns = now_ns
        self._lock = threading.RLock()
        self._segments = segment.SegmentWriter(
            self.segments_folder, identity.source, segment_limit_bytes
        )
        self._conn: sqlite3.Connection
        self._job: JobRow | None = None
        self._part: ManifestWriter | None = None
        self._batches = blake3()
        self._next_chunk = 1
        self._newest: RecoveryPoint | None = None
        self._behind = False
        self._rows_ahead = False
        self._ended: JobRow | None = None
        self._broken: Damaged | None = None

    # Opening

    @classmethod
    def open(cls, folder: str, identity: Identity, **options: Any) -> Replica:
        """Open a replica's folder and bring it to rest after whatever happened before."""
        replica = cls(folder, identity, **options)
        with translated():
            for name in ("segments", "manifests", "staging"):
                durable.make_folder(os.path.join(folder, name))
            replica._conn = _open_index(replica.index_path)
            replica._recover()
        return replica

    def _recover(self) -> None:
        self._recover_segments()
        era = _era(self.folder)
        row = self._conn.execute("SELECT max(id) FROM chunk").fetchone()
        self._next_chunk = max(row[0] or 0, era << ERA_SHIFT) + 1
        self._newest = index.newest_point(self._conn)
        self._behind = True
        self._catch_up()
        self._recover_job()

    def _recover_segments(self) -> None:
        """Make chunk rows and segments agree: add whole chunks, cut off what is torn."""
        numbers = segment.numbers_in(self.segments_folder)
        for (missing,) in self._conn.execute("SELECT DISTINCT segment FROM chunk").fetchall():
            if missing not in numbers:
                self._forget_bytes(missing, 0)
        last = (0, 0)
        for number in numbers:
            path = segment.path_of(self.segments_folder, number)
            end_bytes = self._known_end(number)
            size_bytes = os.path.getsize(path)
            if size_bytes < end_bytes:
                self._forget_bytes(number, size_bytes)
                end_bytes = self._known_end(number)
            elif size_bytes > end_bytes:
                end_bytes = self._learn(number, path, end_bytes)
            if end_bytes:
                last = (number, end_bytes)
        self._segments.cut(*last)

    def _known_end(self, number: int) -> int:
        """Return where the last chunk that the index knows in a segment ends, 0 for none."""
        row = self._conn.execute(
            "SELECT offset + ? + stored_bytes FROM chunk WHERE segment = ?"
            " ORDER BY offset DESC LIMIT 1",
            (segment.CHUNK_HEADER_BYTES, number),
        ).fetchone()
        return row[0] if row else 0

    def _learn(self, number: int, path: str, start: int) -> int:
        """Add the whole chunks behind `start` of a segment; return where they end."""
        if not start:
            try:
                with open(path, "rb") as file:
                    found = segment.parse_segment_header(file.read(segment.SEGMENT_HEADER_BYTES))
            except Damaged:
                return 0
            if found != (number, self.identity.source):
                raise Damaged(f"{path} is segment {found[0]} of source {found[1]}")
            start = segment.SEGMENT_HEADER_BYTES
        end_bytes = start
        with index.transaction(self._conn):
            for offset, head in segment.scan(path, start):
                row = index.ChunkRow(
                    head.id, head.plain_digest, head.plain_bytes, head.stored_bytes,
                    head.codec, number, offset,
                )  # fmt: skip
                index.add_chunks(self._conn, [row])
                end_bytes = offset + segment.CHUNK_HEADER_BYTES + head.stored_bytes
        return end_bytes

    def _forget_bytes(self, number: int, size_bytes: int) -> None:
        """Drop staged chunks that lie behind `size_bytes`; committed ones there are damaged."""
        values = (number, size_bytes - segment.CHUNK_HEADER_BYTES)
        with index.transaction(self._conn):
            self._conn.execute(
                "DELETE FROM chunk WHERE staged AND segment = ? AND offset + stored_bytes > ?",
                values,
            )
            self._conn.execute(
                "UPDATE chunk SET bad = 1 WHERE segment = ? AND offset + stored_bytes > ?", values
            )

    def _recover_job(self) -> None:
        row = self._conn.execute("SELECT * FROM job WHERE state = 'open'").fetchone()
        job = JobRow(*row) if row else None
        if job is not None:
            try:
                self._part = ManifestWriter.resume(self._part_path(job), job.part_bytes)
                self._job = job
                for (digest,) in self._conn.execute("SELECT digest FROM batch ORDER BY seq"):
                    self._batches.update(digest)
            except (Damaged, FileNotFoundError) as error:
                self._end_job(job, UnknownJob(f"what was received is gone: {error}"))
        mine = os.path.basename(self._part_path(self._job)) if self._job else ""
        for name in os.listdir(self.staging_folder):
            if name != mine:
                durable.remove(os.path.join(self.staging_folder, name))

    def _part_path(self, job: JobRow) -> str:
        return os.path.join(self.staging_folder, f"{job.job}.{job.attempt}.part")

    # Being asked

    @property
    def newest(self) -> RecoveryPoint | None:
        """The newest recovery point."""
        return self._newest

    @property
    def busy(self) -> bool:
        """Whether a job is being received."""
        return self._job is not None

    @property
    def open_attempt(self) -> JobRow | None:
        """The attempt that is being received."""
        return self._job

    def job(self, job: str) -> JobRow | None:
        """Return what is known of a job that is open or ended lately."""
        with self._lock, translated():
            for row in (self._job, self._ended):
                if row is not None and row.job == job:
                    return row
            found = self._conn.execute("SELECT * FROM job WHERE job = ?", (job,)).fetchone()
            return JobRow(*found) if found else None

    def point_of(self, job: str) -> RecoveryPoint | None:
        """Return the recovery point that `job` made, None when it made none."""
        with self._lock, translated():
            self._catch_up()
            row = self._conn.execute(
                "SELECT record FROM point WHERE job = ? LIMIT 1", (job,)
            ).fetchone()
            return decode(row[0], RecoveryPoint) if row else None

    def waited(self, job: str, attempt: int) -> Waited:
        """Return how far an attempt has come."""
        row = self.job(job)
        if row is None or row.state == "committed":
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

    def missing(self, digests: Sequence[bytes]) -> list[int]:
        """Return the positions of digests that the replica does not hold soundly."""
        with self._lock, translated():
            self._drop_rows_ahead()
            return index.missing(self._conn, digests)

    def holds_chunks(self) -> bool:
        """Tell whether there is any chunk, staged ones included."""
        with self._lock, translated():
            self._drop_rows_ahead()
            return self._conn.execute("SELECT 1 FROM chunk LIMIT 1").fetchone() is not None

    def on_database(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        """Run a function on the index's writing connection, as one transaction."""
        with self._lock, translated(), index.transaction(self._conn):
            return function(self._conn)

    # Receiving

    def open_job(self, server: str, request: Open) -> RecoveryPoint | OpenVerdict:
        """Open an attempt, fencing what is open; or return its point when it is committed.

        Raises Fenced, Inconsistent, Full, Behind, Damaged.
        """
        with self._lock, translated():
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

    def _put_job(self, job: JobRow) -> None:
        self._conn.execute(
            "INSERT OR REPLACE INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", job
        )

    def take(self, job: str, attempt: int, messages: Sequence[bytes]) -> int:
        """Make the next batches of an attempt durable; return how many are durable then.

        `messages` are encoded Batches in order of `seq`, as they came. On an error nothing of them
        is kept and the caller is to `fail` the job. Raises StoreError and BadMessage.
        """
        with self._lock, translated():
            row, part = self._opened(job, attempt)
            self._check_room()
            try:
                group = self._stage(row, messages)
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

    def _opened(self, job: str, attempt: int) -> tuple[JobRow, ManifestWriter]:
        self._catch_up()
        if self._job is None or self._part is None:
            raise UnknownJob(f"job {job} is not open")
        if (self._job.job, self._job.attempt) != (job, attempt):
            raise Fenced(f"job {self._job.job}, attempt {self._job.attempt}, is open")
        return self._job, self._part

    def _record(self, row: JobRow, group: _Group) -> None:
        with index.transaction(self._conn):
            index.add_chunks(self._conn, group.rows)
            first = row.durable - len(group.digests)
            self._conn.executemany(
                "INSERT INTO batch VALUES (?, ?)", enumerate(group.digests, start=first)
            )
            self._put_job(row)

    def _stage(self, row: JobRow, messages: Sequence[bytes]) -> _Group:
        group = _Group()
        for seq, message in enumerate(messages, start=row.durable):
            batch = accept_shipment(message)
            due = (row.job, row.attempt, seq)
            if not isinstance(batch, Batch) or (batch.job, batch.attempt, batch.seq) != due:
                raise BadDelta(f"batch {seq} of attempt {row.attempt} of job {row.job} is due")
            check_records(batch)
            group.digests.append(blake3(message).digest())
            group.deltas.append(self._delta(batch, group))
        return group

    def _delta(self, batch: Batch, group: _Group) -> Delta:
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

    def _chunk(self, chunk: Chunk, group: _Group) -> tuple[int, int]:
        """Return (id, plain bytes) of a shipped chunk, appending it when it is not held."""
        place = group.ids.get(chunk.digest)
        if place is None:
            known = index.held(self._conn, chunk.digest)
            if known is not None and not known[2]:
                place = known[:2]
            elif chunk.data is None:
                raise MissingChunk(f"chunk {chunk.digest[:8].hex()} is not held")
            else:
                place = self._append(chunk, known[0] if known else self._next_chunk, group)
            group.ids[chunk.digest] = place
        if place[1] != chunk.plain_bytes:
            raise BadChunk(f"chunk {place[0]} has {place[1]} bytes, not {chunk.plain_bytes}")
        return place

    def _append(self, chunk: Chunk, number: int, group: _Group) -> tuple[int, int]:
        """Append a chunk to the segments; a damaged one is written anew under its old id."""
        assert chunk.data is not None
        check_chunk(chunk.digest, chunk.plain_bytes, chunk.codec, chunk.data)
        self._next_chunk = max(self._next_chunk, number + 1)
        header = segment.pack_chunk_header(
            number, chunk.codec, chunk.plain_bytes, chunk.digest, chunk.data
        )
        where = self._segments.append(header, chunk.data)
        stored_bytes = len(chunk.data)
        group.rows.append(
            index.ChunkRow(
                number, chunk.digest, chunk.plain_bytes, stored_bytes, chunk.codec, *where
            )
        )
        group.stored_bytes += len(header) + stored_bytes
        return number, chunk.plain_bytes

    # Ending

    def finish(self, end: End) -> RecoveryPoint:
        """Commit an attempt: after this its recovery point exists. Again is harmless.

        Raises StoreError; after Behind the point exists and only the index is late: call again.
        """
        with self._lock, translated():
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
                self._behind = True
                raise Behind(f"recovery point {part.head.number} is not settled") from error
            self._job, self._part, self._behind = None, None, True
            self._catch_up()
            assert self._newest is not None
            return self._newest

    def _check_end(self, row: JobRow, end: End) -> None:
        if end.seq != row.durable:
            raise BadDelta(f"{end.seq} batches were sent, {row.durable} came")
        if end.digest != self._batches.digest():
            raise BadDelta("the batches that came are not those that were sent")
        newest = (self._newest.number, self._newest.digest) if self._newest else (0, b"")
        if newest != (row.parent, row.parent_digest):
            raise ParentMoved(f"recovery point {newest[0]} is the newest, not {row.parent}")

    def _catch_up(self) -> None:
        """Apply manifests that the index lacks. Raises Behind when that cannot be done now."""
        self._drop_rows_ahead()
        if not self._behind:
            return
        try:
            durable.sync_folder(self.manifests_folder)
            newest_number = self._newest.number if self._newest else 0
            for number in manifest.numbers_in(self.manifests_folder):
                if number > newest_number:
                    self._apply(number)
        except Damaged as error:
            self._broken = error
        except (OSError, sqlite3.Error) as error:
            raise Behind(f"the index is behind the manifests: {error}") from error
        self._behind = False

    def _apply(self, number: int) -> None:
        path = manifest.path_of(self.manifests_folder, number)
        found = manifest.check(path)
        newest = (self._newest.number, self._newest.digest) if self._newest else (0, b"")
        head = found.head
        if (head.parent, head.parent_digest, head.number) != (*newest, number):
            raise Damaged(f"manifest {number} does not follow recovery point {newest[0]}")
        with index.transaction(self._conn):
            point = index.apply_manifest(self._conn, found, manifest.deltas(path))
            self._conn.execute("UPDATE job SET state = 'committed' WHERE job = ?", (point.job,))
            self._conn.execute("DELETE FROM batch")
            if point.kind == "check":
                self._conn.execute("DELETE FROM meta WHERE key = 'inconsistent'")
            outbox.record(
                self._conn,
                site=self.identity.site,
                origin=self.identity.origin,
                noun="point",
                verb="committed",
                source=self.identity.source,
                time_ns=point.received_at_ns,
                data=PointCommitted(point=point),
            )
        self._newest = point

    def fail(self, job: str, attempt: int, error: StoreError | Exception) -> None:
        """End an attempt that cannot go on; what it staged stays for the next, if there is room."""
        with self._lock, translated():
            if self._job is None or (self._job.job, self._job.attempt) != (job, attempt):
                return
            if isinstance(error, Full):
                # Room first: without any, the index could not even take note of the failure.
                self._segments.cut(*self._committed_end())
                self._rows_ahead = True
            self._end_job(self._job, error)
            if isinstance(error, Full):
                with suppress(sqlite3.Error):
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
        durable.remove(self._part_path(job))
        self._job = self._part = None
        try:
            with index.transaction(self._conn):
                self._put_job(ended)
                self._conn.execute("DELETE FROM batch")
        except sqlite3.Error as failure:
            # Remembered here; after a restart it counts as failed for want of its part file.
            self._ended = ended
            if as_full(failure) is None:
                raise

    def _committed_end(self) -> tuple[int, int]:
        """Return segment and offset behind the last committed chunk; zeros when there is none."""
        row = self._conn.execute(
            "SELECT segment, offset + ? + stored_bytes FROM chunk WHERE NOT staged"
            " ORDER BY segment DESC, offset DESC LIMIT 1",
            (segment.CHUNK_HEADER_BYTES,),
        ).fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def _drop_rows_ahead(self) -> None:
        """Forget staged chunks whose bytes were cut off; until then none may be relied on."""
        if self._rows_ahead:
            with index.transaction(self._conn):
                self._conn.execute(
                    "DELETE FROM chunk WHERE staged AND (segment, offset) >= (?, ?)",
                    self._committed_end(),
                )
            self._rows_ahead = False

    def _check_room(self) -> None:
        free_bytes = durable.free_bytes(self.folder)
        if free_bytes < self._reserve_bytes:
            raise Full(
                f"{free_bytes >> 20} MiB are free on the store's disk,"
                f" {self._reserve_bytes >> 20} MiB must be"
            )

    # Damage

    def inconsistent(self) -> str:
        """Return why the replica is inconsistent, empty when it is not."""
        with self._lock, translated():
            row = self._conn.execute("SELECT value FROM meta WHERE key = 'inconsistent'").fetchone()
            return str(row[0]) if row else ""

    def mark_inconsistent(self, reason: str) -> None:
        """Refuse express fulls until a consistency check has been committed."""
        self.on_database(
            lambda conn: conn.execute(
                "INSERT OR REPLACE INTO meta VALUES ('inconsistent', ?)", (reason,)
            )
        )

    def record_damage(self, damage: DamageFound) -> None:
        """Tell of damage, once for each chunk: a damaged chunk is not read nor relied on."""

        def change(conn: sqlite3.Connection) -> None:
            if damage.chunk:
                known = conn.execute(
                    "UPDATE chunk SET bad = 1 WHERE id = ? AND NOT bad", (damage.chunk,)
                )
                if not known.rowcount:
                    return
            outbox.record(
                conn,
                site=self.identity.site,
                origin=self.identity.origin,
                noun="damage",
                verb="found",
                source=self.identity.source,
                time_ns=self._now_ns(),
                data=damage,
            )

        self.on_database(change)

    def close(self) -> None:
        """Let go of all files; what is being received goes on after the next opening."""
        with self._lock:
            if self._part is not None:
                self._part.close()
            self._segments.close()
            self._conn.close()


@contextmanager
def translated() -> Iterator[None]:
    """Turn the errors of disk and SQLite into the store's own."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise as_full(error) or DiskError(f"the store's disk: {error}") from error


def _open_index(path: str) -> sqlite3.Connection:
    """Open the index; one that is no database any more is removed, to be made anew."""
    try:
        return index.connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        for suffix in ("", "-wal", "-shm"):
            durable.remove(path + suffix)
        return index.connect(path)


def _era(folder: str) -> int:
    with open(os.path.join(folder, "replica.json"), "rb") as file:
        return int(json.load(file).get("era", 0))
