"""The agent's process: puts the parts together and runs them."""

from __future__ import annotations

import asyncio

from strandline_agent.assigned import Assigned
from strandline_agent.run_jobs import VERBS, AgentJobs
from strandline_agent.settings import AgentSettings
from strandline_contracts.commands import Assign, Command
from strandline_contracts.errors import StrandlineError
from strandline_contracts.names import caller
from strandline_runtime.assignments import read_assignment
from strandline_runtime.journal import Journal
from strandline_runtime.keys import trusted_keys
from strandline_runtime.outbox import OutboxPump
from strandline_runtime.service import Service, run
from strandline_runtime.targets import CommandReceiver, JobRunner


async def main(service: Service[AgentSettings]) -> None:
    """Run the agent until the service is to stop."""
    settings, bus = service.settings, service.bus
    trusted = trusted_keys(settings.trusted_keys)
    journal = await asyncio.to_thread(
        Journal,
        settings.journal_path,
        site=settings.site,
        origin=caller("agent", settings.instance),
    )
    assigned = Assigned(
        settings.instance,
        settings.assignment_path,
        lambda: read_assignment(bus, settings.instance, trusted),
    )
    pump = OutboxPump(bus, lambda work: asyncio.to_thread(journal.on_database, work))
    jobs = AgentJobs(bus, settings, assigned)
    runner = JobRunner(bus, journal, jobs.run, max_jobs=settings.max_jobs, poke=pump.poke)

    async def refresh() -> None:
        try:
            await assigned.refresh()
        except StrandlineError as error:
            # The last good one stays in force; a reconnection or `assign` reads again.
            service.log.warning("assignment.not_read", code=error.code, error=str(error))

    async def on_command(command: Command) -> None:
        await refresh()
        if not isinstance(command.args, Assign):
            runner.start(command)

    commands = CommandReceiver(
        bus,
        journal,
        trusted,
        verbs=VERBS,
        sources=assigned.ids,
        on_command=on_command,
        on_cancel=runner.cancel,
        poke=pump.poke,
    )
    service.detail = lambda: {
        "sources": str(len(assigned.ids())),
        "jobs running": str(len(runner.running())),
    }
    await refresh()
    bus.on_reconnect(refresh)
    pumping = asyncio.create_task(pump.run(service.stop))
    try:
        await bus.serve({"job": commands.answer_job})
        await runner.resume()
        await commands.start()
        service.ready(is_ready=True)
        await service.stop.wait()
    finally:
        service.ready(is_ready=False)
        await runner.stop()
        pumping.cancel()
        await asyncio.wait({pumping})
        await asyncio.to_thread(journal.close)


if __name__ == "__main__":
    run("agent", AgentSettings, main)
