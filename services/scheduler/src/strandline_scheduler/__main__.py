"""Starts the scheduler: `python -m strandline_scheduler`."""

from __future__ import annotations

import time

from strandline_runtime.keys import read_signing_seed, trusted_keys
from strandline_runtime.service import Service, run
from strandline_scheduler.scheduler import Scheduler
from strandline_scheduler.settings import SchedulerSettings
from strandline_scheduler.state import State


async def main(ctx: Service[SchedulerSettings]) -> None:
    """Compose the scheduler and run it until it is told to stop."""
    settings = ctx.settings
    scheduler = Scheduler(
        ctx.bus,
        seed=read_signing_seed(settings.signing_seed),
        trusted=trusted_keys(settings.trusted_keys),
        state=State(settings.state_dir),
        now_ns=time.time_ns,
    )
    ctx.detail = scheduler.detail
    await ctx.bus.serve({})
    ctx.ready(is_ready=True)
    await scheduler.run(ctx.stop)


if __name__ == "__main__":
    run("scheduler", SchedulerSettings, main)
