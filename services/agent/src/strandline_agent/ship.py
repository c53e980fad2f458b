"""Shipping a job's delta to the store: batches, the credit window, waiting, sending again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

from blake3 import blake3

from strandline_agent.asking import ask, pause_s
from strandline_agent.blocks import blocks_of
from strandline_agent.chunks import Compressor
from strandline_agent.errors import ShippingFailed
from strandline_agent.line import Line
from strandline_agent.outgoing import ChunkOut, GoneInode, GoneName, Item, Outgoing, cost_bytes
from strandline_contracts.codec import encode
from strandline_contracts.errors import StrandlineError
from strandline_contracts.points import CODEC_RAW, Extent, Inode, Issue, Name, RecoveryPoint
from strandline_contracts.shipping import (
    MAX_OFFER,
    Abort,
    Batch,
    Chunk,
    End,
    Opened,
    Wait,
    Waited,
    Want,
    Wanted,
)

BATCH_BYTES = 960 * 1024
BATCH_FRAME_BYTES = 4096
"""Kept free in a batch for its own frame."""
TAKE_BYTES = 4 * 1024 * 1024
"""Plain bytes that are offered to the store at once."""
WINDOW_BYTES = 32 * 1024 * 1024
"""The most that is kept for sending again, whatever credit the store gives."""
STALL_S = 5.0
IDLE_PAUSE_S = 0.02
"""Between two questions when the first brought nothing: a hasty store makes no busy loop."""
WAIT_MS = 2000
PATIENCE_S = 300.0
"""How long nothing may become durable, bus or store being down, before the attempt fails."""


class Route(NamedTuple):
    """Where a job ships to and as what."""

    subject: str
    store: str
    source: str
    job: str
    attempt: int


@dataclass(slots=True)
class _Batch:
    """A batch that is being filled.

    `files` are those that anything but what is gone tells of, `named` the names, and `ends` where
    the extents of each file end, in blocks.
    """

    chunks: list[Chunk] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    inodes: list[Inode] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)
    gone_inodes: list[int] = field(default_factory=list)
    gone_names: list[tuple[int, bytes]] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    files: set[int] = field(default_factory=set)
    named: set[tuple[int, bytes]] = field(default_factory=set)
    ends: dict[int, int] = field(default_factory=dict)
    bytes: int = 0

    def must_go_before(self, item: Item) -> bool:
        """Tell whether `item` undoes something that is in here.

        Of one batch the store applies first what is gone, then inodes, names and extents, in
        whatever order they were added.
        """
        match item:
            case Inode():
                return self.ends.get(item.file, 0) > blocks_of(item.size)
            case GoneName():
                return (item.parent, item.name) in self.named
            case GoneInode():
                return item.file in self.files
        return False

    def add(self, item: Item, cost: int) -> None:
        self.bytes += cost
        match item:
            case ChunkOut():
                position = len(self.chunks)
                data = memoryview(item.data) if item.codec is not None else None
                codec = item.codec if item.codec is not None else CODEC_RAW
                self.chunks.append(Chunk(item.digest, item.plain_bytes, codec, data))
                self.extents += [
                    Extent(file, start, blocks, chunk=position, chunk_block=chunk_block)
                    for file, start, blocks, chunk_block in item.places
                ]
                for file, start, blocks, _ in item.places:
                    self._reach(file, start + blocks)
            case Inode():
                self.inodes.append(item)
                self.files.add(item.file)
            case Name():
                self.names.append(item)
                self.named.add((item.parent, item.name))
                # A folder that is gone takes the names in it along.
                self.files.update((item.parent, item.file))
            case Extent():
                self.extents.append(item)
                self._reach(item.file, item.start + item.blocks)
            case Issue():
                self.issues.append(item)
            case GoneName():
                self.gone_names.append((item.parent, item.name))
            case GoneInode():
                self.gone_inodes.append(item.file)

    def _reach(self, file: int, end: int) -> None:
        self.files.add(file)
        self.ends[file] = max(end, self.ends.get(file, 0))


class Shipper:
    """Ships one attempt of a job. Use as `async with`; then `ship` and `end`.

    `shipped_bytes` counts plain bytes of chunks that travelled, `sent_bytes` their stored bytes,
    `issues` those sent.
    """

    def __init__(self, line: Line, route: Route, opened: Opened, workers: Executor) -> None:
        self._line = line
        self._route = route
        self._workers = workers
        self._credit_bytes = min(opened.credit_bytes, WINDOW_BYTES)
        self._credit_batches = opened.credit_batches
        self._batch_bytes = min(BATCH_BYTES, line.max_payload_bytes) - BATCH_FRAME_BYTES
        self._batch = _Batch()
        self._digest = blake3()
        self._seq = 0
        self._end_seq: int | None = None
        self._outstanding: dict[int, bytes] = {}
        self._outstanding_bytes = 0
        self._moved = asyncio.Event()
        self._failure: BaseException | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._point: RecoveryPoint | None = None
        self._rounds = 0
        self.shipped_bytes = 0
        self.sent_bytes = 0
        self.issues: list[Issue] = []
        self.issue_count = 0

    async def __aenter__(self) -> Shipper:
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._sending, *([self._watcher] if self._watcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ship(self, outgoing: Outgoing) -> None:
        """Ship all that comes out of `outgoing` until its end."""
        while taken := await outgoing.get(TAKE_BYTES):
            for item, cost in await self._offered(taken):
                is_full = self._batch.bytes + cost > self._batch_bytes
                if is_full or self._batch.must_go_before(item):
                    await self._close_batch()
                self._batch.add(item, cost)
                self._count(item)

    def _count(self, item: Item) -> None:
        if isinstance(item, ChunkOut) and item.codec is not None:
            self.shipped_bytes += item.plain_bytes
            self.sent_bytes += len(item.data)
        elif isinstance(item, Issue):
            self.issue_count += 1
            if len(self.issues) < 1000:
                self.issues.append(item)

    async def _offered(self, taken: list[tuple[Item, int]]) -> list[tuple[Item, int]]:
        """Offer the chunks that the store may hold; compress those that it lacks."""
        offered = [
            (at, item)
            for at, (item, _) in enumerate(taken)
            if isinstance(item, ChunkOut) and item.codec is None
        ]
        for first in range(0, len(offered), MAX_OFFER):
            part = offered[first : first + MAX_OFFER]
            for at, item in await self._want(part):
                taken[at] = (item, cost_bytes(item))
        return taken

    async def _want(self, part: Sequence[tuple[int, ChunkOut]]) -> list[tuple[int, ChunkOut]]:
        route = self._route
        request = Want(
            source=route.source,
            job=route.job,
            attempt=route.attempt,
            digests=[item.digest for _, item in part],
        )
        wanted = await ask(self._line, route.store, "want", request, Wanted)
        missing = [part[at] for at in wanted.missing]
        loop = asyncio.get_running_loop()
        compressed = await asyncio.gather(
            *(loop.run_in_executor(self._workers, _compressed, item) for _, item in missing)
        )
        held = set(range(len(part))).difference(wanted.missing)
        return [
            *((at, item) for (at, _), item in zip(missing, compressed, strict=True)),
            *((part[at][0], part[at][1]._replace(data=b"")) for at in held),
        ]

    async def end(self, end: End) -> RecoveryPoint:
        """Send the End, after `flush`; return the recovery point when it is durable.

        Raises ShippingFailed.
        """
        self._end_seq = self._seq
        await self._publish(encode(end))
        while self._point is None:
            await self._wait_for_move()
        return self._point

    async def flush(self) -> None:
        """Send the batch that is begun."""
        if self._batch.bytes:
            await self._close_batch()

    def sealed(self) -> tuple[int, bytes]:
        """Return the `seq` and `digest` of the End that follows all batches sent."""
        return self._seq, self._digest.digest()

    async def _close_batch(self) -> None:
        batch, self._batch = self._batch, _Batch()
        message = Batch(
            job=self._route.job,
            attempt=self._route.attempt,
            seq=self._seq,
            chunks=batch.chunks,
            extents=batch.extents,
            inodes=batch.inodes,
            names=batch.names,
            gone_inodes=batch.gone_inodes,
            gone_names=batch.gone_names,
            issues=batch.issues,
        )
        payload = encode(message)
        self._digest.update(blake3(payload).digest())
        await self._publish(payload)

    async def _publish(self, payload: bytes) -> None:
        while self._outstanding and (
            self._outstanding_bytes + len(payload) > self._credit_bytes
            or len(self._outstanding) >= self._credit_batches
        ):
            await self._wait_for_move()
        if self._failure is not None:
            raise self._failure
        seq = self._seq
        self._seq += 1
        self._outstanding[seq] = payload
        self._outstanding_bytes += len(payload)
        self._moved.set()
        self._send(seq, payload)

    def _send(self, seq: int, payload: bytes) -> None:
        task = asyncio.create_task(self._send_until_taken(seq, payload, self._rounds))
        self._sending.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _send_until_taken(self, seq: int, payload: bytes, round_: int) -> None:
        route = self._route
        msg_id = f"{route.job}.{route.attempt}.{seq}.{round_}"
        failures = 0
        while seq in self._outstanding and round_ == self._rounds:
            try:
                await self._line.publish(route.subject, payload, msg_id=msg_id)
            except StrandlineError as error:
                if not error.retryable:
                    raise
                failures += 1
                await asyncio.sleep(pause_s(failures))
            else:
                return

    async def _wait_for_move(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._moved.clear()
        await self._moved.wait()
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._moved.set()

    async def _watch(self) -> None:
        """Ask how far the store is, take what is durable off the window, send again on a stall."""
        try:
            await self._watch_until_committed()
        except Exception as error:  # noqa: BLE001 - raised where `ship` or `end` wait
            self._fail(error)

    async def _watch_until_committed(self) -> None:
        loop = asyncio.get_running_loop()
        last_move = last_round = loop.time()
        while self._point is None:
            if not self._outstanding:
                self._moved.clear()
                await self._moved.wait()
                last_move = last_round = loop.time()
                continue
            if self._settle(await self._ask_progress()):
                last_move = last_round = loop.time()
            elif loop.time() - last_move > PATIENCE_S:
                raise ShippingFailed(
                    f"nothing has become durable for {PATIENCE_S:.0f} s", retryable=True
                )
            else:
                if loop.time() - last_round > STALL_S:
                    last_round = loop.time()
                    self._send_again()
                await asyncio.sleep(IDLE_PAUSE_S)

    async def _ask_progress(self) -> Waited | None:
        route = self._route
        request = Wait(
            source=route.source,
            job=route.job,
            attempt=route.attempt,
            seq=min(self._outstanding),
            timeout_ms=WAIT_MS,
        )
        try:
            return await self._line.call(
                "store", route.store, "wait", request, Waited, timeout_s=WAIT_MS / 1000 + 3
            )
        except StrandlineError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(pause_s(1))
            return None

    def _settle(self, waited: Waited | None) -> bool:
        """Take an answer in; tells whether it brought anything forward."""
        if waited is None:
            return False
        if waited.state == "committed" and waited.point is not None:
            self._point = waited.point
            self._moved.set()
            return True
        if waited.state != "open":
            raise ShippingFailed(
                waited.error or f"the store has {waited.state} the job",
                code=waited.code or f"store.job_{waited.state}",
                hint=waited.hint,
                retryable=waited.retryable or waited.state == "unknown",
            )
        # The End is done with when its recovery point is there, not before.
        batches = self._seq if self._end_seq is None else self._end_seq
        durable = [seq for seq in self._outstanding if seq < min(waited.durable, batches)]
        for seq in durable:
            self._outstanding_bytes -= len(self._outstanding.pop(seq))
        if durable:
            self._moved.set()
        return bool(durable)

    def _send_again(self) -> None:
        """Send all that is not durable once more, as new messages: the store drops doubles."""
        self._rounds += 1
        for seq, payload in sorted(self._outstanding.items()):
            self._send(seq, payload)


async def abort(line: Line, route: Route, reason: str) -> None:
    """Tell the store to forget a job; it does so by itself later if this does not reach it."""
    request = Abort(source=route.source, job=route.job, attempt=route.attempt, reason=reason)
    await line.call("store", route.store, "abort", request, Waited, timeout_s=3.0)


def _compressed(item: ChunkOut) -> ChunkOut:
    codec, data = Compressor().stored(item.data)
    return item._replace(codec=codec, data=data)
