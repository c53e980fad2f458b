"""The scheduler on a real bus, under a clock that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from strandline_contracts.codec import encode
from strandline_contracts.commands import Command, accept_command
from strandline_contracts.names import scheduled_job_id
from strandline_contracts.policy import Assignment, Document, Group, Source, key_of
from strandline_contracts.signing import sign
from strandline_contracts.subjects import COMMANDS, parse_command, policy_subject
from strandline_runtime.bus import Bus
from strandline_runtime.errors import BusError
from strandline_scheduler.cron import SECOND_NS
from strandline_scheduler.occurrences import Key, due
from strandline_scheduler.policies import read_policies
from strandline_scheduler.scheduler import Scheduler
from strandline_scheduler.state import State
from support.nats import SiteBus
from support.waiting import until

MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
START = 1_790_000_000 * SECOND_NS
SOURCE = "a" * 16


class World:
    """A bus with policies, a clock, and a scheduler that can be started and stopped."""

    def __init__(self, site: SiteBus, folder: Path) -> None:
        self.site = site
        self.folder = folder
        self.now_ns = START
        self.operator: Bus
        self.agent: Bus
        self.scheduler: Scheduler
        self._bus: Bus
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._bus = await self.site.connect("scheduler")
        self._stop = asyncio.Event()
        self.scheduler = Scheduler(
            self._bus,
            seed=self.site.scheduler_seed,
            trusted=self.site.trusted,
            state=State(self.folder),
            now_ns=lambda: self.now_ns,
        )
        self._running = asyncio.create_task(self.scheduler.run(self._stop))

    async def stop(self) -> None:
        if self._running is not None:
            self._stop.set()
            await asyncio.wait_for(self._running, 15)
            self._running = None
            await self._bus.close()

    async def put(self, *documents: Document, seed: bytes | None = None) -> None:
        for each in documents:
            signed = sign(seed or self.site.operator_seed, "policy", encode(each))
            await self.operator.publish(policy_subject(key_of(each)), encode(signed))

    async def known(self) -> None:
        """Wait until the scheduler has begun to follow the source's schedules."""

        async def followed() -> bool:
            return any(key.source == SOURCE for key in await State(self.folder).last())

        await until(followed, "followed")

    def advance(self, by_ns: int) -> None:
        self.now_ns += by_ns
        self.scheduler.wake()

    async def command(self, verb: str = "sync") -> Command | None:
        """Return the command that the agent finds, as it would accept it."""
        subject = self.agent.subjects.command("agent", "web-1", SOURCE, verb)
        try:
            data = await self.agent.last(COMMANDS, subject)
        except BusError:
            return None
        if data is None:
            return None
        return accept_command(data, parse_command(subject), "hq", self.site.trusted)

    async def command_since(self, at_ns: int, verb: str = "sync") -> Command:
        async def found() -> Command | None:
            command = await self.command(verb)
            return command if command and command.scheduled_at_ns > at_ns else None

        command = await until(found, f"a {verb} after {at_ns}", timeout_s=20)
        assert isinstance(command, Command)
        return command


@pytest_asyncio.fixture
async def world(site: SiteBus, tmp_path: Path) -> AsyncIterator[World]:
    folder = tmp_path / "scheduler"
    folder.mkdir()
    made = World(site, folder)
    made.operator = await site.connect("operator")
    made.agent = await site.connect("agent")
    yield made
    await made.stop()
    await made.operator.close()
    await made.agent.close()


def assignment(**changes: object) -> Assignment:
    source = Source(id=SOURCE, name="web", type="files", server="web-1", store="store-1")
    changed = msgspec.structs.replace(source, **changes)
    return Assignment(server="web-1", revision=1, sources=[changed])


GROUP = Group(name="default", sync_every_s=600, express_full=["0 2 * * *"], timezone="UTC")


async def test_each_occurrence_is_a_signed_command_with_a_bound_on_its_life(world: World) -> None:
    await world.put(assignment(), GROUP)
    await world.start()
    await world.known()
    assert await world.command() is None
    world.advance(10 * MINUTE_NS)
    command = await world.command_since(START)
    assert command.job == scheduled_job_id(SOURCE, "sync", command.scheduled_at_ns)
    assert START < command.scheduled_at_ns <= world.now_ns < command.not_after_ns
    assert command.issued_by == "scheduler-1"
    world.advance(24 * HOUR_NS)
    full = await world.command_since(START, "express_full")
    assert full.scheduled_at_ns % (24 * HOUR_NS) == 2 * HOUR_NS
    assert full.not_after_ns - full.scheduled_at_ns == 24 * HOUR_NS


