"""Housekeeping: what the store does by itself, in the background, one thing after the other.

It goes round all sources: forgets what is due, compacts, scrubs. It gives way to jobs, keeps to its
share of the disk, and stops within a second; one source that fails does not keep the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from strandline_contracts.errors import StrandlineError
from strandline_replica_store.compaction.compact import CompactReport, Limits, compact
from strandline_replica_store.errors import NoSuch
from strandline_replica_store.pace import Pace
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.store.store import Store
from strandline_runtime.logs import logger
from strandline_runtime.patience import to_its_end

QUIET_S = 5.0
"""A job of which nothing has come for so long is not waited for."""
IDLE_EVERY_S = 3600.0
"""Replicas that nobody uses are opened no more often than this to be looked after."""
SURVEY_SHARE = 20
"""One part in so many of the time may be spent finding out whether there is anything to compact."""

T = TypeVar("T")
Step = Callable[[str], Awaitable[Any]]


@dataclass
class _Looked:
    """What compaction found when it last looked at a source."""

    state: tuple[int, int]
    at_s: float
    took_s: float
    is_done: bool


class Housekeeping:
    """Looks after one store; `forget` and `scrub` are the other parts of a round.

    `on_change` hears (on the event loop) of sources that may have new events.
    """

    def __init__(
        self,
        store: Store,
        pace: Pace,
        *,
        forget: Step,
        scrub: Step,
        every_s: float,
        on_change: Callable[[str], None] = lambda _: None,
        limits: Limits | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._pace = pace
        self._steps: tuple[tuple[str, Step], ...] = (
            ("forget", lambda source: to_its_end(forget(source))),
            ("compact", self._compact_if_due),
            ("scrub", scrub),
        )
        self._every_s = every_s
        self._on_change = on_change
        self._limits = limits or Limits()
        self._now_s = now_s
        self._looked: dict[str, _Looked] = {}
        self._receiving: dict[str, Receiving] = {}
        self._visited_at_s: dict[str, float] = {}
        self._log = logger()

    async def run(self, stop: asyncio.Event) -> None:
        """Go round until `stop`."""
        while not stop.is_set():
            for source in await asyncio.to_thread(self._due_sources):
                for name, step in self._steps:
                    if stop.is_set():
                        return
                    await _unless(stop, self._careful(name, step, source))
            await _unless(stop, asyncio.sleep(self._every_s))

    def _due_sources(self) -> list[str]:
        """Return the sources to visit: those in use each time, all others now and then."""
        now_s, sources = self._now_s(), self._store.sources()
        self._forget_gone(set(sources))
        return [
            source
            for source in sources
            if self._store.is_open(source)
            or now_s - self._visited_at_s.get(source, -IDLE_EVERY_S) >= IDLE_EVERY_S
        ]

    def _forget_gone(self, sources: set[str]) -> None:
        for gone in self._visited_at_s.keys() - sources:
            del self._visited_at_s[gone]
            self._looked.pop(gone, None)
            self._receiving.pop(gone, None)

    async def _careful(self, name: str, step: Step, source: str) -> None:
        """Do one step; what goes wrong in it is this source's own affair."""
        self._visited_at_s[source] = self._now_s()
        try:
            await step(source)
        except NoSuch:
            return
        except StrandlineError as error:
            self._log.warning(
                "housekeeping.later", step=name, source=source, code=error.code, error=str(error)
            )
        except Exception:  # noqa: BLE001 - logged; the other sources have their turn
            self._log.exception("housekeeping.broken", step=name, source=source)
        finally:
            self._on_change(source)

    # Compaction

    async def compact_now(self, source: str) -> CompactReport:
        """Compact whatever can be given back, at full speed. Raises StoreError."""
        # What it leaves for readers to end is looked after in the next round.
        self._looked.pop(source, None)
        return await _in_thread(lambda stop: self._compact(source, stop, force=True))

    async def _compact_if_due(self, source: str) -> None:
        await _in_thread(lambda stop: self._look(source, stop))

    def _look(self, source: str, stop: threading.Event) -> None:
        began_s = self._now_s()
        looked, replica = self._looked.get(source), self._store.replica(source)
        receiving = self._receiving.get(source)
        if receiving is None or receiving.replica is not replica:
            receiving = self._receiving[source] = Receiving(replica, self._now_s)
        if receiving():
            return
        points = replica.points()
        state = (points[-1] if points else 0, len(points))
        if looked is not None and not _is_worth_looking(looked, state, began_s):
            return
        report = self._compact(source, stop, force=False)
        is_done = report.is_complete and not report.waiting_bytes
        took_s = 0.0 if report.rounds else self._now_s() - began_s
        self._looked[source] = _Looked(state, self._now_s(), took_s, is_done)

    def _compact(self, source: str, stop: threading.Event, *, force: bool) -> CompactReport:
        replica = self._store.replica(source)
        limits = self._limits._replace(may_go_on=lambda: not stop.is_set())
        if not force:
            receiving = self._receiving[source]
            limits = limits._replace(
                pace=lambda count_bytes: self._pace.take(count_bytes, stop),
                may_go_on=lambda: not (stop.is_set() or receiving()),
            )
        report = compact(replica, self._store.leases, force=force, limits=limits)
        if report.moved_bytes or report.freed_bytes:
            if report.freed_bytes:
                self._store.forget_readers(source)
            self._log.info("compacted", source=source, result=report.text())
        return report


def _is_worth_looking(looked: _Looked, state: tuple[int, int], now_s: float) -> bool:
    """Tell whether compaction is to look again: something has changed, and it costs little."""
    if now_s - looked.at_s < SURVEY_SHARE * looked.took_s:
        return False
    return state != looked.state or not looked.is_done or now_s - looked.at_s >= IDLE_EVERY_S


class Receiving:
    """Tells whether a replica receives a job that goes on."""

    def __init__(self, replica: Replica, now_s: Callable[[], float]) -> None:
        self.replica = replica
        self._now_s = now_s
        self._seen = replica.open_attempt
        self._moved_at_s = now_s()

    def __call__(self) -> bool:
        found = self.replica.open_attempt
        if found != self._seen:
            self._seen, self._moved_at_s = found, self._now_s()
        return found is not None and self._now_s() - self._moved_at_s < QUIET_S


async def _in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run blocking work; when this is cancelled, tell it to stop and wait until it has."""
    stop = threading.Event()
    return await to_its_end(asyncio.to_thread(work, stop), stop.set)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Await work, but cancel it when `stop` is set."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait({working})
    if not working.cancelled():
        working.result()
