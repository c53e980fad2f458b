"""The catalog at work: events and policies in, answers out, whatever dies meanwhile."""

from __future__ import annotations

import asyncpg
import msgspec

from strandline_contracts.codec import encode
from strandline_contracts.events import DamageFound
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
from support.waiting import until

from .conftest import A, B, World, a_job, a_point, a_replica, a_source


async def a_history(world: World) -> None:
    """Two sources, five points, three jobs, a damage."""
    await world.assign(a_source(), a_source(B, "database"))
    for number in (1, 2, 3):
        await world.move(a_job(f"job-{number}", "running", attempt=1))
        await world.commit(a_point(number))
        await world.move(a_job(f"job-{number}", "durable", attempt=1, point=number))
    await world.commit(a_point(1, B))
    await world.commit(a_point(2, B))
    damage = DamageFound(chunk=1, segment=1, offset=0, reason="digest")
    await world.tell("store", "damage", "found", damage)
    world.store.replicas = [a_replica(), a_replica(B, "database")]


async def test_what_was_told_is_answered(world: World) -> None:
    await a_history(world)
    await world.start()
    await until(lambda: world.numbers(B), "the points came")

    async def listed() -> bool:
        found = await world.ask("sources", Sources(), SourceList)
        return [each.points for each in found.sources] == [2, 3]

    await until(listed, "both sources, by name, with their points")
    found = await world.ask("sources", Sources(name="web"), SourceList)
    [state] = found.sources
    assert (state.source, state.newest, state.stored_bytes) == (a_source(), a_point(3), 30)
    assert (state.last_job.job, state.last_job.state) == ("job-3", "durable")
    assert state.bytes == a_point(3).totals.bytes
    page = await world.ask("points", PointsOf(source=A, limit=2), PointList)
    assert ([each.number for each in page.points], page.more) == ([3, 2], True)
    page = await world.ask("points", PointsOf(source=A, limit=2, before=2), PointList)
    assert (page.points, page.more) == ([a_point(1)], False)
    at = await world.ask("point_at", PointAt(source=A, at_ns=2999), PointList)
    assert at.points == [a_point(2)]
    assert (await world.ask("point_at", PointAt(source=A, at_ns=999), PointList)).points == []
    jobs = await world.ask("jobs", Jobs(source=A, limit=2), JobList)
    assert [each.job for each in jobs.jobs] == ["job-3", "job-2"]
    assert (await world.ask("jobs", Jobs(open_only=True), JobList)).jobs == []
    status = await world.ask("status", Status(), StatusIs)
    assert status.role == "catalog"


async def test_an_unknown_name_is_answered_with_the_nearest(world: World) -> None:
    await world.assign(a_source(name="web-home"), a_source(B, "mail"))
    await world.start()
    await until(lambda: world.rows("SELECT FROM source"), "the sources came")
    found = await world.ask("sources", Sources(name="web-hme"), SourceList)
    assert (found.sources, found.nearest) == ([], ["web-home"])


async def test_a_dropped_projection_is_what_it_was(world: World) -> None:
    await a_history(world)
    await world.start()

    async def whole() -> bool:
        picture = await world.picture()
        return all(picture.values()) and await world.numbers() == [1, 2, 3]

    await until(whole, "everything came")
    before = await world.picture()
    connection = await asyncpg.connect(world.postgres.dsn)
    await connection.execute("DROP SCHEMA strandline CASCADE")
    await connection.close()

    async def again() -> bool:
        try:
            return await world.picture() == before
        except asyncpg.PostgresError:
            return False

    await until(again, "the projection is what it was", timeout_s=20)
    assert await world.rows("SELECT FROM event_gap") == []


async def test_redelivered_events_change_nothing(world: World) -> None:
    await a_history(world)
    await world.start()
    await until(lambda: world.numbers(B), "the points came")
    await until(lambda: world.rows("SELECT FROM damage"), "the last event came")
    before = await world.picture()
    await world.stop(at_once=True)
    # As after a database that was restored from an older backup: everything is read again.
    await world.rows("UPDATE stream_position SET sequence = 0")
    await world.start()
    await world.move(a_job("job-9", "running"))
    await until(lambda: world.rows("SELECT FROM job WHERE job = 'job-9'"), "the new one came")
    after = await world.picture()
    assert {name: after[name] for name in ("point", "total", "damage", "source")} == {
        name: before[name] for name in ("point", "total", "damage", "source")
    }
    assert [row for row in after["job"] if row[1] != "job-9"] == before["job"]


async def test_a_gap_is_closed_by_asking_the_store(world: World) -> None:
    await world.assign(a_source())
    await world.commit(a_point(1))
    await world.start()
    await until(lambda: world.numbers(), "the first point came")
    await until(lambda: world.store.asked, "the store was asked at the start")
    await world.commit(a_point(2), told=False)
    await world.commit(a_point(3), told=False)
    await world.commit(a_point(4))

    async def closed() -> bool:
        rows = await world.rows("SELECT * FROM event_gap")
        return [(r["first_number"], r["last_number"], r["outcome"]) for r in rows] == [
            (2, 3, "asked")
        ]

    await until(closed, "the gap is closed")
    assert await world.numbers() == [1, 2, 3, 4]


async def test_a_gap_in_an_agents_jobs_is_noted_as_lost(world: World) -> None:
    await world.start()
    await world.move(a_job("job-1", "accepted"))
    world._numbers["agent-web-1", "job", A] += 3
    await world.move(a_job("job-2", "running"))
    await until(
        lambda: world.rows("SELECT FROM event_gap WHERE outcome = 'lost'"), "the gap is noted"
    )


