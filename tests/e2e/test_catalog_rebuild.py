"""The catalog's database is dropped: all answers are what they were, from where the truth lies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import asyncpg
import pytest
from msgspec.structs import replace

from strandline_console.site import OperatorSettings
from strandline_contracts.commands import Cancel
from strandline_contracts.errors import StrandlineError
from strandline_contracts.events import Event, JobChanged, accept_event
from strandline_contracts.names import new_job_id
from strandline_contracts.queries import (
    JobList,
    Jobs,
    PointAt,
    PointList,
    PointsOf,
    SourceList,
    Sources,
    Status,
    StatusIs,
)
from strandline_contracts.subjects import EVENTS
from strandline_runtime.bus import Bus
from strandline_runtime.keys import read_signing_seed
from strandline_runtime.settings import Settings, load
from support.commands import make_command, signed
from support.stack import Stack, until

T = TypeVar("T")
HASTY = "[store]\ndelete_delay_days = 0\nhousekeeping_every_s = 1\nlease_s = 2\n"
PATIENT = "[store]\ndelete_delay_days = 7\nhousekeeping_every_s = 1\nlease_s = 2\n"
CATALOG = "catalog-1"
Answers = dict[str, Any]


class Asker:
    """Asks the catalog of a stack as its operator."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def on_bus(self, work: Callable[[Bus], Awaitable[T]], role: Any = "operator") -> T:
        async def connected() -> T:
            name = "operator" if role == "operator" else "provisioner"
            os.environ["STRANDLINE_CONFIG"] = str(self.stack.state / "config" / f"{name}.toml")
            kind: type[Settings] = OperatorSettings if role == "operator" else ProvisionerSettings
            try:
                bus = await Bus.connect(load(kind), role)
            finally:
                del os.environ["STRANDLINE_CONFIG"]
            try:
                return await work(bus)
            finally:
                await bus.close()

        return asyncio.run(connected())

    def answers(self) -> Answers:
        """Return every answer of the catalog that does not name a moment of its own."""
        return self.on_bus(all_answers)

    def events(self) -> list[Event]:
        async def read(bus: Bus) -> list[Event]:
            found: list[Event] = []
            after = 0
            while page := await bus.read(EVENTS, f"{bus.subjects.root}.evt.>", after_seq=after):
                found += [accept_event(each.data, each.subject) for each in page]
                after = page[-1].seq
            return found

        return self.on_bus(read)

    def cancel(self, job: str) -> None:
        async def command(bus: Bus) -> None:
            listed = await bus.call("catalog", CATALOG, "sources", Sources(name="kept"), SourceList)
            source = listed.sources[0].source.id
            args = Cancel(target=job)
            made = make_command(new_job_id(), args=args, source=source, instance="here")
            seed = read_signing_seed(self.stack.state / "keys" / "operator.signing")
            subject = bus.subjects.command("agent", "here", source, "cancel")
            await bus.publish(subject, signed(seed, made))

        self.on_bus(command)

    def is_ready(self) -> bool:
        async def ask(bus: Bus) -> bool:
            try:
                status = await bus.call("catalog", CATALOG, "status", Status(), StatusIs)
            except StrandlineError:
                return False
            silent: bool = status.detail["failing_stores"] == "none"
            return status.ready and silent

        return self.on_bus(ask)


class ProvisionerSettings(Settings, frozen=True, kw_only=True):
    """The settings in the provisioner's file."""

    stores: list[str]


async def all_answers(bus: Bus) -> Answers:
    async def ask(call: str, request: Any, reply: Any) -> Any:
        return await bus.call("catalog", CATALOG, call, request, reply, timeout_s=10)

    listed = await ask("sources", Sources(), SourceList)
    found: Answers = {
        "sources": listed,
        "jobs": await ask("jobs", Jobs(limit=500), JobList),
        "open": await ask("jobs", Jobs(limit=500, open_only=True), JobList),
    }
    moments: set[int] = set()
    for state in listed.sources:
        source = state.source.id
        points = await ask("points", PointsOf(source=source, limit=1000), PointList)
        found[f"points {source}"] = points
        found[f"jobs {source}"] = await ask("jobs", Jobs(source=source, limit=500), JobList)
        found[f"named {source}"] = await ask("sources", Sources(name=state.source.name), SourceList)
        moments |= {point.taken_at_ns for point in points.points}
    around = sorted({at + step for at in moments for step in (-1, 0, 1)} | {0, 1 << 62})
    for state in listed.sources:
        for at_ns in around:
            asked = PointAt(source=state.source.id, at_ns=at_ns)
            found[f"{state.source.id} at {at_ns}"] = await ask("point_at", asked, PointList)
    return found


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack("--server", "here")
    stack.state.mkdir()
    (stack.state / "strandline.toml").write_text(HASTY)
    try:
        stack.up()
        a_history(stack)
        yield stack
    finally:
        stack.close()


def a_history(stack: Stack) -> None:
    """Points, drops, a hold, a purged and a deleted replica, failed and cancelled jobs."""
    for name in ("kept", "held", "purged", "deleted"):
        (stack.work / name).mkdir()
        (stack.work / name / "file").write_text(name * 1000)
        stack.json("protect", stack.work / name, "--name", name, "--server", "here", "--wait")
    for name, points in (("kept", 6), ("held", 5), ("purged", 2), ("deleted", 3)):
        for number in range(2, points + 1):
            (stack.work / name / "file").write_text(f"{name} {number}\n" * 1000)
            stack.json("express-full", name, "--wait")
    stack.json("hold", "held", "--point", "2", "--reason", "audit")
    stack.json("retention", "default", "--last", "3", "--days", "0", "--daily", "0")
    stack.json("unprotect", "purged", "--delete-replica", "--yes")
    until(lambda: numbers(stack, "kept") == [4, 5, 6], "kept drops", 60)
    until(lambda: numbers(stack, "held") == [2, 3, 4, 5], "held drops", 60)
    until(lambda: numbers(stack, "purged") == [], "the replica is purged", 60)
    # From now on deletes wait: what was deleted is there, and told to be deleted.
    stack.down()
    (stack.state / "strandline.toml").write_text(PATIENT)
    stack.up()
    stack.json("delete", "kept", "--point", "5", "--yes")
    stack.json("unprotect", "deleted", "--delete-replica", "--yes")
    fail_a_job(stack)
    cancel_a_job(stack)


