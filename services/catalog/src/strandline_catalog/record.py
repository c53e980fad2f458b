"""Writes to the projection: every statement that changes it, but those of the migrations.

Each function takes asyncpg's connection, inside Database.writing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from strandline_catalog.projection import (
    Arrival,
    Fold,
    Gap,
    SeenPoint,
    Teller,
    fold,
    standing,
)
from strandline_contracts.codec import encode
from strandline_contracts.jobs import Job
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.policy import Source
from strandline_contracts.reading import ReplicaState
from strandline_contracts.subjects import EVENTS

_PUT_POINTS = """
    INSERT INTO point AS p (source, number, store, taken_at_ns, received_at_ns, stored_bytes,
                            digest, seen_at_ns, body)
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[],
                         $6::bigint[], $7::bytea[], $8::bigint[], $9::bytea[])
               AS n (source, number, store, taken_at_ns, received_at_ns, stored_bytes, digest,
                     seen_at_ns, body)
     {only}
        ON CONFLICT (source, number) DO UPDATE
       SET store = excluded.store, taken_at_ns = excluded.taken_at_ns,
           received_at_ns = excluded.received_at_ns, stored_bytes = excluded.stored_bytes,
           digest = excluded.digest, seen_at_ns = excluded.seen_at_ns, body = excluded.body
     WHERE {if_newer}"""
# What the store lists is so, but what has gone since it was asked. What happened once may be told
# late: of a point that is no more.
_PUT_LISTED = _PUT_POINTS.format(
    only="""
     WHERE NOT EXISTS (SELECT FROM point_gone AS g
                        WHERE (g.source, g.store) = (n.source, n.store)
                          AND g.number IN (0, n.number) AND g.gone_at_ns >= n.received_at_ns
                          AND g.seen_at_ns >= $10)""",
    if_newer="(p.store, p.body) IS DISTINCT FROM (excluded.store, excluded.body)",
)
_PUT_TOLD = _PUT_POINTS.format(
    only="""
     WHERE NOT EXISTS (SELECT FROM point_gone AS g
                        WHERE (g.source, g.store) = (n.source, n.store)
                          AND g.number IN (0, n.number) AND g.gone_at_ns >= n.received_at_ns)
       AND NOT EXISTS (SELECT FROM point_listed AS l
                        WHERE (l.source, l.store) = (n.source, n.store)
                          AND l.number >= n.number AND l.received_at_ns >= n.received_at_ns
                          AND NOT EXISTS (SELECT FROM point AS held
                                           WHERE held.source = n.source
                                             AND held.number = n.number))""",
    if_newer="p.received_at_ns < excluded.received_at_ns",
)

_PUT_GONE = """
    INSERT INTO point_gone AS g (source, store, number, gone_at_ns, seen_at_ns)
    SELECT *, $5 FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
        ON CONFLICT (source, store, number) DO UPDATE
       SET gone_at_ns = excluded.gone_at_ns, seen_at_ns = excluded.seen_at_ns
     WHERE g.gone_at_ns < excluded.gone_at_ns"""
_DROP_GONE = """
    DELETE FROM point AS p
     USING unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
               AS g (source, store, number, gone_at_ns)
     WHERE p.source = g.source AND p.store = g.store AND g.number IN (0, p.number)
       AND p.received_at_ns <= g.gone_at_ns"""

_PUT_JOBS = """
    INSERT INTO job AS j (origin, job, source, accepted_at_ns, ended, attempt, rank,
                          updated_at_ns, body)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::boolean[],
                         $6::bigint[], $7::smallint[], $8::bigint[], $9::bytea[])
        ON CONFLICT (origin, job) DO UPDATE
       SET source = excluded.source, accepted_at_ns = excluded.accepted_at_ns,
           ended = excluded.ended, attempt = excluded.attempt, rank = excluded.rank,
           updated_at_ns = excluded.updated_at_ns, body = excluded.body
     WHERE (j.ended, j.attempt, j.rank, j.updated_at_ns)
         < (excluded.ended, excluded.attempt, excluded.rank, excluded.updated_at_ns)"""

_PUT_DAMAGES = """
    INSERT INTO damage (event, origin, source, what, found_at_ns, body)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bytea[])
        ON CONFLICT DO NOTHING"""

_PUT_NUMBERS = """
    INSERT INTO event_offset (origin, noun, source, number)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
        ON CONFLICT (origin, noun, source) DO UPDATE SET number = excluded.number"""

_PUT_GAPS = """
    INSERT INTO event_gap (origin, noun, source, first_number, last_number, reason, found_at_ns)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[],
                         $6::text[], $7::bigint[])"""

_PUT_POSITION = """
    INSERT INTO stream_position (stream, created, sequence) VALUES ($1, $2, $3)
        ON CONFLICT (stream) DO UPDATE
       SET created = excluded.created, sequence = excluded.sequence"""

_PUT_SOURCES = """
    INSERT INTO source AS s (id, name, server, store, protected, body)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::boolean[],
                         $6::bytea[])
        ON CONFLICT (id) DO UPDATE
       SET name = excluded.name, server = excluded.server, store = excluded.store,
           protected = excluded.protected, body = excluded.body
     WHERE s.body IS DISTINCT FROM excluded.body"""


@dataclass(frozen=True, slots=True)
class Position:
    """Up to which sequence of the EVENTS made at `created` the database is filled."""

    created: str
    sequence: int


async def position(connection: Any) -> Position | None:
    """Return the database's position; None when it is new."""
    row = await connection.fetchrow(
        "SELECT created, sequence FROM stream_position WHERE stream = $1", EVENTS
    )
    return None if row is None else Position(row["created"], row["sequence"])


