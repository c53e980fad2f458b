"""Restoring a recovery point to a folder: plan, make, write, finish, each resumable."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from strandline_agent.asking import ask
from strandline_agent.chunks import plain_of
from strandline_agent.errors import PipelineStopped, RestoreFailed, RestoreRefused
from strandline_agent.line import Line
from strandline_agent.restore_plan import RestorePlan, list_tree, plan_roots
from strandline_agent.restore_rules import inside, select
from strandline_agent.restore_tree import Problem, TargetTree, open_target, problem, sync
from strandline_agent.store_view import FIRST, StoreView
from strandline_contracts.errors import StrandlineError
from strandline_contracts.points import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    CODEC_RAW,
    EXTENT_DATA,
    EXTENT_ZERO,
    Extent,
    Issue,
)
from strandline_contracts.reading import ChunkPage, Chunks, StoredChunk

WRITERS = 2
GROUP_CHUNKS = 64
GROUP_BYTES = 1536 * 1024
"""Plain bytes of the chunks asked for at once, about: half as many travel."""
GROUPS_IN_FLIGHT = 24
CHECKPOINT_BYTES = 256 * 1024 * 1024
FILES_PER_GROUP = 1000
MAX_ISSUES = 1000
FALLOCATE_MISSING = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
ZEROS = bytes(CHUNK_BYTES)

Progress = Callable[[str, int, int, int], None]
"""Takes phase, files, bytes written, bytes in all."""


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """What to restore, from which point, and where to. `plan_path` is on the agent's own disk."""

    source: str
    point: int
    store: str
    to: bytes
    grant: bytes
    plan_path: Path
    paths: tuple[bytes, ...] = ()
    overwrite: bool = False
    devices: bool = False
    progress: Progress = field(default=lambda *_: None)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored; `issues` are the first of them."""

    files: int
    bytes: int
    issues: list[Issue]
    issue_count: int


async def restore(line: Line, order: RestoreOrder) -> Restored:
    """Restore; returns when everything is on the disk.

    Called again with the same `plan_path` it goes on where it was stopped. Raises RestoreRefused
    (nothing was written), RestoreFailed, StrandlineError.
    """
    plan = await asyncio.to_thread(_open_plan, order.plan_path)
    job = _Restore(line, order, plan)
    try:
        result = await job.run()
    finally:
        await asyncio.to_thread(plan.close)
    await asyncio.to_thread(forget_plan, order.plan_path)
    return result


def _open_plan(path: Path) -> RestorePlan:
    """Open a plan that is complete, else begin a new one."""
    plan = RestorePlan(path)
    if plan.phase == "new":
        plan.close()
        forget_plan(path)
        plan = RestorePlan(path)
    return plan


def forget_plan(path: Path) -> None:
    """Remove a plan that is not needed any more."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


class _Group(NamedTuple):
    """Chunks to ask for together, the extents that need them, and the cursor behind them."""

    chunks: list[int]
    extents: dict[int, list[Extent]]
    zeros: list[Extent]
    cursor: tuple[int, tuple[int, int, int]]


