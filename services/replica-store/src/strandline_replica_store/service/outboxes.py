"""Delivers the events of all replicas: one pump over many outboxes, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import apsw

from strandline_contracts.errors import StrandlineError
from strandline_replica_store.store.store import Store
from strandline_runtime.bus import Bus
from strandline_runtime.outbox import OutboxPump

PATIENCE_S = 1.0
"""So long a replica is waited for that a thread works in."""


class Outboxes:
    """Knows which replicas may have events to tell, and stands for the first of them.

    The pump asks for pending events and tells which it has delivered; it stays with one replica
    until that has none left.
    """

    def __init__(self, bus: Bus, store: Store, executor: Executor) -> None:
        self._store = store
        self._executor = executor
        self._sources: dict[str, None] = {}
        self._pump = OutboxPump(bus, self._on_first)

    def changed(self, source: str) -> None:
        """Tell (on the event loop) that a replica may have events."""
        self._sources.setdefault(source)
        self._pump.poke()

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop`."""
        await self._pump.run(stop)

    async def _on_first(self, work: Callable[[apsw.Connection], Any]) -> Any:
        """Run `work` on the first replica's database; go on to the next one that gives nothing.

        What fails is not carried on to the next: it may be that an event of this one is to be
        forgotten. The pump begins anew, with the others first.
        """
        while self._sources:
            source = next(iter(self._sources))
            # An event recorded from here on is told by `changed`, which puts the source back.
            del self._sources[source]
            try:
                result = await self._try(source, work)
            except StrandlineError as error:
                if error.retryable:
                    self._sources.setdefault(source)
                raise
            except (apsw.Error, OSError):
                self._sources.setdefault(source)
                raise
            if result != []:
                # Stay with this one: after a page there may be more, and `done` belongs here.
                self._sources = {source: None, **self._sources}
                self._pump.poke()
                return result
        return []

    async def _try(self, source: str, work: Callable[[apsw.Connection], Any]) -> Any:
        def on_database() -> Any:
            replica = self._store.replica(source)
            # A commit may take minutes: the others' events go out meanwhile.
            with replica.within(PATIENCE_S):
                return replica.on_database(work)

        return await asyncio.get_running_loop().run_in_executor(self._executor, on_database)
