"""Answers the calls of the catalog, from the database alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strandline_catalog.answers import (
    MAX_JOBS,
    MAX_POINTS,
    MAX_SOURCES,
    bounded,
    fitting,
    nearest,
)
from strandline_catalog.database import Database
from strandline_contracts.codec import Message, decode
from strandline_contracts.jobs import Job
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.policy import Source
from strandline_contracts.queries import (
    JobList,
    Jobs,
    PointAt,
    PointList,
    PointsOf,
    SourceList,
    Sources,
    SourceState,
)
from strandline_contracts.reading import ReplicaState
from strandline_runtime.bus import Handler, Request

MAX_NAMES = 20_000
"""Names among which the nearest are looked for."""
_REST_BYTES = 16 * 1024
_ITEM_BYTES = 64
"""What an answer adds to its items, and to each of them."""
_BIGINT_MAX = 2**63 - 1

SOURCES = """
    SELECT s.source, s.store, s.replica, t.points, t.stored_bytes, p.body AS newest,
           j.body AS last_job
      FROM (SELECT s.id, s.name, s.store, s.body AS source, r.body AS replica
              FROM source AS s LEFT JOIN replica AS r ON (r.source, r.store) = (s.id, s.store)
             UNION ALL
            SELECT * FROM (SELECT DISTINCT ON (r.source) r.source, r.name, r.store, NULL::bytea,
                                  r.body
                             FROM replica AS r
                            WHERE NOT EXISTS (SELECT FROM source WHERE id = r.source)
                            ORDER BY r.source, r.store) AS unassigned) AS s
      LEFT JOIN source_total AS t ON t.source = s.id
      LEFT JOIN LATERAL (SELECT body FROM point WHERE source = s.id
                          ORDER BY number DESC LIMIT 1) AS p ON true
      LEFT JOIN LATERAL (SELECT body FROM job WHERE source = s.id
                          ORDER BY accepted_at_ns DESC, job DESC LIMIT 1) AS j ON true
     WHERE ($1 = '' OR s.name = $1) AND s.name > $2
     ORDER BY s.name, s.source IS NULL, s.id LIMIT $3"""
"""Those of the policies, then replicas that stores have and no policy knows: attached folders."""

NAMES = "SELECT name FROM source UNION SELECT name FROM replica ORDER BY name LIMIT $1"

POINTS = """
    SELECT body FROM point WHERE source = $1 AND number < $2 ORDER BY number DESC LIMIT $3"""

POINT_AT = """
    SELECT body FROM point WHERE source = $1 AND taken_at_ns <= $2
     ORDER BY taken_at_ns DESC, number DESC LIMIT 1"""

JOBS = "SELECT body FROM job ORDER BY accepted_at_ns DESC, job DESC LIMIT $1"
JOBS_OPEN = """
    SELECT body FROM job WHERE NOT ended ORDER BY accepted_at_ns DESC, job DESC LIMIT $1"""
JOBS_OF = """
    SELECT body FROM job WHERE source = $1 ORDER BY accepted_at_ns DESC, job DESC LIMIT $2"""
JOBS_OF_OPEN = """
    SELECT body FROM job WHERE source = $1 AND NOT ended
     ORDER BY accepted_at_ns DESC, job DESC LIMIT $2"""


class Queries:
    """The handlers of the catalog's calls; while the database is down each raises DatabaseDown.

    `limit_bytes` tells what an answer may have.
    """

    def __init__(self, database: Database, limit_bytes: Callable[[], int]) -> None:
        self._database = database
        self._limit_bytes = limit_bytes

    def handlers(self) -> dict[str, Handler]:
        return {
            "sources": self.sources,
            "points": self.points,
            "point_at": self.point_at,
            "jobs": self.jobs,
        }

    async def sources(self, request: Request) -> Message:
        asked = decode(request.data, Sources)
        async with self._database.connection() as connection:
            rows = await connection.fetch(SOURCES, asked.name, asked.after, MAX_SOURCES + 1)
            if asked.name and not rows:
                names = await connection.fetch(NAMES, MAX_NAMES)
                return SourceList(
                    sources=[], nearest=nearest(asked.name, (row["name"] for row in names))
                )
        states = self._fit([(_size(row), _source_state(row)) for row in rows[:MAX_SOURCES]])
        return SourceList(sources=states, more=len(states) < len(rows))

    async def points(self, request: Request) -> Message:
        asked = decode(request.data, PointsOf)
        limit = bounded(asked.limit, MAX_POINTS)
        before = min(asked.before, _BIGINT_MAX) if asked.before > 0 else _BIGINT_MAX
        rows = await self._fetch(POINTS, asked.source, before, limit + 1)
        points = self._fit(
            [(_size(row), decode(row["body"], RecoveryPoint)) for row in rows[:limit]]
        )
        return PointList(points=points, more=len(points) < len(rows))

    async def point_at(self, request: Request) -> Message:
        asked = decode(request.data, PointAt)
        at_ns = max(-1, min(asked.at_ns, _BIGINT_MAX))
        rows = await self._fetch(POINT_AT, asked.source, at_ns)
        return PointList(points=[decode(row["body"], RecoveryPoint) for row in rows])

    async def jobs(self, request: Request) -> Message:
        asked = decode(request.data, Jobs)
        limit = bounded(asked.limit, MAX_JOBS)
        if asked.source:
            statement = JOBS_OF_OPEN if asked.open_only else JOBS_OF
            rows = await self._fetch(statement, asked.source, limit)
        else:
            rows = await self._fetch(JOBS_OPEN if asked.open_only else JOBS, limit)
        return JobList(jobs=self._fit([(_size(row), decode(row["body"], Job)) for row in rows]))

    async def _fetch(self, statement: str, *arguments: object) -> Any:
        async with self._database.connection() as connection:
            return await connection.fetch(statement, *arguments)

    def _fit(self, bodies: Any) -> Any:
        return fitting(bodies, self._limit_bytes() - _REST_BYTES)


def _size(row: Any) -> int:
    return _ITEM_BYTES + sum(len(value) for value in row.values() if isinstance(value, bytes))


def _source_state(row: Any) -> SourceState:
    newest = decode(row["newest"], RecoveryPoint) if row["newest"] else None
    replica = decode(row["replica"], ReplicaState) if row["replica"] else None
    if row["source"]:
        source = decode(row["source"], Source)
    else:
        assert replica is not None
        source = unassigned(replica, row["store"])
    return SourceState(
        source=source,
        points=row["points"] or 0,
        newest=newest,
        last_job=decode(row["last_job"], Job) if row["last_job"] else None,
        bytes=newest.totals.bytes if newest else 0,
        stored_bytes=row["stored_bytes"] or 0,
        deleted=replica.deleted if replica else [],
        due_at_ns=replica.due_at_ns if replica else 0,
        damaged_chunks=replica.damaged_chunks if replica else 0,
        verified_at_ns=replica.verified_at_ns if replica else 0,
    )


def unassigned(replica: ReplicaState, store: str) -> Source:
    """Return the data source of a replica that no policy knows: it belongs to no server."""
    return Source(
        id=replica.source,
        name=replica.name,
        type="files",
        server="",
        store=store,
        protected=False,
    )