class _Restore:
    def __init__(self, line: Line, order: RestoreOrder, plan: RestorePlan) -> None:
        self._line = line
        self._order = order
        self._plan = plan
        self._view = StoreView(line, order.store, order.source, order.point, grant=order.grant)
        self._target = -1
        self._trees_lock = threading.Lock()
        self._files = 0
        self._bytes = 0
        self._total = 0
        self._stopped = threading.Event()
        self._local = threading.local()
        self._trees: list[TargetTree] = []

    async def run(self) -> Restored:
        resumed = self._plan.phase != "new"
        if not resumed:
            await self._make_plan()
        order = self._order
        self._target = await asyncio.to_thread(
            open_target, order.to, overwrite=order.overwrite, resumed=resumed
        )
        _, self._total = await asyncio.to_thread(self._plan.totals)
        threads = ThreadPoolExecutor(WRITERS, "restore")
        try:
            await self._phases(threads)
        finally:
            self._stopped.set()
            await asyncio.to_thread(threads.shutdown)
            for tree in self._trees:
                tree.close()
            os.close(self._target)
        files, size = await asyncio.to_thread(self._plan.totals)
        issues, count = await asyncio.to_thread(self._plan.issues, MAX_ISSUES)
        return Restored(files, size, issues, count)

    async def _make_plan(self) -> None:
        self._order.progress("planning", 0, 0, 0)
        ways = select(self._order.paths) if self._order.paths else []
        missing = await plan_roots(self._view, self._plan, ways)
        for path in missing:
            await self._tell(path, "vanished", "there is no such path in this recovery point")
        if ways and len(missing) == len(ways):
            raise RestoreRefused(
                "nothing of what was asked for is in this recovery point",
                code="restore.no_such_path",
                hint="See what there is: strandline browse.",
            )
        await list_tree(self._view, self._plan)
        # An order that may not write there is refused before the plan counts as begun.
        order = self._order
        fd = await asyncio.to_thread(
            open_target, order.to, overwrite=order.overwrite, resumed=False
        )
        os.close(fd)
        await asyncio.to_thread(self._plan.enter, "plan")

    async def _phases(self, threads: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        plan = self._plan
        if plan.phase in ("plan", "make"):
            await asyncio.to_thread(plan.enter, "make")
            await loop.run_in_executor(threads, self._make)
            await loop.run_in_executor(threads, sync, self._target)
            await asyncio.to_thread(plan.enter, "data")
        if plan.phase == "data":
            await self._write_all(threads)
            await loop.run_in_executor(threads, sync, self._target)
            await asyncio.to_thread(plan.enter, "finish")
        await loop.run_in_executor(threads, self._finish)
        await loop.run_in_executor(threads, sync, self._target)

    # In threads

    def _tree(self) -> TargetTree:
        tree: TargetTree | None = getattr(self._local, "tree", None)
        if tree is None:
            tree = self._local.tree = TargetTree(self._plan, self._target)
            with self._trees_lock:
                self._trees.append(tree)
        return tree

    def _make(self) -> None:
        tree = self._tree()
        for folder in self._plan.folders(deepest_first=False):
            if not self._attempt(folder.file, partial(tree.make_folder, folder)):
                continue
            for node in self._plan.files(folder.file):
                self._attempt(node.file, partial(tree.make_file, node, devices=self._order.devices))
            self._progress("making files")

    def _attempt(self, file: int, act: Callable[[], None]) -> bool:
        """Make one entry, as `_guarded` does."""
        self._files += 1
        return self._guarded(file, act)

    def _finish(self) -> None:
        tree = self._tree()
        plan = self._plan
        for parent, name, file in plan.links():
            path = plan.path(parent) + b"/" + name
            found = self._problem(partial(tree.make_link, parent, name, file))
            if found is not None:
                self._issue(path, found.code, found.text)
        self._files = 0
        for folder in plan.folders(deepest_first=True):
            if folder.skip:
                continue
            for node in plan.files(folder.file):
                if not node.skip:
                    self._attributes(node.file, partial(tree.finish_file, node))
            self._attributes(folder.file, partial(tree.finish_folder, folder))
            self._progress("setting attributes")

    def _attributes(self, file: int, act: Callable[[], list[str]]) -> None:
        self._check_stopped()
        self._files += 1
        try:
            problems = act()
        except OSError as error:
            problems = [problem(error).text]
        for text in problems:
            self._issue(self._plan.path(file), "metadata", text)

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise PipelineStopped("the job has stopped")

    # Data

    async def _write_all(self, threads: ThreadPoolExecutor) -> None:
        flying: deque[tuple[asyncio.Task[None], _Group]] = deque()
        checkpoint: asyncio.Task[None] | None = None
        since_checkpoint = 0
        try:
            async for group in self._groups():
                flying.append((asyncio.create_task(self._write_group(threads, group)), group))
                if len(flying) >= GROUPS_IN_FLIGHT:
                    task, done = flying.popleft()
                    await task
                    since_checkpoint += len(done.chunks) * CHUNK_BYTES
                    if since_checkpoint >= CHECKPOINT_BYTES and is_done(checkpoint):
                        since_checkpoint = 0
                        checkpoint = asyncio.create_task(self._checkpoint(done))
                self._progress("writing")
            while flying:
                await flying.popleft()[0]
            if checkpoint is not None:
                await checkpoint
        finally:
            tasks = [task for task, _ in flying] + ([checkpoint] if checkpoint else [])
            for pending in tasks:
                pending.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._progress("writing")

    async def _checkpoint(self, done: _Group) -> None:
        """Bring all up to `done` to the disk while later groups are being written; then note it."""
        await asyncio.to_thread(sync, self._target)
        await asyncio.to_thread(self._plan.set_cursor, *done.cursor)

    async def _groups(self) -> AsyncIterator[_Group]:
        """Yield what to fetch and write, from the cursor on, ordered by chunk within each part."""
        first, after = await asyncio.to_thread(lambda: self._plan.cursor)
        part = 0
        async for files in self._parts():
            if part >= first:
                async for page in self._view.extents(files, after if part == first else FIRST):
                    for group in _grouped(part, page.extents):
                        yield group
            part += 1

    async def _parts(self) -> AsyncIterator[list[int]]:
        """Yield the files to ask for together; an empty list means the whole tree."""
        if self._plan.is_whole:
            yield []
            return
        after = 0
        while files := await asyncio.to_thread(self._plan.regular_ids, after, FILES_PER_GROUP):
            after = files[-1]
            yield files

    async def _write_group(self, threads: ThreadPoolExecutor, group: _Group) -> None:
        loop = asyncio.get_running_loop()
        if group.zeros:
            await loop.run_in_executor(threads, self._allocate, group.zeros)
        left = group.chunks
        writing = []
        while left:
            chunks = await self._ask_chunks(left)
            writing.append(loop.run_in_executor(threads, self._write_chunks, chunks, group.extents))
            left = left[max(1, len(chunks)) :]
        for bad in await asyncio.gather(*writing):
            for number in bad:
                await self._try_again(threads, number, group.extents)

    async def _ask_chunks(self, numbers: list[int]) -> list[StoredChunk]:
        """Return the first of the chunks asked for; none when the first cannot be had."""
        order = self._order
        request = Chunks(source=order.source, point=order.point, chunks=numbers, grant=order.grant)
        try:
            page = await ask(self._line, order.store, "chunks", request, ChunkPage, timeout_s=30)
        except StrandlineError as error:
            if error.retryable or error.code.startswith("signature."):
                raise
            if len(numbers) > 1:
                return await self._ask_chunks(numbers[:1])
            return [StoredChunk(numbers[0], b"", 0, CODEC_RAW, memoryview(b""))]
        if [chunk.id for chunk in page.chunks] != numbers[: len(page.chunks)] or not page.chunks:
            raise RestoreFailed("the store sent other chunks than asked", code="store.bad_answer")
        return page.chunks

    async def _try_again(
        self, threads: ThreadPoolExecutor, number: int, extents: dict[int, list[Extent]]
    ) -> None:
        """Ask once more for a chunk that came damaged; then give up the files that need it."""
        loop = asyncio.get_running_loop()
        chunks = await self._ask_chunks([number])
        if not await loop.run_in_executor(threads, self._write_chunks, chunks, extents):
            return
        for file in {extent.file for extent in extents[number]}:
            path = await asyncio.to_thread(self._plan.path, file)
            await self._tell(path, "damaged", "stored bytes do not match their digest")

    def _write_chunks(
        self, chunks: list[StoredChunk], extents: dict[int, list[Extent]]
    ) -> list[int]:
        """Check and write chunks; returns those whose bytes are not what they should be."""
        bad: list[int] = []
        tree = self._tree()
        tree.expect({extent.file for chunk in chunks for extent in extents[chunk.id]})
        for chunk in chunks:
            plain = plain_of(chunk)
            if plain is None:
                bad.append(chunk.id)
                continue
            view = memoryview(plain)
            for extent in extents[chunk.id]:
                at = extent.chunk_block * BLOCK_BYTES
                end = at + extent.blocks * BLOCK_BYTES
                if not 0 <= at < end <= len(view):
                    bad.append(chunk.id)
                    break
                self._write(tree, extent, view[at:end])
        return bad

    def _write(self, tree: TargetTree, extent: Extent, plain: memoryview) -> None:
        def act() -> None:
            opened = tree.writable(extent.file)
            if opened is None:
                return
            fd, size = opened
            offset, length = inside(extent.start, extent.blocks, size)
            done = 0
            while done < length:
                done += os.pwrite(fd, plain[done:length], offset + done)
            self._bytes += length

        self._guarded(extent.file, act)

    def _allocate(self, zeros: list[Extent]) -> None:
        tree = self._tree()
        for extent in zeros:
            self._guarded(extent.file, partial(self._allocate_one, tree, extent))

    def _allocate_one(self, tree: TargetTree, extent: Extent) -> None:
        opened = tree.writable(extent.file)
        if opened is None:
            return
        fd, size = opened
        offset, length = inside(extent.start, extent.blocks, size)
        if not length:
            return
        try:
            os.posix_fallocate(fd, offset, length)
        except OSError as error:
            if error.errno not in FALLOCATE_MISSING:
                raise
            for at in range(offset, offset + length, CHUNK_BYTES):
                os.pwrite(fd, ZEROS[: offset + length - at], at)
        self._bytes += length

    def _guarded(self, file: int, act: Callable[[], None]) -> bool:
        """Do `act`; on a problem with this file alone, note it and leave the file out."""
        found = self._problem(act)
        if found is not None:
            self._plan.skip(file)
            self._issue(self._plan.path(file), found.code, found.text)
        return found is None

    def _problem(self, act: Callable[[], None]) -> Problem | None:
        """Do `act`; return what is wrong with this entry alone, if anything."""
        self._check_stopped()
        try:
            act()
        except Problem as found:
            return found
        except OSError as error:
            return problem(error)
        return None

    # Telling

    def _issue(self, path: bytes, code: str, text: str) -> None:
        self._plan.add_issue(Issue(path, code, text))

    async def _tell(self, path: bytes, code: str, text: str) -> None:
        await asyncio.to_thread(self._issue, path, code, text)

    def _progress(self, phase: str) -> None:
        self._order.progress(phase, self._files, self._bytes, self._total)


def is_done(checkpoint: asyncio.Task[None] | None) -> bool:
    """Tell whether another checkpoint may begin; raise what the last one raised."""
    if checkpoint is None:
        return True
    if checkpoint.done():
        checkpoint.result()
    return checkpoint.done()


def _grouped(part: int, extents: list[Extent]) -> list[_Group]:
    """Cut a page of extents, ordered by chunk, into groups of a bounded size."""
    groups: list[_Group] = []
    chunks: dict[int, list[Extent]] = {}
    zeros: list[Extent] = []
    size = 0
    for at, extent in enumerate(extents):
        if extent.kind == EXTENT_ZERO:
            zeros.append(extent)
        elif extent.kind == EXTENT_DATA:
            chunks.setdefault(extent.chunk, []).append(extent)
            size += extent.blocks * BLOCK_BYTES
        following = extents[at + 1] if at + 1 < len(extents) else None
        is_full = size >= GROUP_BYTES or len(chunks) >= GROUP_CHUNKS
        if following is None or (is_full and following.chunk != extent.chunk):
            cursor = (part, (extent.chunk, extent.file, extent.start))
            groups.append(_Group(list(chunks), chunks, zeros, cursor))
            chunks, zeros, size = {}, [], 0
    return groups
