"""The store's answers on the bus: `svc.store.<instance>.<call>`."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from strandline_contracts import reading
from strandline_contracts.codec import Message, decode, encode
from strandline_contracts.points import Inode, Name, RecoveryPoint
from strandline_contracts.shipping import (
    MAX_OFFER,
    Abort,
    LostChunks,
    Mend,
    Mended,
    Mismatch,
    Open,
    Opened,
    Wait,
    Want,
    Wanted,
)
from strandline_replica_store.errors import (
    Fenced,
    NoSuch,
    NotAllowed,
    StoreError,
    TooMuch,
    translated,
)
from strandline_replica_store.reading.reader import DamagedChunk, Reader
from strandline_replica_store.reading.scope import Scope
from strandline_replica_store.replica import index, mend, tree
from strandline_replica_store.replica.damage import describe
from strandline_replica_store.replica.rules import OpenVerdict
from strandline_replica_store.service.admission import Admission
from strandline_replica_store.service.receive import Lane, Receiver
from strandline_replica_store.service.replica_state import state_of
from strandline_replica_store.store.store import Store
from strandline_runtime.bus import Encoded, Handler, Request
from strandline_runtime.logs import logger

CREDIT_BYTES = 32 * 1024 * 1024
CREDIT_BATCHES = 48
MAX_WAIT_MS = 3_000
MAX_REPLICAS = 16
MAX_POINTS = 500
MAX_PATHS = 1000
MAX_FILES = 1000
MAX_EXTENTS = 8192
MAX_CHUNKS = 64
MAX_CURSORS = 4096
FIRST_EXTENT = (-1, 0, 0)
ENTRIES_AT_ONCE = 1024
ANSWER_EXTRA_BYTES = 1024
"""What an answer's own fields take beside its records."""

# MessagePack's ways to begin a value.
_EMPTY_ARRAY = b"\x90"
_ARRAY16 = b"\xdc"
_EMPTY_BIN = b"\xc4\x00"
_BIN32 = b"\xc6"

T = TypeVar(
    "T", reading.Resolve, reading.List, reading.Extents, reading.Chunks, reading.BlockDigests
)
A = TypeVar("A", Message, Encoded)
R = TypeVar("R")


