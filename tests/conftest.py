"""Fixtures that every test may use: a real nats-server, and a whole site's bus on one."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from strandline_contracts.names import Role
from strandline_runtime.bus import Bus
from support.nats import NatsServer, SiteBus

# A shell starts what runs in its background with SIGINT ignored, and children inherit that:
# a command that a test interrupts would go on for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

PLAIN_CONFIG = """
listen: "127.0.0.1:{port}"
jetstream { store_dir: "{dir}/jetstream" }
"""


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server with JetStream that lets everybody in, started."""
    server = NatsServer(tmp_path / "nats", PLAIN_CONFIG)
    server.start()
    yield server
    server.stop()


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[SiteBus]:
    """A site's bus with one instance of each role, provisioned."""
    bus = SiteBus(tmp_path / "site")
    await bus.start()
    yield bus
    bus.server.stop()


@pytest_asyncio.fixture
async def connect(site: SiteBus) -> AsyncIterator[Callable[..., Awaitable[Bus]]]:
    """Connects to `site` in a role; what it gave is closed at the end."""
    made: list[Bus] = []

    async def connect_as(role: Role, instance: str | None = None) -> Bus:
        bus = await site.connect(role, instance)
        made.append(bus)
        return bus

    yield connect_as
    for bus in made:
        await bus.close()