async def begin_stream(connection: Any, created: str, now_ns: int) -> bool:
    """Set the position to the start of the EVENTS made at `created`, unless it is in it already.

    When there was another EVENTS before, each teller may have told something that is lost with it:
    a gap each. Returns whether the position was set.
    """
    held = await position(connection)
    if held is not None and held.created == created:
        return False
    if held is not None:
        rows = await connection.fetch("SELECT origin, noun, source, number FROM event_offset")
        gaps = [
            Gap(
                Teller(row["origin"], row["noun"], row["source"]), row["number"] + 1, None, "stream"
            )
            for row in rows
        ]
        await _put_gaps(connection, gaps, now_ns)
    await connection.execute(_PUT_POSITION, EVENTS, created, 0)
    return True


async def apply(connection: Any, arrivals: Sequence[Arrival], upto: int, now_ns: int) -> Fold:
    """Fold `arrivals` into the tables and move the position to `upto` at least."""
    held = await position(connection)
    if held is None:
        raise LookupError("apply comes after begin_stream")
    tellers = {Teller(event.origin, event.noun, event.source) for _, event in arrivals}
    rows = await connection.fetch(
        """SELECT o.origin, o.noun, o.source, o.number FROM event_offset AS o
             JOIN unnest($1::text[], $2::text[], $3::text[]) AS asked (origin, noun, source)
               ON (o.origin, o.noun, o.source) = (asked.origin, asked.noun, asked.source)""",
        *_columns(tellers, 3),
    )
    numbers = {Teller(row["origin"], row["noun"], row["source"]): row["number"] for row in rows}
    found = fold(arrivals, held.sequence, numbers)
    await put_points(connection, found.points.values(), now_ns)
    await _put_gone(connection, found, now_ns)
    await _put_jobs(connection, found)
    await connection.execute(
        _PUT_DAMAGES,
        *_columns(
            (
                (each.id, each.origin, each.source, each.verb, each.time_ns, encode(each))
                for each in found.damages.values()
            ),
            6,
        ),
    )
    await connection.execute(
        _PUT_NUMBERS, *_columns(((*teller, last) for teller, last in found.numbers.items()), 4)
    )
    await _put_gaps(connection, found.gaps, now_ns)
    if upto > held.sequence:
        await connection.execute(_PUT_POSITION, EVENTS, held.created, upto)
    return found


async def put_points(
    connection: Any, points: Iterable[SeenPoint], now_ns: int, *, asked_at_ns: int | None = None
) -> None:
    """Write points that events tell of, or that their store has listed when asked at `asked_at_ns`.

    What a store lists is right whatever was told before.
    """
    rows = [
        (
            point.source,
            point.number,
            store,
            point.taken_at_ns,
            point.received_at_ns,
            point.stored_bytes,
            point.digest,
            now_ns,
            encode(point),
        )
        for store, point in points
    ]
    if rows:
        columns = _columns(rows, 9)
        if asked_at_ns is None:
            await connection.execute(_PUT_TOLD, *columns)
        else:
            await connection.execute(_PUT_LISTED, *columns, asked_at_ns)


async def drop_points(
    connection: Any,
    source: str,
    *,
    after: int,
    upto: int | None,
    kept: Sequence[int],
    asked_at_ns: int,
) -> None:
    """Delete points of `source` above `after`, up to `upto` (None: all), that are not `kept`.

    Those written since `asked_at_ns` stay: the store may have made them after it was asked.
    """
    await connection.execute(
        """DELETE FROM point
            WHERE source = $1 AND number > $2 AND ($3::bigint IS NULL OR number <= $3)
              AND NOT number = ANY ($4::bigint[]) AND seen_at_ns < $5""",
        source,
        after,
        upto,
        list(kept),
        asked_at_ns,
    )