def fail_a_job(stack: Stack) -> None:
    folder = stack.work / "held"
    folder.rename(stack.work / "away")
    failed = stack.json("express-full", "held", "--wait", code=1)
    assert failed["state"] == "failed"
    (stack.work / "away").rename(folder)


def cancel_a_job(stack: Stack) -> None:
    """Cancel a job that waits for the store, which does not answer meanwhile."""
    store = stack.pid("store")
    os.kill(store, signal.SIGSTOP)
    try:
        job = stack.json("express-full", "kept")["job"]
        until(lambda: state_of(stack, job) == "running", "the job runs", 30)
        Asker(stack).cancel(job)
        until(lambda: state_of(stack, job) == "cancelled", "the job is cancelled", 60)
    finally:
        os.kill(store, signal.SIGCONT)


def state_of(stack: Stack, job: str) -> str:
    jobs = stack.json("jobs", "kept")["jobs"]
    return next((str(one["state"]) for one in jobs if one["job"] == job), "")


def numbers(stack: Stack, name: str) -> list[int]:
    return [int(point["number"]) for point in stack.points(name)]


def rebuild(stack: Stack, asker: Asker) -> None:
    """Kill the catalog, drop all that it has, and wait until the next one has filled it anew."""
    stack.kill("catalog")
    on_database(stack, "DROP SCHEMA strandline CASCADE")
    dropped_at = on_database(stack, "SELECT clock_timestamp()")

    def is_new() -> bool:
        try:
            made_at = on_database(stack, "SELECT min(applied_at) FROM strandline.migration")
        except asyncpg.UndefinedTableError:
            return False
        return made_at is not None and made_at > dropped_at

    until(is_new, "the catalog has made its tables anew", 60)
    until(asker.is_ready, "the catalog is ready again", 60)


def on_database(stack: Stack, statement: str) -> Any:
    dsn = (stack.state / "keys" / "catalog.dsn").read_text().strip()

    async def ask() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(ask())


def settled(asker: Asker) -> Answers:
    """Return the answers once two in a row are the same: housekeeping may be at something."""
    last: list[Answers] = []

    def same() -> bool:
        last.append(asker.answers())
        return len(last) > 1 and last[-1] == last[-2]

    until(same, "the answers settle", 60)
    return last[-1]


def test_every_answer_is_what_it_was(stack: Stack) -> None:
    asker = Asker(stack)
    before = settled(asker)
    assert_is_a_history(before)
    rebuild(stack, asker)
    until_equal(asker, before)


def test_points_come_from_the_stores_when_the_record_has_forgotten(stack: Stack) -> None:
    asker = Asker(stack)
    before = settled(asker)
    forget_events(asker)
    told = [event.data for event in asker.events()]
    kept = {each.job.job for each in told if isinstance(each, JobChanged)}
    rebuild(stack, asker)
    until_equal(asker, before, of=without_jobs)
    jobs = asker.answers()["jobs"].jobs
    assert {job.job for job in jobs} == kept
    assert len(jobs) < len(before["jobs"].jobs)


def without_jobs(answers: Answers) -> Answers:
    """Return the answers but what they say of jobs: only EVENTS can tell that."""
    found: Answers = {}
    for key, value in answers.items():
        if isinstance(value, SourceList):
            found[key] = [replace(each, last_job=None) for each in value.sources]
        elif not isinstance(value, JobList):
            found[key] = value
    return found


def until_equal(
    asker: Asker, before: Answers, *, of: Callable[[Answers], Answers] = lambda answers: answers
) -> None:
    wanted = of(before)
    try:
        until(lambda: of(asker.answers()) == wanted, "the same answers", 60)
    except AssertionError:
        after = of(asker.answers())
        differing = {
            key: (wanted.get(key), after.get(key))
            for key in wanted.keys() | after.keys()
            if wanted.get(key) != after.get(key)
        }
        raise AssertionError(f"other answers than before: {differing}") from None


def assert_is_a_history(answers: Answers) -> None:
    """A test of nothing would pass: there must be something of each kind."""
    states = {each.source.name: each for each in answers["sources"].sources}
    assert {name: each.points for name, each in states.items()} == {
        "kept": 3,
        "held": 4,
        "purged": 0,
        "deleted": 3,
    }
    assert states["kept"].deleted == [5]
    assert states["deleted"].deleted == [0]
    assert states["deleted"].due_at_ns > 0
    jobs = answers["jobs"].jobs
    assert {"durable", "failed", "cancelled"} <= {job.state for job in jobs}
    assert {"express_full", "delete"} <= {job.verb for job in jobs}


def forget_events(asker: Asker) -> None:
    """Let EVENTS forget all but its last few messages, as age does."""
    held = len(asker.events())

    async def shrink(bus: Bus) -> None:
        config = (await bus.api(f"STREAM.INFO.{EVENTS}"))["config"]
        for most in (5, -1):
            answer = await bus.api(f"STREAM.UPDATE.{EVENTS}", {**config, "max_msgs": most})
            assert "error" not in answer, answer

    asker.on_bus(shrink, "provisioner")
    assert len(asker.events()) <= 5 < held