async def test_a_command_is_gone_from_the_stream_when_its_time_is_over(world: World) -> None:
    await world.put(assignment(), GROUP)
    await world.start()
    await world.known()
    # The clock is read again for the life that is left: two seconds.
    world.now_ns += 10 * MINUTE_NS
    left = (await _next_not_after(world)) - 2 * SECOND_NS
    world.now_ns = left
    world.scheduler.wake()
    await world.command_since(START)

    async def gone() -> bool:
        return await world.command() is None

    await until(gone, "its time to live is over", timeout_s=10)


async def _next_not_after(world: World) -> int:
    policies, _ = read_policies(await State(world.folder).documents(), world.site.trusted)
    [found] = [
        each
        for each in due(policies, {Key(SOURCE, "sync"): START}, world.now_ns)
        if each.verb == "sync"
    ]
    return found.not_after_ns


async def test_a_restart_neither_loses_nor_doubles(world: World) -> None:
    await world.put(assignment(), GROUP)
    await world.start()
    await world.known()
    world.advance(10 * MINUTE_NS)
    first = await world.command_since(START)

    async def noted() -> bool:
        return first.scheduled_at_ns in (await State(world.folder).last()).values()

    await until(noted, "noted")
    await world.stop()
    await world.start()
    await until(lambda: world.scheduler.detail()["policies"] == "followed", "at work")
    world.scheduler.wake()
    assert world.scheduler.detail()["emitted"] == "0"
    await world.stop()
    world.now_ns += 65 * MINUTE_NS  # six occurrences are missed
    await world.start()
    second = await world.command_since(first.scheduled_at_ns)
    assert world.now_ns - second.scheduled_at_ns < 10 * MINUTE_NS
    assert world.scheduler.detail()["emitted"] == "1"


async def test_a_disk_that_takes_nothing_keeps_nothing_from_being_emitted(world: World) -> None:
    await world.put(assignment(), GROUP)
    await world.start()
    await world.known()
    world.folder.rename(world.folder.with_name("away"))
    world.advance(10 * MINUTE_NS)
    first = await world.command_since(START)
    world.advance(10 * MINUTE_NS)
    await world.command_since(first.scheduled_at_ns)


async def test_changed_policies_are_followed_at_once(world: World) -> None:
    await world.put(assignment(), GROUP)
    await world.start()
    await world.known()
    await world.put(assignment(protected=False))

    async def forgotten() -> bool:
        return await State(world.folder).last() == {}

    await until(forgotten, "unprotected: no schedule")
    world.advance(HOUR_NS)
    await world.put(assignment(), Group(name="default", sync_every_s=60))
    await world.known()
    assert await world.command() is None
    world.advance(MINUTE_NS)
    command = await world.command_since(START + HOUR_NS)
    assert command.scheduled_at_ns <= world.now_ns


async def test_a_forged_or_senseless_policy_does_not_touch_the_others(world: World) -> None:
    await world.put(assignment(), GROUP)
    await world.put(Group(name="evil", sync_every_s=60), seed=b"\x05" * 32)
    await world.put(Group(name="odd", express_full=["every day"]))
    await world.start()
    await world.known()
    assert world.scheduler.detail()["refused_policies"] == "2"
    world.advance(10 * MINUTE_NS)
    await world.command_since(START)


async def test_an_outage_of_the_bus_delays_and_loses_nothing(world: World) -> None:
    await world.put(assignment(), GROUP)
    await world.start()
    await world.known()
    world.site.server.kill()
    world.advance(10 * MINUTE_NS)
    world.site.server.start()
    command = await world.command_since(START)
    assert command.scheduled_at_ns <= world.now_ns


async def test_cached_policies_do_when_the_bucket_cannot_be_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.put(assignment(), GROUP)
    await world.start()
    await world.known()
    await world.stop()
    world.now_ns += 30 * MINUTE_NS

    def no_bucket(self: Bus, *args: object, **kwargs: object) -> AsyncIterator[object]:
        raise BusError("no answer", code="bus.timeout")

    monkeypatch.setattr(Bus, "snapshot", no_bucket)
    await world.start()
    await world.command_since(START)
    assert world.scheduler.detail()["policies"] == "cached"
