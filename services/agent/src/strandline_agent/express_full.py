"""One express full or check of a data source of files, from Open to the merged index."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from strandline_agent.asking import ask
from strandline_agent.errors import PipelineStopped
from strandline_agent.known import IndexBroken, KnownIndex
from strandline_agent.line import Line
from strandline_agent.mending import mend
from strandline_agent.outgoing import Outgoing
from strandline_agent.read_files import READERS, Readers
from strandline_agent.rebuild import rebuild
from strandline_agent.rules import Excludes
from strandline_agent.scan import Scan
from strandline_agent.ship import Route, Shipper
from strandline_agent.store_view import StoreView
from strandline_agent.walk import Walk
from strandline_contracts.errors import StrandlineError
from strandline_contracts.points import Issue, PointKind, RecoveryPoint, Totals
from strandline_contracts.policy import Source
from strandline_contracts.shipping import End, Mismatch, Open, Opened
from strandline_runtime.logs import logger

OUTGOING_BYTES = 16 * 1024 * 1024
PROGRESS_S = 0.5
MAX_OPENS = 3
"""Open, at most once after a pending epoch was resolved, and once after a rebuild."""

Progress = Callable[[str, int, int, int], None]
"""Takes phase, files, bytes read, bytes sent."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to ship and as which job. `kind` is what was asked for."""

    source: Source
    job: str
    attempt: int
    kind: PointKind
    subject: str
    index_path: Path
    index_max_bytes: int
    own_state: frozenset[tuple[int, int]] = frozenset()
    progress: Progress = field(default=lambda *_: None)


@dataclass(frozen=True, slots=True)
class Shipped:
    """The recovery point made, with the first of its issues."""

    point: RecoveryPoint
    issues: list[Issue]


async def make_point(line: Line, order: Order, on_shipped: Callable[[], object]) -> Shipped:
    """Make a recovery point of a data source of files.

    `on_shipped` is called when all has been sent. Being cancelled it gives the job up and forgets
    what it had collected. Raises StrandlineError.
    """
    index = await asyncio.to_thread(_open_index, order.index_path)
    try:
        job = _Job(line, order, index)
        return await job.run(on_shipped)
    finally:
        await asyncio.to_thread(index.close)


def _open_index(path: Path) -> KnownIndex:
    """Open the index; one that is broken is thrown away: Open then shows that it lags behind."""
    try:
        return KnownIndex(path)
    except (sqlite3.DatabaseError, IndexBroken) as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    return KnownIndex(path)


