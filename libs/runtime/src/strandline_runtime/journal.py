"""The job journal of a target: what it was asked to do, durable before it starts.

One SQLite file (WAL, synchronous=FULL). Each change of a job and the event that tells of it are
one transaction. Ended jobs are remembered 30 days, longer than any command lives on the bus, and
the newest instant of each source and verb until a newer one: no redelivery starts a job twice.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from strandline_contracts.codec import decode, encode
from strandline_contracts.commands import Command
from strandline_contracts.events import JobChanged
from strandline_contracts.jobs import ENDED, Failure, Job, State
from strandline_runtime import metrics, outbox
from strandline_runtime.errors import RuntimeFault
from strandline_runtime.job_rules import (
    CancelledBefore,
    Expired,
    JobRefused,
    Older,
    check_acceptable,
    check_move,
    latest_believed_ns,
)

T = TypeVar("T")

REMEMBER_NS = 30 * 86_400 * 1_000_000_000
MAX_ENDED_JOBS = 200_000
MAX_CANCELS = 10_000
_PRUNE_EVERY = 256

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    job TEXT PRIMARY KEY,
    ended INTEGER NOT NULL,
    updated_at_ns INTEGER NOT NULL,
    record BLOB NOT NULL,
    command BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_by_age ON jobs (ended, updated_at_ns);
CREATE INDEX IF NOT EXISTS jobs_by_change ON jobs (updated_at_ns);
CREATE TABLE IF NOT EXISTS newest (
    source TEXT NOT NULL,
    verb TEXT NOT NULL,
    scheduled_at_ns INTEGER NOT NULL,
    PRIMARY KEY (source, verb)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cancels (
    job TEXT PRIMARY KEY,
    at_ns INTEGER NOT NULL
);
"""


class UnknownJob(RuntimeFault):
    """A job that the journal does not know (any more)."""

    code = "job.unknown"


