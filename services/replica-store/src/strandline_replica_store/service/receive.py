"""Receiving: batches from the bus to their replica, in order, in groups, within bounds of memory.

Each source has a Lane. It judges every message, keeps early ones for a while, and hands what
waits to a thread as one group; while that group is made durable the next one gathers. A message is
acknowledged only when it is durable, or can never matter again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

from strandline_contracts.codec import Message, decode
from strandline_contracts.errors import BadMessage, StrandlineError
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.shipping import End, Open, Waited
from strandline_contracts.subjects import parse_blocks
from strandline_replica_store.errors import (
    BadDelta,
    Behind,
    Busy,
    Deleted,
    IndexDamaged,
    NoSuch,
    StoreError,
)
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.replica.rules import JobRow, OpenVerdict, Verdict, judge_message
from strandline_replica_store.store.store import Store
from strandline_runtime.consume import Delivery
from strandline_runtime.logs import logger

GROUP_MAX_BYTES = 32 * 1024 * 1024
HELD_MAX_BYTES = 64 * 1024 * 1024
"""Messages that wait or are being written, of all sources; more stay in the stream."""
EARLY_MAX_BYTES = 24 * 1024 * 1024
"""Of these, messages that came before their turn."""
AGAIN_S = 1.0
BROKEN_AGAIN_S = 10.0
IN_PROGRESS_EVERY_S = 2.0
MAX_WAITERS = 16
"""Fewer than a service answers at once, so that other questions find room."""
CROWDED_WAIT_S = 0.2
MAX_LANES = 256
LATER = (Behind, Busy, IndexDamaged)
"""What ends no job: the index is late or made anew, the replica was closed and is opened again."""

R = TypeVar("R")


class BatchLabel(Message, frozen=True, kw_only=True, tag="batch"):
    """What must be known of a Batch before its turn comes; the rest is skipped unread."""

    job: str
    attempt: int
    seq: int


class EndLabel(Message, frozen=True, kw_only=True, tag="end"):
    """The same of an End."""

    job: str
    attempt: int
    seq: int


class Held(NamedTuple):
    """A message that is not yet durable."""

    label: BatchLabel | EndLabel
    delivery: Delivery

    @property
    def size_bytes(self) -> int:
        return len(self.delivery.data)


class Bounded:
    """Counts bytes that are held in memory; taking waits while there is no room."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._freed = asyncio.Condition()
        self.held_bytes = 0

    async def take(self, count: int) -> None:
        async with self._freed:
            await self._freed.wait_for(
                lambda: not self.held_bytes or self.held_bytes + count <= self._max_bytes
            )
            self.held_bytes += count

    async def give(self, count: int) -> None:
        async with self._freed:
            self.held_bytes -= count
            self._freed.notify_all()


