"""Making the index anew from the store's newest recovery point, its block digests included."""

from __future__ import annotations

import asyncio

from strandline_agent.attributes import row_of
from strandline_agent.blocks import HOLE, blocks_of
from strandline_agent.errors import AgentError
from strandline_agent.known import PAGE_BLOCKS, FileRow, KnownIndex
from strandline_agent.line import Line
from strandline_agent.store_view import StoreView
from strandline_contracts.errors import StrandlineError
from strandline_contracts.points import ROOT, Inode, Name, RecoveryPoint

FOLDERS_PER_LIST = 256
DIGEST_CALLS_IN_FLIGHT = 8
FILES_PER_ROUND = 256
_HOLES = HOLE * PAGE_BLOCKS


async def rebuild(line: Line, store: str, point: RecoveryPoint, index: KnownIndex) -> None:
    """Make `index` mirror a recovery point, read from the store's own bytes.

    Blocks that the store cannot read are left unknown, so that they are shipped again.
    """
    view = StoreView(line, store, point.source, point.number)
    await asyncio.to_thread(index.clear)
    root = await view.root()
    if root is None or root.type != "d":
        raise AgentError("the newest recovery point has no root folder", code="store.bad_answer")
    await asyncio.to_thread(index.fill, [_row(root)], [])
    await _fill_tree(view, index)
    after = 0
    while files := await asyncio.to_thread(index.regular_files, after, FILES_PER_ROUND):
        after = files[-1].id
        await _fill_digests(view, index, files)
    await asyncio.to_thread(index.set_mirrored, point.number, point.digest)


async def _fill_tree(view: StoreView, index: KnownIndex) -> None:
    waiting = [ROOT]
    while waiting:
        folders, waiting = waiting[:FOLDERS_PER_LIST], waiting[FOLDERS_PER_LIST:]
        async for page in view.entries(folders):
            waiting += [inode.file for inode in page.inodes if inode.type == "d"]
            await asyncio.to_thread(
                index.fill,
                [_row(inode) for inode in page.inodes],
                [_name(name) for name in page.names],
            )


async def _fill_digests(view: StoreView, index: KnownIndex, files: list[FileRow]) -> None:
    room = asyncio.Semaphore(DIGEST_CALLS_IN_FLIGHT)

    async def one(file: FileRow, page: int) -> tuple[int, int, bytes]:
        first = page * PAGE_BLOCKS
        blocks = min(PAGE_BLOCKS, blocks_of(file.size) - first)
        async with room:
            try:
                digests = await view.digests(file.id, first, blocks)
            except StrandlineError as error:
                if error.retryable:
                    raise
                return file.id, page, b""
        return file.id, page, digests

    by_id = {file.id: file for file in files}
    wanted = [(by_id[file], page) for file, page in sorted(await view.pages(list(by_id)))]
    for at in range(0, len(wanted), FILES_PER_ROUND):
        part = wanted[at : at + FILES_PER_ROUND]
        pages = await asyncio.gather(*(one(file, page) for file, page in part))
        kept = [page for page in pages if not page[2] or not _HOLES.startswith(page[2])]
        await asyncio.to_thread(index.fill_pages, kept)


def _row(inode: Inode) -> FileRow:
    return row_of(inode, size=inode.size, suspect=False, changed=0)


def _name(name: Name) -> tuple[int, bytes, int]:
    return name.parent, name.name, name.file
