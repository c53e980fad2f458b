"""A site as the operator sees it: the bus, the signing key, and the policies."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from strandline_console.errors import ConsoleError, NoSuchThing, WrongUse
from strandline_console.nearest import nearest
from strandline_console.state import VARIABLE, operator_config, state_folder
from strandline_contracts.codec import Message, encode
from strandline_contracts.errors import BadMessage
from strandline_contracts.names import server_from_hostname
from strandline_contracts.policy import (
    Assignment,
    NameEntry,
    Source,
    accept_policy,
    name_key,
    server_key,
)
from strandline_contracts.signing import Authority, Purpose, sign
from strandline_contracts.subjects import POLICY_STREAM, policy_subject
from strandline_runtime import logs
from strandline_runtime.bus import Bus, Stored
from strandline_runtime.errors import BusError, NobodyListens, Unreachable
from strandline_runtime.keys import read_signing_seed, trusted_keys
from strandline_runtime.settings import CONFIG_VARIABLE, Settings, load

CONNECT_WAIT_S = 10.0
ANSWER_WITHIN_S = 10.0
STARTING_WAIT_S = 5.0
"""So long a command waits, in all, for stores that are just being started again."""
STARTING_LOOK_S = 0.2

MAX_TRIES = 5

T = TypeVar("T")
D = TypeVar("D", bound=Message)


class PolicyBusy(ConsoleError):
    """Others wrote the same policy document each time that this command tried to."""

    code = "console.policy_busy"
    hint = "Try again."
    retryable = True


class OperatorSettings(Settings, frozen=True, kw_only=True):
    """`signing_seed` is the operator's seed file; `servers` those whose agents run on this host.

    `state_dir` is the state folder of the stack, where that is on this host.
    """

    signing_seed: Path
    servers: list[str] = msgspec.field(default_factory=list)
    stores: list[str] = msgspec.field(default_factory=lambda: ["store-1"])
    catalog: str = "catalog-1"
    scheduler: str = "scheduler-1"


class Site:
    """The connection of one command, with what it needs to ask, to read policies and to sign."""

    def __init__(self, bus: Bus, settings: OperatorSettings) -> None:
        self.bus = bus
        self.settings = settings
        self.trusted: Mapping[bytes, Authority] = trusted_keys(settings.trusted_keys)
        self._seed = read_signing_seed(settings.signing_seed)
        self._waits = int(STARTING_WAIT_S / STARTING_LOOK_S)

    async def ask_store(self, store: str, call: str, request: Message, reply: type[T]) -> T:
        """Ask a store; wait a little where nobody listens. Raises as Bus.call does.

        What the bus may have lost by going away is asked again.
        """
        while True:
            reconnects = self.bus.reconnects
            try:
                return await self.bus.call(
                    "store", store, call, request, reply, timeout_s=ANSWER_WITHIN_S
                )
            except NobodyListens:
                if not self._waits:
                    raise
            except Unreachable:
                if self.bus.reconnects == reconnects:
                    raise
                continue
            self._waits -= 1
            await asyncio.sleep(STARTING_LOOK_S)

    def signed(self, message: Message, purpose: Purpose) -> bytes:
        """Return `message` signed by the operator for `purpose`."""
        return encode(sign(self._seed, purpose, encode(message)))

    def here(self) -> str:
        """Return the server that this host is, for commands that name none. Raises WrongUse."""
        host = server_from_hostname(socket.gethostname())
        servers = self.settings.servers
        if not servers or host in servers:
            return host
        if len(servers) == 1:
            return servers[0]
        raise WrongUse(
            "several servers' agents run on this host",
            hint=f"Name one with --server: {', '.join(servers)}.",
        )

    def is_here(self, server: str) -> bool:
        """Tell whether the files of `server` are those of this host."""
        host = server_from_hostname(socket.gethostname())
        return server in self.settings.servers or server == host

    async def policy(self, key: str, kind: type[T]) -> tuple[T | None, int]:
        """Return a signed document of the policy bucket and its revision; (None, 0) for none."""
        stored = await self.bus.last_stored(POLICY_STREAM, policy_subject(key))
        if stored is None or not stored.data:
            return None, stored.seq if stored is not None else 0
        return self._accepted(stored, kind), stored.seq

    async def put_policy(self, key: str, document: Message, revision: int) -> None:
        """Write a signed document over that of `revision` (0: none); else raise bus.conflict."""
        await self.bus.publish(
            policy_subject(key),
            self.signed(document, "policy"),
            headers={"Nats-Expected-Last-Subject-Sequence": str(revision)},
        )

    async def change_policy(self, key: str, kind: type[D], change: Callable[[D | None], D]) -> D:
        """Write what `change` makes of a document (None: none), again if others were quicker.

        Returns what was written, or found when that is the same. Raises PolicyBusy, BusError.
        """
        for _ in range(MAX_TRIES):
            found, revision = await self.policy(key, kind)
            document = change(found)
            if document == found or await self.try_policy(key, document, revision):
                return document
        raise PolicyBusy(f"the policy {key} was changed by others all the time")

    async def try_policy(self, key: str, document: Message, revision: int) -> bool:
        """Write a policy document; False if somebody else has written one since `revision`."""
        try:
            await self.put_policy(key, document, revision)
        except BusError as error:
            if error.code == "bus.conflict":
                return False
            raise
        return True

    async def documents(self, prefix: str, kind: type[T]) -> list[T]:
        """Return all signed documents whose keys begin with `prefix` and a dot."""
        subject = policy_subject(f"{prefix}.*")
        return [
            self._accepted(stored, kind)
            async for stored in self.bus.snapshot(POLICY_STREAM, subject)
            if stored.data
        ]

    async def assignments(self) -> list[Assignment]:
        """Return the assignments of all servers."""
        return await self.documents("server", Assignment)

    async def sources(self) -> list[Source]:
        """Return all data sources by name, those no longer protected included."""
        sources = [source for one in await self.assignments() for source in one.sources]
        return sorted(sources, key=lambda source: source.name)

    async def source(self, name: str) -> Source:
        """Return the data source called `name`. Raises NoSuchThing with names like it."""
        entry, _ = await self.policy(name_key(name), NameEntry)
        if entry is not None:
            assignment, _ = await self.policy(server_key(entry.server), Assignment)
            for source in assignment.sources if assignment is not None else []:
                if source.id == entry.source:
                    return source
        names = [source.name for source in await self.sources()]
        raise NoSuchThing(
            f"no data source is called {name!r}",
            nearest=nearest(name, names),
            hint="`strandline status` lists them." if names else "Nothing is protected yet.",
        )

    async def known_server(self, server: str) -> str:
        """Return `server` if it is known, else raise NoSuchThing with names like it."""
        known = {*self.settings.servers, *(one.server for one in await self.assignments())}
        if server not in known:
            raise NoSuchThing(
                f"no server is called {server!r}",
                nearest=nearest(server, sorted(known)),
                hint=f"Known servers: {', '.join(sorted(known)) or 'none'}.",
            )
        return server

    def _accepted(self, stored: Stored, kind: type[T]) -> T:
        document = accept_policy(stored.data, stored.subject, self.trusted)
        if not isinstance(document, kind):
            raise BadMessage(f"{stored.subject} holds no {kind.__name__}")
        return document


@asynccontextmanager
async def open_site(state: str) -> AsyncIterator[Site]:
    """Connect as the operator of the stack on `state`, or of the one that STRANDLINE_CONFIG names.

    Raises NotUp, SettingsError, BusError.
    """
    settings = operator_settings(state)
    # nats-py and the runtime speak of lost connections; the command tells what it means instead.
    logs.set_up("error", "console")
    bus = await Bus.connect(settings, "operator", wait_s=CONNECT_WAIT_S)
    try:
        yield Site(bus, settings)
    finally:
        await bus.close()


def operator_settings(state: str) -> OperatorSettings:
    """Return the operator's settings: a folder that is named goes before a settings file."""
    remote = os.environ.get(CONFIG_VARIABLE)
    if remote and not state and VARIABLE not in os.environ:
        return load(OperatorSettings)
    return load(OperatorSettings, {CONFIG_VARIABLE: str(operator_config(state_folder(state)))})


def with_site(state: str, work: Callable[[Site], Awaitable[T]]) -> T:
    """Run `work` with a connected site and return its result."""

    async def connected() -> T:
        async with open_site(state) as site:
            return await work(site)

    return asyncio.run(connected())


def now_ns() -> int:
    return time.time_ns()
