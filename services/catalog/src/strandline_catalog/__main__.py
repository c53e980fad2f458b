"""Starts the catalog: `python -m strandline_catalog`."""

from __future__ import annotations

import asyncio
import time

from strandline_catalog.catalog import Catalog
from strandline_catalog.settings import CatalogSettings
from strandline_runtime.keys import trusted_keys
from strandline_runtime.service import Service, run


async def main(ctx: Service[CatalogSettings]) -> None:
    """Compose the catalog and run it until it is told to stop."""
    catalog = Catalog(
        ctx.bus,
        dsn_file=ctx.settings.dsn_file,
        trusted=await asyncio.to_thread(trusted_keys, ctx.settings.trusted_keys),
        now_ns=time.time_ns,
        ready=lambda is_ready: ctx.ready(is_ready=is_ready),
    )
    ctx.detail = catalog.detail
    await catalog.run(ctx.stop)


if __name__ == "__main__":
    run("catalog", CatalogSettings, main)