class Answers:
    """Handlers of the calls; reading runs in `executor`'s threads."""

    def __init__(
        self,
        store: Store,
        receiver: Receiver,
        admission: Admission,
        executor: Executor,
        *,
        max_answer_bytes: int,
    ) -> None:
        self._store = store
        self._receiver = receiver
        self._admission = admission
        self._executor = executor
        self._room_bytes = max_answer_bytes - ANSWER_EXTRA_BYTES
        self._cursors = _Cursors()
        self._log = logger()

    def handlers(self) -> dict[str, Handler]:
        """Return each call's handler by its name."""
        return {
            "open": self.open,
            "want": self.want,
            "wait": self.wait,
            "abort": self.abort,
            "lost_chunks": self.lost_chunks,
            "mend": self.mend,
            "replicas": self.replicas,
            "points": self.points,
            "resolve": self.resolve,
            "list": self.list,
            "extents": self.extents,
            "chunks": self.chunks,
            "block_digests": self.block_digests,
        }

    # Shipping

    async def open(self, request: Request) -> Message:
        """Open -> Opened | Mismatch."""
        asked = decode(request.data, Open)
        server, source = await self._admission.shipper(
            request.caller,
            asked.source,
            to_open=True,
            # Of a purged source nothing counts that was read before.
            anew=bool(self._store.tombstones.purged_at_ns(asked.source)),
        )
        await self._receiver.run(self._store.deletions.check_stands, source.id)
        await self._receiver.run(self._store.create, source.id, source.name, source.type)
        lane = await self._receiver.lane(asked.source)
        found = await lane.open(server, asked)
        if found is OpenVerdict.MISMATCH:
            return Mismatch(newest=lane.replica.newest)
        point = found if isinstance(found, RecoveryPoint) else None
        holds = await lane.run(lane.replica.holds_chunks)
        damaged = await lane.run(lane.replica.on_database, mend.has_lost)
        return Opened(
            credit_bytes=CREDIT_BYTES,
            credit_batches=CREDIT_BATCHES,
            holds=holds,
            point=point,
            damaged=damaged,
        )

    async def want(self, request: Request) -> Message:
        """Want -> Wanted."""
        asked = decode(request.data, Want)
        server, _ = await self._admission.shipper(request.caller, asked.source)
        _at_most(len(asked.digests), MAX_OFFER, "digests")
        lane = await self._receiver.lane(asked.source)
        if not lane.receives(server, asked.job, asked.attempt):
            raise await self._why_not_open(lane, asked)
        missing = await self._read(
            asked.source, lambda reader: index.missing(reader.conn, asked.digests)
        )
        return Wanted(missing=missing)

    async def _why_not_open(self, lane: Lane, asked: Want) -> StoreError:
        """Return what ended the attempt: the agent may ask before it hears of that."""
        name = f"job {asked.job}, attempt {asked.attempt}"
        ended = await lane.run(lane.replica.waited, asked.job, asked.attempt)
        if ended.state != "failed":
            return Fenced(f"{name}, is not open")
        return StoreError(
            ended.error or f"{name}, has failed",
            code=ended.code,
            hint=ended.hint,
            retryable=ended.retryable,
        )

    async def wait(self, request: Request) -> Message:
        """Wait -> Waited."""
        asked = decode(request.data, Wait)
        await self._admission.shipper(request.caller, asked.source)
        timeout_s = min(max(asked.timeout_ms, 0), MAX_WAIT_MS) / 1000
        return await self._receiver.wait(
            asked.source, asked.job, asked.attempt, asked.seq, timeout_s
        )

    async def abort(self, request: Request) -> Message:
        """Abort -> Waited."""
        asked = decode(request.data, Abort)
        server, _ = await self._admission.shipper(request.caller, asked.source)
        lane = await self._receiver.lane(asked.source)
        return await lane.abort(asked.job, asked.attempt, server, asked.reason)

    # Mending

    async def lost_chunks(self, request: Request) -> Message:
        """LostChunks -> LostPage."""
        asked = decode(request.data, LostChunks)
        await self._may_mend(request.caller, asked.source)
        return await self._read(
            asked.source,
            lambda reader: mend.lost_page(reader.conn, asked.after, self._room_bytes),
        )

    async def mend(self, request: Request) -> Message:
        """Mend -> Mended. It is also the way in for what other sites and tapes still have."""
        asked = decode(request.data, Mend)
        await self._may_mend(request.caller, asked.source)
        lane = await self._receiver.lane(asked.source)
        mended = await lane.run(lane.replica.mend, asked.chunks, request.caller)
        if mended:
            self._log.info("damage.repaired", source=asked.source, chunks=len(mended))
            self._receiver.on_change(asked.source)
        return Mended(chunks=mended)

    async def _may_mend(self, caller: str, source: str) -> None:
        if not caller.startswith("operator-"):
            await self._admission.shipper(caller, source)

    # Reading

    async def replicas(self, request: Request) -> Message:
        """Replicas -> ReplicaPage, for operators and the catalog."""
        if not request.caller.startswith(("operator-", "catalog-")):
            raise NotAllowed(f"{request.caller} may not see all replicas")
        asked = decode(request.data, reading.Replicas)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._replicas, asked.after)

    def _replicas(self, after: str) -> reading.ReplicaPage:
        sources = [source for source in self._store.sources() if source > after]
        found: list[reading.ReplicaState] = []
        room_bytes = self._room_bytes
        for source in sources[:MAX_REPLICAS]:
            state = state_of(self._store, source)
            room_bytes -= len(encode(reading.ReplicaPage(replicas=[state], more=False)))
            if room_bytes < 0 and found:
                break
            found.append(state)
        return reading.ReplicaPage(replicas=found, more=len(found) < len(sources))

    async def points(self, request: Request) -> Message:
        """Points -> PointPage. The catalog may ask too: it learns nothing that events lack."""
        asked = decode(request.data, reading.Points)
        if not request.caller.startswith("catalog-"):
            await self._admission.reader(request.caller, asked.source, 0, asked.grant)
        return await self._read(asked.source, self._points, asked)

    def _points(self, reader: Reader, asked: reading.Points) -> reading.PointPage:
        limit = min(max(asked.limit, 1), MAX_POINTS)
        rows = reader.conn.execute(
            "SELECT record FROM point WHERE number > ? ORDER BY number LIMIT ?",
            (asked.after, limit + 1),
        )
        found: list[RecoveryPoint] = []
        room_bytes = self._room_bytes
        for (record,) in rows:
            room_bytes -= len(record)
            if len(found) == limit or (found and room_bytes < 0):
                return reading.PointPage(points=found, more=True)
            found.append(decode(record, RecoveryPoint))
        return reading.PointPage(points=found, more=False)

    async def resolve(self, request: Request) -> Message:
        """Resolve -> Resolved."""
        asked = decode(request.data, reading.Resolve)
        _at_most(len(asked.paths), MAX_PATHS, "paths")
        return await self._scoped(request, asked, self._resolve)

    def _resolve(self, reader: Reader, scope: Scope, asked: reading.Resolve) -> Message:
        found: list[Inode | None] = []
        room_bytes = self._room_bytes
        for path in asked.paths:
            file = tree.file_at(reader.conn, asked.point, path)
            record = None
            if file is not None:
                scope.check_seen(reader.conn, file)
                record = tree.inode_record(reader.conn, asked.point, file)
            room_bytes -= len(record or b"") + 1
            if room_bytes < 0:
                raise TooMuch("the answer is too large: ask for fewer paths")
            found.append(decode(record, Inode) if record else None)
        return reading.Resolved(inodes=found)

    async def list(self, request: Request) -> Message:
        """List -> Listing."""
        asked = decode(request.data, reading.List)
        _at_most(len(asked.folders), MAX_FILES, "folders")
        return await self._scoped(request, asked, self._list)

    def _list(self, reader: Reader, scope: Scope, asked: reading.List) -> Message:
        names: list[Name] = []
        inodes: list[Inode] = []
        room_bytes = self._room_bytes
        after = asked.after
        for done, folder in enumerate(asked.folders):
            seen = scope.names_in(reader.conn, folder)
            while entries := tree.entries(reader.conn, asked.point, folder, after, ENTRIES_AT_ONCE):
                for entry in entries:
                    if seen is not None and entry.name not in seen:
                        continue
                    room_bytes -= len(entry.record) + len(entry.name) + 32
                    if room_bytes < 0 and names:
                        return reading.Listing(names=names, inodes=inodes, done=done)
                    names.append(Name(folder, entry.name, entry.file))
                    inodes.append(decode(entry.record, Inode))
                after = entries[-1].name
                if len(entries) < ENTRIES_AT_ONCE:
                    break
            after = b""
        return reading.Listing(names=names, inodes=inodes, done=len(asked.folders))

    async def extents(self, request: Request) -> Message:
        """Extents -> ExtentPage."""
        asked = decode(request.data, reading.Extents)
        _at_most(len(asked.files), MAX_FILES, "files")
        cursor = hash((request.caller, asked.source, asked.point, tuple(asked.files)))
        if asked.after == FIRST_EXTENT:
            # Looked at before the page is read, and else after that: between, another index may
            # have been put in the place of the one that it was of.
            order = await self._order_of(asked.source)
            page = await self._scoped(request, asked, self._extents)
            self._cursors.begin(cursor, order)
            return page
        page = await self._scoped(request, asked, self._extents)
        if await self._order_of(asked.source) > self._cursors.order_of(cursor):
            raise StoreError(
                "the index was made anew: some of what lay behind the cursor lies before it now",
                code="store.order_lost",
                hint="Start again from the first extent: run the restore again.",
            )
        return page

    async def _order_of(self, source: str) -> int:
        loop = asyncio.get_running_loop()
        replica = await loop.run_in_executor(self._executor, self._store.replica, source)
        return replica.order_generation

    def _extents(self, reader: Reader, scope: Scope, asked: reading.Extents) -> Message:
        if not asked.files and not scope.whole:
            raise NotAllowed("a grant that is limited to paths reads the extents of named files")
        for file in asked.files:
            scope.check_file(reader.conn, file)
        limit = min(max(asked.limit, 1), MAX_EXTENTS, max(self._room_bytes // 64, 1))
        found = tree.extents(reader.conn, asked.point, asked.files, asked.after, limit + 1)
        return reading.ExtentPage(extents=found[:limit], more=len(found) > limit)

    async def chunks(self, request: Request) -> Encoded:
        """Chunks -> ChunkPage."""
        asked = decode(request.data, reading.Chunks)
        _at_most(len(asked.chunks), MAX_CHUNKS, "chunks")
        try:
            return await self._scoped(request, asked, self._chunks)
        except DamagedChunk as error:
            await self._tell_damage(asked.source, error)
            raise

    def _chunks(self, reader: Reader, scope: Scope, asked: reading.Chunks) -> Encoded:
        scope.check_chunks(reader.conn, asked.chunks)
        return encoded_page(reader.chunks(asked.chunks, self._room_bytes))

    async def _tell_damage(self, source: str, error: DamagedChunk) -> None:
        self._log.error("damage.found", source=source, chunk=error.row.id, reason=error.reason)

        def tell(reader: Reader) -> None:
            damage = describe(reader.conn, error.row, error.reason)
            self._store.replica(source).record_damage(damage)

        try:
            await self._read(source, tell)
        except StoreError as failure:
            self._log.error("damage.not_recorded", source=source, error=str(failure))
        self._receiver.on_change(source)

    async def block_digests(self, request: Request) -> Message:
        """BlockDigests -> BlockDigestPage."""
        asked = decode(request.data, reading.BlockDigests)
        if asked.start < 0 or asked.blocks < 0:
            raise NoSuch("blocks before the first")
        return await self._scoped(request, asked, self._block_digests)

    def _block_digests(self, reader: Reader, scope: Scope, asked: reading.BlockDigests) -> Message:
        scope.check_file(reader.conn, asked.file)
        fit = min(asked.blocks, self._room_bytes // 40)
        return reader.block_digests(asked.point, asked.file, asked.start, fit)

    # What reading has in common

    async def _scoped(
        self,
        request: Request,
        asked: T,
        answer: Callable[[Reader, Scope, T], A],
    ) -> A:
        source, point = asked.source, asked.point
        paths = await self._admission.reader(request.caller, source, point, asked.grant)
        self._store.leases.take(source, point, request.caller)

        def work(reader: Reader) -> A:
            known = "SELECT 1 FROM point WHERE number = ?"
            if reader.conn.execute(known, (point,)).fetchone() is None:
                raise NoSuch(f"source {source} has no recovery point {point}")
            return answer(reader, reader.scope(point, paths), asked)

        return await self._read(source, work)

    async def _read(self, source: str, work: Callable[..., R], *values: Any) -> R:
        """Run `work` with a reader of the source in one of the reading threads."""

        def lent() -> R:
            with self._store.reader(source) as reader, translated():
                return work(reader, *values)

        return await asyncio.get_running_loop().run_in_executor(self._executor, lent)


class _Cursors:
    """In which order of extents those began who read them page by page."""

    def __init__(self) -> None:
        self._orders: OrderedDict[int, int] = OrderedDict()

    def begin(self, cursor: int, order: int) -> None:
        """Take note of a first page. 0: no order was lost yet, there is nothing to know."""
        if order:
            self._orders[cursor] = order
            self._orders.move_to_end(cursor)
            if len(self._orders) > MAX_CURSORS:
                self._orders.popitem(last=False)

    def order_of(self, cursor: int) -> int:
        """Return the order in which a reader began; 0 when that is not known."""
        return self._orders.get(cursor, 0)


def _at_most(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise TooMuch(f"{count} {what} are more than {limit}")


def encoded_page(chunks: Sequence[reading.StoredChunk]) -> Encoded:
    """Return the ChunkPage of these chunks as it is encoded, their data not copied but viewed.

    In MessagePack an array is its length and then its values: so an empty page and empty records
    are encoded, and their ends replaced.
    """
    page = encode(reading.ChunkPage(chunks=[])).removesuffix(_EMPTY_ARRAY)
    parts: list[bytes | memoryview] = [page + _ARRAY16 + len(chunks).to_bytes(2, "big")]
    for chunk in chunks:
        empty = reading.StoredChunk(
            chunk.id, chunk.digest, chunk.plain_bytes, chunk.codec, memoryview(b"")
        )
        record = encode(empty).removesuffix(_EMPTY_BIN)
        parts.append(record + _BIN32 + len(chunk.data).to_bytes(4, "big"))
        parts.append(chunk.data)
    return Encoded(parts)
