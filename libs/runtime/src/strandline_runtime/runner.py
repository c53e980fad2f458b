"""Runs the jobs of a target: a bounded number at once, one per source, again when it may help."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec

from strandline_contracts.codec import encode
from strandline_contracts.commands import Command
from strandline_contracts.errors import StrandlineError
from strandline_contracts.jobs import ENDED, Failure, Job, Progress, State
from strandline_contracts.points import Issue, Totals
from strandline_runtime.bus import Bus
from strandline_runtime.errors import RuntimeFault
from strandline_runtime.job_rules import issues_for_record, retry_delay_s
from strandline_runtime.journal import Journal
from strandline_runtime.logs import bind, logger

T = TypeVar("T")

PROGRESS_EVERY_S = 0.5
MAX_WAITING_PER_SOURCE = 16
_LATE = Failure(
    code="job.late",
    message="it could not be done before the time after which it may not be started",
    hint="Its target or the bus was down or busy for too long: run it again.",
    retryable=True,
)


class JobCancelled(RuntimeFault):
    """Raised by a job's `run` when it gives up because `cancelled` is set."""

    code = "job.cancelled"


class Busy(RuntimeFault):
    """Too many jobs wait for the same source."""

    code = "job.busy"
    hint = "Earlier jobs of this source have not ended: see strandline jobs."
    retryable = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended well; fields as in Job. `issues` may be longer than a Job lists."""

    point: int = 0
    partial: bool = False
    totals: Totals = field(default_factory=Totals)
    issues: list[Issue] = field(default_factory=list)
    detail: str = ""


class JobFailed(RuntimeFault):
    """Raised by a job's `run` that has failed with `error` and has something to show for it.

    What `outcome` holds goes into the job's record all the same.
    """

    def __init__(self, error: StrandlineError, outcome: Outcome) -> None:
        super().__init__(error.message, code=error.code, hint=error.hint, retryable=error.retryable)
        self.outcome = outcome


class JobContext:
    """What a running job knows and tells. `attempt` counts from 1 and grows with every try."""

    def __init__(self, bus: Bus, journal: Journal, job: Job, command: Command) -> None:
        self.job = job
        self.command = command
        self.attempt = job.attempt
        self.cancelled = asyncio.Event()
        self._bus = bus
        self._journal = journal
        self._latest: Progress | None = None

    def progress(
        self,
        phase: str,
        *,
        files: int = 0,
        done_bytes: int = 0,
        total_bytes: int = 0,
        sent_bytes: int = 0,
    ) -> None:
        """Tell where the job stands; cheap, and at most twice a second it reaches the bus."""
        self._latest = Progress(
            job=self.job.job,
            phase=phase,
            files=files,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            sent_bytes=sent_bytes,
        )

    async def shipped(self) -> None:
        """Tell that everything has been sent and only durability is awaited."""
        if self.job.state == "running":
            self.job = await asyncio.to_thread(self._journal.move, self.job.job, "shipped")

    def check_cancelled(self) -> None:
        """Raise JobCancelled if the job is to be cancelled."""
        if self.cancelled.is_set():
            raise JobCancelled(f"job {self.job.job} was cancelled")

    async def report(self) -> None:
        """Publish the latest progress for as long as the job runs."""
        subject = self._bus.subjects.progress(self.job.job)
        while True:
            if self._latest is not None:
                latest, self._latest = self._latest, None
                await self._bus.say(subject, encode(latest))
            await asyncio.sleep(PROGRESS_EVERY_S)


Run = Callable[[JobContext], Awaitable[Outcome]]


class JobRunner:
    """Runs accepted jobs: at most `max_jobs` at once, one per source, in order of arrival.

    `run` does one attempt. Returned: the job is durable. A retryable StrandlineError: tried again
    with a new attempt until `not_after_ns`. Another error: failed. Any error once `cancelled` is
    set: cancelled. `poke` is called when the journal's outbox has grown.
    """

    def __init__(
        self,
        bus: Bus,
        journal: Journal,
        run: Run,
        *,
        max_jobs: int,
        poke: Callable[[], None] = lambda: None,
    ) -> None:
        self._bus = bus
        self._journal = journal
        self._run = run
        self._poke = poke
        self._slots = asyncio.Semaphore(max_jobs)
        self._sources: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._contexts: dict[str, JobContext] = {}
        self._cancels: dict[str, asyncio.Event] = {}
        self._stopped = False
        self._log = logger()

    async def resume(self) -> None:
        """Start again, with a new attempt each, what had not ended when the last process did."""
        for job in await asyncio.to_thread(self._journal.unfinished):
            command = await asyncio.to_thread(self._journal.command, job.job)
            assert command is not None, "a job is journaled with its command"
            self._log.info("job.resumed", job=job.job, source=job.source, state=job.state)
            self.start(command)

    def start(self, command: Command) -> None:
        """Run the job of an accepted command when its turn comes; a second start is no start.

        After `stop` nothing starts: the job is in the journal, and the next process resumes it.
        """
        if self._stopped or command.job in self._tasks:
            return
        self._cancels[command.job] = asyncio.Event()
        self._waiting[command.source] = self._waiting.get(command.source, 0) + 1
        task = asyncio.create_task(self._in_turn(command), name=f"job {command.job}")
        self._tasks[command.job] = task
        task.add_done_callback(lambda _: self._forget(command))

    def cancel(self, job_id: str) -> None:
        """Set `cancelled` of the job, running or waiting; unknown jobs are none of ours."""
        cancelled = self._cancels.get(job_id)
        if cancelled is not None:
            cancelled.set()

    def running(self) -> list[Job]:
        """Return the jobs whose `run` is at work."""
        return [context.job for context in self._contexts.values()]

    async def stop(self) -> None:
        """Stop all jobs where they are; the next process resumes them."""
        self._stopped = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, command: Command) -> None:
        del self._tasks[command.job], self._cancels[command.job]
        self._waiting[command.source] -= 1
        if not self._waiting[command.source]:
            del self._waiting[command.source]
            self._sources.pop(command.source, None)

    async def _in_turn(self, command: Command) -> None:
        with bind(job=command.job, source=command.source):
            try:
                self._check_room(command)
                lock = self._sources.setdefault(command.source, asyncio.Lock())
                async with lock, self._slots:
                    await self._attempts(command)
            except Exception as error:  # noqa: BLE001 - whatever it is, the job must end
                await self._fail(command.job, error)

    def _check_room(self, command: Command) -> None:
        if self._waiting[command.source] > MAX_WAITING_PER_SOURCE:
            raise Busy(f"{MAX_WAITING_PER_SOURCE} jobs wait for this source already")

    async def _attempts(self, command: Command) -> None:
        """Try until the job has ended."""
        job = await self._journaled(partial(self._journal.get, command.job))
        while job is not None and job.state not in ENDED:
            if await self._is_cancelled(job):
                await self._move(job, "cancelled")
                return
            if time.time_ns() > job.not_after_ns and job.state != "shipped":
                await self._give_up(job)
                return
            job = await self._move(job, "running", attempt=job.attempt + 1)
            job = await self._attempt(JobContext(self._bus, self._journal, job, command))

    async def _give_up(self, job: Job) -> None:
        if job.state == "accepted":
            await self._move(job, "expired", failure=_LATE)
        else:
            await self._move(job, "failed", failure=job.failure or _LATE)

    async def _attempt(self, context: JobContext) -> Job:
        """Try once; return the job's record, ended or to be tried again."""
        context.cancelled = self._cancels[context.job.job]
        self._contexts[context.job.job] = context
        reporting = asyncio.create_task(context.report())
        self._log.info("job.running", attempt=context.attempt, verb=context.job.verb)
        try:
            outcome = await self._run(context)
        except StrandlineError as error:
            return await self._after_error(context, error)
        finally:
            reporting.cancel()
            del self._contexts[context.job.job]
        self._log.info("job.durable", point=outcome.point, partial=outcome.partial)
        return await self._move(context.job, "durable", **_shown(outcome), failure=None)

    async def _after_error(self, context: JobContext, error: StrandlineError) -> Job:
        job = context.job
        if context.cancelled.is_set() or isinstance(error, JobCancelled):
            return await self._move(job, "cancelled")
        delay_s = retry_delay_s(job.attempt, random.random())
        if not error.retryable or time.time_ns() + int(delay_s * 1e9) > job.not_after_ns:
            self._log.warning("job.failed", code=error.code, error=str(error))
            shown = _shown(error.outcome) if isinstance(error, JobFailed) else {}
            return await self._move(job, "failed", **shown, failure=_failure(error))
        self._log.info("job.again", code=error.code, error=str(error), delay_s=round(delay_s, 1))
        with suppress(TimeoutError):
            await asyncio.wait_for(context.cancelled.wait(), delay_s)
        # Should its time be over now, this is why it failed.
        return msgspec.structs.replace(job, failure=_failure(error))

    async def _is_cancelled(self, job: Job) -> bool:
        return self._cancels[job.job].is_set() or await self._journaled(
            partial(self._journal.cancel_requested, job.job)
        )

    async def _fail(self, job_id: str, error: Exception) -> None:
        if not isinstance(error, StrandlineError):
            self._log.error("job.failed", code="internal", exc_info=error)
        job = await self._journaled(partial(self._journal.get, job_id))
        if job is not None and job.state not in ENDED:
            cancelled = self._cancels[job_id].is_set()
            state: State = "cancelled" if cancelled else "failed"
            await self._move(job, state, failure=None if cancelled else _failure(error))

    async def _move(self, job: Job, state: State, **changes: Any) -> Job:
        moved = await self._journaled(partial(self._journal.move, job.job, state, **changes))
        self._poke()
        return moved

    async def _journaled(self, work: Callable[[], T]) -> T:
        """Run `work` on the journal, again and again while its disk is full or fails.

        Its record would else stay as it is until a restart, or tell that a job failed that is
        durable. The job keeps its turn meanwhile.
        """
        attempt = 0
        while True:
            try:
                return await asyncio.to_thread(work)
            except (sqlite3.OperationalError, OSError) as error:
                attempt += 1
                delay_s = retry_delay_s(attempt, random.random())
                self._log.error("job.not_journaled", error=str(error), delay_s=round(delay_s, 1))
                await asyncio.sleep(delay_s)


def _shown(outcome: Outcome) -> dict[str, Any]:
    """Return what of `outcome` stands in a job's record."""
    return {
        "point": outcome.point,
        "partial": outcome.partial,
        "totals": outcome.totals,
        "issues": issues_for_record(outcome.issues),
        "detail": outcome.detail,
    }


def _failure(error: Exception) -> Failure:
    if isinstance(error, StrandlineError):
        return Failure(
            code=error.code, message=error.message, hint=error.hint, retryable=error.retryable
        )
    return Failure(
        code="internal", message=f"{type(error).__name__}: {error}", hint="See the service's log."
    )
