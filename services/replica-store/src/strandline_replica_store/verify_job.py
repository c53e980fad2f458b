"""The command `verify` as a job: runs the check in threads, tells damage, ends with a verdict."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from strandline_contracts.events import DamageFound
from strandline_contracts.points import Totals
from strandline_replica_store.errors import Damaged
from strandline_replica_store.store import Store
from strandline_replica_store.verify import Cancelled, Report, verify
from strandline_runtime.targets import JobCancelled, JobContext, Outcome

NAMED_PATHS = 5


class VerifyJob:
    """Verifies the replica that a command names; `on_change` hears of new events."""

    def __init__(self, store: Store, on_change: Callable[[str], None]) -> None:
        self._store = store
        self._on_change = on_change

    async def run(self, context: JobContext) -> Outcome:
        """Verify once. Raises Damaged (code store.damage) when anything is damaged."""
        source = context.command.source
        stop = threading.Event()
        loop = asyncio.get_running_loop()

        def on_progress(done_bytes: int) -> None:
            loop.call_soon_threadsafe(lambda: context.progress("verify", done_bytes=done_bytes))

        working = asyncio.ensure_future(asyncio.to_thread(self._verify, source, on_progress, stop))
        cancelled = asyncio.ensure_future(context.cancelled.wait())
        try:
            await asyncio.wait({working, cancelled}, return_when=asyncio.FIRST_COMPLETED)
            if cancelled.done():
                stop.set()
            report = await working
        except Cancelled as error:
            raise JobCancelled("verify was cancelled") from error
        finally:
            stop.set()
            cancelled.cancel()
            self._on_change(source)
        return outcome(report)

    def _verify(
        self, source: str, on_progress: Callable[[int], None], stop: threading.Event
    ) -> Report:
        replica = self._store.replica(source)
        with self._store.reader(source) as reader:
            report = verify(
                reader,
                replica.newest,
                on_damage=replica.record_damage,
                on_progress=on_progress,
                stop=stop,
            )
        if report.missing_chunks:
            replica.mark_inconsistent(f"{report.missing_chunks} chunks are missing")
        return report


def outcome(report: Report) -> Outcome:
    """Return how a verify ended that found nothing; raise Damaged for one that did."""
    if report.damaged:
        raise Damaged(summary(report.damaged, report.damages), code="store.damage")
    return Outcome(
        totals=Totals(scanned_bytes=report.read_bytes),
        detail=f"{report.chunks} chunks and {report.manifests} manifests are sound",
    )


def summary(count: int, damages: list[DamageFound]) -> str:
    """Return one line for a person: how much is damaged, and which points and paths it harms."""
    points = sorted({point for damage in damages for point in damage.points})
    files = sorted({file for damage in damages for file in damage.files})
    named = ", ".join(file.decode("utf-8", "backslashreplace") for file in files[:NAMED_PATHS])
    more = f" and {len(files) - NAMED_PATHS} more" if len(files) > NAMED_PATHS else ""
    what = f"{count} damaged: {damages[0].reason}"
    if points:
        what += f"; recovery points {points[0]} to {points[-1]}"
    return f"{what}; files: {named}{more}" if files else what
