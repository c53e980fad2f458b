"""A store in memory that speaks the contracts: the agent's tests ship to it and restore from it.

It keeps every recovery point as plain dictionaries, block by block: slow, and simple enough to be
an oracle. It is a Line as well, so it takes the place of the bus.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from backports import zstd
from blake3 import blake3

from strandline_contracts.codec import Message, encode
from strandline_contracts.errors import StrandlineError
from strandline_contracts.points import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    CODEC_ZSTD,
    EXTENT_HOLE,
    EXTENT_ZERO,
    Extent,
    Inode,
    Issue,
    Name,
    RecoveryPoint,
)
from strandline_contracts.reading import (
    BlockDigestPage,
    BlockDigests,
    ChunkPage,
    Chunks,
    ExtentPage,
    Extents,
    List,
    Listing,
    PointPage,
    Points,
    Resolve,
    Resolved,
    StoredChunk,
)
from strandline_contracts.shipping import (
    Abort,
    Batch,
    End,
    LostChunk,
    LostChunks,
    LostPage,
    Mend,
    Mended,
    Mismatch,
    Open,
    Opened,
    Wait,
    Waited,
    Want,
    Wanted,
    accept_shipment,
)

ZERO = -1


class Full(StrandlineError):
    """What a bus raises whose stream is full."""

    code = "bus.full"
    retryable = True


class Refusal(StrandlineError):
    code = "store.refused"


@dataclass
class State:
    """A tree: inodes, names, and for each file its blocks (ZERO or (chunk, block in it))."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    names: dict[tuple[int, bytes], int] = field(default_factory=dict)
    blocks: dict[int, dict[int, Any]] = field(default_factory=dict)

    def copy(self) -> State:
        blocks = {file: dict(held) for file, held in self.blocks.items()}
        return State(dict(self.inodes), dict(self.names), blocks)

    def forget(self, file: int) -> None:
        inode = self.inodes.pop(file, None)
        self.blocks.pop(file, None)
        if inode is not None and inode.type == "d":
            for key in [key for key in self.names if key[0] == file]:
                del self.names[key]

    def inode(self, inode: Inode) -> None:
        self.inodes[inode.file] = inode
        end = -(-inode.size // BLOCK_BYTES)
        held = self.blocks.setdefault(inode.file, {})
        for block in [block for block in held if block >= end]:
            del held[block]

    def extent(self, extent: Extent, chunk: int) -> None:
        held = self.blocks.setdefault(extent.file, {})
        for at in range(extent.blocks):
            if extent.kind == EXTENT_HOLE:
                held.pop(extent.start + at, None)
            elif extent.kind == EXTENT_ZERO:
                held[extent.start + at] = ZERO
            else:
                held[extent.start + at] = (chunk, extent.chunk_block + at)


@dataclass
class OpenJob:
    request: Open
    batches: dict[int, tuple[Batch | End, bytes]] = field(default_factory=dict)
    durable: int = 0
    point: RecoveryPoint | None = None
    failed: str = ""


class FakeStore:
    """One source's replica and the line to it.

    `states[n]` is recovery point n, `points` their records. `shipped` counts plain bytes that came
    with data. Faults: `drop` lets so many publishes vanish, `full` refuses so many, `lose_commit`
    makes the agent never hear of a commit, `damaged` are chunks served with wrong bytes and asked
    for by `lost_chunks`; `mended` came back.
    """

    max_payload_bytes = 1024 * 1024 - 64 * 1024

    def __init__(self) -> None:
        self.points: list[RecoveryPoint] = []
        self.states: dict[int, State] = {0: State()}
        self.issues: dict[int, list[Issue]] = {}
        self.chunks: dict[int, tuple[bytes, bytes]] = {}
        self.by_digest: dict[bytes, int] = {}
        self.jobs: dict[str, OpenJob] = {}
        self.shipped = 0
        self.calls: list[str] = []
        self.batches: list[Batch] = []
        self.drop = 0
        self.full = 0
        self.lose_commit = False
        self.damaged: set[int] = set()
        self.mended: list[int] = []
        self.credit_batches = 16
        self.fail_calls: dict[str, int] = {}
        self.moved = asyncio.Event()

    # The line

    async def publish(self, subject: str, payload: bytes, *, msg_id: str = "") -> None:
        assert len(payload) <= self.max_payload_bytes
        assert subject.startswith("blk.")
        assert msg_id
        if self.full:
            self.full -= 1
            raise Full("the stream is full")
        if self.drop:
            self.drop -= 1
            return
        shipment = accept_shipment(payload)
        job = self.jobs.get(shipment.job)
        if job is None or job.request.attempt != shipment.attempt or job.point or job.failed:
            return
        job.batches.setdefault(shipment.seq, (shipment, payload))
        while isinstance(job.batches.get(job.durable, (None,))[0], Batch):
            job.durable += 1
        last = job.batches.get(job.durable, (None,))[0]
        if isinstance(last, End):
            self._commit(job, last)
        self.moved.set()

    async def call(
        self,
        role: str,
        instance: str,
        call: str,
        request: Message,
        reply: Any,
        *,
        timeout_s: float = 5.0,
    ) -> Any:
        assert role == "store"
        self.calls.append(call)
        if self.fail_calls.get(call, 0):
            self.fail_calls[call] -= 1
            raise StrandlineError("nobody answers", code="bus.unreachable", retryable=True)
        return await getattr(self, f"on_{call}")(request)

    # Shipping

    def _commit(self, job: OpenJob, end: End) -> None:
        digest = blake3()
        state = self.states[job.request.parent].copy()
        issues: list[Issue] = []
        for seq in range(end.seq):
            batch, payload = job.batches[seq]
            assert isinstance(batch, Batch)
            digest.update(blake3(payload).digest())
            self._apply(state, batch)
            issues += batch.issues
        assert digest.digest() == end.digest
        number = len(self.points) + 1
        if job.request.parent != len(self.points):
            job.failed = "parent"
            return
        self.states[number] = state
        self.issues[number] = issues
        job.point = RecoveryPoint(
            source=job.request.source,
            number=number,
            kind=job.request.kind,
            job=job.request.job,
            attempt=job.request.attempt,
            parent=job.request.parent,
            parent_digest=job.request.parent_digest,
            digest=blake3(encode(end) + bytes([number])).digest(),
            taken_at_ns=end.taken_at_ns,
            received_at_ns=end.taken_at_ns,
            consistency=end.consistency,
            provider=end.provider,
            tracker=end.tracker,
            server="server",
            partial=end.partial,
            totals=end.totals,
        )
        self.points.append(job.point)

    def _apply(self, state: State, batch: Batch) -> None:
        self.batches.append(batch)
        ids = []
        for chunk in batch.chunks:
            if chunk.data is None:
                ids.append(self.by_digest[chunk.digest])
                continue
            stored = bytes(chunk.data)
            plain = zstd.decompress(stored) if chunk.codec == CODEC_ZSTD else stored
            assert blake3(plain).digest() == chunk.digest
            assert len(plain) == chunk.plain_bytes
            self.shipped += len(plain)
            number = len(self.chunks) + 1
            self.chunks[number] = (chunk.digest, plain)
            self.by_digest[chunk.digest] = number
            ids.append(number)
        for parent, gone in batch.gone_names:
            state.names.pop((parent, gone), None)
        for file in batch.gone_inodes:
            state.forget(file)
        for inode in batch.inodes:
            state.inode(inode)
        for name in batch.names:
            state.names[name.parent, name.name] = name.file
        for extent in batch.extents:
            state.extent(extent, ids[extent.chunk] if ids else 0)

    async def on_open(self, request: Open) -> Message:
        job = self.jobs.get(request.job)
        if job is not None and job.point is not None:
            return Opened(credit_bytes=0, credit_batches=0, holds=True, point=job.point)
        newest = self.points[-1] if self.points else None
        expected = (newest.number, newest.digest) if newest else (0, b"")
        if (request.parent, request.parent_digest) != expected:
            return Mismatch(newest=newest)
        if job is not None and job.request.attempt >= request.attempt and not job.failed:
            raise Refusal("an older attempt")
        for other in self.jobs.values():
            if other.point is None:
                other.failed = other.failed or "fenced"
        self.jobs[request.job] = OpenJob(request)
        return Opened(
            credit_bytes=8 << 20,
            credit_batches=self.credit_batches,
            holds=bool(self.chunks),
            damaged=bool(self._lost()),
        )

    def _lost(self) -> dict[int, list[tuple[int, int, int, int]]]:
        """Return the pieces of each damaged chunk that the newest point needs."""
        found: dict[int, list[tuple[int, int, int, int]]] = {}
        for file, held in self.states[len(self.points)].blocks.items():
            for block, where in sorted(held.items()):
                if where != ZERO and where[0] in self.damaged:
                    found.setdefault(where[0], []).append((file, block, 1, where[1]))
        return found

    async def on_lost_chunks(self, request: LostChunks, page_chunks: int = 3) -> Message:
        left = [(number, pieces) for number, pieces in sorted(self._lost().items())]
        left = [each for each in left if each[0] > request.after]
        return LostPage(
            chunks=[
                LostChunk(number, self.chunks[number][0], len(self.chunks[number][1]), pieces)
                for number, pieces in left[:page_chunks]
            ],
            more=len(left) > page_chunks,
        )

    async def on_mend(self, request: Mend) -> Message:
        assert len(encode(request)) <= self.max_payload_bytes
        mended = []
        for chunk in request.chunks:
            assert chunk.data is not None
            stored = bytes(chunk.data)
            plain = zstd.decompress(stored) if chunk.codec == CODEC_ZSTD else stored
            assert blake3(plain).digest() == chunk.digest
            number = self.by_digest[chunk.digest]
            if number in self.damaged:
                self.damaged.remove(number)
                mended.append(number)
        self.mended += mended
        return Mended(chunks=mended)

    async def on_want(self, request: Want) -> Message:
        missing = [at for at, d in enumerate(request.digests) if d not in self.by_digest]
        return Wanted(missing=missing)

    async def on_wait(self, request: Wait) -> Message:
        job = self.jobs[request.job]
        deadline = asyncio.get_running_loop().time() + request.timeout_ms / 1000
        while job.point is None and not job.failed and job.durable <= request.seq:
            self.moved.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self.moved.wait()
            except TimeoutError:
                break
        if job.point is not None:
            if self.lose_commit:
                raise StrandlineError("nobody answers", code="bus.unreachable", retryable=True)
            return Waited(state="committed", durable=job.durable, point=job.point)
        if job.failed:
            return Waited(state="failed", durable=job.durable, error=job.failed, retryable=True)
        return Waited(state="open", durable=job.durable)

    async def on_abort(self, request: Abort) -> Message:
        job = self.jobs.get(request.job)
        if job is not None and job.point is None:
            job.failed = request.reason
        return Waited(state="failed", durable=0)

    # Reading

    async def on_points(self, request: Points) -> Message:
        found = [point for point in self.points if point.number > request.after]
        return PointPage(points=found[: request.limit], more=len(found) > request.limit)

    async def on_resolve(self, request: Resolve) -> Message:
        state = self.states[request.point]
        found: list[Inode | None] = []
        for path in request.paths:
            file: int | None = 1
            for part in [part for part in path.split(b"/") if part]:
                file = state.names.get((file, part)) if file is not None else None
            found.append(state.inodes.get(file) if file is not None else None)
        return Resolved(inodes=found)

    async def on_list(self, request: List, page_entries: int = 700) -> Message:
        state = self.states[request.point]
        names: list[Name] = []
        done = 0
        after = request.after
        children: dict[int, list[tuple[bytes, int]]] = {folder: [] for folder in request.folders}
        for (parent, name), file in state.names.items():
            if parent in children:
                children[parent].append((name, file))
        for folder in request.folders:
            entries = [entry for entry in sorted(children[folder]) if entry[0] > after]
            after = b""
            room = page_entries - len(names)
            names += [Name(folder, name, file) for name, file in entries[:room]]
            if len(entries) > room:
                break
            done += 1
        return Listing(names=names, inodes=[state.inodes[n.file] for n in names], done=done)

    async def on_extents(self, request: Extents) -> Message:
        state = self.states[request.point]
        rows: list[Extent] = []
        for file, held in state.blocks.items():
            if not request.files or file in request.files:
                rows += _extents(file, held)
        rows.sort(key=lambda e: (e.chunk, e.file, e.start))
        left = [e for e in rows if (e.chunk, e.file, e.start) > tuple(request.after)]
        return ExtentPage(extents=left[: request.limit], more=len(left) > request.limit)

    async def on_chunks(self, request: Chunks) -> Message:
        page: list[StoredChunk] = []
        size = 0
        for number in request.chunks:
            digest, plain = self.chunks[number]
            if number in self.damaged:
                plain = b"\xff" * len(plain)
            size += len(plain)
            if page and size > 700 * 1024:
                break
            page.append(StoredChunk(number, digest, len(plain), 0, memoryview(plain)))
        return ChunkPage(chunks=page)

    async def on_block_digests(self, request: BlockDigests) -> Message:
        held = self.states[request.point].blocks.get(request.file, {})
        blocks = min(request.blocks, 1000)
        digests = b""
        holes: list[tuple[int, int]] = []
        for block in range(request.start, request.start + blocks):
            where = held.get(block)
            if where not in (None, ZERO) and where[0] in self.damaged:
                digests += bytes(BLOCK_DIGEST_BYTES)
                continue
            plain = self.block(where)
            if block not in held:
                holes.append((block, 1))
            digests += blake3(plain).digest(length=BLOCK_DIGEST_BYTES)
        return BlockDigestPage(digests=digests, holes=holes)

    def block(self, where: Any) -> bytes:
        if where in (None, ZERO):
            return bytes(BLOCK_BYTES)
        number, at = where
        if number in self.damaged:
            raise Refusal("a damaged chunk", code="store.damaged")
        return self.chunks[number][1][at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]


def _extents(file: int, held: dict[int, Any]) -> list[Extent]:
    """Join neighbouring blocks of one chunk, or of zeros, to extents."""
    found: list[Extent] = []
    for block, where in sorted(held.items()):
        last = found[-1] if found else None
        if last is not None and block == last.start + last.blocks:
            joins = (
                last.kind == EXTENT_ZERO
                if where == ZERO
                else last.kind != EXTENT_ZERO
                and where == (last.chunk, last.chunk_block + last.blocks)
            )
            if joins:
                found[-1] = Extent(
                    file, last.start, last.blocks + 1, last.kind, last.chunk, last.chunk_block
                )
                continue
        if where == ZERO:
            found.append(Extent(file, block, 1, EXTENT_ZERO))
        else:
            found.append(Extent(file, block, 1, 0, where[0], where[1]))
    return found
