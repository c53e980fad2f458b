"""Events that wait in SQLite until the bus has them.

An event is stored in the transaction that makes it true, and leaves when JetStream has confirmed
it; so it is told at least once, in order, with a number that shows every gap.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Protocol

from strandline_contracts.codec import decode, encode
from strandline_contracts.errors import StrandlineError
from strandline_contracts.events import Data, Event
from strandline_runtime import metrics
from strandline_runtime.bus import Bus
from strandline_runtime.errors import BusError
from strandline_runtime.logs import logger

SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS outbox_numbers (
    noun TEXT NOT NULL,
    source TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (noun, source)
) WITHOUT ROWID;
"""
"""An outbox's tables, a script. All of a noun's events of an origin go through one."""

PUMP_BATCH = 64
LOOK_AGAIN_S = 30.0
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 10.0


class Rows(Protocol):
    """What a statement gives."""

    def fetchone(self) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


class Database(Protocol):
    """A connection to SQLite, of the standard library or of apsw: what both have in common."""

    def execute(self, statement: str, values: tuple[Any, ...] = ..., /) -> Rows: ...


OnDatabase = Callable[[Callable[[Database], Any]], Awaitable[Any]]
"""Runs a function on the right connection, in the right thread, as one transaction."""


def next_number(conn: Database, noun: str, source: str) -> int:
    """Take the next number of this noun and source, from 1."""
    row = conn.execute(
        "INSERT INTO outbox_numbers VALUES (?, ?, 1)"
        " ON CONFLICT DO UPDATE SET number = number + 1 RETURNING number",
        (noun, source),
    ).fetchone()
    return int(row[0])


def put(conn: Database, event: Event) -> None:
    """Store `event` for delivery; belongs into the transaction of what it tells."""
    conn.execute("INSERT INTO outbox (event) VALUES (?)", (encode(event),))


def record(
    conn: Database,
    *,
    site: str,
    origin: str,
    noun: str,
    verb: str,
    source: str,
    time_ns: int,
    data: Data,
) -> Event:
    """Make an event with a new id and the next number, put it, and return it."""
    event = Event(
        id=secrets.token_hex(16),
        site=site,
        origin=origin,
        noun=noun,
        verb=verb,
        source=source,
        number=next_number(conn, noun, source),
        time_ns=time_ns,
        data=data,
    )
    put(conn, event)
    return event


def pending(conn: Database, limit: int) -> list[tuple[int, Event]]:
    """Return the oldest undelivered events with their outbox ids, in order."""
    rows = conn.execute("SELECT id, event FROM outbox ORDER BY id LIMIT ?", (limit,))
    return [(key, decode(event, Event)) for key, event in rows]


def done(conn: Database, key: int) -> None:
    """Forget a delivered event."""
    conn.execute("DELETE FROM outbox WHERE id = ?", (key,))


class OutboxPump:
    """Delivers an outbox's events in order, each until the bus has confirmed it."""

    def __init__(self, bus: Bus, on_database: OnDatabase) -> None:
        self._bus = bus
        self._on_database = on_database
        self._poked = asyncio.Event()
        self._log = logger()

    def poke(self) -> None:
        """Tell that there may be something to deliver (from the event loop's thread)."""
        self._poked.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop`; an outage of the bus or of the database only delays.

        What cannot be read, told or forgotten now stays where it is and is tried again: should it
        have been told, it goes out with the same id, before all that follow. An event that the bus
        will never take (not retryable) is logged and dropped: it would hold up all that follow, and
        receivers see the gap in its number.
        """
        retry_s = 0.0
        while not stop.is_set():
            self._poked.clear()
            try:
                more = await self._deliver() == PUMP_BATCH
            except Exception as error:  # noqa: BLE001 - of sqlite3, apsw, the disk: all pass
                # Nobody starts the pump again: if it ended, a service would work on, untold.
                self._log_waiting(error, is_first=not retry_s)
                retry_s = min(RETRY_MAX_S, max(RETRY_FIRST_S, 2 * retry_s))
                # A poke does not shorten this: only time, or the bus or the disk, helps now.
                await _first_of([stop], retry_s)
            else:
                retry_s = 0.0
                if not more:
                    await _first_of([stop, self._poked], LOOK_AGAIN_S)

    def _log_waiting(self, error: Exception, *, is_first: bool) -> None:
        if isinstance(error, StrandlineError):
            self._log.warning("outbox.waiting", code=error.code, error=str(error))
            return
        # One traceback tells where; on a full disk more of them would only make it fuller.
        text = f"{type(error).__name__}: {error}"
        trace = error if is_first else None
        self._log.error("outbox.waiting", code="internal", error=text, exc_info=trace)

    async def _deliver(self) -> int:
        batch: list[tuple[int, Event]] = await self._on_database(
            lambda conn: pending(conn, PUMP_BATCH)
        )
        metrics.OUTBOX_PENDING.set(len(batch))
        for key, event in batch:
            try:
                await self._bus.publish(
                    event.subject(), encode(event), msg_id=event.id, headers=event.headers()
                )
            except BusError as error:
                if error.retryable:
                    raise
                self._log.error("outbox.dropped", id=event.id, code=error.code, error=str(error))
            await self._on_database(partial(_forget, key))
        return len(batch)


def _forget(key: int, conn: Database) -> None:
    done(conn, key)


async def _first_of(events: list[asyncio.Event], timeout_s: float) -> None:
    """Wait until one of the events is set, or the time is over."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
