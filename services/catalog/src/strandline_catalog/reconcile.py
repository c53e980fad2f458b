"""Asks the stores for recovery points and replicas: to close gaps, and now and then anyway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from strandline_catalog.database import Database
from strandline_catalog.errors import DatabaseDown
from strandline_catalog.projection import SeenPoint, check_point, check_replicas
from strandline_catalog.record import (
    close_gap,
    drop_points,
    note_listed,
    prune,
    put_points,
    put_replicas,
)
from strandline_contracts.errors import BadMessage, StrandlineError
from strandline_contracts.reading import (
    NO_SUCH,
    PointPage,
    Points,
    ReplicaPage,
    Replicas,
    ReplicaState,
)
from strandline_contracts.streams import EVENT_MAX_AGE_NS
from strandline_runtime.bus import Bus
from strandline_runtime.errors import BusError, RemoteRefused, Unreachable
from strandline_runtime.logs import bind, logger
from strandline_runtime.patience import set_within

PAGE_POINTS = 1000
PAGE_PAUSE_S = 0.05
"""Between two questions to stores: at most 20 a second."""
LOOK_EVERY_S = 300.0
"""So often the newest points of each source are asked for."""
FULL_EVERY_S = 86_400.0
RETRY_S = 15.0
GAPS_AT_ONCE = 1000
MAX_PAGES = 100_000
MAX_REPLICAS = 100_000
REPLICAS_TIMEOUT_S = 30.0
"""A store opens each replica that it tells of."""
_TOLD_OF_STORED = frozenset({"point", "replica", "damage"})
"""Nouns of events about what stores hold: they can say what is so now."""

KNOWN = """
    SELECT id, store FROM source
     UNION ALL
    SELECT DISTINCT ON (r.source) r.source, r.store FROM replica AS r
     WHERE NOT EXISTS (SELECT FROM source AS s WHERE s.id = r.source)
     ORDER BY 1, 2"""
STORES = """
    SELECT store, bool_or(assigned) AS assigned
      FROM (SELECT store, true AS assigned FROM source
             UNION SELECT store, false FROM replica
             UNION SELECT substr(origin, 7), false FROM event_offset
                    WHERE origin LIKE 'store-%') AS each
     GROUP BY store ORDER BY store"""
"""Those that have to answer, and those that are known by what they once told."""


class Asked(NamedTuple):
    """A source, and the store that has its replica."""

    source: str
    store: str


class Reconciler:
    """Makes the points of every source, and the replicas, those that their stores list.

    Points wholly when the catalog starts, a source or a database is new, a gap is found, and daily;
    the newest few hundred every five minutes. Replicas every five minutes, and when an event says
    that they are in another state: `look_at`.
    """

    def __init__(
        self,
        bus: Bus,
        database: Database,
        *,
        now_ns: Callable[[], int],
        caught_up: Callable[[], bool],
    ) -> None:
        self._bus = bus
        self._database = database
        self._now_ns = now_ns
        self._caught_up = caught_up
        self._look = asyncio.Event()
        self._full_at: dict[Asked, float] = {}
        self._tail_at: dict[Asked, float] = {}
        self._replicas_at: dict[str, float] = {}
        self._generation = 0
        self._log = logger()
        self._unreachable: set[str] = set()
        self.failing: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Reconcile until `stop` is set."""
        while not stop.is_set():
            self._look.clear()
            whole = False
            try:
                await self._database.up.wait()
                # Not while old events are read: they tell of points that the store let go since.
                if self._caught_up():
                    whole = await self._round()
            except DatabaseDown as error:
                self._log.warning("catalog.reconcile_waits", code=error.code, error=error.message)
            await set_within(self._look, LOOK_EVERY_S if whole else RETRY_S)

    def look(self) -> None:
        """There are new sources or gaps: begin a round soon."""
        self._look.set()

    def look_at(self, store: str) -> None:
        """The replicas of `store` are in another state: ask for them soon."""
        self._replicas_at.pop(store, None)
        self.look()

    async def _round(self) -> bool:
        """Ask for what is wanted now; return whether every store answered."""
        if self._generation != self._database.generation:
            self._generation = self._database.generation
            self._full_at.clear()
            self._replicas_at.clear()
        self._unreachable.clear()
        self.failing.clear()
        async with self._database.writing() as connection:
            await prune(connection, self._now_ns() - EVENT_MAX_AGE_NS)
        await self._close_gaps()
        async with self._database.connection() as connection:
            stores = await connection.fetch(STORES)
        for row in stores:
            await self._ask_replicas_if_wanted(row["store"], assigned=row["assigned"])
        async with self._database.connection() as connection:
            rows = await connection.fetch(KNOWN)
        sources = [Asked(row["id"], row["store"]) for row in rows]
        for kept in (self._full_at, self._tail_at):
            for gone in kept.keys() - set(sources):
                del kept[gone]
        for asked in sources:
            await self._reconcile_if_wanted(asked)
        return not self.failing

    async def _ask_replicas_if_wanted(self, store: str, *, assigned: bool) -> None:
        now = time.monotonic()
        if now - self._replicas_at.get(store, -LOOK_EVERY_S) < LOOK_EVERY_S / 2:
            return
        # Noted before it is asked: what an event says meanwhile makes it asked again.
        self._replicas_at[store] = now
        try:
            await self._ask_replicas(store)
        except (BusError, RemoteRefused, BadMessage) as error:
            # It may still answer for its points: a store of before knows no such question.
            if assigned:
                self._replicas_at.pop(store, None)
                self._note_silent(store, error)

    async def _ask_replicas(self, store: str) -> None:
        found: list[ReplicaState] = []
        more = True
        while more:
            request = Replicas(after=found[-1].source if found else "")
            page = await self._bus.call(
                "store", store, "replicas", request, ReplicaPage, timeout_s=REPLICAS_TIMEOUT_S
            )
            found += page.replicas
            check_replicas(found)
            more = page.more
            if more and (not page.replicas or len(found) > MAX_REPLICAS):
                raise BadMessage("a list of replicas without end")
            await asyncio.sleep(PAGE_PAUSE_S)
        async with self._database.writing() as connection:
            await put_replicas(connection, store, found)

    def _note_silent(self, store: str, error: StrandlineError) -> None:
        self.failing.add(store)
        self._log.warning("catalog.store_silent", store=store, code=error.code, error=error.message)

    async def _reconcile_if_wanted(self, asked: Asked) -> None:
        now = time.monotonic()
        if now - self._full_at.get(asked, -FULL_EVERY_S) >= FULL_EVERY_S:
            if await self._reconcile(asked, 0):
                self._full_at[asked] = self._tail_at[asked] = now
        elif now - self._tail_at.get(asked, -LOOK_EVERY_S) >= LOOK_EVERY_S / 2:
            async with self._database.connection() as connection:
                newest = await connection.fetchval(
                    "SELECT number FROM point WHERE source = $1 ORDER BY number DESC LIMIT 1",
                    asked.source,
                )
            if await self._reconcile(asked, max(0, (newest or 0) - PAGE_POINTS // 2)):
                self._tail_at[asked] = now

    async def _close_gaps(self) -> None:
        """Ask whoever can say what the missing events told, and close the gaps.

        Stores are asked for their points and replicas. What happened to a job is told by events
        alone: such a gap is closed as lost, and the jobs' next events bring them up to date.
        """
        async with self._database.connection() as connection:
            gaps = await connection.fetch(
                """SELECT id, origin, noun, source FROM event_gap WHERE closed_at_ns IS NULL
                    ORDER BY id LIMIT $1""",
                GAPS_AT_ONCE,
            )
        answered: dict[Asked, bool] = {}
        for gap in gaps:
            role, _, instance = gap["origin"].partition("-")
            outcome = "lost"
            if role == "store" and gap["noun"] in _TOLD_OF_STORED:
                asked = Asked(gap["source"], instance)
                if asked not in answered:
                    answered[asked] = await self._reconcile(asked, 0)
                    self._replicas_at.pop(asked.store, None)
                if not answered[asked]:
                    continue
                outcome = "asked"
            async with self._database.writing() as connection:
                await close_gap(connection, gap["id"], outcome, self._now_ns())
            self._log.info("catalog.gap_closed", origin=gap["origin"], outcome=outcome)
        if len(gaps) == GAPS_AT_ONCE:
            self.look()

    async def _reconcile(self, asked: Asked, after: int) -> bool:
        """Make the points of a source above `after` what its store lists; False if it is silent."""
        if asked.store in self._unreachable:
            return False  # in this round already: not once more for each of its sources
        with bind(source=asked.source):
            try:
                for _ in range(MAX_PAGES):
                    last = await self._page(asked, after)
                    await asyncio.sleep(PAGE_PAUSE_S)
                    if last is None:
                        return True
                    after = last
            except (BusError, RemoteRefused, BadMessage) as error:
                self._note_silent(asked.store, error)
                if isinstance(error, Unreachable):
                    self._unreachable.add(asked.store)
            return False

    async def _page(self, asked: Asked, after: int) -> int | None:
        """Take over one page; return where the next begins, None at the end."""
        asked_at_ns = self._now_ns()
        request = Points(source=asked.source, after=after, limit=PAGE_POINTS)
        page = await self._ask_points(asked, request)
        points = [check_point(point, asked.source) for point in page.points]
        numbers = [point.number for point in points]
        if numbers != sorted(set(numbers)) or (numbers and numbers[0] <= after):
            raise BadMessage("points that do not rise")
        if page.more and not points:
            raise BadMessage("an empty page that says that there is more")
        last = numbers[-1] if page.more else None
        async with self._database.writing() as connection:
            await put_points(
                connection,
                [SeenPoint(asked.store, point) for point in points],
                asked_at_ns,
                asked_at_ns=asked_at_ns,
            )
            await drop_points(
                connection,
                asked.source,
                after=after,
                upto=last,
                kept=numbers,
                asked_at_ns=asked_at_ns,
            )
            if points and not page.more:
                await note_listed(connection, asked.store, points[-1], asked_at_ns)
        return last

    async def _ask_points(self, asked: Asked, request: Points) -> PointPage:
        try:
            return await self._bus.call("store", asked.store, "points", request, PointPage)
        except RemoteRefused as refused:
            if refused.code != NO_SUCH:
                raise
            # None was made yet, or it was deleted: there are no points.
            return PointPage(points=[], more=False)
