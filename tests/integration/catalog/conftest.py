"""A catalog on a real bus and a real Postgres, with a store that answers as it is told."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from strandline_catalog.catalog import Catalog
from strandline_contracts.codec import Message, decode, encode
from strandline_contracts.errors import StrandlineError
from strandline_contracts.events import Data, Event, JobChanged, PointCommitted, PointsDropped
from strandline_contracts.jobs import Job, State
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.policy import Assignment, Source, key_of
from strandline_contracts.reading import PointPage, Points, ReplicaPage, Replicas, ReplicaState
from strandline_contracts.signing import sign
from strandline_contracts.subjects import policy_subject
from strandline_runtime.bus import Bus, Request
from strandline_runtime.errors import BusError, RemoteRefused, Unreachable
from support.examples import POINT, THE_JOB, THE_SOURCE
from support.nats import SiteBus
from support.postgres import Postgres
from support.waiting import until

A, B = "a" * 16, "b" * 16


def a_source(source: str = A, name: str = "web", **changes: Any) -> Source:
    made = msgspec.structs.replace(THE_SOURCE, id=source, name=name, protected=True)
    return msgspec.structs.replace(made, **changes)


def a_point(number: int, source: str = A, **changes: Any) -> RecoveryPoint:
    made = msgspec.structs.replace(
        POINT,
        source=source,
        number=number,
        taken_at_ns=number * 1000,
        received_at_ns=number * 1000 + 5,
        stored_bytes=10,
    )
    return msgspec.structs.replace(made, **changes)


def a_job(job: str, state: State, source: str = A, **changes: Any) -> Job:
    made = msgspec.structs.replace(
        THE_JOB,
        job=job,
        source=source,
        state=state,
        accepted_at_ns=time.time_ns(),
        updated_at_ns=time.time_ns(),
    )
    return msgspec.structs.replace(made, **changes)


def a_replica(source: str = A, name: str = "web", **changes: Any) -> ReplicaState:
    made = ReplicaState(
        source=source,
        name=name,
        type="files",
        points=0,
        newest=0,
        stored_bytes=0,
        live_bytes=0,
        damaged_chunks=0,
        inconsistent="",
        verified_at_ns=0,
    )
    return msgspec.structs.replace(made, **changes)


class FakeStore:
    """Answers `points` and `replicas` from its lists, as a store would.

    `before_answer` is awaited between finding an answer and giving it; sources in `gone` have no
    replica.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.points: list[RecoveryPoint] = []
        self.replicas: list[ReplicaState] = []
        self.gone: set[str] = set()
        self.asked: list[Points] = []
        self.before_answer: Callable[[], Awaitable[None]] | None = None

    async def answer_replicas(self, request: Request) -> Message:
        assert request.caller == "catalog-1"
        asked = decode(request.data, Replicas)
        left = [each for each in self.replicas if each.source > asked.after]
        return ReplicaPage(replicas=left[:1], more=len(left) > 1)

    async def answer(self, request: Request) -> Message:
        assert request.caller == "catalog-1"
        asked = decode(request.data, Points)
        self.asked.append(asked)
        if asked.source in self.gone:
            raise StrandlineError("no replica here", code="store.no_such")
        left = [p for p in self.points if p.source == asked.source and p.number > asked.after]
        left.sort(key=lambda point: point.number)
        if self.before_answer is not None:
            before, self.before_answer = self.before_answer, None
            await before()
        return PointPage(points=left[: asked.limit], more=len(left) > asked.limit)