async def test_points_that_the_store_no_longer_lists_go(world: World) -> None:
    await a_history(world)
    world.store.points = [p for p in world.store.points if (p.source, p.number) != (A, 2)]
    changed = a_point(1, digest=b"x" * 32)
    world.store.points = [changed if p == a_point(1) else p for p in world.store.points]
    await world.start()

    async def as_listed() -> bool:
        return await world.numbers() == [1, 3] and await world.numbers(B) == [1, 2]

    await until(as_listed, "what the store lists")
    page = await world.ask("points", PointsOf(source=A), PointList)
    assert page.points == [a_point(3), changed]
    found = await world.ask("sources", Sources(name="web"), SourceList)
    assert (found.sources[0].points, found.sources[0].stored_bytes) == (2, 20)


async def test_a_new_stream_is_noticed_and_everything_asked_again(world: World) -> None:
    await a_history(world)
    await world.start()
    await until(lambda: world.numbers(B), "the points came")
    await until(lambda: world.rows("SELECT FROM damage"), "the last event came")
    await world.stop()
    # Another EVENTS as far as the database can tell; meanwhile a point was made and not told.
    await world.rows("UPDATE stream_position SET created = '2001-01-01T00:00:00Z'")
    world.store.points.append(a_point(4))
    await world.start()
    gaps = "SELECT FROM event_gap WHERE reason = 'stream' AND closed_at_ns IS NOT NULL"

    async def settled() -> bool:
        return len(await world.rows(gaps)) == 4 and await world.numbers() == [1, 2, 3, 4]

    await until(settled, "a gap for each teller, closed; the point is there")


async def test_foreign_bytes_are_dropped_and_stop_nothing(world: World) -> None:
    await world.start()
    agent = await world.bus("agent")
    subject = agent.subjects.event(agent.me, "point", "committed", A)
    await agent.publish(subject, b"\xc1 no message")
    await agent.publish(subject, encode(a_point(1)))
    await world.commit(a_point(1))
    await until(lambda: world.numbers(), "the event behind the foreign bytes")
    assert world.catalog.detail()["events_dropped"] == "2"


async def test_an_assignment_that_is_not_the_operators_is_not_believed(world: World) -> None:
    await world.assign(a_source())
    await world.start()
    await until(lambda: world.rows("SELECT FROM source"), "the source came")
    await world.assign(a_source(name="evil"), seed=b"\x07" * 32)
    await until(lambda: world.catalog.detail()["refused_policies"] == "1", "it was refused")
    assert [row["name"] for row in await world.rows("SELECT name FROM source")] == ["web"]
    await world.assign(a_source(name="webber"))
    await until(lambda: world.rows("SELECT FROM source WHERE name = 'webber'"), "heard at once")


async def test_the_catalog_outlives_its_postgres(world: World) -> None:
    await a_history(world)
    await world.start()
    await until(lambda: world.numbers(B), "the points came")
    world.postgres.kill()
    try:
        refused = await world.refusal("points", PointsOf(source=A))
        assert refused.code == "catalog.database_down"
        assert refused.retryable
        assert refused.hint
        assert not world.catalog.is_ready
        await world.commit(a_point(4))
        await world.move(a_job("job-4", "durable"))
    finally:
        world.postgres.start()

    async def caught_up() -> bool:
        return await world.numbers() == [1, 2, 3, 4]

    await until(caught_up, "what happened meanwhile came", timeout_s=30)
    await until(lambda: world.catalog.is_ready, "ready again")
    assert await world.rows("SELECT FROM event_gap") == []


async def test_the_catalog_starts_before_its_postgres(world: World) -> None:
    await a_history(world)
    world.postgres.kill()
    try:
        await world.start(ready=False)
        assert (await world.refusal("sources", Sources())).code == "catalog.database_down"
    finally:
        world.postgres.start()
    await until(lambda: world.catalog.is_ready, "ready", timeout_s=20)
    await until(lambda: world.numbers(B), "the points came")


async def test_the_catalog_outlives_its_bus(world: World) -> None:
    await a_history(world)
    await world.start()
    await until(lambda: world.numbers(B), "the points came")
    world.site.server.kill()
    world.site.server.start()
    await world.commit(a_point(4))

    async def caught_up() -> bool:
        return await world.numbers() == [1, 2, 3, 4]

    await until(caught_up, "the event after the outage", timeout_s=30)
    page = await world.ask("points", PointsOf(source=A, limit=1), PointList)
    assert page.points == [a_point(4)]


async def test_an_older_state_of_a_job_never_replaces_a_newer_one(world: World) -> None:
    await world.start()
    running = a_job("job-1", "running", attempt=2)
    await world.move(running)
    await until(lambda: world.rows("SELECT FROM job"), "it came")
    late = msgspec.structs.replace(running, state="shipped", attempt=1, updated_at_ns=2**62)
    await world.move(late)
    await world.move(a_job("job-2", "accepted"))
    await until(lambda: world.rows("SELECT FROM job WHERE job = 'job-2'"), "the next one came")
    found = await world.ask("jobs", Jobs(open_only=True), JobList)
    assert {each.job: (each.state, each.attempt) for each in found.jobs} == {
        "job-1": ("running", 2),
        "job-2": ("accepted", 3),
    }
