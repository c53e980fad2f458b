"""A store's process on a real bus, and a small agent that ships to it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from strandline_contracts import streams
from strandline_contracts.codec import Message, encode
from strandline_contracts.commands import Grant
from strandline_contracts.policy import Assignment, Source, server_key
from strandline_contracts.queries import Status, StatusIs
from strandline_contracts.shipping import Mismatch, Open, Opened, Wait, Waited
from strandline_contracts.signing import sign
from strandline_contracts.subjects import policy_subject
from strandline_runtime.bus import Bus
from strandline_runtime.errors import RuntimeFault
from support.nats import SiteBus
from support.replicas import SERVER, SOURCE, end_of
from support.waiting import until

STORE = "store-1"
FAR_NS = 1 << 62


class StoreProcess:
    """`python -m strandline_replica_store`; killed and started again at will."""

    def __init__(self, site: SiteBus, **settings: str) -> None:
        mine = site.settings("store")
        self.folder = mine.state_dir
        self.log = site.folder / "store.log"
        self._process: subprocess.Popen[bytes] | None = None
        values = {
            "site": mine.site,
            "instance": mine.instance,
            "nats_urls": mine.nats_urls[0],
            "credential": str(mine.credential),
            "trusted_keys": str(mine.trusted_keys),
            "state_dir": str(mine.state_dir),
            "reserve_bytes": "0",
            **settings,
        }
        self.environ = {
            **os.environ,
            **{f"STRANDLINE_{key.upper()}": value for key, value in values.items()},
        }

    @property
    def replica(self) -> Path:
        return self.folder / "store" / "replicas" / SOURCE

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "strandline_replica_store"],
                env=self.environ,
                stdout=log,
                stderr=log,
            )

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(15)
        finally:
            process.kill()


async def ready(bus: Bus) -> None:
    """Wait until the store answers that it is ready."""

    async def is_ready() -> bool:
        try:
            found = await bus.call("store", STORE, "status", Status(), StatusIs, timeout_s=1)
        except RuntimeFault:
            return False
        return found.ready

    await until(is_ready, "the store to be ready", 20)


async def assign(operator: Bus, seed: bytes, *, store: str = STORE, protected: bool = True) -> None:
    """Put the signed assignment of the one source."""
    source = Source(
        id=SOURCE,
        name="data",
        type="files",
        server=SERVER,
        store=store,
        paths=[b"/srv"],
        protected=protected,
    )
    body = encode(Assignment(server=SERVER, revision=1, sources=[source]))
    signed = encode(sign(seed, "policy", body))
    await operator.publish(policy_subject(server_key(SERVER)), signed)


class FakeAgent:
    """Ships made-up jobs as an agent does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.subject = bus.subjects.blocks(STORE, SERVER, SOURCE)

    async def ask(self, call: str, request: Message, reply: Any) -> Any:
        return await self.bus.call("store", STORE, call, request, reply, timeout_s=10)

    async def open(self, job: str, attempt: int = 1, kind: Any = "express_full") -> Opened:
        """Open on whatever is newest."""
        request = Open(
            source=SOURCE, job=job, attempt=attempt, kind=kind, parent=0, parent_digest=b""
        )
        found: Opened | Mismatch = await self.ask("open", request, Opened | Mismatch)
        if isinstance(found, Mismatch):
            assert found.newest is not None
            request = Open(
                source=SOURCE,
                job=job,
                attempt=attempt,
                kind=kind,
                parent=found.newest.number,
                parent_digest=found.newest.digest,
            )
            found = await self.ask("open", request, Opened)
        assert isinstance(found, Opened)
        return found

    async def send(self, message: bytes | Message) -> None:
        data = message if isinstance(message, bytes) else encode(message)
        await self.bus.publish(self.subject, data)

    async def wait(self, job: str, seq: int, attempt: int = 1) -> Waited:
        """Wait until batch `seq` is durable or the job has ended."""

        async def look() -> Waited | None:
            request = Wait(source=SOURCE, job=job, attempt=attempt, seq=seq, timeout_ms=1000)
            try:
                found: Waited = await self.ask("wait", request, Waited)
            except RuntimeFault:
                return None
            return found if found.state != "open" or found.durable > seq else None

        waited: Waited = await until(look, f"batch {seq} of {job}", 20)
        return waited

    async def ship(
        self,
        job: str,
        messages: list[bytes],
        attempt: int = 1,
        *,
        shuffle: int | None = None,
        twice: bool = False,
    ) -> Waited:
        """Ship a whole job; out of order (by a seed), or each message twice, when told."""
        opened = await self.open(job, attempt)
        if opened.point is not None:
            return Waited(state="committed", durable=0, point=opened.point)
        end = encode(end_of(job, messages, attempt))
        sent = [*messages, end] * (2 if twice else 1)
        if shuffle is not None:
            random.Random(shuffle).shuffle(sent)
        for message in sent:
            await self.send(message)
        return await self.wait(job, len(messages), attempt)


def grant_for(site: SiteBus, grantee: str, point: int, paths: list[bytes] | None = None) -> bytes:
    body = Grant(
        site="hq",
        store=STORE,
        source=SOURCE,
        point=point,
        grantee=grantee,
        job="restore",
        not_after_ns=FAR_NS,
        paths=paths or [],
    )
    return encode(sign(site.operator_seed, "grant", encode(body)))


@pytest.fixture(autouse=True)
def quick_redelivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed store had in hand comes again after 2 s, not 15: fixtures provision later."""
    monkeypatch.setattr(streams, "STORE_ACK_WAIT_NS", 2 * streams.SECOND_NS)


@pytest_asyncio.fixture
async def operator(connect: Callable[..., Awaitable[Bus]]) -> Bus:
    return await connect("operator")


@pytest_asyncio.fixture
async def store(site: SiteBus, operator: Bus) -> AsyncIterator[StoreProcess]:
    process = StoreProcess(site)
    process.start()
    await assign(operator, site.operator_seed)
    await ready(operator)
    yield process
    process.end()


@pytest_asyncio.fixture
async def agent(connect: Callable[..., Awaitable[Bus]], store: StoreProcess) -> FakeAgent:
    return FakeAgent(await connect("agent"))
