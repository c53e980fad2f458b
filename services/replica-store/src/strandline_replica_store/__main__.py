"""The replica store's process: puts the parts together and runs them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from strandline_contracts.commands import Command
from strandline_contracts.names import caller
from strandline_contracts.streams import STORE_CONSUMER
from strandline_contracts.subjects import blocks_stream
from strandline_replica_store.checking.scrub import Scrub
from strandline_replica_store.checking.verify_job import VerifyJob
from strandline_replica_store.forgetting.clock_guard import ClockGuard
from strandline_replica_store.forgetting.forget import Forgetting
from strandline_replica_store.forgetting.policies import Policies
from strandline_replica_store.forgetting.retention import DAY_NS
from strandline_replica_store.housekeeping import Housekeeping
from strandline_replica_store.pace import Pace
from strandline_replica_store.replica.replica import RESERVE_BYTES
from strandline_replica_store.service.admission import Admission
from strandline_replica_store.service.answers import Answers
from strandline_replica_store.service.jobs import VERBS, StoreJobs, is_wanted_back
from strandline_replica_store.service.outboxes import Outboxes
from strandline_replica_store.service.receive import Receiver
from strandline_replica_store.store import way_out
from strandline_replica_store.store.events import StoreEvents
from strandline_replica_store.store.leases import LEASE_S
from strandline_replica_store.store.store import Store
from strandline_runtime.assignments import read_assignment
from strandline_runtime.consume import consume
from strandline_runtime.journal import Journal
from strandline_runtime.keys import trusted_keys
from strandline_runtime.logs import logger
from strandline_runtime.outbox import OutboxPump
from strandline_runtime.service import Service, run
from strandline_runtime.settings import Settings
from strandline_runtime.targets import CommandReceiver, JobRunner

WRITE_THREADS = 2
COMMIT_THREADS = 4
"""A commit may take minutes: while so many go on, others' batches are taken all the same."""
READ_THREADS = 2
PULL_BATCH = 12
MAX_JOBS = 4


class StoreSettings(Settings, frozen=True, kw_only=True):
    """`root` is the store's folder, below `state_dir` unless said. No job is taken while fewer
    than `reserve_bytes` bytes are free on its disk. What is deleted, or let go by a shorter
    policy, stays for `delete_delay_days` days. A reader that pauses for `lease_s` seconds loses
    its claim to what it reads; after a start nothing goes for so long. Every
    `housekeeping_every_s` seconds the store looks after its replicas; for that it reads and writes
    at most `background_bytes_per_second`, and verifies everything once in `scrub_days` days."""

    root: str = ""
    reserve_bytes: int = RESERVE_BYTES
    delete_delay_days: float = 7
    lease_s: float = LEASE_S
    background_bytes_per_second: int = 64 * 1024 * 1024
    scrub_days: float = 30
    housekeeping_every_s: float = 60


