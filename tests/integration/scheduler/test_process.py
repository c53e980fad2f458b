"""The scheduler as a process of its own: settings from a file, ready, and a clean end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from strandline_contracts.queries import Status, StatusIs
from strandline_runtime.bus import Bus
from strandline_runtime.errors import Unreachable
from support.nats import SiteBus
from support.waiting import until


async def test_it_starts_gets_ready_and_ends_cleanly(
    site: SiteBus, connect: Callable[..., Awaitable[Bus]], tmp_path: Path
) -> None:
    plain = site.settings("scheduler")
    config = tmp_path / "scheduler.toml"
    config.write_text(
        f'instance = "{plain.instance}"\nnats_urls = ["{site.server.url}"]\n'
        f'credential = "{plain.credential}"\ntrusted_keys = "{plain.trusted_keys}"\n'
        f'state_dir = "{plain.state_dir}"\n'
        f'signing_seed = "{site.folder / "keys" / "scheduler.seed"}"\n'
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "strandline_scheduler"),
        env={**os.environ, "STRANDLINE_CONFIG": str(config)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        operator = await connect("operator")

        async def ready() -> bool:
            try:
                answer = await operator.call("scheduler", "1", "status", Status(), StatusIs)
            except Unreachable:
                return False
            return bool(answer.ready) and answer.detail["policies"] == "followed"

        await until(ready, "ready", timeout_s=20)
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), 15)
        assert process.returncode == 0, log.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
