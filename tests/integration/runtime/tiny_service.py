"""A service of nothing, for tests of the shell around services: run as a script."""

from __future__ import annotations

import asyncio

from strandline_contracts.codec import Message
from strandline_contracts.queries import SourceList
from strandline_runtime.bus import Request
from strandline_runtime.service import Service, run
from strandline_runtime.settings import Settings


class TinySettings(Settings, frozen=True, kw_only=True):
    behave: str = "well"


async def main(ctx: Service[TinySettings]) -> None:
    if ctx.settings.behave == "fail":
        raise ZeroDivisionError("as told")

    async def close_for_good(request: Request) -> Message:
        # Past the runtime's own check: the server then closes the connection.
        await ctx.bus._nc.publish("strandline.v1.hq.evt.x", bytes(1 << 20), headers={"a": "b"})
        return SourceList(sources=[])

    async def answer(request: Request) -> Message:
        return SourceList(sources=[])

    ctx.detail = lambda: {"jobs": "0"}
    await ctx.bus.serve({"close_for_good": close_for_good, "sources": answer})
    ctx.ready(True)
    await ctx.stop.wait()
    if ctx.settings.behave == "linger":
        await asyncio.sleep(60)


if __name__ == "__main__":
    run("catalog", TinySettings, main)