async def main(service: Service[StoreSettings]) -> None:
    """Run the store until the service is to stop."""
    settings, bus, stop = service.settings, service.bus, service.stop
    trusted = trusted_keys(settings.trusted_keys)
    root = settings.root or str(settings.state_dir / "store")
    store = await asyncio.to_thread(_open_store, settings, root)
    writing = ThreadPoolExecutor(WRITE_THREADS, "write")
    committing = ThreadPoolExecutor(COMMIT_THREADS, "commit")
    reading = ThreadPoolExecutor(READ_THREADS, "read")
    journal = await asyncio.to_thread(
        Journal,
        settings.state_dir / "journal.db",
        site=settings.site,
        origin=caller("store", settings.instance),
    )
    outboxes = Outboxes(bus, store, writing)
    receiver = Receiver(store, writing, committing, outboxes.changed)
    admission = Admission(
        settings.site,
        settings.instance,
        trusted,
        lambda server: read_assignment(bus, server, trusted),
    )
    answers = Answers(store, receiver, admission, reading, max_answer_bytes=bus.max_payload_bytes)
    jobs_pump = OutboxPump(bus, lambda work: asyncio.to_thread(journal.on_database, work))
    loop = asyncio.get_running_loop()
    events = StoreEvents(
        journal,
        settings.site,
        settings.instance,
        lambda: _soon(loop, jobs_pump.poke),
    )
    clock = await asyncio.to_thread(ClockGuard, root, events.clock)
    store.now_ns = clock.receipt_ns
    policies = Policies(bus, settings.instance, trusted)
    delay_ns = int(max(settings.delete_delay_days, 0) * DAY_NS)
    forgetting = Forgetting(
        store,
        policies,
        clock,
        events,
        delay_ns=delay_ns,
        is_wanted_back=lambda source: is_wanted_back(journal, source),
        on_change=lambda source: _soon(loop, outboxes.changed, source),
    )
    pace = Pace(settings.background_bytes_per_second)
    housekeeping = Housekeeping(
        store,
        pace,
        forget=forgetting.run,
        scrub=Scrub(store, pace, days=settings.scrub_days).run,
        every_s=settings.housekeeping_every_s,
        on_change=outboxes.changed,
    )
    jobs = StoreJobs(
        store,
        policies,
        clock,
        events,
        delay_ns=delay_ns,
        verify=VerifyJob(store, outboxes.changed).run,
        compact=_compactor(forgetting, housekeeping),
        refuse=receiver.refuse,
        on_change=lambda source: _soon(loop, outboxes.changed, source),
    )
    runner = JobRunner(bus, journal, jobs.run, max_jobs=MAX_JOBS, poke=jobs_pump.poke)
    commands = CommandReceiver(
        bus,
        journal,
        trusted,
        verbs=VERBS,
        sources=store.sources,
        on_command=_starter(runner),
        on_cancel=runner.cancel,
        poke=jobs_pump.poke,
    )
    try:
        await bus.serve({**answers.handlers(), "job": commands.answer_job})
        await commands.start()
        await runner.resume()
        for source in store.sources():
            outboxes.changed(source)
        service.detail = lambda: {"root": root, "replicas": str(len(store.sources()))}
        service.ready(is_ready=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(jobs_pump.run(stop))
            group.create_task(outboxes.run(stop))
            group.create_task(_look_after(forgetting, housekeeping, stop))
            group.create_task(_once(stop, forgetting.stop))
            group.create_task(
                consume(
                    bus,
                    blocks_stream(settings.instance),
                    STORE_CONSUMER,
                    receiver.handle,
                    batch=PULL_BATCH,
                    stop=stop,
                )
            )
    finally:
        service.ready(is_ready=False)
        await runner.stop()
        await asyncio.to_thread(writing.shutdown)
        await asyncio.to_thread(committing.shutdown)
        await asyncio.to_thread(reading.shutdown)
        await asyncio.to_thread(store.close)
        await asyncio.to_thread(journal.close)


def _open_store(settings: StoreSettings, root: str) -> Store:
    store = Store(
        root,
        name=settings.instance,
        site=settings.site,
        reserve_bytes=settings.reserve_bytes,
        lease_s=settings.lease_s,
    )
    # Large sorts of the index spill to where there is room for replicas, not to /var/tmp.
    os.environ.setdefault("SQLITE_TMPDIR", root)
    try:
        way_out.leave(root)
    except OSError as error:
        # Most often the disk is full: what is kept can be read without it.
        logger().warning("way_out.later", error=str(error))
    return store


def _soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *values: str) -> None:
    """Call a function on the event loop from any thread; after the loop's end there is no need."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *values)


def _compactor(
    forgetting: Forgetting, housekeeping: Housekeeping
) -> Callable[[str], Awaitable[str]]:
    async def compact(source: str) -> str:
        dropped, waits = await forgetting.run(source, force=True)
        said = f"{len(dropped)} recovery points dropped" + (f" ({waits})" if waits else "")
        report = await housekeeping.compact_now(source)
        return f"{said}; {report.text()}"

    return compact


async def _once(stop: asyncio.Event, function: Callable[[], None]) -> None:
    try:
        await stop.wait()
    finally:
        function()


async def _look_after(
    forgetting: Forgetting, housekeeping: Housekeeping, stop: asyncio.Event
) -> None:
    await forgetting.resume()
    await housekeeping.run(stop)


def _starter(runner: JobRunner) -> Callable[[Command], Awaitable[None]]:
    async def start(command: Command) -> None:
        runner.start(command)

    return start


if __name__ == "__main__":
    run("store", StoreSettings, main)
