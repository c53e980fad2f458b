"""A target of commands on a real bus: receives, refuses, runs, cancels, resumes."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from strandline_contracts.codec import decode
from strandline_contracts.commands import Assign, Cancel, Command, Restore, Sync, Verify
from strandline_contracts.events import Event, JobChanged, accept_event
from strandline_contracts.jobs import ENDED, Failure, GetJob, GotJob, Job, Progress
from strandline_contracts.names import Role
from strandline_contracts.points import Issue
from strandline_runtime.bus import Bus
from strandline_runtime.errors import BusError, RuntimeFault
from strandline_runtime.job_rules import MAX_SKEW_NS
from strandline_runtime.journal import Journal
from strandline_runtime.outbox import OutboxPump
from strandline_runtime.targets import CommandReceiver, JobContext, JobRunner, Outcome, Run
from support.commands import make_command, signed
from support.nats import SiteBus
from support.waiting import until

Connect = Callable[..., Awaitable[Bus]]
VERBS = ("express_full", "sync", "restore")


class Target:
    """The agent web-1, composed as a service composes it."""

    def __init__(self, bus: Bus, site: SiteBus, path: Path, run: Run, max_jobs: int = 4) -> None:
        self.bus = bus
        self.journal = Journal(path, site=bus.site, origin=bus.me)
        self.stop = asyncio.Event()
        self.assigned: list[Command] = []
        self.sources = ["s1", "s2", "s3"]

        async def on_database(work: Callable[[sqlite3.Connection], Any]) -> Any:
            return await asyncio.to_thread(self.journal.on_database, work)

        self.pump = OutboxPump(bus, on_database)
        self.runner = JobRunner(bus, self.journal, run, max_jobs=max_jobs, poke=self.pump.poke)
        self.receiver = CommandReceiver(
            bus,
            self.journal,
            site.trusted,
            verbs=VERBS,
            sources=lambda: self.sources,
            on_command=self._on_command,
            on_cancel=self.runner.cancel,
            poke=self.pump.poke,
        )

    async def _on_command(self, command: Command) -> None:
        if isinstance(command.args, Assign):
            self.assigned.append(command)
        else:
            self.runner.start(command)

    async def start(self) -> None:
        self.pumping = asyncio.create_task(self.pump.run(self.stop))
        await self.bus.serve({"job": self.receiver.answer_job})
        await self.runner.resume()
        await self.receiver.start()

    async def end(self) -> None:
        self.stop.set()
        await self.runner.stop()
        await asyncio.wait_for(self.pumping, 5)
        self.journal.close()

    def job(self, job_id: str) -> Job | None:
        return self.journal.get(job_id)

    async def reaches(self, job_id: str, *states: str) -> Job:
        job = await until(
            lambda: (j := self.job(job_id)) is not None and j.state in states and j,
            f"{job_id} {states}",
        )
        assert isinstance(job, Job)
        return job


StartTarget = Callable[..., Awaitable[Target]]


class Ask:
    """Sends commands as the operator does."""

    def __init__(self, bus: Bus, site: SiteBus) -> None:
        self.bus, self.site = bus, site

    async def __call__(self, command: Command, seed: bytes | None = None) -> None:
        subject = self.bus.subjects.command(
            cast("Role", command.role), command.instance, command.source, command.verb
        )
        await self.bus.publish(subject, signed(seed or self.site.operator_seed, command))


@pytest_asyncio.fixture
async def ask(site: SiteBus, connect: Connect) -> Ask:
    return Ask(await connect("operator"), site)


@pytest_asyncio.fixture
async def target(site: SiteBus, connect: Connect, tmp_path: Path) -> AsyncIterator[StartTarget]:
    """Starts targets on one journal, one after the other."""
    made: list[Target] = []

    async def start(run: Run, max_jobs: int = 4) -> Target:
        target = Target(await connect("agent"), site, tmp_path / "journal.db", run, max_jobs)
        made.append(target)
        await target.start()
        return target

    yield start
    for each in made:
        if not each.stop.is_set():
            await each.end()


async def done_at_once(context: JobContext) -> Outcome:
    return Outcome(point=7, detail="done")


def failure_of(job: Job) -> Failure:
    assert job.failure is not None
    return job.failure


async def events_of(bus: Bus, source: str = "s1") -> list[Event]:
    page = await bus.read("EVENTS", f"strandline.v1.hq.evt.agent-web-1.job.*.{source}")
    return [accept_event(stored.data, stored.subject) for stored in page]


async def test_a_command_becomes_a_job_with_progress_and_events(
    ask: Ask, target: StartTarget
) -> None:
    progress: list[Progress] = []

    async def heard(subject: str, data: bytes) -> None:
        progress.append(decode(data, Progress))

    await ask.bus.subscribe("strandline.v1.hq.prg.j1", heard)
    went_on = asyncio.Event()

    async def run(context: JobContext) -> Outcome:
        for number in range(1000):
            context.progress("ship", files=number)
        await went_on.wait()
        await context.shipped()
        return Outcome(
            point=7,
            partial=True,
            issues=[Issue(b"x" * 4000, "unreadable", "no")] * 500,
            detail="done",
        )

    agent = await target(run)
    await ask(make_command("j1"))
    await until(lambda: progress, "progress")
    assert len(progress) <= 2
    went_on.set()
    job = await agent.reaches("j1", "durable")
    assert (job.point, job.partial, job.attempt, job.detail) == (7, True, 1, "done")
    assert 1 <= len(job.issues) <= 100

    async def told() -> bool:
        return len(await events_of(ask.bus)) == 4

    await until(told, "four events")
    events = await events_of(ask.bus)
    assert [e.verb for e in events] == ["accepted", "running", "shipped", "durable"]
    assert [e.number for e in events] == [1, 2, 3, 4]
    assert events[-1].data == JobChanged(job=job)
    got = await ask.bus.call("agent", "web-1", "job", GetJob(job="j1"), GotJob)
    assert got.job == job


async def test_missed_commands_are_read_on_connecting(ask: Ask, target: StartTarget) -> None:
    await ask(make_command("j1"))
    await ask(make_command("j2", source="s2", args=Sync()))
    await ask(make_command("j3", source="unknown-here"))
    await ask(make_command("a1", source="-", args=Assign()))
    agent = await target(done_at_once)
    await agent.reaches("j1", "durable")
    await agent.reaches("j2", "durable")
    assert [c.job for c in agent.assigned] == ["a1"]
    assert agent.job("j3") is None
    agent.sources.append("unknown-here")
    await agent.receiver.catch_up()
    await agent.reaches("j3", "durable")


async def test_missed_commands_are_read_on_reconnecting(
    site: SiteBus, ask: Ask, target: StartTarget, connect: Connect
) -> None:
    agent = await target(done_at_once)
    site.server.kill()
    await until(lambda: not agent.bus.connected, "the loss")
    site.server.start()
    # Whether the agent is back before or after this, it must learn of it.
    command = make_command("j1")

    async def asked() -> bool:
        try:
            await ask(command)
        except BusError:
            return False
        return True

    await until(asked, "the bus back", timeout_s=20)
    await until(lambda: agent.job("j1"), "the command", timeout_s=20)
    await agent.reaches("j1", "durable")


async def test_known_older_and_expired_are_refused(ask: Ask, target: StartTarget) -> None:
    runs: list[str] = []

    async def run(context: JobContext) -> Outcome:
        runs.append(context.job.job)
        return Outcome()

    agent = await target(run)
    now = time.time_ns()
    await ask(make_command("j1", at_ns=now))
    await agent.reaches("j1", "durable")
    await ask(make_command("j1", at_ns=now))
    await ask(make_command("j0", at_ns=now - 1))
    await ask(make_command("late", at_ns=now + 1, valid_s=0))
    await agent.reaches("late", "expired")
    await ask(make_command("j2", at_ns=now + 2))
    await agent.reaches("j2", "durable")
    assert runs == ["j1", "j2"]
    older = agent.job("j0")
    assert older is not None
    assert (older.state, failure_of(older).code) == ("cancelled", "job.older")


async def test_only_signed_commands_for_this_target_count(
    site: SiteBus, ask: Ask, target: StartTarget
) -> None:
    agent = await target(done_at_once)
    foreign = make_command("f1")
    subject = ask.bus.subjects.command("agent", "web-1", "s1", "express_full")
    await ask.bus.publish(subject, b"rubbish")
    await ask.bus.publish(subject, signed(b"\x07" * 32, foreign))
    moved = make_command("f2", instance="db-1")
    await ask.bus.publish(subject, signed(site.operator_seed, moved))
    restore = Restore(point=1, to=b"/x", grant=b"", store="store-1")
    await ask(make_command("f3", args=restore), seed=site.scheduler_seed)
    await ask(make_command("f4", args=Verify()))  # a verb that this target does not know
    await ask(make_command("good"))
    await agent.reaches("good", "durable")
    assert [job.job for job in agent.journal.recent()] == ["good"]


async def test_cancel_before_during_and_after(ask: Ask, target: StartTarget) -> None:
    seen: list[str] = []

    async def run(context: JobContext) -> Outcome:
        seen.append(context.job.job)
        if context.job.job == "after":
            return Outcome(point=1)
        await context.cancelled.wait()
        context.check_cancelled()
        raise AssertionError("check_cancelled must raise")

    agent = await target(run, max_jobs=1)
    # Before its command: the cancel is remembered.
    await ask(make_command("c0", args=Cancel(target="before")))
    await until(lambda: agent.journal.cancel_requested("before"))
    await ask(make_command("before"))
    await agent.reaches("before", "cancelled")
    # While running, and while waiting behind it.
    await ask(make_command("during"))
    await agent.reaches("during", "running")
    await ask(make_command("waiting", source="s2"))
    await agent.reaches("waiting", "accepted")
    await ask(make_command("c2", source="s2", args=Cancel(target="waiting")))
    await agent.reaches("waiting", "cancelled")
    await ask(make_command("c1", args=Cancel(target="during")))
    await agent.reaches("during", "cancelled")
    # After the end nothing changes.
    await ask(make_command("after"))
    done = await agent.reaches("after", "durable")
    await ask(make_command("c3", args=Cancel(target="after")))
    await ask(make_command("a", source="-", args=Assign()))
    await until(lambda: agent.assigned)
    assert agent.job("after") == done
    assert seen == ["during", "after"]


async def test_failures_are_tried_again_when_it_may_help(
    ask: Ask, target: StartTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strandline_runtime.runner.retry_delay_s", lambda attempt, jitter: 0.02)
    attempts: dict[str, list[int]] = {}

    async def run(context: JobContext) -> Outcome:
        name = context.job.job
        attempts.setdefault(name, []).append(context.attempt)
        if name == "twice" and context.attempt < 3:
            raise BusError("down", code="bus.down")
        if name == "never":
            raise RuntimeFault("no", code="x.no", hint="do this")
        if name == "broken":
            raise ZeroDivisionError("oops")
        if name == "too_long":
            raise BusError("down", code="bus.down")
        return Outcome()

    agent = await target(run)
    for name in ("twice", "never", "broken"):
        await ask(make_command(name, source={"twice": "s1", "never": "s2", "broken": "s3"}[name]))
    await agent.reaches("twice", "durable")
    assert attempts["twice"] == [1, 2, 3]
    never = await agent.reaches("never", "failed")
    failure = failure_of(never)
    assert (failure.code, failure.hint, failure.retryable) == ("x.no", "do this", False)
    assert attempts["never"] == [1]
    broken = await agent.reaches("broken", "failed")
    assert failure_of(broken).code == "internal"
    await ask(make_command("too_long", valid_s=0.4))
    too_long = await agent.reaches("too_long", "failed")
    failure = failure_of(too_long)
    assert (failure.code, failure.retryable) == ("bus.down", True)
    assert len(attempts["too_long"]) > 1


async def test_one_job_a_source_and_so_many_at_once(ask: Ask, target: StartTarget) -> None:
    gate, running, most = asyncio.Event(), [], [0]

    async def run(context: JobContext) -> Outcome:
        running.append(context.job.source)
        assert running.count(context.job.source) == 1
        most[0] = max(most[0], len(running))
        await gate.wait()
        running.remove(context.job.source)
        return Outcome()

    agent = await target(run, max_jobs=2)
    jobs = []
    for source in ("s1", "s2", "s3"):
        for verb, args in (("e", None), ("s", Sync())):
            jobs.append(f"{source}{verb}")
            await ask(make_command(jobs[-1], source=source, args=args))
    await until(lambda: all(agent.job(job) for job in jobs), "all accepted")
    await until(lambda: len(running) == 2)
    gate.set()
    for job in jobs:
        await agent.reaches(job, "durable")
    assert most[0] == 2


async def test_too_many_waiting_for_a_source_are_refused(ask: Ask, target: StartTarget) -> None:
    gate = asyncio.Event()

    async def run(context: JobContext) -> Outcome:
        await gate.wait()
        return Outcome()

    agent = await target(run)
    for number in range(20):
        await ask(make_command(f"j{number:02}"))
        await until(partial(agent.job, f"j{number:02}"))
    busy = await agent.reaches("j19", "failed")
    failure = failure_of(busy)
    assert (failure.code, failure.retryable) == ("job.busy", True)
    gate.set()
    assert (await agent.reaches("j00", "durable")).attempt == 1
    await until(lambda: all(job.state in ENDED for job in agent.journal.recent()), "all ended")
    states = [job.state for job in agent.journal.recent()]
    assert (states.count("durable"), states.count("failed")) == (16, 4)


async def test_a_restart_resumes_what_ran_with_a_new_attempt(ask: Ask, target: StartTarget) -> None:
    async def hangs(context: JobContext) -> Outcome:
        await asyncio.Event().wait()
        return Outcome()

    first = await target(hangs, max_jobs=1)
    await ask(make_command("ran"))
    await first.reaches("ran", "running")
    await ask(make_command("waited", source="s2"))
    await first.reaches("waited", "accepted")
    await ask(make_command("too_late", source="s3", valid_s=0.3))
    await first.reaches("too_late", "accepted")
    await first.end()
    await first.bus.close()
    await asyncio.sleep(0.35)  # until too_late may not be started any more
    attempts: dict[str, int] = {}

    async def run(context: JobContext) -> Outcome:
        attempts[context.job.job] = context.attempt
        return Outcome()

    second = await target(run)
    await second.reaches("ran", "durable")
    await second.reaches("waited", "durable")
    late = await second.reaches("too_late", "expired")
    assert failure_of(late).code == "job.late"
    assert attempts == {"ran": 2, "waited": 1}


async def test_a_full_disk_leaves_no_job_between_states(
    ask: Ask, target: StartTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strandline_runtime.runner.retry_delay_s", lambda attempt, jitter: 0.02)
    full: list[str] = []

    async def run(context: JobContext) -> Outcome:
        if context.job.job == "broken":
            full.extend(["get", "move"])
            raise ZeroDivisionError("oops")
        full.extend(["move"] * 3)
        return Outcome(point=7)

    agent = await target(run)
    monkeypatch.setattr(agent, "job", agent.journal.get)  # the test itself meets no full disk
    monkeypatch.setattr(agent.journal, "get", failing(agent.journal.get, "get", full))
    monkeypatch.setattr(agent.journal, "move", failing(agent.journal.move, "move", full))
    await ask(make_command("j1"))
    assert (await agent.reaches("j1", "durable", "failed")).state == "durable"
    await ask(make_command("broken"))
    assert failure_of(await agent.reaches("broken", "failed")).code == "internal"
    assert not full


def failing(method: Callable[..., Any], name: str, full: list[str]) -> Callable[..., Any]:
    """Return `method`, failing as on a full disk once for each `name` in `full`."""

    def fails(*values: Any, **named: Any) -> Any:
        if name in full:
            full.remove(name)
            raise sqlite3.OperationalError("database or disk is full")
        return method(*values, **named)

    return fails


async def test_one_from_the_future_is_taken_when_the_clock_is_right(
    ask: Ask, target: StartTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strandline_runtime.receiver.FUTURE_AGAIN_S", 0.05)
    agent = await target(done_at_once)
    now = time.time_ns()
    # What a clock that was wrong once has sent stops nothing that follows.
    await ask(make_command("wrong", at_ns=now + 10 * MAX_SKEW_NS))
    await ask(make_command("next"))
    await agent.reaches("next", "durable")
    assert agent.job("wrong") is None
    # The target's clock is behind, and is set right while the command waits on the bus.
    early = make_command("early", at_ns=time.time_ns() + MAX_SKEW_NS + 10**9)
    await ask(early)
    assert agent.job("early") is None
    await agent.reaches("early", "durable")
