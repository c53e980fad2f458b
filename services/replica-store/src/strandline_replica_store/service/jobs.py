"""The commands of a store as jobs: verify, delete, undelete, reindex, compact."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime

from strandline_contracts.commands import Compact, Delete, Reindex, Undelete, Verify
from strandline_contracts.events import ReplicaDeleted
from strandline_replica_store.errors import (
    ClockDoubted,
    Damaged,
    Deleted,
    DiskError,
    NoSuch,
    StoreError,
    translated,
)
from strandline_replica_store.forgetting.clock_guard import ClockGuard
from strandline_replica_store.forgetting.policies import Policies
from strandline_replica_store.store.deleted import (
    WHOLE,
    Deletion,
    check_not_held,
    with_deleted,
    with_restored,
)
from strandline_replica_store.store.events import StoreEvents
from strandline_replica_store.store.store import Store
from strandline_runtime.journal import Journal
from strandline_runtime.logs import logger
from strandline_runtime.targets import JobContext, Outcome

VERBS = ("verify", "delete", "undelete", "reindex", "compact")

MAX_NAMED = 8

Refuse = Callable[[str, StoreError], Awaitable[None]]
"""Fails what is being received of a source."""
CompactNow = Callable[[str], Awaitable[str]]
"""Forgets and compacts a source at once; returns a line for a person."""


MAX_LONG_JOBS = 1
"""So many jobs at once read or write a whole replica; the others take a moment."""


def is_wanted_back(journal: Journal, source: str) -> bool:
    """Tell whether an undelete of this source has been accepted and not ended: blocks.

    It may wait behind a long job of the same source, while the delay goes by. Raises DiskError.
    """
    try:
        jobs = journal.unfinished()
    except sqlite3.Error as error:
        raise DiskError(f"the journal: {error}") from error
    return any((job.source, job.verb) == (source, "undelete") for job in jobs)


class StoreJobs:
    """Runs one attempt of whatever job a command asks for."""

    def __init__(
        self,
        store: Store,
        policies: Policies,
        clock: ClockGuard,
        events: StoreEvents,
        *,
        delay_ns: int,
        verify: Callable[[JobContext], Awaitable[Outcome]],
        compact: CompactNow,
        refuse: Refuse,
        on_change: Callable[[str], None],
    ) -> None:
        self._store = store
        self._policies = policies
        self._clock = clock
        self._events = events
        self._delay_ns = delay_ns
        self._verify = verify
        self._compact = compact
        self._refuse = refuse
        self._on_change = on_change
        self._long = asyncio.Semaphore(MAX_LONG_JOBS)
        self._log = logger()

    async def run(self, context: JobContext) -> Outcome:
        """Do once what the job's command asks for. Raises StoreError, BusError, BadSignature."""
        args = context.command.args
        if isinstance(args, Delete):
            return await self._delete(context, args)
        if isinstance(args, Undelete):
            return await self._undelete(context, args)
        async with self._long:
            context.check_cancelled()
            return await self._run_long(context)

    async def _run_long(self, context: JobContext) -> Outcome:
        args, source = context.command.args, context.command.source
        if isinstance(args, Verify):
            return await self._verify(context)
        if isinstance(args, Reindex):
            await asyncio.to_thread(self._store.reindex, source)
            self._on_change(source)
            return Outcome(detail="the index was made anew")
        if isinstance(args, Compact):
            return Outcome(detail=await self._compact(source))
        raise StoreError(f"a store knows no {context.command.verb}", code="job.verb")

    # Delete

    async def _delete(self, context: JobContext, args: Delete) -> Outcome:
        """Delete points or the replica: it counts at once, and is final after the delay."""
        command = context.command
        check_not_held(args.points, await self._policies.held(command.source))
        done = await asyncio.to_thread(
            self._mark_deleted, command.source, args.points, command.job, command.issued_by
        )
        if not args.points:
            await self._stop_receiving(command.source, command.issued_by)
        at = datetime.fromtimestamp(done.due_at_ns // 1_000_000_000, UTC)
        what = _named(args.points) if args.points else "the replica"
        return Outcome(detail=f"{what}: gone for good after {at:%Y-%m-%d %H:%M:%S} UTC")

    async def _stop_receiving(self, source: str, by: str) -> None:
        try:
            await self._refuse(source, Deleted(f"the replica was deleted by {by}"))
        except StoreError as error:
            # A replica that cannot be opened receives nothing either.
            self._log.warning("delete.not_open", source=source, code=error.code, error=str(error))

    def _mark_deleted(self, source: str, points: list[int], job: str, by: str) -> Deletion:
        self._check_there(source, points)
        with self._store.deletions.lock, translated():
            now_ns = self._clock.now_ns()
            if now_ns is None:
                raise ClockDoubted("nobody knows when the delay would be over")
            deletion = Deletion(
                deleted_at_ns=now_ns, due_at_ns=now_ns + self._delay_ns, job=job, by=by
            )
            after = with_deleted(self._store.deletions.of(source), points, deletion)
            self._store.deletions.put(source, after)
        deletion = max((after[n] for n in points or [WHOLE]), key=lambda each: each.due_at_ns)
        told = ReplicaDeleted(points=points, due_at_ns=deletion.due_at_ns, by=by)
        self._tell("deleted", source, now_ns, told)
        return deletion

    def _check_there(self, source: str, points: Collection[int]) -> None:
        if source not in self._store.sources():
            raise NoSuch(f"source {source} has no replica here")
        if not points:
            return
        with self._store.reader(source) as reader, translated():
            known = {number for (number,) in reader.conn.execute("SELECT number FROM point")}
        missing = sorted(set(points) - known)
        if missing:
            raise NoSuch(f"there is no recovery point {missing[0]}")

    # Undelete

    async def _undelete(self, context: JobContext, args: Undelete) -> Outcome:
        source = context.command.source
        restored = await asyncio.to_thread(self._mark_restored, source, args.points)
        if restored or context.attempt > 1:
            # An attempt before this one may have ended between the change and the event.
            points = [number for number in restored or args.points if number != WHOLE]
            told = ReplicaDeleted(points=points)
            await asyncio.to_thread(self._tell, "undeleted", source, time.time_ns(), told)
        if not restored:
            return Outcome(detail="nothing was deleted")
        points = [number for number in restored if number != WHOLE]
        parts = ["the replica"] * (WHOLE in restored) + [_named(points)] * bool(points)
        return Outcome(detail=f"{' and '.join(parts)}: deleted no more")

    def _mark_restored(self, source: str, points: list[int]) -> list[int]:
        deletions = self._store.deletions
        with deletions.lock, translated():
            if source not in self._store.sources():
                raise NoSuch(f"source {source} has no replica here (any more)")
            deletions.check_settled(source)
            try:
                before = deletions.of(source)
            except Damaged:
                if points:
                    raise
                # What was deleted is not known; it is all taken back by writing the file anew.
                before = {WHOLE: Deletion(deleted_at_ns=0, due_at_ns=0, job="", by="")}
            after = with_restored(before, points)
            if after == before:
                return []
            deletions.put(source, after)
        return sorted(before.keys() - after.keys())

    def _tell(self, verb: str, source: str, now_ns: int, data: ReplicaDeleted) -> None:
        """Tell by the replica's outbox, or the store's if the replica cannot be opened."""
        try:
            replica = self._store.replica(source)
            replica.on_database(lambda conn: replica.tell(conn, "replica", verb, data))
        except StoreError as error:
            self._log.warning("replica.untold", source=source, code=error.code, error=str(error))
            self._events.replica(verb, source, now_ns, data)
        else:
            self._on_change(source)


def _named(points: list[int]) -> str:
    """Return recovery points for a person; many are counted."""
    if len(points) == 1:
        return f"recovery point {points[0]}"
    if len(points) > MAX_NAMED:
        return f"{len(points)} recovery points"
    return f"recovery points {', '.join(map(str, sorted(points)))}"
