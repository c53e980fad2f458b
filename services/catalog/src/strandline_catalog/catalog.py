"""The catalog as a whole: its parts, put together and run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from strandline_catalog.database import Database
from strandline_catalog.follow import Follower
from strandline_catalog.queries import Queries
from strandline_catalog.reconcile import Reconciler
from strandline_catalog.sources import SourceKeeper
from strandline_contracts.signing import Authority
from strandline_runtime.bus import Bus

READY_LOOK_S = 0.5


class Catalog:
    """Follows events and policies into the database, reconciles it, and answers from it.

    `ready` is told each change of whether the answers are complete.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        dsn_file: Path,
        trusted: Mapping[bytes, Authority],
        now_ns: Callable[[], int],
        ready: Callable[[bool], None],
    ) -> None:
        self._bus = bus
        self._ready = ready
        self._database = Database(dsn_file)
        self._reconciler = Reconciler(
            bus, self._database, now_ns=now_ns, caught_up=lambda: self._follower.ready
        )
        self._sources = SourceKeeper(bus, self._database, trusted, self._reconciler.look)
        self._follower = Follower(
            bus,
            self._database,
            now_ns=now_ns,
            reconcile=self._reconciler.look,
            replicas_changed=self._reconciler.look_at,
            sources_changed=self._sources.look,
        )
        for part in (self._reconciler, self._sources, self._follower):
            self._database.on_up(part.look)
        self._queries = Queries(self._database, lambda: bus.max_payload_bytes)

    @property
    def is_ready(self) -> bool:
        return self._follower.ready

    def detail(self) -> dict[str, str]:
        """Return figures for the status call."""
        return {
            "database": "up" if self._database.up.is_set() else f"down: {self._database.problem}",
            "events_applied": str(self._follower.applied),
            "events_dropped": str(self._follower.dropped),
            "refused_policies": str(self._sources.refused),
            "failing_stores": ", ".join(sorted(self._reconciler.failing)) or "none",
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set."""
        async with asyncio.TaskGroup() as tasks:
            workers = [
                tasks.create_task(self._database.run(stop)),
                tasks.create_task(self._tell_ready()),
                tasks.create_task(self._sources.run(stop)),
                tasks.create_task(self._reconciler.run(stop)),
                tasks.create_task(self._follower.watch_stream(stop)),
            ]
            try:
                await self._bus.serve(self._queries.handlers())
                await self._follower.run(stop)
            finally:
                # asyncio.wait_for, used below us, may swallow a cancellation: the loops look too.
                stop.set()
                for worker in workers:
                    worker.cancel()
                for part in (self._database, self._sources, self._reconciler, self._follower):
                    part.look()

    async def _tell_ready(self) -> None:
        told = None
        while True:
            if told != self.is_ready:
                told = self.is_ready
                self._ready(told)
            await asyncio.sleep(READY_LOOK_S)