class _Job:
    def __init__(self, line: Line, order: Order, index: KnownIndex) -> None:
        self._line = line
        self._order = order
        self._index = index
        self._kind = order.kind
        source = order.source
        self._route = Route(order.subject, source.store, source.id, order.job, order.attempt)
        self._log = logger()

    async def run(self, on_shipped: Callable[[], object]) -> Shipped:
        opened = await self._open()
        if opened.point is not None:
            # If it was not staged here, the next job finds the index behind, and makes it anew.
            await self._merge_if_pending(opened.point)
            return Shipped(opened.point, [])
        if opened.damaged:
            await self._mend()
        try:
            return await self._ship(opened, on_shipped)
        except BaseException:
            await self._give_up()
            raise

    # Opening: agreeing with the store on the state that the delta is made against

    async def _open(self) -> Opened:
        if self._kind == "check":
            self._progress_phase("reading the store")
            await self._rebuild_from_newest()
        elif await asyncio.to_thread(lambda: self._index.needs_check):
            self._kind = "check"
        for _ in range(MAX_OPENS):
            parent, digest = await asyncio.to_thread(lambda: self._index.mirrored)
            request = Open(
                source=self._route.source,
                job=self._route.job,
                attempt=self._route.attempt,
                kind=self._kind,
                parent=parent,
                parent_digest=digest,
            )
            answer: Opened | Mismatch = await ask(
                self._line,
                self._route.store,
                "open",
                request,
                Opened | Mismatch,  # type: ignore[arg-type]  # a union is no type[T]
            )
            if isinstance(answer, Opened):
                return answer
            await self._agree(answer.newest)
        raise StrandlineError(
            "the newest recovery point keeps changing: does another server ship this source?",
            code="agent.no_agreement",
            retryable=True,
        )

    async def _agree(self, newest: RecoveryPoint | None) -> None:
        """Make the index mirror the store's newest recovery point."""
        if newest is not None and await self._merge_if_pending(newest):
            # If a check was due, this was it.
            self._kind = self._order.kind
            return
        if newest is None:
            await asyncio.to_thread(self._index.clear)
            return
        self._kind = "check"
        self._progress_phase("reading the store")
        await rebuild(self._line, self._route.store, newest, self._index)

    async def _rebuild_from_newest(self) -> None:
        newest = await StoreView.newest(self._line, self._route.store, self._route.source)
        if newest is not None:
            await rebuild(self._line, self._route.store, newest, self._index)

    async def _merge_if_pending(self, point: RecoveryPoint) -> bool:
        """Merge the staged changes if `point` is what they became; tells whether it is."""
        pending = await asyncio.to_thread(lambda: self._index.pending)
        if pending is None or pending != (point.job, point.attempt):
            return False
        await asyncio.to_thread(self._index.apply, point.number, point.digest)
        return True

    async def _mend(self) -> None:
        """Give the store back what it has lost; if that fails, the job goes on without."""
        self._progress_phase("mending")
        source = self._order.source
        try:
            found = await mend(self._line, self._route.store, source.id, self._index, source.paths)
        except StrandlineError as error:
            self._log.warning("mending.failed", code=error.code, error=error.message)
        else:
            self._log.info("mending.done", mended=found.mended, doubted=found.doubted)

    # Shipping

    async def _ship(self, opened: Opened, on_shipped: Callable[[], object]) -> Shipped:
        taken_at_ns = time.time_ns()
        parent, _ = await asyncio.to_thread(lambda: self._index.mirrored)
        await asyncio.to_thread(self._index.begin, parent + 1)
        outgoing = Outgoing(OUTGOING_BYTES)
        is_check = self._kind == "check"
        view = StoreView(self._line, self._route.store, self._route.source, parent)
        loop = asyncio.get_running_loop()
        readers = Readers(
            self._index,
            outgoing,
            offer=opened.holds and not is_check,
            fetch=None if is_check else view.fetcher(loop),
        )
        with ThreadPoolExecutor(READERS + 2, "agent") as threads:
            async with Shipper(self._line, self._route, opened, threads) as shipper:
                walk = await asyncio.to_thread(self._walk)
                scan = Scan(walk, self._index, readers, outgoing, check=is_check)
                await self._pump(threads, scan, readers, outgoing, shipper)
                point = await self._finish(scan, readers, shipper, taken_at_ns, on_shipped)
        await asyncio.to_thread(self._index.apply, point.number, point.digest)
        await asyncio.to_thread(self._index.shrink, self._order.index_max_bytes)
        return Shipped(point, shipper.issues)

    def _walk(self) -> Walk:
        source = self._order.source
        return Walk(source.paths, Excludes(source.excludes), self._order.own_state)

    async def _pump(
        self,
        threads: ThreadPoolExecutor,
        scan: Scan,
        readers: Readers,
        outgoing: Outgoing,
        shipper: Shipper,
    ) -> None:
        """Run walk, readers and shipper until all is sent or one of them fails."""
        loop = asyncio.get_running_loop()
        reading = [loop.run_in_executor(threads, readers.run) for _ in range(READERS)]

        def track() -> None:
            try:
                scan.run()
                readers.end()
            finally:
                readers.close()

        tracking = loop.run_in_executor(threads, track)

        async def produce() -> None:
            await asyncio.gather(tracking, *reading)
            await loop.run_in_executor(threads, scan.tell_gone)
            outgoing.end()

        ticker = asyncio.create_task(self._tick(scan, readers, shipper))
        parts = [asyncio.create_task(produce()), asyncio.create_task(shipper.ship(outgoing))]
        try:
            await _all_or_first_error(parts)
        except BaseException:
            outgoing.stop()
            readers.stop()
            parts[1].cancel()
            # The threads see that they are to stop; only then may the index be closed. Leaving the
            # pool waits for them too, but holds up the event loop, which they may need to end.
            await asyncio.gather(tracking, *reading, *parts, return_exceptions=True)
            raise
        finally:
            ticker.cancel()

    async def _tick(self, scan: Scan, readers: Readers, shipper: Shipper) -> None:
        while True:
            self._order.progress("shipping", scan.files, readers.read_bytes, shipper.sent_bytes)
            await asyncio.sleep(PROGRESS_S)

    def _progress_phase(self, phase: str) -> None:
        self._order.progress(phase, 0, 0, 0)

    async def _finish(
        self,
        scan: Scan,
        readers: Readers,
        shipper: Shipper,
        taken_at_ns: int,
        on_shipped: Callable[[], object],
    ) -> RecoveryPoint:
        await shipper.flush()
        files, size = await asyncio.to_thread(self._index.totals)
        seq, digest = shipper.sealed()
        end = End(
            job=self._route.job,
            attempt=self._route.attempt,
            seq=seq,
            digest=digest,
            taken_at_ns=taken_at_ns,
            consistency="fuzzy",
            provider="none",
            tracker="scan",
            partial=scan.partial or readers.partial,
            totals=Totals(
                files=files,
                bytes=size,
                scanned_bytes=readers.read_bytes,
                dirty_bytes=readers.dirty_bytes,
                shipped_bytes=shipper.shipped_bytes,
                sent_bytes=shipper.sent_bytes,
                issues=shipper.issue_count,
            ),
        )
        # From here on the store may commit at any time: what it means must be on our disk first.
        await asyncio.to_thread(self._index.stage, self._route.job, self._route.attempt)
        result = on_shipped()
        if asyncio.iscoroutine(result):
            await result
        self._order.progress("waiting", scan.files, readers.read_bytes, shipper.sent_bytes)
        return await shipper.end(end)

    async def _give_up(self) -> None:
        """Roll back what was only collected. What was staged is left to be resolved by Open."""
        if await asyncio.to_thread(lambda: self._index.pending) is None:
            await asyncio.to_thread(self._index.abort)


async def _all_or_first_error(tasks: list[asyncio.Task[None]]) -> None:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    errors = [error for task in done if (error := task.exception()) is not None]
    for error in errors:
        if not isinstance(error, PipelineStopped):
            raise error
    if errors:
        raise errors[0]
