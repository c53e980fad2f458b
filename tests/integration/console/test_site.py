"""What a command asks a site, on a real bus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest_asyncio

from strandline_console.moment import At
from strandline_console.points import find_point
from strandline_console.site import OperatorSettings, Site
from strandline_console.site_status import catalogued
from strandline_contracts.codec import decode
from strandline_contracts.policy import Source
from strandline_contracts.queries import SourceList, Sources, SourceState
from strandline_contracts.reading import PointPage, Points
from strandline_runtime.bus import Bus, Request
from support.examples import POINT
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


async def test_the_newest_is_the_last_whatever_its_clock_said(
    operator: Site, connect: Connect
) -> None:
    """The catalog is away; the second of three points was taken while a clock was ahead."""
    source = Source(id=f"{1:016x}", name="n", type="files", server="web-1", store="store-1")
    points = [
        msgspec.structs.replace(POINT, number=number, taken_at_ns=taken)
        for number, taken in ((1, 10), (2, 99), (3, 30))
    ]

    async def answer(request: Request) -> PointPage:
        asked = decode(request.data, Points)
        found = [point for point in points if point.number > asked.after]
        return PointPage(points=found[: asked.limit], more=False)

    store = await connect("store")
    await store.serve({"points": answer})
    assert (await find_point(operator, source, At())).number == 3
    assert (await find_point(operator, source, At(time_ns=50))).number == 3
    assert (await find_point(operator, source, At(time_ns=99))).number == 2
