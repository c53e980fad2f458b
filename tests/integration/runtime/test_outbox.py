"""The outbox pump on a real bus: in order, each once within the window, through outages."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from strandline_contracts.events import Event, SourceChanged, accept_event
from strandline_contracts.policy import Source
from strandline_runtime import outbox
from strandline_runtime.bus import Bus
from strandline_runtime.errors import BusError, RuntimeFault
from strandline_runtime.outbox import OutboxPump
from support.nats import SiteBus
from support.waiting import until

Connect = Callable[..., Awaitable[Bus]]


class Box:
    """A database in memory with an outbox, used from the event loop's thread."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.conn = sqlite3.connect(":memory:", isolation_level=None)
        self.conn.executescript(outbox.SCHEMA)
        self.stop = asyncio.Event()
        self.pump = OutboxPump(bus, self.run)
        self.errors: list[Exception] = []
        self.calls = 0

    async def run(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        self.calls += 1
        # Every second call, so that reading and forgetting both meet them.
        if self.errors and self.calls % 2 == 0:
            raise self.errors.pop(0)
        return work(self.conn)

    def put(self, name: str, source: str = "s1") -> Event:
        data = SourceChanged(
            source=Source(id=source, name=name, type="files", server="web-1", store="store-1")
        )
        return outbox.record(
            self.conn,
            site="hq",
            origin=self.bus.me,
            noun="source",
            verb="protected",
            source=source,
            time_ns=1,
            data=data,
        )

    def waiting(self) -> int:
        return len(outbox.pending(self.conn, 1000))


@pytest_asyncio.fixture
async def box(connect: Connect) -> AsyncIterator[Box]:
    made = Box(await connect("agent"))
    pumping = asyncio.create_task(made.pump.run(made.stop))
    yield made
    made.stop.set()
    await asyncio.wait_for(pumping, 15)


async def told(bus: Bus) -> list[Event]:
    page = await bus.read("EVENTS", "strandline.v1.hq.evt.agent-web-1.>")
    return [accept_event(stored.data, stored.subject) for stored in page]


async def test_events_come_in_order_with_their_numbers(box: Box, connect: Connect) -> None:
    sent = [box.put(f"n{n}", source=f"s{n % 2}") for n in range(100)]
    box.pump.poke()
    await until(lambda: box.waiting() == 0, "an empty outbox")
    got = await told(await connect("operator"))
    assert got == sent
    assert [e.number for e in got if e.source == "s0"] == list(range(1, 51))


async def test_an_outage_only_delays(site: SiteBus, box: Box, connect: Connect) -> None:
    operator = await connect("operator")
    site.server.kill()
    await until(lambda: not box.bus.connected, "the loss")
    sent = [box.put(f"n{n}") for n in range(5)]
    box.pump.poke()
    site.server.start()
    await until(lambda: box.waiting() == 0, "an empty outbox", timeout_s=25)

    async def readable() -> bool:
        try:
            return await told(operator) == sent
        except BusError:
            return False

    await until(readable, "all events", timeout_s=20)


async def test_delivered_but_not_yet_forgotten_is_told_once(box: Box, connect: Connect) -> None:
    """Killed between the bus's confirmation and its own note: the same id comes again."""
    operator = await connect("operator")
    event = box.put("once")
    box.pump.poke()
    await until(lambda: box.waiting() == 0)
    outbox.put(box.conn, event)
    after = box.put("after")
    box.pump.poke()
    await until(lambda: box.waiting() == 0)
    assert await told(operator) == [event, after]


async def test_one_that_the_bus_never_takes_holds_up_nothing(box: Box, connect: Connect) -> None:
    operator = await connect("operator")
    box.put("x" * 300_000)  # more than the stream's max_msg_size
    after = box.put("after")
    box.pump.poke()
    await until(lambda: box.waiting() == 0)
    got = await told(operator)
    assert got == [after]
    assert got[0].number == 2  # the gap can be seen


class ForeignError(Exception):
    """Stands for the errors of another SQLite library, which the runtime does not know."""


async def test_a_full_disk_only_delays(
    box: Box, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "RETRY_MAX_S", 0.2)
    operator = await connect("operator")
    full = "database or disk is full"
    box.errors = [
        sqlite3.OperationalError(full),
        OSError(errno.ENOSPC, full),
        RuntimeFault(full),
        ForeignError(full),
        sqlite3.OperationalError(full),
    ]
    sent = [box.put(f"n{n}") for n in range(5)]
    box.pump.poke()
    await until(lambda: not box.errors and box.waiting() == 0, "an empty outbox")
    # What was told and not forgotten came again, with the same id: the bus took it once.
    assert await told(operator) == sent