class World:
    """The bus, its people, the database, and a catalog that can be started and stopped."""

    def __init__(self, site: SiteBus, postgres: Postgres) -> None:
        self.site = site
        self.postgres = postgres
        self.buses: dict[str, Bus] = {}
        self.catalog: Catalog
        self.store: FakeStore
        self._catalog_bus: Bus
        self._running: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._numbers: dict[tuple[str, str, str], int] = {}

    async def bus(self, role: Any) -> Bus:
        if role not in self.buses:
            self.buses[role] = await self.site.connect(role)
        return self.buses[role]

    async def start(self, *, ready: bool = True) -> None:
        self._catalog_bus = await self.site.connect("catalog")
        self._stop = asyncio.Event()
        self.catalog = Catalog(
            self._catalog_bus,
            dsn_file=self.postgres.dsn_file,
            trusted=self.site.trusted,
            now_ns=time.time_ns,
            ready=lambda is_ready: None,
        )
        self._running = asyncio.create_task(self.catalog.run(self._stop))
        if ready:
            await until(lambda: self.catalog.is_ready, "the catalog is ready")

    async def stop(self, *, at_once: bool = False) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        if at_once:
            running.cancel()
            await asyncio.wait({running})
        else:
            self._stop.set()
            await asyncio.wait_for(running, 10)
        await self._catalog_bus.close()

    async def close(self) -> None:
        await self.stop()
        for bus in self.buses.values():
            await bus.close()

    async def tell(self, role: Any, noun: str, verb: str, data: Data, source: str = A) -> Event:
        """Publish the next event of an origin, as its outbox would."""
        bus = await self.bus(role)
        number = self._numbers.get((bus.me, noun, source), 0) + 1
        self._numbers[bus.me, noun, source] = number
        event = Event(
            id=f"{bus.me}-{source}-{number}-{os.urandom(4).hex()}",
            site=bus.site,
            origin=bus.me,
            noun=noun,
            verb=verb,
            source=source,
            number=number,
            time_ns=time.time_ns(),
            data=data,
        )

        async def taken() -> bool:
            try:
                await bus.publish(
                    event.subject(), encode(event), headers=event.headers(), timeout_s=1
                )
            except BusError:
                return False
            return True

        await until(taken, "the bus took the event", timeout_s=20)
        return event

    async def commit(self, point: RecoveryPoint, *, told: bool = True) -> None:
        """Add a point to the store; its event is lost unless `told`."""
        self.store.points.append(point)
        if told:
            await self.tell(
                "store", "point", "committed", PointCommitted(point=point), point.source
            )
        else:
            teller = ("store-store-1", "point", point.source)
            self._numbers[teller] = self._numbers.get(teller, 0) + 1

    async def drop(self, *numbers: int, source: str = A, reason: str = "retention") -> None:
        """Let points go, in the store and in an event."""
        self.store.points = [
            each
            for each in self.store.points
            if each.source != source or each.number not in numbers
        ]
        dropped = PointsDropped(points=list(numbers), reason=reason)
        await self.tell("store", "point", "dropped", dropped, source)

    async def tell_again(self, event: Event) -> None:
        """Publish an event once more, as a new message: an outbox may, after the bus was away."""
        bus = await self.bus(event.origin.split("-")[0])
        await bus.publish(event.subject(), encode(event))

    async def commit_again(self, point: RecoveryPoint, number: int) -> None:
        event = Event(
            id=f"again-{number}",
            site="hq",
            origin="store-store-1",
            noun="point",
            verb="committed",
            source=point.source,
            number=number,
            time_ns=point.received_at_ns,
            data=PointCommitted(point=point),
        )
        await self.tell_again(event)

    async def move(self, job: Job) -> None:
        await self.tell("agent", "job", job.state, JobChanged(job=job), job.source)

    async def assign(self, *sources: Source, seed: bytes | None = None) -> None:
        document = Assignment(server="web-1", revision=1, sources=list(sources))
        signed = sign(seed or self.site.operator_seed, "policy", encode(document))
        bus = await self.bus("operator")
        await bus.publish(policy_subject(key_of(document)), encode(signed))

    async def ask(self, call: str, request: Message, reply: Any) -> Any:
        bus = await self.bus("operator")
        return await bus.call("catalog", "1", call, request, reply)

    async def refusal(self, call: str, request: Message) -> RemoteRefused:
        """Ask until the catalog answers, which must be by refusing; return how."""
        while True:
            try:
                answer = await self.ask(call, request, Message)
            except Unreachable:
                continue
            except RemoteRefused as refused:
                return refused
            raise AssertionError(f"not refused: {answer}")

    async def rows(self, statement: str, *arguments: Any) -> list[Any]:
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            await connection.execute("SET search_path = strandline")
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def picture(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return everything that the projection says, without when it was seen."""
        statements = {
            "source": "SELECT id, name, server, store, protected, body FROM source ORDER BY id",
            "point": "SELECT source, number, store, digest, body FROM point ORDER BY 1, 2",
            "total": "SELECT * FROM source_total WHERE points > 0 ORDER BY source",
            "job": "SELECT * FROM job ORDER BY origin, job",
            "damage": "SELECT * FROM damage ORDER BY event",
            "replica": "SELECT * FROM replica ORDER BY source, store",
            "offset": "SELECT * FROM event_offset ORDER BY 1, 2",
        }
        return {
            name: [tuple(row) for row in await self.rows(statement)]
            for name, statement in statements.items()
        }

    async def numbers(self, source: str = A) -> list[int]:
        rows = await self.rows("SELECT number FROM point WHERE source = $1 ORDER BY 1", source)
        return [row["number"] for row in rows]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    server = Postgres()
    server.start()
    yield server
    server.remove()


@pytest_asyncio.fixture
async def postgres(postgres_server: Postgres) -> Postgres:
    """A running Postgres without anything of ours in it."""
    connection = await asyncpg.connect(postgres_server.dsn)
    await connection.execute("DROP SCHEMA IF EXISTS strandline CASCADE")
    await connection.close()
    return postgres_server


@pytest_asyncio.fixture
async def world(site: SiteBus, postgres: Postgres, tmp_path: Path) -> AsyncIterator[World]:
    made = World(site, postgres)
    made.store = FakeStore(await made.bus("store"))
    await made.store.bus.serve(
        {"points": made.store.answer, "replicas": made.store.answer_replicas}
    )
    yield made
    await made.close()
