"""Follows the policy bucket: which data sources there are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from strandline_catalog.database import Database
from strandline_catalog.errors import DatabaseDown
from strandline_catalog.record import put_sources
from strandline_contracts.errors import StrandlineError
from strandline_contracts.policy import Assignment, Source, accept_policy, server_key
from strandline_contracts.signing import Authority
from strandline_contracts.subjects import POLICY_STREAM, policy_subject
from strandline_runtime.bus import Bus
from strandline_runtime.errors import BusError
from strandline_runtime.logs import logger
from strandline_runtime.patience import set_within

REFRESH_S = 60.0
SETTLE_S = 0.2
"""Changes that come together are read together."""
RETRY_S = 2.0

_SERVERS = policy_subject(server_key(""))


class Assigned(NamedTuple):
    """What the bucket's documents of servers say, and those that are not believed."""

    sources: list[Source]
    refused_servers: list[str]


def read_sources(documents: Mapping[str, bytes], trusted: Mapping[bytes, Authority]) -> Assigned:
    """Return the sources that the documents (subject to signed bytes) assign. Pure."""
    found = Assigned([], [])
    for subject, data in documents.items():
        try:
            document = accept_policy(data, subject, trusted)
        except StrandlineError:
            found.refused_servers.append(subject.removeprefix(_SERVERS))
            continue
        if isinstance(document, Assignment):
            found.sources.extend(document.sources)
    return found


class SourceKeeper:
    """Keeps the table of sources as the policy bucket has it.

    What is heard on the bus is a hint: it may never have been stored. The bucket is read then, and
    each 60 s.
    """

    def __init__(
        self,
        bus: Bus,
        database: Database,
        trusted: Mapping[bytes, Authority],
        changed: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._database = database
        self._trusted = trusted
        self._changed = changed
        self._look = asyncio.Event()
        self._written: tuple[int, dict[str, bytes]] = (0, {})
        self._log = logger()
        self.refused = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the table until `stop` is set."""
        self._bus.on_reconnect(self._reconnected)
        end_listening = await self._bus.subscribe(f"{_SERVERS}*", self._hinted)
        try:
            while not stop.is_set():
                self._look.clear()
                wait_s = REFRESH_S
                try:
                    await self._database.up.wait()
                    await self._refresh()
                except (DatabaseDown, BusError) as error:
                    self._log.warning("catalog.sources_wait", code=error.code, error=error.message)
                    wait_s = RETRY_S
                await set_within(self._look, wait_s)
                await asyncio.sleep(SETTLE_S)
        finally:
            with contextlib.suppress(BusError):
                await end_listening()

    def look(self) -> None:
        """Read the bucket soon."""
        self._look.set()

    async def _hinted(self, _subject: str, _data: bytes) -> None:
        self.look()

    async def _reconnected(self) -> None:
        self.look()

    async def _refresh(self) -> None:
        documents = {
            stored.subject: stored.data
            async for stored in self._bus.snapshot(POLICY_STREAM, f"{_SERVERS}*")
            if stored.data
        }
        written = (self._database.generation, documents)
        if written == self._written:
            return
        assigned = read_sources(documents, self._trusted)
        for server in assigned.refused_servers:
            self._log.error("catalog.policy_refused", server=server)
        async with self._database.writing() as connection:
            await put_sources(connection, assigned.sources, assigned.refused_servers)
        self.refused = len(assigned.refused_servers)
        self._written = written
        self._changed()