class Lane:
    """The way of one source's messages into its replica; lives on the event loop."""

    def __init__(self, source: str, replica: Replica, receiver: Receiver) -> None:
        self.source = source
        self.replica = replica
        self._receiver = receiver
        self._row: JobRow | None = None
        self._next_seq = 0
        self._waiting: deque[Held] = deque()
        self._early: dict[int, Held] = {}
        self._drain: asyncio.Task[None] | None = None
        self._commits = False
        self._changed = asyncio.Event()
        self._log = logger().bind(source=source)

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost by forgetting the lane."""
        done = self._drain is None or self._drain.done()
        return done and not (self._waiting or self._early)

    async def run(self, function: Callable[..., R], *values: Any) -> R:
        """Run work on the replica in a thread.

        Raises Busy at once while it commits: no thread is to wait for that, others need it.
        """
        if self._commits:
            raise Busy(f"a recovery point of source {self.source} is being committed")
        return await self._receiver.run(function, *values)

    async def _commit(self, end: End) -> RecoveryPoint:
        self._commits = True
        try:
            return await self._receiver.commit(self.replica.finish, end)
        finally:
            self._commits = False

    async def open(self, server: str, request: Open) -> RecoveryPoint | OpenVerdict:
        """Open an attempt; messages of the one that it fences are dropped."""
        found = await self.run(self.replica.open_job, server, request)
        if found in (OpenVerdict.FRESH, OpenVerdict.SAME):
            await self._follow_open()
        if found is OpenVerdict.FRESH:
            self._log.info("job.opened", job=request.job, attempt=request.attempt)
        return found

    async def _follow_open(self) -> None:
        """Follow what the replica receives now: Opens may cross, and the last one need not be the
        last that we hear of."""
        row = self.replica.open_attempt
        if not self._is_current(row):
            fenced = self._take_held()
            self._follow(row)
            await self._settle(fenced)

    def _follow(self, row: JobRow | None) -> None:
        self._row = row
        self._next_seq = row.durable if row else 0
        self._tell()

    def _is_current(self, row: JobRow | None) -> bool:
        """Tell whether `row` is the attempt that the lane follows, and still open."""
        mine = self._row
        if row is None or mine is None:
            return False
        return (row.job, row.attempt, "open") == (mine.job, mine.attempt, mine.state)

    def _tell(self) -> None:
        """Wake those who wait for the job to get on."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, job: str, attempt: int, seq: int, timeout_s: float) -> Waited:
        """Return how far an attempt has come once batch `seq` is durable or the time is over."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (row := self._open_row(job, attempt)) is not None and row.durable <= seq:
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                break
            try:
                await asyncio.wait_for(self._changed.wait(), left_s)
            except TimeoutError:
                break
        if (row := self._open_row(job, attempt)) is not None:
            # Answered here: while it commits, the replica itself answers nobody.
            return Waited(state="open", durable=row.durable)
        return await self.run(self.replica.waited, job, attempt)

    def receives(self, server: str, job: str, attempt: int) -> bool:
        """Tell whether this attempt of `server` is open."""
        row = self._open_row(job, attempt)
        return row is not None and row.server == server

    def _open_row(self, job: str, attempt: int) -> JobRow | None:
        """Return the attempt that the lane follows if it is this one, and open."""
        row = self._row
        if row is None or (row.job, row.attempt, row.state) != (job, attempt, "open"):
            return None
        return row

    async def abort(self, job: str, attempt: int, server: str, reason: str) -> Waited:
        """End an attempt for its agent."""
        await self.run(self.replica.abort, job, attempt, server, reason)
        await self._ended(job)
        return await self.run(self.replica.waited, job, attempt)

    async def put(self, server: str, held: Held) -> None:
        """Take a message; settle it at once when it has no turn to wait for."""
        label, delivery = held.label, held.delivery
        row = await self._row_of(label.job)
        mine = self._is_current(row)
        next_seq = self._next_seq if mine else 0
        verdict = judge_message(row, server, label.attempt, label.seq, next_seq)
        if verdict is Verdict.UNKNOWN:
            self._log.warning("batch.unknown", job=label.job, attempt=label.attempt, server=server)
            await delivery.term()
        elif verdict is Verdict.DROP:
            await self._drop_late(held)
        elif not mine:
            # Open, but not followed: it was opened, or has ended, while we looked.
            await delivery.nak(AGAIN_S)
        elif verdict is Verdict.TAKE:
            await self._receiver.held.take(held.size_bytes)
            # The job may have ended while we waited for room.
            if self._is_current(row) and label.seq == self._next_seq:
                await self._enqueue(held)
            else:
                await self._receiver.held.give(held.size_bytes)
                await delivery.nak(AGAIN_S)
        else:
            await self._keep_early(row, held)

    async def _row_of(self, job: str) -> JobRow | None:
        if self._row is not None and self._row.job == job:
            return self._row
        return await self.run(self.replica.job, job)

    async def _drop_late(self, held: Held) -> None:
        """Acknowledge a message that changes nothing; one that is still under way is let be."""
        seq = held.label.seq
        under_way = self._row is not None and self._row.durable <= seq < self._next_seq
        for position, other in enumerate(self._waiting):
            if under_way and other.delivery.sequence == held.delivery.sequence:
                # The same message once more: the newer delivery is the one to acknowledge.
                self._waiting[position] = held
                return
        await held.delivery.ack()

    async def _keep_early(self, row: JobRow | None, held: Held) -> None:
        seq = held.label.seq
        if seq in self._early:
            if self._early[seq].delivery.sequence == held.delivery.sequence:
                self._early[seq] = held
            else:
                await held.delivery.ack()
        elif self._receiver.early_bytes + held.size_bytes > EARLY_MAX_BYTES:
            await held.delivery.nak(AGAIN_S)
        else:
            self._receiver.early_bytes += held.size_bytes
            await self._receiver.held.take(held.size_bytes)
            if self._is_current(row):
                self._early[seq] = held
            else:
                self._receiver.early_bytes -= held.size_bytes
                await self._settle([held], again=True)

    async def _enqueue(self, held: Held) -> None:
        self._waiting.append(held)
        self._next_seq += 1
        while (early := self._early.pop(self._next_seq, None)) is not None:
            self._receiver.early_bytes -= early.size_bytes
            self._waiting.append(early)
            self._next_seq += 1
        if self._drain is None or self._drain.done():
            self._drain = asyncio.create_task(self._drain_all())

    async def _drain_all(self) -> None:
        """Work off what waits, a group at a time."""
        while self._waiting and self._row is not None:
            row, group = self._row, self._next_group()
            try:
                await self._work(row, group)
            except LATER as error:
                self._log.warning("job.later", job=row.job, code=error.code, error=error.message)
                await self._again(row, group)
            except (StoreError, BadMessage) as error:
                await self._fail(row, group, error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the job must end
                self._log.exception("job.broken", job=row.job)
                await self._fail(row, group, StoreError(f"{type(error).__name__}: see the log"))

    def _next_group(self) -> list[Held]:
        """Take what waits: batches up to the bound, or an End alone."""
        group = [self._waiting.popleft()]
        size_bytes = group[0].size_bytes
        while self._waiting and isinstance(group[0].label, BatchLabel):
            follower = self._waiting[0]
            size_bytes += follower.size_bytes
            if isinstance(follower.label, EndLabel) or size_bytes > GROUP_MAX_BYTES:
                break
            group.append(self._waiting.popleft())
        return group

    async def _work(self, row: JobRow, group: list[Held]) -> None:
        if isinstance(group[0].label, EndLabel):
            end = decode(group[0].delivery.data, End)
            point = await self._patiently(group, self._commit(end))
            self._log.info("point.committed", job=row.job, point=point.number)
            await self._ended(row.job)
            self._receiver.on_change(self.source)
        else:
            messages = [held.delivery.data for held in group]
            taking = self.run(self.replica.take, row.job, row.attempt, messages)
            durable = await self._patiently(group, taking)
            if self._is_current(row):
                self._row = row._replace(durable=durable)
                self._tell()
        await self._settle(group)

    async def _patiently(self, group: Sequence[Held], work: Coroutine[Any, Any, R]) -> R:
        """Wait for work; meanwhile keep the bus from delivering again what we have."""
        working = asyncio.ensure_future(work)
        while True:
            done, _ = await asyncio.wait({working}, timeout=IN_PROGRESS_EVERY_S)
            if done:
                return working.result()
            for held in (*group, *self._waiting, *self._early.values()):
                await held.delivery.in_progress()

    async def _settle(self, group: Sequence[Held], *, again: bool = False) -> None:
        for held in group:
            if again:
                await held.delivery.nak(AGAIN_S)
            else:
                await held.delivery.ack()
            await self._receiver.held.give(held.size_bytes)

    async def _again(self, row: JobRow, group: Sequence[Held]) -> None:
        """Let messages of an attempt come again: nothing of them was kept."""
        mine, held = self._row, list(group)
        if mine is not None and self._is_current(row):
            held += self._take_held()
            self._next_seq = mine.durable
        await self._settle(held, again=True)

    async def leave(self) -> None:
        """Give back what is held: the replica was closed, and another lane goes on with it."""
        held = self._take_held()
        self._follow(None)
        await self._settle(held, again=True)

    async def _fail(self, row: JobRow, group: Sequence[Held], error: StrandlineError) -> None:
        """Fail the job; what it sent is of no use any more."""
        self._log.warning("job.failed", job=row.job, code=error.code, error=error.message)
        try:
            await self.run(self.replica.fail, row.job, row.attempt, error)
            await self._ended(row.job)
        except StoreError as failure:
            # The job is open still: it fails when this comes again.
            self._log.error("job.not_failed", job=row.job, error=str(failure))
            await self._again(row, group)
            return
        for held in group:
            await held.delivery.term()
            await self._receiver.held.give(held.size_bytes)

    async def fail_for(self, server: str, error: StrandlineError) -> None:
        """Fail the open job of `server`: something on its subject was no message."""
        if self._row is not None and self._row.server == server:
            await self.fail_open(error)

    async def fail_open(self, error: StrandlineError) -> None:
        """Fail the job that is open, if any is."""
        row = self._row
        if row is not None and row.state == "open":
            await self._fail(row, [], error)

    async def _ended(self, job: str) -> None:
        """Follow a job into its end, and drop what still waits for it."""
        if self._row is not None and self._row.job == job:
            row = await self.run(self.replica.job, job)
            if row is None or row.state != "open":
                self._row = row
                self._tell()
                await self._settle(self._take_held())

    def _take_held(self) -> list[Held]:
        """Return everything that waits, which then does not any more."""
        held = [*self._waiting, *self._early.values()]
        self._receiver.early_bytes -= sum(early.size_bytes for early in self._early.values())
        self._waiting.clear()
        self._early.clear()
        return held

    def resume(self) -> None:
        """Go on with the job that was open when the replica was closed."""
        self._follow(self.replica.open_attempt)


class Receiver:
    """Takes what the bus delivers to this store and keeps the lanes."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        committing: Executor,
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.store = store
        self.held = Bounded(HELD_MAX_BYTES)
        self.early_bytes = 0
        self.on_change = on_change
        self._executor = executor
        self._committing = committing
        self._lanes: dict[str, Lane] = {}
        self._making = asyncio.Lock()
        self._waiters = 0
        self._log = logger()

    async def run(self, function: Callable[..., R], *values: Any) -> R:
        """Run blocking work in the store's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *values)

    async def commit(self, function: Callable[[End], RecoveryPoint], end: End) -> RecoveryPoint:
        """Commit in a thread that nothing else waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._committing, function, end)

    async def lane(self, source: str, *, to_receive: bool = False) -> Lane:
        """Return the lane of a source. Raises what Store.replica raises.

        `to_receive` asks that its replica be not deleted; raises Deleted.
        """
        async with self._making:
            replica = await self.run(self._replica, source, to_receive)
            lane = self._lanes.get(source)
            if lane is None or lane.replica is not replica:
                if lane is not None:
                    await lane.leave()
                self._forget_idle()
                lane = Lane(source, replica, self)
                lane.resume()
                self._lanes[source] = lane
            return lane

    def _replica(self, source: str, to_receive: bool) -> Replica:
        if to_receive:
            self.store.deletions.check_stands(source)
        return self.store.replica(source)

    async def refuse(self, source: str, error: StoreError) -> None:
        """Fail what is being received of a source, if anything is."""
        lane = await self.lane(source)
        await lane.fail_open(error)

    def _forget_idle(self) -> None:
        for source, lane in list(self._lanes.items()):
            if len(self._lanes) < MAX_LANES:
                return
            if lane.idle:
                del self._lanes[source]
        if len(self._lanes) >= MAX_LANES:
            raise Busy(f"{MAX_LANES} sources are being received")

    async def wait(self, source: str, job: str, attempt: int, seq: int, timeout_s: float) -> Waited:
        """Answer a Wait; when too many wait already, soon."""
        lane = await self.lane(source)
        patience_s = timeout_s if self._waiters < MAX_WAITERS else CROWDED_WAIT_S
        self._waiters += 1
        try:
            return await lane.wait(job, attempt, seq, patience_s)
        finally:
            self._waiters -= 1

    async def handle(self, deliveries: list[Delivery]) -> None:
        """Take deliveries; blocks while as much is held as may be."""
        for delivery in deliveries:
            try:
                await self._route(delivery)
            except (BadMessage, NoSuch, Deleted) as error:
                self._log.warning("batch.refused", subject=delivery.subject, error=str(error))
                await delivery.term()
            except StoreError as error:
                self._log.warning("batch.later", subject=delivery.subject, error=str(error))
                await delivery.nak(AGAIN_S)
            except Exception:  # noqa: BLE001 - logged; the stream keeps the message
                # One message that we cannot bear must not keep all others from coming.
                self._log.exception("batch.broken", subject=delivery.subject)
                await delivery.nak(BROKEN_AGAIN_S)

    async def _route(self, delivery: Delivery) -> None:
        subject = parse_blocks(delivery.subject)
        if subject.store != self.store.name:
            raise BadMessage(f"a message for store {subject.store}")
        lane = await self.lane(subject.source, to_receive=True)
        try:
            label = decode_label(delivery.data)
        except BadMessage as error:
            await lane.fail_for(subject.server, BadDelta(f"not a batch: {error}"))
            raise
        await lane.put(subject.server, Held(label, delivery))


def decode_label(data: bytes) -> BatchLabel | EndLabel:
    """Return job, attempt and seq of what a message on a `blk` subject holds; raise BadMessage."""
    label: BatchLabel | EndLabel = decode(data, BatchLabel | EndLabel)  # type: ignore[arg-type]
    return label
