"""The replica store's process: puts the parts together and runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from strandline_contracts.commands import Command
from strandline_contracts.names import caller
from strandline_contracts.streams import STORE_CONSUMER
from strandline_contracts.subjects import blocks_stream
from strandline_replica_store.admission import Admission
from strandline_replica_store.answers import Answers
from strandline_replica_store.outboxes import Outboxes
from strandline_replica_store.receive import Receiver
from strandline_replica_store.replica import RESERVE_BYTES
from strandline_replica_store.store import Store
from strandline_replica_store.verify_job import VerifyJob
from strandline_runtime.assignments import read_assignment, trusted_keys
from strandline_runtime.consume import consume
from strandline_runtime.journal import Journal
from strandline_runtime.outbox import OutboxPump
from strandline_runtime.service import Service, run
from strandline_runtime.settings import Settings
from strandline_runtime.targets import CommandReceiver, JobRunner

WRITE_THREADS = 2
READ_THREADS = 2
PULL_BATCH = 12
MAX_VERIFIES = 1


class StoreSettings(Settings, frozen=True, kw_only=True):
    """`root` is the store's folder, below `state_dir` unless said. No job is taken while fewer
    than `reserve_bytes` bytes are free on its disk."""

    root: str = ""
    reserve_bytes: int = RESERVE_BYTES


async def main(service: Service[StoreSettings]) -> None:
    """Run the store until the service is to stop."""
    settings, bus, stop = service.settings, service.bus, service.stop
    trusted = trusted_keys(settings.trusted_keys)
    root = settings.root or str(settings.state_dir / "store")
    store = await asyncio.to_thread(_open_store, settings, root)
    writing = ThreadPoolExecutor(WRITE_THREADS, "write")
    reading = ThreadPoolExecutor(READ_THREADS, "read")
    journal = await asyncio.to_thread(
        Journal,
        settings.state_dir / "journal.db",
        site=settings.site,
        origin=caller("store", settings.instance),
    )
    outboxes = Outboxes(bus, store, writing)
    receiver = Receiver(store, writing, outboxes.changed)
    admission = Admission(
        settings.site,
        settings.instance,
        trusted,
        lambda server: read_assignment(bus, server, trusted),
    )
    answers = Answers(store, receiver, admission, reading, max_answer_bytes=bus.max_payload_bytes)
    jobs_pump = OutboxPump(bus, lambda work: asyncio.to_thread(journal.on_database, work))
    runner = JobRunner(
        bus,
        journal,
        VerifyJob(store, outboxes.changed).run,
        max_jobs=MAX_VERIFIES,
        poke=jobs_pump.poke,
    )
    commands = CommandReceiver(
        bus,
        journal,
        trusted,
        verbs=["verify"],
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
        await asyncio.to_thread(reading.shutdown)
        await asyncio.to_thread(store.close)
        await asyncio.to_thread(journal.close)


def _open_store(settings: StoreSettings, root: str) -> Store:
    return Store(
        root, name=settings.instance, site=settings.site, reserve_bytes=settings.reserve_bytes
    )


def _starter(runner: JobRunner) -> Callable[[Command], Awaitable[None]]:
    async def start(command: Command) -> None:
        runner.start(command)

    return start


if __name__ == "__main__":
    run("store", StoreSettings, main)