async def note_listed(connection: Any, store: str, newest: RecoveryPoint, asked_at_ns: int) -> None:
    """Note that `store` has listed every point of a source up to its newest.

    Which of these are gone need not be remembered one by one any more.
    """
    await connection.execute(
        """INSERT INTO point_listed VALUES ($1, $2, $3, $4)
               ON CONFLICT (source, store) DO UPDATE
              SET number = excluded.number, received_at_ns = excluded.received_at_ns""",
        newest.source,
        store,
        newest.number,
        newest.received_at_ns,
    )
    await connection.execute(
        """DELETE FROM point_gone
            WHERE source = $1 AND store = $2 AND number BETWEEN 1 AND $3 AND seen_at_ns < $4""",
        newest.source,
        store,
        newest.number,
        asked_at_ns,
    )


async def put_replicas(connection: Any, store: str, replicas: Sequence[ReplicaState]) -> None:
    """Make the replicas of `store` those that it lists."""
    sources = [replica.source for replica in replicas]
    await connection.execute(
        """INSERT INTO replica AS r (source, store, name, body)
           SELECT source, $1, name, body
             FROM unnest($2::text[], $3::text[], $4::bytea[]) AS n (source, name, body)
               ON CONFLICT (source, store) DO UPDATE
              SET name = excluded.name, body = excluded.body
            WHERE r.body IS DISTINCT FROM excluded.body""",
        store,
        sources,
        [replica.name for replica in replicas],
        [encode(replica) for replica in replicas],
    )
    await connection.execute(
        "DELETE FROM replica WHERE store = $1 AND NOT source = ANY ($2::text[])", store, sources
    )


async def put_sources(
    connection: Any, sources: Iterable[Source], refused_servers: Collection[str]
) -> None:
    """Make the table of sources what the policies say.

    Sources of servers whose document was refused stay as they were.
    """
    known = {source.id: source for source in sources}
    rows = (
        (each.id, each.name, each.server, each.store, each.protected, encode(each))
        for each in known.values()
    )
    await connection.execute(_PUT_SOURCES, *_columns(rows, 6))
    await connection.execute(
        "DELETE FROM source WHERE NOT id = ANY ($1::text[]) AND NOT server = ANY ($2::text[])",
        list(known),
        list(refused_servers),
    )


async def close_gap(connection: Any, gap: int, outcome: str, now_ns: int) -> None:
    """Note how the gap with this id was closed."""
    await connection.execute(
        "UPDATE event_gap SET closed_at_ns = $2, outcome = $3 WHERE id = $1", gap, now_ns, outcome
    )


async def prune(connection: Any, before_ns: int) -> None:
    """Forget history from before `before_ns`: EVENTS has forgotten it too."""
    await connection.execute("DELETE FROM job WHERE updated_at_ns < $1", before_ns)
    await connection.execute("DELETE FROM event_gap WHERE closed_at_ns < $1", before_ns)
    await connection.execute("DELETE FROM damage WHERE found_at_ns < $1", before_ns)
    await connection.execute("DELETE FROM point_gone WHERE gone_at_ns < $1", before_ns)


async def _put_jobs(connection: Any, found: Fold) -> None:
    def row(origin: str, job: Job) -> tuple[Any, ...]:
        return (origin, job.job, job.source, job.accepted_at_ns, *standing(job), encode(job))

    rows = [row(origin, job) for (origin, _), job in found.jobs.items()]
    if rows:
        await connection.execute(_PUT_JOBS, *_columns(rows, 9))


async def _put_gone(connection: Any, found: Fold, now_ns: int) -> None:
    rows = [(*gone, at_ns) for gone, at_ns in found.gone.items()]
    if rows:
        await connection.execute(_PUT_GONE, *_columns(rows, 4), now_ns)
        await connection.execute(_DROP_GONE, *_columns(rows, 4))


async def _put_gaps(connection: Any, gaps: Sequence[Gap], now_ns: int) -> None:
    rows = ((*gap.teller, gap.first, gap.last, gap.reason, now_ns) for gap in gaps)
    await connection.execute(_PUT_GAPS, *_columns(rows, 7))


def _columns(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    """Turn rows about: one array a column, as unnest takes them."""
    columns: list[list[Any]] = [[] for _ in range(width)]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return columns
