"""The command `verify` as a job: runs the check in threads, tells damage, ends with a verdict."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection

import msgspec

from strandline_contracts.events import DamageFound
from strandline_contracts.points import Issue, Totals
from strandline_replica_store.checking.scrub import Round, mend_files, note_verified
from strandline_replica_store.checking.verify import Cancelled, Report, verify
from strandline_replica_store.errors import Damaged, translated
from strandline_replica_store.files import segment
from strandline_replica_store.store.leases import SEGMENTS
from strandline_replica_store.store.store import Store
from strandline_runtime.targets import JobCancelled, JobContext, JobFailed, Outcome

NAMED_PATHS = 5
HOLDER = "verify"
HINT = (
    "The next express full or check mends what the source still has, and makes a recovery point"
    " that is whole; see docs/reliability.md."
)


class VerifyJob:
    """Verifies the replica that a command names; `on_change` hears of new events."""

    def __init__(self, store: Store, on_change: Callable[[str], None]) -> None:
        self._store = store
        self._on_change = on_change

    async def run(self, context: JobContext) -> Outcome:
        """Verify once. Raises JobFailed (code store.damage) when anything is damaged."""
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
        def on_read(done_bytes: int) -> None:
            self._store.leases.take(source, SEGMENTS, HOLDER)
            on_progress(done_bytes)

        began_at_ns = self._store.now_ns()
        with self._store.reader(source) as reader, translated():
            # While the reader is lent the replica stays open.
            replica = self._store.replica(source)
            segments, newest = segment.numbers_in(replica.segments_folder), replica.newest
            on_read(0)
            report = verify(
                reader,
                newest,
                on_damage=replica.record_damage,
                on_progress=on_read,
                stop=stop,
                steady=replica.maintenance,
            )
            mend_files(replica, report)
            if report.missing_chunks:
                replica.mark_inconsistent(f"{report.missing_chunks} chunks are missing")
            whole = Round(began_at_ns, report.chunks, report.read_bytes, report.damaged)
            note_verified(replica, segments, newest.number if newest else 0, whole)
        return report


def outcome(report: Report) -> Outcome:
    """Return how a verify ended that found nothing; raise JobFailed (store.damage) for another."""
    totals = Totals(scanned_bytes=report.read_bytes)
    if report.damaged:
        found = issues(report.damages)
        raise JobFailed(
            Damaged(summary(report.damaged, report.damages), code="store.damage", hint=HINT),
            Outcome(totals=msgspec.structs.replace(totals, issues=len(found)), issues=found),
        )
    return Outcome(
        totals=totals,
        detail=f"{report.chunks} chunks, {report.manifests} manifests and the index are sound",
    )


def issues(damages: list[DamageFound]) -> list[Issue]:
    """Return one issue a path, with the recovery points in which it cannot be read wholly. Pure.

    Damage that concerns no path in particular has an empty one.
    """
    points: dict[bytes, set[int]] = {}
    reasons: dict[bytes, str] = {}
    for damage in damages:
        for path in damage.files or [b""]:
            points.setdefault(path, set()).update(damage.points)
            reasons.setdefault(path, damage.reason)
    return [
        Issue(path, "damaged", f"in recovery points {spans(points[path])}: {reasons[path]}")
        for path in sorted(points)
    ]


def spans(numbers: Collection[int]) -> str:
    """Return numbers as people write them: `1 to 4, 7`. Pure."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in found) or "none"


def summary(count: int, damages: list[DamageFound]) -> str:
    """Return one line for a person: how much is damaged, and which points and paths it harms."""
    points = {point for damage in damages for point in damage.points}
    files = sorted({file for damage in damages for file in damage.files})
    named = ", ".join(file.decode("utf-8", "backslashreplace") for file in files[:NAMED_PATHS])
    more = f" and {len(files) - NAMED_PATHS} more" if len(files) > NAMED_PATHS else ""
    what = f"{count} damaged: {damages[0].reason}"
    if points:
        what += f"; recovery points {spans(points)}"
    return f"{what}; files: {named}{more}" if files else what
