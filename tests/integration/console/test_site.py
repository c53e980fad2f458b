"""What a command asks a site, on a real bus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest_asyncio

from strandline_console.site import OperatorSettings, Site
from strandline_console.site_status import catalogued
from strandline_contracts.codec import decode
from strandline_contracts.policy import Source
from strandline_contracts.queries import SourceList, Sources, SourceState
from strandline_runtime.bus import Bus, Request
from support.nats import SiteBus

Connect = Callable[..., Awaitable[Bus]]


@pytest_asyncio.fixture
async def operator(site: SiteBus, connect: Connect) -> Site:
    base = site.settings("operator")
    settings = OperatorSettings(
        site=base.site,
        instance=base.instance,
        nats_urls=base.nats_urls,
        credential=base.credential,
        trusted_keys=base.trusted_keys,
        state_dir=base.state_dir,
        signing_seed=site.folder / "keys" / "operator.seed",
        catalog="1",
    )
    return Site(await connect("operator"), settings)


async def test_status_asks_for_every_page_of_the_sources(operator: Site, connect: Connect) -> None:
    states = [
        SourceState(
            source=Source(id=f"{n:016x}", name=f"n{n}", type="files", server="w", store="s"),
            points=n,
        )
        for n in range(1, 6)
    ]

    async def sources(request: Request) -> SourceList:
        asked = decode(request.data, Sources)
        page = [state for state in states if state.source.name > asked.after]
        return SourceList(sources=page[:2], more=len(page) > 2)

    catalog = await connect("catalog")
    await catalog.serve({"sources": sources})
    assert await catalogued(operator) == states
