"""What makes a store forget: signed policies, holds and deletes on a real bus, and its clock."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from strandline_contracts import reading
from strandline_contracts.codec import encode
from strandline_contracts.commands import Args, Compact, Delete, Reindex, Undelete, Verify
from strandline_contracts.events import (
    ClockDoubted,
    DamageFound,
    PointsDropped,
    ReplicaDeleted,
    accept_event,
)
from strandline_contracts.jobs import GetJob, GotJob, Job
from strandline_contracts.policy import (
    Document,
    Group,
    Hold,
    Retention,
    key_of,
    server_key,
)
from strandline_contracts.signing import sign
from strandline_contracts.subjects import EVENTS, policy_subject
from strandline_replica_store.files import checked_json
from strandline_replica_store.forgetting import clock_guard
from strandline_replica_store.forgetting.clock_guard import ClockGuard, Reading
from strandline_replica_store.forgetting.forget import Forgetting
from strandline_replica_store.forgetting.policies import Policies
from strandline_replica_store.forgetting.retention import DAY_NS
from strandline_replica_store.service.jobs import is_wanted_back
from strandline_replica_store.store import purging
from strandline_replica_store.store.deleted import Deletion, with_deleted
from strandline_replica_store.store.events import StoreEvents
from strandline_replica_store.store.leases import LEASE_S, Leases
from strandline_replica_store.store.store import Store
from strandline_runtime import outbox
from strandline_runtime.bus import Bus
from strandline_runtime.errors import RemoteRefused, RuntimeFault
from strandline_runtime.journal import Journal
from support.commands import make_command, signed
from support.nats import SiteBus
from support.replicas import (
    SOURCE,
    batch,
    content,
    made_up,
    made_up_content,
    new_replica,
    one_file,
    ship,
)
from support.waiting import until

from .conftest import STORE, FakeAgent, StoreProcess, assign, ready

Connect = Callable[..., Awaitable[Bus]]
T0_NS = 1_800_000_000 * 1_000_000_000


class World:
    """A store's forgetting in this process, on a real bus, with a clock that we set."""

    def __init__(self, site: SiteBus, bus: Bus, *, delay_days: float = 7) -> None:
        self.site = site
        self.bus = bus
        self.root = site.settings("store").state_dir / "store"
        self.delay_ns = int(delay_days * DAY_NS)
        self.elapsed_ns = 0
        self.jump_ns = 0
        self.lease_ns = 0
        self.start()

    def start(self) -> None:
        self.root.parent.mkdir(exist_ok=True)
        self.store = Store(str(self.root), name=STORE, site="hq", reserve_bytes=0)
        self.store.leases = Leases(lambda: self.lease_ns)
        self.lease_ns += int((LEASE_S + 1) * 1e9)
        self.journal = Journal(self.root.parent / "journal.db", site="hq", origin="store-store-1")
        events = StoreEvents(self.journal, "hq", STORE, lambda: None)
        self.forgetting = Forgetting(
            self.store,
            Policies(self.bus, STORE, self.site.trusted),
            ClockGuard(str(self.root), events.clock, look=self.look),
            events,
            delay_ns=self.delay_ns,
            is_wanted_back=lambda source: is_wanted_back(self.journal, source),
            on_change=lambda _: None,
        )

    def look(self) -> Reading:
        return Reading(T0_NS + self.elapsed_ns + self.jump_ns, self.elapsed_ns, "boot-1")

    def stop(self) -> None:
        self.store.close()
        self.journal.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    async def after(self, days: float, *, force: bool = True) -> list[int]:
        """Let days pass, then forget; return what was dropped."""
        self.elapsed_ns += int(days * DAY_NS)
        return (await self.forgetting.run(SOURCE, force=force)).dropped

    def points(self) -> list[int]:
        with self.store.reader(SOURCE) as reader:
            return [n for (n,) in reader.conn.execute("SELECT number FROM point ORDER BY number")]

    def told(self, kind: type) -> list[Any]:
        """Return what the journal's and the replica's outboxes hold of a kind."""
        found = self.journal.on_database(lambda conn: outbox.pending(conn, 1000))
        if SOURCE in self.store.sources():
            replica = self.store.replica(SOURCE)
            found += replica.on_database(lambda conn: outbox.pending(conn, 1000))
        return [event for _, event in found if isinstance(event.data, kind)]

    async def put(self, document: Document, seed: bytes | None = None) -> None:
        """Put a signed document where it belongs."""
        operator = await self.site.connect("operator")
        try:
            await put(operator, seed or self.site.operator_seed, document)
        finally:
            await operator.close()

    async def keep(self, **rules: int) -> None:
        await self.put(Group(name="default", retention=Retention(**rules)))


