"""Times the catalog's questions with 340,000 recovery points of one source (design §11).

    python tests/bench/catalog_points.py [POINTS]

Starts a Postgres of its own; prints the median and the slowest of 200 questions each, in
milliseconds, decoding included: find the point for a time (bar: 10), a page of 100 (bar: 50), and
the list of sources with its counts.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec

from strandline_catalog.database import Database
from strandline_catalog.projection import SeenPoint
from strandline_catalog.queries import Queries
from strandline_catalog.record import put_points, put_sources
from strandline_contracts.codec import Message, encode
from strandline_contracts.queries import PointAt, PointsOf, Sources
from strandline_runtime.bus import Encoded, Handler, Request
from support.examples import POINT, SOURCE, THE_SOURCE
from support.postgres import Postgres

MINUTE_NS = 60_000_000_000
START_NS = 1_700_000_000_000_000_000
BATCH = 5000
QUESTIONS = 200


async def fill(database: Database, points: int) -> None:
    """Write `points` points, one a minute, as if their store had listed them."""
    async with database.writing() as connection:
        await put_sources(connection, [THE_SOURCE], [])
    for first in range(1, points + 1, BATCH):
        made = [
            msgspec.structs.replace(
                POINT,
                number=number,
                taken_at_ns=START_NS + number * MINUTE_NS,
                received_at_ns=START_NS + number * MINUTE_NS + 1,
            )
            for number in range(first, min(first + BATCH, points + 1))
        ]
        async with database.writing() as connection:
            seen = [SeenPoint("store-1", point) for point in made]
            await put_points(connection, seen, time.time_ns(), asked_at_ns=1)
    async with database.connection() as connection:
        await connection.execute("VACUUM ANALYZE")


async def clock(name: str, handler: Handler, asked: Callable[[], Message]) -> None:
    async def ask() -> Message | Encoded:
        return await handler(Request("operator-1", encode(asked())))

    await ask()
    taken_ms = []
    for _ in range(QUESTIONS):
        began = time.perf_counter()
        answer = await ask()
        taken_ms.append((time.perf_counter() - began) * 1000)
        assert getattr(answer, "points", None) or getattr(answer, "sources", None)
    print(f"{name:28} median {statistics.median(taken_ms):7.2f} ms   worst {max(taken_ms):7.2f} ms")


async def main(points: int) -> None:
    postgres = Postgres()
    try:
        postgres.start()
        database = Database(postgres.dsn_file)
        running = asyncio.create_task(database.run(asyncio.Event()))
        await database.up.wait()
        began = time.perf_counter()
        await fill(database, points)
        print(f"{points} points written in {time.perf_counter() - began:.1f} s")
        queries = Queries(database, lambda: 960 * 1024)

        def some_time() -> Message:
            return PointAt(source=SOURCE, at_ns=START_NS + random.randrange(1, points) * MINUTE_NS)

        def some_page() -> Message:
            return PointsOf(source=SOURCE, before=random.randrange(2, points), limit=100)

        await clock("the point for a time", queries.point_at, some_time)
        await clock("a page of 100 points", queries.points, some_page)
        await clock("the sources, with counts", queries.sources, Sources)
        running.cancel()
        await asyncio.wait({running})
    finally:
        postgres.remove()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 340_000))