class Journal:
    """The jobs of one target. Synchronous and thread-safe: call it through asyncio.to_thread.

    What has returned is on the disk. `origin` is the target's caller token.
    """

    def __init__(self, path: Path, *, site: str, origin: str) -> None:
        self._site = site
        self._origin = origin
        self._lock = threading.Lock()
        self._accepted = 0
        self._conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._conn.execute("PRAGMA journal_mode = WAL")
        self._conn.execute("PRAGMA synchronous = FULL")
        self._conn.executescript(_SCHEMA + outbox.SCHEMA)

    def accept(self, command: Command, now_ns: int) -> Job:
        """Journal a new job (state accepted, attempt 0). Raises a JobRefused.

        One that came too late, or whose cancel or a newer one came first, is journaled as expired
        or cancelled before it is refused, so that everybody can see it. One from the future leaves
        no trace.
        """
        job, refusal = self.on_database(lambda _: self._take(command, now_ns))
        if refusal is not None:
            raise refusal
        return job

    def move(self, job_id: str, state: State, now_ns: int | None = None, **changes: Any) -> Job:
        """Bring a job into `state`, with other fields of Job changed. Raises WrongState."""
        at_ns = time.time_ns() if now_ns is None else now_ns
        return self.on_database(lambda _: self._moved(job_id, state, at_ns, changes))

    def get(self, job_id: str) -> Job | None:
        """Return a job's record, None if it is unknown."""
        return self.on_database(lambda _: self._get(job_id))

    def command(self, job_id: str) -> Command | None:
        """Return the command that asked for a job, None if the job is unknown."""
        row = self.on_database(
            lambda conn: conn.execute(
                "SELECT command FROM jobs WHERE job = ?", (job_id,)
            ).fetchone()
        )
        return None if row is None else decode(row[0], Command)

    def unfinished(self) -> list[Job]:
        """Return the jobs that have not ended, oldest instant first."""
        rows = self.on_database(
            lambda conn: conn.execute("SELECT record FROM jobs WHERE ended = 0").fetchall()
        )
        jobs = [decode(row[0], Job) for row in rows]
        return sorted(jobs, key=lambda job: (job.accepted_at_ns, job.scheduled_at_ns))

    def recent(self, limit: int = 50) -> list[Job]:
        """Return the jobs last changed, newest first."""
        rows = self.on_database(
            lambda conn: conn.execute(
                "SELECT record FROM jobs ORDER BY updated_at_ns DESC LIMIT ?", (limit,)
            ).fetchall()
        )
        return [decode(row[0], Job) for row in rows]

    def request_cancel(self, job_id: str, now_ns: int) -> Job | None:
        """Remember that a job is to be cancelled; one not yet started is cancelled at once.

        Returns its record, None if the job is unknown (its command may still come).
        """

        def work(conn: sqlite3.Connection) -> Job | None:
            job = self._get(job_id)
            if job is not None and job.state in ENDED:
                return job
            conn.execute("INSERT OR IGNORE INTO cancels VALUES (?, ?)", (job_id, now_ns))
            conn.execute(
                "DELETE FROM cancels WHERE job IN"
                " (SELECT job FROM cancels ORDER BY at_ns DESC LIMIT -1 OFFSET ?)",
                (MAX_CANCELS,),
            )
            if job is not None and job.state == "accepted":
                return self._moved(job_id, "cancelled", now_ns, {})
            return job

        return self.on_database(work)

    def cancel_requested(self, job_id: str) -> bool:
        """Tell whether somebody asked to cancel the job."""
        return self.on_database(lambda _: self._cancelled(job_id))

    def on_database(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the journal's database as one transaction (for the outbox as well)."""
        with self._lock:
            self._conn.execute("BEGIN IMMEDIATE")
            try:
                result = work(self._conn)
                self._conn.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
            return result

    def close(self) -> None:
        with self._lock:
            self._conn.close()

    # Inside a transaction, the lock held

    def _take(self, command: Command, now_ns: int) -> tuple[Job, JobRefused | None]:
        refusal: JobRefused | None = None
        state: State = "accepted"
        try:
            self._check(command, now_ns)
        except (Expired, CancelledBefore, Older) as error:
            refusal = error
            state = "expired" if isinstance(error, Expired) else "cancelled"
        job = _new_job(command, state, now_ns, refusal)
        self._store(job, encode(command), now_ns)
        self._keep_newest(command, now_ns)
        self._prune(now_ns)
        return job, refusal

    def _check(self, command: Command, now_ns: int) -> None:
        newest = self._conn.execute(
            "SELECT scheduled_at_ns FROM newest WHERE source = ? AND verb = ?",
            (command.source, command.verb),
        ).fetchone()
        check_acceptable(
            command,
            known=self._get(command.job) is not None,
            newest_ns=0 if newest is None else newest[0],
            cancelled=self._cancelled(command.job),
            now_ns=now_ns,
        )

    def _keep_newest(self, command: Command, now_ns: int) -> None:
        # An instant that is yet to come (of a clock that was wrong) gives way to one that is not.
        self._conn.execute(
            "INSERT INTO newest VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE"
            " SET scheduled_at_ns = excluded.scheduled_at_ns"
            " WHERE scheduled_at_ns < excluded.scheduled_at_ns OR scheduled_at_ns > ?",
            (
                command.source,
                command.verb,
                command.scheduled_at_ns,
                latest_believed_ns(now_ns),
            ),
        )

    def _roll_back(self) -> None:
        # On a full disk SQLite may have done it: another ROLLBACK would hide why.
        if self._conn.in_transaction:
            self._conn.execute("ROLLBACK")

    def _get(self, job_id: str) -> Job | None:
        row = self._conn.execute("SELECT record FROM jobs WHERE job = ?", (job_id,)).fetchone()
        return None if row is None else decode(row[0], Job)

    def _cancelled(self, job_id: str) -> bool:
        row = self._conn.execute("SELECT 1 FROM cancels WHERE job = ?", (job_id,)).fetchone()
        return row is not None

    def _moved(self, job_id: str, state: State, now_ns: int, changes: dict[str, Any]) -> Job:
        job = self._get(job_id)
        if job is None:
            raise UnknownJob(f"no job {job_id} in the journal")
        check_move(job, state)
        moved = msgspec.structs.replace(
            job, state=state, updated_at_ns=max(now_ns, job.updated_at_ns), **changes
        )
        self._store(moved, None, now_ns)
        return moved

    def _store(self, job: Job, command: bytes | None, now_ns: int) -> None:
        """Write a job's record and the event of its new state."""
        ended = job.state in ENDED
        if command is None:
            self._conn.execute(
                "UPDATE jobs SET ended = ?, updated_at_ns = ?, record = ? WHERE job = ?",
                (ended, job.updated_at_ns, encode(job), job.job),
            )
        else:
            self._conn.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, ?)",
                (job.job, ended, job.updated_at_ns, encode(job), command),
            )
        if ended:
            self._conn.execute("DELETE FROM cancels WHERE job = ?", (job.job,))
        outbox.record(
            self._conn,
            site=self._site,
            origin=self._origin,
            noun="job",
            verb=job.state,
            source=job.source,
            time_ns=now_ns,
            data=JobChanged(job=job),
        )
        metrics.JOBS.labels(job.verb, job.state).inc()

    def _prune(self, now_ns: int) -> None:
        self._accepted += 1
        if self._accepted % _PRUNE_EVERY != 1:
            return
        before_ns = now_ns - REMEMBER_NS
        self._conn.execute("DELETE FROM jobs WHERE ended AND updated_at_ns < ?", (before_ns,))
        self._conn.execute(
            "DELETE FROM jobs WHERE job IN (SELECT job FROM jobs WHERE ended"
            " ORDER BY updated_at_ns DESC LIMIT -1 OFFSET ?)",
            (MAX_ENDED_JOBS,),
        )
        self._conn.execute("DELETE FROM cancels WHERE at_ns < ?", (before_ns,))


def _new_job(command: Command, state: State, now_ns: int, refusal: JobRefused | None) -> Job:
    return Job(
        job=command.job,
        source=command.source,
        verb=command.verb,
        role=command.role,
        instance=command.instance,
        state=state,
        attempt=0,
        scheduled_at_ns=command.scheduled_at_ns,
        not_after_ns=command.not_after_ns,
        accepted_at_ns=now_ns,
        updated_at_ns=now_ns,
        issued_by=command.issued_by,
        failure=None
        if refusal is None
        else Failure(code=refusal.code, message=refusal.message, hint=refusal.hint),
    )