async def put(operator: Bus, seed: bytes, document: Document) -> None:
    data = encode(sign(seed, "policy", encode(document)))
    await operator.publish(policy_subject(key_of(document)), data)


def make_points(folder: Path, days: Sequence[float]) -> None:
    """Make a replica with a point for each of `days` before T0."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    times = iter(days)
    now_ns = T0_NS

    replica = new_replica(folder, now_ns=lambda: now_ns)
    for number in range(1, len(days) + 1):
        now_ns = T0_NS - int(next(times) * DAY_NS)
        ship(replica, f"j{number}", one_file(f"j{number}", made_up_content(number)[:4000]))
    replica.close()


@pytest_asyncio.fixture
async def world(
    site: SiteBus, connect: Connect, operator: Bus, request: pytest.FixtureRequest
) -> AsyncIterator[World]:
    """Six points, one a day, of a protected source; its group keeps all of them.

    The parameter says other days before T0 at which points came.
    """
    root = site.settings("store").state_dir / "store"
    make_points(root / "replicas" / SOURCE, getattr(request, "param", (6, 5, 4, 3, 2, 1)))
    world = World(site, await connect("store"))
    await assign(operator, site.operator_seed)
    await world.keep(last=9)
    yield world
    world.stop()


# Policies


async def test_retention_drops_once_the_delay_has_passed(world: World) -> None:
    await world.keep(last=2)
    # What was there when the store first looked may have had another policy.
    assert await world.after(0) == []
    assert await world.after(6.9) == []
    world.restart()
    assert await world.after(0.2) == [1, 2, 3, 4]
    assert world.points() == [5, 6]
    assert [e.data for e in world.told(PointsDropped)] == [
        PointsDropped(points=[1, 2, 3, 4], reason="retention")
    ]
    assert await world.after(30) == []


async def test_a_shorter_policy_can_be_taken_back_within_the_delay(world: World) -> None:
    assert await world.after(10) == []
    await world.keep(last=1)
    assert await world.after(1) == []
    assert await world.after(6) == []
    await world.keep(last=5)
    assert await world.after(0) == []
    assert await world.after(2) == [1]
    assert await world.after(20) == []
    assert world.points() == [2, 3, 4, 5, 6]


async def test_a_hold_stops_it_and_its_release_waits_for_the_delay(world: World) -> None:
    await world.keep(last=1)
    await world.put(Hold(source=SOURCE, points=[2, 4]))
    await world.after(0)
    assert await world.after(8) == [1, 3, 5]
    await world.put(Hold(source=SOURCE, points=[4]))
    assert await world.after(1) == []
    assert await world.after(6.9) == []
    assert await world.after(0.2) == [2]
    await world.put(Hold(source=SOURCE, points=[0]))
    assert await world.after(99) == []
    assert world.points() == [4, 6]


async def test_without_a_whole_and_signed_policy_nothing_is_dropped(
    world: World, operator: Bus
) -> None:
    await world.keep(last=1)
    await world.after(0)
    bad = [
        Group(name="default", retention=Retention(last=-1, days=1)),
        Group(name="default", retention=Retention(last=1), timezone="Nowhere/There"),
    ]
    for document in bad:
        await world.put(document)
        assert await world.after(30) == []
    await world.put(Group(name="default", retention=Retention(last=1)), world.site.scheduler_seed)
    assert await world.after(30) == []
    await operator.publish(policy_subject(key_of(bad[0])), b"rubbish")
    assert await world.after(30) == []
    await operator.publish(policy_subject(key_of(bad[0])), b"")
    assert await world.after(30) == []
    await world.keep(last=1)
    await world.put(Hold(source=SOURCE, points=[]), world.site.scheduler_seed)
    assert await world.after(30) == []
    await world.put(Hold(source=SOURCE, points=[]))
    assert await world.after(0) == [1, 2, 3, 4, 5]


async def test_an_unprotected_source_keeps_all(world: World, operator: Bus) -> None:
    await world.keep(last=1)
    await assign(operator, world.site.operator_seed, protected=False)
    assert await world.after(0) == []
    assert await world.after(99) == []
    await operator.publish(policy_subject(server_key("web-1")), b"")
    assert await world.after(99) == []
    await assign(operator, world.site.operator_seed)
    assert await world.after(1) == []
    assert await world.after(7) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("world", [(3, *(0.1 for _ in range(11)))], indirect=True)
async def test_points_go_in_groups_unless_one_has_waited_for_a_day(world: World) -> None:
    await world.put(Group(name="default", retention=Retention(days=30)))
    await world.after(20, force=False)
    # Due for half a day, and one of twelve is less than an eighth.
    assert await world.after(7.5, force=False) == []
    assert await world.after(0.6, force=False) == [1]
    assert await world.after(2, force=False) == list(range(2, 12))


async def test_what_is_read_is_not_dropped(world: World) -> None:
    await world.keep(last=1)
    await world.after(0)
    world.store.leases.take(SOURCE, 3, "agent-web-1")
    assert await world.after(8) == [1, 2, 4, 5]
    world.lease_ns += int((LEASE_S + 1) * 1e9)
    assert await world.after(0) == [3]


# The clock


async def test_nothing_is_dropped_by_what_was_decided_before_a_long_wait(world: World) -> None:
    await world.keep(last=1)
    await world.after(0)
    replica = world.store.replica(SOURCE)
    with replica.rewriting:
        # Somebody compacts for hours: until then a hold, or a reader, may have come.
        assert await world.after(8) == []
    await world.put(Hold(source=SOURCE, points=[2]))
    world.store.leases.take(SOURCE, 3, "agent-web-1")
    assert await world.after(0) == [1, 4, 5]


async def test_a_clock_that_jumps_a_year_ahead_drops_nothing(world: World) -> None:
    await world.put(Group(name="default", retention=Retention(days=30)))
    await world.after(0)
    await world.after(8)
    world.jump_ns = 365 * DAY_NS
    assert await world.after(0.1) == []
    world.restart()
    assert await world.after(0.1) == []
    assert world.points() == [1, 2, 3, 4, 5, 6]
    (doubted,) = world.told(ClockDoubted)
    assert (doubted.verb, doubted.source) == ("doubted", "-")
    assert "ahead" in doubted.data.reason
    world.jump_ns = 0
    assert await world.after(0.1) == []
    assert [event.verb for event in world.told(ClockDoubted)] == ["doubted", "trusted"]
    assert await world.after(30) == [1, 2, 3, 4, 5]


async def test_a_doubted_clock_refuses_deletes_until_a_person_says_it_is_right(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    await agent.ship("j1", one_file("j1", b"one"))
    store.end()
    root = store.folder / "store"
    mark = clock_guard.read_mark(str(root))
    assert mark is not None
    later = msgspec.structs.replace(mark, highest_ns=mark.highest_ns + 2 * DAY_NS)
    checked_json.write(str(root / "clock.json"), later)
    store.start()
    await ready(operator)
    failed = await command(site, operator, "d1", Delete())
    assert failed.failure is not None
    assert failed.failure.code == "store.clock_doubted"
    waited = await agent.ship("j2", one_file("j2", b"two"))
    assert waited.point is not None
    assert waited.point.received_at_ns >= later.highest_ns
    clock_guard.accept(str(root))
    assert (await command(site, operator, "d2", Delete())).state == "durable"

    async def both() -> list[Any] | None:
        found = await told(operator, ClockDoubted)
        return found if len(found) == 2 else None

    doubted, trusted = await until(both, "both events")
    assert (doubted.verb, trusted.verb, doubted.source) == ("doubted", "trusted", "-")
    assert "behind" in doubted.data.reason


# Deletes, by commands to a real store


async def command(site: SiteBus, operator: Bus, job: str, args: Args) -> Job:
    """Command the store and wait for the end of the job."""
    made = make_command(job, args=args, source=SOURCE, role="store", instance=STORE)
    subject = operator.subjects.command("store", STORE, SOURCE, made.verb)
    await operator.publish(subject, signed(site.operator_seed, made))

    async def ended() -> Job | None:
        answer = await operator.call("store", STORE, "job", GetJob(job=job), GotJob)
        found: Job | None = answer.job
        return found if found and found.state in ("durable", "failed") else None

    job_found: Job = await until(ended, f"the end of {job}", 20)
    return job_found


async def refusal(asked: Awaitable[Any]) -> RemoteRefused:
    with pytest.raises(RemoteRefused) as caught:
        await asked
    return caught.value


async def replica(operator: Bus) -> reading.ReplicaState:
    page = await operator.call("store", STORE, "replicas", reading.Replicas(), reading.ReplicaPage)
    assert not page.more
    (found,) = page.replicas
    return found


async def told(operator: Bus, kind: type) -> list[Any]:
    stored = await operator.read(EVENTS, operator.subjects.root + ".evt.store-store-1.>")
    events = [accept_event(each.data, each.subject) for each in stored]
    return [event for event in events if isinstance(event.data, kind)]


async def test_invariant_5_a_deleted_replica_takes_nothing_and_can_be_taken_back(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    await agent.ship("j1", one_file("j1", b"one"))
    await agent.open("j2")
    deleted = await command(site, operator, "d1", Delete())
    assert (deleted.state, deleted.failure) == ("durable", None)
    assert (await agent.wait("j2", 0)).code == "store.deleted"
    error = await refusal(agent.open("j3"))
    assert (error.code, error.retryable) == ("store.deleted", False)
    assert "undelete" in error.hint
    await agent.send(batch("j2", 0, inodes=[]))
    store.end(signal.SIGKILL)
    store.start()
    await ready(operator)
    state = await replica(operator)
    assert (state.deleted, state.points, state.newest) == ([0], 1, 1)
    assert state.due_at_ns > 0
    page = await operator.call(
        "store", STORE, "points", reading.Points(source=SOURCE), reading.PointPage
    )
    assert [point.number for point in page.points] == [1]
    assert (await command(site, operator, "u1", Undelete())).state == "durable"
    assert (await replica(operator)).deleted == []
    waited = await agent.ship("j4", one_file("j4", b"four"))
    assert waited.state == "committed"

    async def both() -> list[Any] | None:
        found = await told(operator, ReplicaDeleted)
        return found if len(found) == 2 else None

    first, second = await until(both, "both events")
    assert (first.verb, first.data.due_at_ns) == ("deleted", state.due_at_ns)
    assert second.verb == "undeleted"


async def test_points_are_deleted_and_taken_back(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    for number in (1, 2, 3):
        await agent.ship(f"j{number}", one_file(f"j{number}", b"%d" % number))
    assert (await command(site, operator, "d1", Delete(points=[1, 3]))).state == "durable"
    assert (await replica(operator)).deleted == [1, 3]
    assert (await agent.ship("j4", one_file("j4", b"four"))).state == "committed"
    failed = await command(site, operator, "d2", Delete(points=[2, 9]))
    assert failed.failure is not None
    assert failed.failure.code == "store.no_such"
    undone = await command(site, operator, "u1", Undelete(points=[1]))
    assert undone.detail == "recovery point 1: deleted no more"
    assert (await replica(operator)).deleted == [3]


async def test_what_is_held_cannot_be_deleted(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    await agent.ship("j1", one_file("j1", b"one"))
    await agent.ship("j2", one_file("j2", b"two"))
    await put(operator, site.operator_seed, Hold(source=SOURCE, points=[1]))
    for job, args in (("d1", Delete()), ("d2", Delete(points=[1]))):
        failed = await command(site, operator, job, args)
        assert failed.failure is not None
        assert failed.failure.code == "store.held"
        assert "release" in failed.failure.hint
    assert (await command(site, operator, "d3", Delete(points=[2]))).state == "durable"


async def test_only_an_operator_deletes(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    await agent.ship("j1", one_file("j1", b"one"))
    made = make_command("d1", args=Delete(), source=SOURCE, role="store", instance=STORE)
    subject = operator.subjects.command("store", STORE, SOURCE, "delete")
    await operator.publish(subject, signed(site.scheduler_seed, made))
    await command(site, operator, "c1", Compact())
    assert (await replica(operator)).deleted == []


# Deletes that are due


async def test_a_damaged_list_of_deletes_deletes_nothing_and_is_told(world: World) -> None:
    await world.keep(last=1)
    await world.after(0)
    delete(world, [2], due_days=1)
    path = world.root / "replicas" / SOURCE / "deleted.json"
    path.write_bytes(path.read_bytes().replace(b'"2"', b'"3"'))
    world.restart()
    for _ in range(2):
        assert await world.after(30) == []
    assert world.points() == [1, 2, 3, 4, 5, 6]
    (found,) = world.told(DamageFound)
    assert "deleted.json" in found.data.reason


async def test_undelete_writes_a_damaged_list_anew(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    await agent.ship("j1", one_file("j1", b"one"))
    await command(site, operator, "d1", Delete())
    store.end()
    path = store.replica / "deleted.json"
    path.write_bytes(path.read_bytes()[:-9])
    store.start()
    await ready(operator)
    assert (await agent.ship("j2", one_file("j2", b"two"))).state == "committed"
    for job, args in (("d2", Delete()), ("u1", Undelete(points=[1]))):
        failed = await command(site, operator, job, args)
        assert failed.failure is not None
        assert (failed.failure.code, "undelete" in failed.failure.hint) == ("store.damaged", True)
    assert (await command(site, operator, "u2", Undelete())).state == "durable"
    assert (await command(site, operator, "d3", Delete())).state == "durable"
    assert (await replica(operator)).deleted == [0]


async def test_a_due_delete_of_points_waits_for_a_newer_one_and_for_readers(world: World) -> None:
    await world.after(0)
    delete(world, [2, 5, 6], due_days=7)
    world.store.leases.take(SOURCE, 5, "agent-web-1")
    assert await world.after(6.9) == []
    assert await world.after(0.2) == [2]
    world.lease_ns += int((LEASE_S + 1) * 1e9)
    assert await world.after(0) == [5]
    assert world.points() == [1, 3, 4, 6]
    assert [e.data for e in world.told(PointsDropped)] == [
        PointsDropped(points=[2], reason="deleted"),
        PointsDropped(points=[5], reason="deleted"),
    ]
    world.restart()
    assert list(world.store.deletions.of(SOURCE)) == [6]
    ship(world.store.replica(SOURCE), "j7", one_file("j7", b"seven"))
    assert await world.after(0, force=False) == [6]
    assert world.store.deletions.of(SOURCE) == {}


def delete(world: World, points: Sequence[int], *, due_days: float) -> None:
    now_ns = world.look().wall_ns
    deletion = Deletion(
        deleted_at_ns=now_ns, due_at_ns=now_ns + int(due_days * DAY_NS), job="d", by="operator-1"
    )
    deletions = world.store.deletions
    deletions.put(SOURCE, with_deleted(deletions.of(SOURCE), points, deletion))


@pytest.mark.parametrize("points", [[], [2]])
async def test_invariant_5_an_undelete_that_waits_for_its_turn_comes_in_time(
    world: World, points: list[int]
) -> None:
    await world.after(0)
    delete(world, points, due_days=7)
    for source in (SOURCE, "ff" * 8):
        made = make_command(f"u-{source}", args=Undelete(), source=source, role="store")
        world.journal.accept(made, made.scheduled_at_ns)
    assert await world.after(8) == []
    assert world.points() == [1, 2, 3, 4, 5, 6]
    world.journal.move(f"u-{SOURCE}", "failed")
    assert await world.after(0) == points
    assert world.store.sources() == ([SOURCE] if points else [])


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("count", range(1, 7))
async def test_invariant_10_killed_at_any_write_it_comes_to_the_same_end(
    world: World, monkeypatch: pytest.MonkeyPatch, count: int, when: str
) -> None:
    left = count
    write = checked_json.write

    def until_killed(path: str, value: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            raise Killed
        write(path, value)
        if left == 0:
            raise Killed

    monkeypatch.setattr(checked_json, "write", until_killed)
    await world.keep(last=3)
    for step in range(6):
        try:
            await world.after(4, force=False)
            if step == 0:
                delete(world, [4], due_days=5)
        except Killed:
            world.restart()
            if step == 0 and not world.store.deletions.of(SOURCE):
                delete(world, [4], due_days=5)
    await world.after(0)
    assert left <= 1
    # 4 is deleted, and takes nobody's place among the newest three.
    assert world.points() == [3, 5, 6]
    assert world.store.deletions.of(SOURCE) == {}
    told = sorted(n for event in world.told(PointsDropped) for n in event.data.points)
    assert told == [1, 2, 4]


async def test_a_due_replica_is_purged_and_nothing_late_brings_it_back(
    world: World, site: SiteBus, operator: Bus, connect: Connect
) -> None:
    await assign(operator, site.operator_seed, protected=False)
    delete(world, [], due_days=7)
    world.store.leases.take(SOURCE, 3, "agent-web-1")
    for days in (0, 6.9, 0.2):
        await world.after(days)
        assert world.store.sources() == [SOURCE]
    world.lease_ns += int((LEASE_S + 1) * 1e9)
    world.jump_ns = 365 * DAY_NS
    await world.after(0)
    assert world.store.sources() == [SOURCE]
    world.jump_ns = 0
    await world.put(Hold(source=SOURCE, points=[3]))
    await world.after(0)
    assert world.store.sources() == [SOURCE]
    await world.put(Hold(source=SOURCE))
    for days in (0, 6.9):
        await world.after(days)
        assert world.store.sources() == [SOURCE], "a release waits for the delay as well"
    await world.after(0.2)
    assert world.store.sources() == []
    assert os.listdir(world.root / "replicas") == []
    (purged,) = world.told(ReplicaDeleted)
    assert (purged.verb, purged.source, purged.data.points) == ("purged", SOURCE, [])
    world.stop()
    (world.root / "clock.json").unlink()

    process = StoreProcess(site)
    process.start()
    try:
        await ready(operator)
        agent = FakeAgent(await connect("agent"))
        await agent.send(batch("j7", 0, inodes=[]))
        error = await refusal(agent.open("j7"))
        assert error.code == "store.unprotected"
        assert not process.replica.exists()
        await assign(operator, site.operator_seed)
        assert (await agent.ship("j8", one_file("j8", b"new"))).point.number == 1  # type: ignore[union-attr]
        assert (await told(operator, ReplicaDeleted))[0].verb == "purged"
    finally:
        process.end()
        world.start()


CHILD = """
import os, sys
from strandline_replica_store.files import checked_json
from strandline_replica_store.forgetting import clock_guard
from strandline_replica_store.store import purging
from strandline_replica_store.store.store import Store

