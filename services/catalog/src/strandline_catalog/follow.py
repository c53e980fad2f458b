"""Follows EVENTS into the database: catches up by reading, then consumes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import asyncpg

from strandline_catalog.database import Database
from strandline_catalog.errors import DatabaseDown
from strandline_catalog.projection import Arrival, Fold, read_event
from strandline_catalog.record import apply, begin_stream, position
from strandline_contracts.errors import BadMessage
from strandline_contracts.events import Event
from strandline_contracts.streams import CATALOG_CONSUMER
from strandline_contracts.subjects import EVENTS
from strandline_runtime.bus import Bus
from strandline_runtime.consume import Delivery, consume
from strandline_runtime.errors import BusError
from strandline_runtime.logs import logger
from strandline_runtime.patience import set_within

BATCH_MESSAGES = 128
STILL_AT_IT_S = 10.0
"""While the database is away a batch is held, not given back: order is kept. Under ack_wait."""
LOOK_AT_STREAM_S = 60.0
RETRY_S = 1.0


class Follower:
    """Applies every event of EVENTS to the database, in order, however often it comes.

    The database's position says what it has, so that a new or older database is filled by reading
    the stream from there. The durable consumer then brings what is new.
    """

    def __init__(
        self,
        bus: Bus,
        database: Database,
        *,
        now_ns: Callable[[], int],
        reconcile: Callable[[], None],
        replicas_changed: Callable[[str], None],
        sources_changed: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._database = database
        self._now_ns = now_ns
        self._reconcile = reconcile
        self._replicas_changed = replicas_changed
        self._sources_changed = sources_changed
        self._turn = asyncio.Lock()
        self._caught_up = 0
        self._look = asyncio.Event()
        self._log = logger()
        self.applied = 0
        self.dropped = 0

    @property
    def ready(self) -> bool:
        """Whether the database holds what the stream held when the database came up."""
        return self._database.up.is_set() and self._caught_up == self._database.generation

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set; `watch_stream` runs beside it."""
        await consume(
            self._bus,
            EVENTS,
            CATALOG_CONSUMER,
            lambda deliveries: self._take(deliveries, stop),
            batch=BATCH_MESSAGES,
            stop=stop,
        )

    def look(self) -> None:
        """The stream or the database may be another one: look soon."""
        self._look.set()

    async def _reconnected(self) -> None:
        self.look()

    # Catching up

    async def watch_stream(self, stop: asyncio.Event) -> None:
        """See to it that a new database is filled, and a new stream noticed, until `stop`."""
        self._bus.on_reconnect(self._reconnected)
        while not stop.is_set():
            self._look.clear()
            wait_s = LOOK_AT_STREAM_S
            try:
                await self._database.up.wait()
                async with self._turn:
                    await self._catch_up()
            except (DatabaseDown, BusError) as error:
                self._log.warning("catalog.behind", code=error.code, error=error.message)
                wait_s = RETRY_S
            await set_within(self._look, wait_s)

    async def _catch_up(self) -> None:
        """Read what the database lacks if it, or the stream, is another than before."""
        generation = self._database.generation
        info = await self._bus.api(f"STREAM.INFO.{EVENTS}")
        created = info.get("created")
        if not isinstance(created, str):
            raise BusError(f"no {EVENTS} on the bus: {info.get('error')}", code="bus.refused")
        async with self._database.writing() as connection:
            new = await begin_stream(connection, created, self._now_ns())
            held = await position(connection)
        if new:
            self._log.warning("catalog.stream_begun", created=created)
        if not new and self._caught_up == generation:
            return
        assert held is not None
        await self._read(held.sequence)
        self._caught_up = generation
        self._reconcile()

    async def _read(self, after: int) -> None:
        everything = f"{self._bus.subjects.root}.evt.>"
        while page := await self._bus.read(EVENTS, everything, after_seq=after):
            arrivals = [
                Arrival(stored.seq, event)
                for stored in page
                if (event := self._event(stored.data, stored.subject)) is not None
            ]
            after = page[-1].seq
            await self._apply(arrivals, after)

    # Consuming

    async def _take(self, deliveries: list[Delivery], stop: asyncio.Event) -> None:
        """Apply a batch and settle it; hold it while the database is away."""
        arrivals, good = [], []
        for delivery in deliveries:
            event = self._event(delivery.data, delivery.subject)
            if event is None:
                await delivery.term()
            else:
                arrivals.append(Arrival(delivery.sequence, event))
                good.append(delivery)
        work = asyncio.create_task(self._apply_when_up(arrivals))
        others = [asyncio.create_task(stop.wait()), asyncio.create_task(_hold(good))]
        try:
            await asyncio.wait((work, others[0]), return_when=asyncio.FIRST_COMPLETED)
            settled = work.done()
            if settled:
                work.result()
        finally:
            for task in (work, *others):
                task.cancel()
        for delivery in good:
            await (delivery.ack() if settled else delivery.nak(0))

    async def _apply_when_up(self, arrivals: Sequence[Arrival]) -> None:
        upto = max((arrival.sequence for arrival in arrivals), default=0)
        while True:
            await self._database.up.wait()
            try:
                async with self._turn:
                    if self._caught_up != self._database.generation:
                        await self._catch_up()
                    await self._apply(arrivals, upto)
                return
            except (DatabaseDown, BusError) as error:
                self._log.warning("catalog.events_wait", code=error.code, error=error.message)
                await asyncio.sleep(RETRY_S)

    # Both

    async def _apply(self, arrivals: Sequence[Arrival], upto: int) -> None:
        """Apply events in one transaction; what the database cannot hold is dropped alone."""
        try:
            async with self._database.writing() as connection:
                found = await apply(connection, arrivals, upto, self._now_ns())
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            if len(arrivals) == 1:
                self.dropped += 1
                self._log.error("catalog.event_unfit", error=str(error))
                await self._apply([], upto)
                return
            for arrival in sorted(arrivals, key=lambda each: each.sequence):
                await self._apply([arrival], arrival.sequence)
            return
        self.applied += len(arrivals)
        self._tell(found)

    def _tell(self, found: Fold) -> None:
        for gap in found.gaps:
            self._log.warning("catalog.gap", **gap.teller._asdict(), reason=gap.reason)
        for store in found.stores:
            self._replicas_changed(store)
        if found.gaps:
            self._reconcile()
        if found.sources_changed:
            self._sources_changed()

    def _event(self, data: bytes, subject: str) -> Event | None:
        """Return the event, or None for bytes that got into the stream by a trick."""
        try:
            return read_event(data, subject)
        except BadMessage as error:
            self.dropped += 1
            self._log.warning("catalog.foreign_event", subject=subject, error=error.message)
            return None


async def _hold(deliveries: Sequence[Delivery]) -> None:
    """Keep `deliveries` from being delivered again, until cancelled."""
    while True:
        await asyncio.sleep(STILL_AT_IT_S)
        for delivery in deliveries:
            await delivery.in_progress()
