"""The questions on a real Postgres: bounded answers, and plans that stay fast as points grow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import TypeVar

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from strandline_catalog.database import Database
from strandline_catalog.errors import BadMigration
from strandline_catalog.migrate import SCHEMA, Migration, migrate, read_migrations
from strandline_catalog.projection import Arrival, SeenPoint
from strandline_catalog.queries import (
    JOBS,
    JOBS_OF,
    JOBS_OPEN,
    POINT_AT,
    POINTS,
    SOURCES,
    Queries,
)
from strandline_catalog.record import apply, begin_stream, drop_points, put_points, put_sources
from strandline_contracts.codec import Message, encode
from strandline_contracts.events import Data, Event, PointCommitted, PointsDropped
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.queries import PointAt, PointList, PointsOf, SourceList, Sources
from strandline_runtime.bus import Handler, Request
from support.postgres import Postgres

from .conftest import A, B, a_point, a_source

POINT_COUNT = 20_000
Reply = TypeVar("Reply", bound=Message)


@pytest_asyncio.fixture
async def database(postgres: Postgres) -> AsyncIterator[Database]:
    made = Database(postgres.dsn_file)
    running = asyncio.create_task(made.run(asyncio.Event()))
    await asyncio.wait_for(made.up.wait(), 20)
    yield made
    running.cancel()
    await asyncio.wait({running})


async def put(database: Database, *points: RecoveryPoint, seen_at_ns: int = 1) -> None:
    async with database.writing() as connection:
        seen = [SeenPoint("store-1", point) for point in points]
        await put_points(connection, seen, seen_at_ns, asked_at_ns=seen_at_ns)


async def answer(handler: Handler, asked: Message, reply: type[Reply]) -> Reply:
    """Ask as an operator would; the answer must be a `reply`."""
    found = await handler(Request("operator-1", encode(asked)))
    assert isinstance(found, reply)
    return found


async def plan(database: Database, statement: str, *arguments: object) -> str:
    async with database.connection() as connection:
        rows = await connection.fetch("EXPLAIN " + statement, *arguments)
    return "\n".join(row[0] for row in rows)


async def totals(database: Database) -> list[tuple[str, int, int]]:
    async with database.connection() as connection:
        return [tuple(row) for row in await connection.fetch("TABLE source_total ORDER BY 1")]


async def test_every_question_about_points_and_jobs_walks_an_index(database: Database) -> None:
    for source in (A, B):
        await put(database, *(a_point(number, source) for number in range(1, POINT_COUNT)))
    async with database.connection() as connection:
        await connection.execute(
            """INSERT INTO job SELECT 'agent-a', 'j' || n, CASE n % 20 WHEN 0 THEN $1 ELSE 'x' END,
                                      n, n % 50 > 0, 1, 3, n, ''
                 FROM generate_series(1, 20000) AS n""",
            A,
        )
        await connection.execute("ANALYZE")
    for statement, arguments, index in [
        (POINTS, (A, POINT_COUNT // 2, 101), "point_pkey"),
        (POINT_AT, (A, POINT_COUNT * 500), "point_by_time"),
        (JOBS, (50,), "job_by_time"),
        (JOBS_OPEN, (50,), "job_open"),
        (JOBS_OF, (A, 50), "job_of_source"),
        (SOURCES, ("", "", 100), "point_pkey"),
    ]:
        found = await plan(database, statement, *arguments)
        assert f"using {index}" in found, found
        assert "Seq Scan on point" not in found, found
        assert "Seq Scan on job" not in found, found


async def test_an_answer_stays_within_the_bus(database: Database) -> None:
    await put(database, *(a_point(number) for number in range(1, 51)))
    async with database.writing() as connection:
        await put_sources(connection, [a_source(), a_source(B, "mail")], [])
    queries = Queries(database, lambda: 16 * 1024 + 2000)
    numbers: list[int] = []
    more = True
    while more:
        asked = PointsOf(source=A, limit=50, before=numbers[-1] if numbers else 0)
        page = await answer(queries.points, asked, PointList)
        assert 1 <= len(page.points) < 10
        assert len(encode(page)) < 2000
        numbers += [each.number for each in page.points]
        more = page.more
    assert numbers == list(range(50, 0, -1))
    small = Queries(database, lambda: 16 * 1024 + 1)
    first = await answer(small.sources, Sources(), SourceList)
    assert ([each.source.name for each in first.sources], first.more) == (["mail"], True)
    second = await answer(small.sources, Sources(after="mail"), SourceList)
    assert ([each.source.name for each in second.sources], second.more) == (["web"], False)


async def test_numbers_out_of_range_are_no_error(database: Database) -> None:
    await put(database, a_point(1))
    queries = Queries(database, lambda: 1 << 20)
    for before, limit in [(2**64 - 1, 2**62), (-(2**63), -1)]:
        asked = PointsOf(source=A, before=before, limit=limit)
        assert (await answer(queries.points, asked, PointList)).points == [a_point(1)]
    for at_ns, count in [(2**64 - 1, 1), (-(2**63), 0)]:
        page = await answer(queries.point_at, PointAt(source=A, at_ns=at_ns), PointList)
        assert len(page.points) == count


async def test_totals_follow_every_change_of_points(database: Database) -> None:
    await put(database, a_point(1), a_point(2), a_point(1, B))
    assert await totals(database) == [(A, 2, 20), (B, 1, 10)]
    await put(database, a_point(1), a_point(3))
    await put(database, msgspec.structs.replace(a_point(2), stored_bytes=15))
    assert await totals(database) == [(A, 3, 35), (B, 1, 10)]
    async with database.writing() as connection:
        await drop_points(connection, A, after=1, upto=None, kept=[3], asked_at_ns=2)
    assert await totals(database) == [(A, 2, 20), (B, 1, 10)]


async def test_a_point_written_after_the_store_was_asked_is_not_dropped(
    database: Database,
) -> None:
    await put(database, a_point(1), seen_at_ns=5)
    await put(database, a_point(2), seen_at_ns=7)
    async with database.writing() as connection:
        await drop_points(connection, A, after=0, upto=None, kept=[], asked_at_ns=6)
    assert await totals(database) == [(A, 1, 10)]


async def test_migrations_are_applied_once_and_a_changed_one_is_refused(
    database: Database,
) -> None:
    next_number = len(read_migrations()) + 1
    more = [
        *read_migrations(),
        Migration(
            next_number, "more", "c", "CREATE TABLE more (id int); INSERT INTO more VALUES (1)"
        ),
    ]
    async with database.connection() as connection:
        assert await migrate(connection, more) == [next_number]
        assert await migrate(connection, more) == []
        assert await connection.fetchval("SELECT count(*) FROM more") == 1
        changed = [*more[:-1], more[-1]._replace(checksum="d")]
        with pytest.raises(BadMigration):
            await migrate(connection, changed)
        with pytest.raises(BadMigration):
            await migrate(connection, read_migrations())


async def test_a_migration_that_fails_leaves_nothing(
    database: Database, postgres: Postgres
) -> None:
    broken = [
        *read_migrations(),
        Migration(len(read_migrations()) + 1, "bad", "c", "CREATE TABLE half (id int); SELECT 1/0"),
    ]
    connection = await asyncpg.connect(postgres.dsn, server_settings={"search_path": SCHEMA})
    try:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await migrate(connection, broken)
        assert await connection.fetchval("SELECT to_regclass('half')") is None
        assert await migrate(connection, read_migrations()) == []
    finally:
        await connection.close()


async def test_catalogs_that_start_together_migrate_once(postgres: Postgres) -> None:
    databases = [Database(postgres.dsn_file) for _ in range(3)]
    running = [asyncio.create_task(each.run(asyncio.Event())) for each in databases]
    try:
        await asyncio.wait_for(asyncio.gather(*(each.up.wait() for each in databases)), 20)
        assert [each.generation for each in databases] == [1, 1, 1]
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


async def test_drops_and_commits_come_to_the_same_in_any_order_and_again(
    database: Database,
) -> None:
    def event(number: int, verb: str, data: Data, time_ns: int) -> Event:
        return Event(
            id=f"e{number}",
            site="hq",
            origin="store-store-1",
            noun="point",
            verb=verb,
            source=A,
            number=number,
            time_ns=time_ns,
            data=data,
        )

    told = [
        *(event(n, "committed", PointCommitted(point=a_point(n)), n * 1000) for n in range(1, 6)),
        event(6, "dropped", PointsDropped(points=[1, 3], reason="retention"), 9_000),
        event(7, "dropped", PointsDropped(points=[4], reason="deleted"), 9_500),
    ]
    sequence = 0
    for seed in range(25):
        shuffled = [*told, *random.Random(seed).sample(told, 4)]
        random.Random(seed).shuffle(shuffled)
        async with database.writing() as connection:
            await connection.execute("TRUNCATE point, point_gone, event_offset, source_total")
            await begin_stream(connection, "now", 1)
        for first in range(0, len(shuffled), 3):
            arrivals = []
            for each in shuffled[first : first + 3]:
                sequence += 1
                arrivals.append(Arrival(sequence, each))
            async with database.writing() as connection:
                await apply(connection, arrivals, sequence, sequence)
        async with database.connection() as connection:
            rows = await connection.fetch("SELECT number FROM point ORDER BY number")
        assert [row["number"] for row in rows] == [2, 5], f"seed {seed}"
        assert await totals(database) == [(A, 2, 20)]