root, source, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
unlink, count = os.unlink, 0

def slow(path, **options):
    global count
    count += 1
    if count == kill_at:
        os.kill(os.getpid(), 9)
    unlink(path, **options)

store = Store(root, name="store-1", site="hq", reserve_bytes=0)
store.replica(source)
store.take_away(source, purging.name_of(source, 5))
os.unlink = slow
if kill_at == 0:
    os.kill(os.getpid(), 9)
import threading
purging.resume(root + "/replicas", store.tombstones, lambda *_: None, threading.Event())
"""


@pytest.mark.parametrize("kill_at", [0, 1, 4])
async def test_invariant_10_a_purge_that_is_killed_goes_on(
    site: SiteBus, operator: Bus, kill_at: int
) -> None:
    process = StoreProcess(site)
    root = process.folder / "store"
    make_points(root / "replicas" / SOURCE, (2, 1))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(root), SOURCE, str(kill_at)], check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert os.listdir(root / "replicas") == [purging.name_of(SOURCE, 5)]
    process.start()
    try:
        await ready(operator)
        await until(lambda: gone(root / "replicas"), "the purge to end")

        async def heard() -> list[Any]:
            return await told(operator, ReplicaDeleted)

        # Told once, by the process that was killed or by this one: here the first tells nobody.
        if kill_at == 0:
            (purged,) = await until(heard, "the event")
            assert purged.verb == "purged"
    finally:
        process.end()
    assert purging.Tombstones(str(root)).purged_at_ns(SOURCE) == 5


async def gone(replicas: Path) -> bool:
    return os.listdir(replicas) == []


# The other commands


async def test_reindex_and_compact_are_jobs(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    for number in (1, 2):
        await agent.ship(f"j{number}", one_file(f"j{number}", b"%d" % number))
    before = await replica(operator)
    for job, args in (("r1", Reindex()), ("c1", Compact()), ("v1", Verify())):
        ended = await command(site, operator, job, args)
        assert (ended.state, ended.failure) == ("durable", None), job
        assert ended.detail
    after = await replica(operator)
    assert (after.points, after.newest) == (2, 2)
    assert (before.source, before.name, before.type) == (SOURCE, "data", "files")
    assert before.stored_bytes > 0
    store.end()
    assert content(store.replica, 2) == b"2"


async def test_only_operators_and_the_catalog_see_the_replicas(
    store: StoreProcess, agent: FakeAgent, connect: Connect
) -> None:
    await agent.ship("j1", one_file("j1", b"one"))
    for role, sees in (("catalog", True), ("scheduler", False), ("agent", False)):
        bus = await connect(role)
        asked = bus.call("store", STORE, "replicas", reading.Replicas(), reading.ReplicaPage)
        if sees:
            assert len((await asked).replicas) == 1
        else:
            with pytest.raises(RuntimeFault):
                await asked


# All together: the store does it by itself


@pytest.fixture
def hasty(site: SiteBus) -> Iterator[StoreProcess]:
    """A store without patience: no delay, no leases, and it looks after its replicas at once."""
    process = StoreProcess(
        site, delete_delay_days="0", lease_s="0", housekeeping_every_s="0.05", scrub_days="0.0001"
    )
    process.start()
    yield process
    process.end(signal.SIGKILL)


async def test_invariant_10_a_store_that_is_killed_while_it_forgets(
    site: SiteBus, hasty: StoreProcess, operator: Bus, connect: Connect
) -> None:
    await put(operator, site.operator_seed, Group(name="default", retention=Retention(last=3)))
    await assign(operator, site.operator_seed)
    await ready(operator)
    agent = FakeAgent(await connect("agent"))
    chance = random.Random(7)
    for number in range(1, 13):
        job = f"j{number}"
        assert (await agent.ship(job, made_up(job, number, 1))).state == "committed"
        if number % 3 == 0:
            await asyncio.sleep(chance.random() / 4)
            hasty.end(signal.SIGKILL)
            hasty.start()
            await ready(operator)

    async def settled() -> bool:
        return (await replica(operator)).points == 3

    await until(settled, "the old points to go", 30)
    hasty.end()
    for number in (10, 11, 12):
        assert content(hasty.replica, number) == made_up_content(number)
    hasty.start()
    await ready(operator)
    assert (await command(site, operator, "v1", Verify())).state == "durable"
    dropped = sorted(n for event in await told(operator, PointsDropped) for n in event.data.points)
    assert set(dropped) == set(range(1, 10))
    await assign(operator, site.operator_seed, protected=False)
    await command(site, operator, "d1", Delete())
    await until(lambda: gone(hasty.replica.parent), "the replica to be purged", 30)

    async def purged() -> bool:
        verbs = [event.verb for event in await told(operator, ReplicaDeleted)]
        return verbs == ["deleted", "purged"]

    await until(purged, "both events")
