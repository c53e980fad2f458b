"""Reading files whose content may have changed: which blocks differ, as chunks ready to ship.

A file is read in groups of four pages (16 MiB), by several threads where it is large. Holes are
skipped by SEEK_DATA, so their size does not matter. A file that changes while it is read is read
again, at most three times, and then kept as it was met, marked `changing`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from itertools import islice

from blake3 import blake3

from strandline_agent import linux
from strandline_agent.attributes import (
    inode_differs,
    make_inode,
    may_change_unseen,
    read_xattrs,
    row_of,
)
from strandline_agent.blocks import HOLE, blocks_of, changed_runs, digests
from strandline_agent.chunks import Compressor
from strandline_agent.errors import PipelineStopped
from strandline_agent.known import PAGE_BLOCKS, UNKNOWN, FileRow, KnownIndex
from strandline_agent.outgoing import ChunkOut, GoneInode, GoneName, Outgoing
from strandline_agent.packing import Packed, Packer, cut
from strandline_contracts.points import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    EXTENT_DATA,
    EXTENT_HOLE,
    Extent,
    Issue,
)

READERS = 2
MAX_WAITING_FILES = 64
SMALL_BYTES = 64 * 1024
SMALL_FILES = 32
"""Files up to 64 KiB are read by the thread that walks, so many at a time: handed to others, the
threads would spend more on waking each other than on reading."""
GROUP_PAGES = 4
STEP_BYTES = 1024 * 1024
"""What is read at once."""
TRIES = 3
RETRY_WAIT_S = 0.05
MAY_BE_DIRTY_NS = 600_000_000_000
"""So long after its ctime a file may have pages that are not on the disk yet: Linux waits half a
minute, a slow disk or a laptop's settings make more of it."""

PAGE_BYTES = PAGE_BLOCKS * BLOCK_BYTES

AskDigests = Callable[[int, int, int], Future[bytes]]
"""Asks the store for the digests of blocks (file, start, blocks), holes as HOLE."""
FetchDigests = Callable[[int, int, int], bytes]
"""The same, and waits for them. Raises PipelineStopped."""


class ToRead:
    """A file to be read: open, with what the walk saw of it and what the replica has (`row`)."""

    __slots__ = ("birth_ns", "fd", "file", "fs", "path", "row", "stat")

    def __init__(
        self,
        fd: int,
        file: int,
        path: bytes,
        *,
        stat: os.stat_result,
        fs: int,
        birth_ns: int,
        row: FileRow | None,
    ) -> None:
        self.fd = fd
        self.file = file
        self.path = path
        self.stat = stat
        self.fs = fs
        self.birth_ns = birth_ns
        self.row = row


class _Reading:
    """A file that is being read: its groups of pages, and how many are out.

    The store can hold nothing behind `held_bytes`: it ends a file's blocks by the size that it is
    told when the file has been read. Digests that the index has behind that are of long ago.
    """

    def __init__(self, task: ToRead, index: KnownIndex) -> None:
        self.task = task
        self.tries = 0
        self.before = task.stat
        self.error: OSError | None = None
        self.content_changed = False
        self.held_bytes = 0 if task.row is None else task.row.size
        self._index = index
        self.start()

    def start(self) -> None:
        """Begin at the front; the state that this try is to find is `before`."""
        if self.tries:
            self.held_bytes = max(self.held_bytes, self.before.st_size)
        self.tries += 1
        self.clock_ns = linux.file_clock_ns()
        self.before = os.fstat(self.task.fd)
        self.out = 0
        self._pages = self._needed_pages()
        self._next: list[int] | None = self._group()
        self.is_large = len(self._next) == GROUP_PAGES

    def _group(self) -> list[int]:
        try:
            return list(islice(self._pages, GROUP_PAGES))
        except OSError as error:
            self.error = error
            return []

    def take(self) -> list[int]:
        """Return the next group; `exhausted` tells whether it was the last."""
        assert self._next is not None
        group, self._next = self._next, self._group() or None
        self.out += 1
        return group

    @property
    def exhausted(self) -> bool:
        return self._next is None

    def _needed_pages(self) -> Iterator[int]:
        """Pages that hold data now, or that the index has something of, rising."""
        size = self.before.st_size
        known: deque[int] = deque()
        if self.task.row is not None or self.tries > 1:
            end = (size + PAGE_BYTES - 1) // PAGE_BYTES
            known.extend(self._index.pages(self.task.file, 0, end))
        at = next_data(self.task.fd, 0, size)
        while at < size or known:
            page = at // PAGE_BYTES
            if known and (at >= size or known[0] <= page):
                page = known.popleft()
            yield page
            if at < size and at // PAGE_BYTES <= page:
                at = next_data(self.task.fd, (page + 1) * PAGE_BYTES, size)


def next_data(fd: int, at: int, size: int) -> int:
    """Return where the next data at or after `at` begin; `size` when there are none."""
    if at >= size:
        return size
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        if error.errno == errno.EINVAL:
            return at
        raise


def data_runs(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of [start, end) that hold data, widened to whole blocks, rising."""
    at = start
    while at < end:
        begin = next_data(fd, at, end)
        if begin >= end:
            return
        try:
            stop = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.EINVAL):
                raise
            stop = end
        begin = max(at, begin // BLOCK_BYTES * BLOCK_BYTES)
        stop = min(end, blocks_of(stop) * BLOCK_BYTES)
        if begin < stop:
            yield begin, stop
        at = max(stop, begin + BLOCK_BYTES)


class Readers:
    """The threads that read; `read` hands them a file and waits while 64 are waiting.

    `read_bytes` and `dirty_bytes` count plain bytes. With `offer` the chunks of new
    files are left to be offered to the store before they are compressed. `fetch` is asked for
    digests that the index does not have; without it such blocks are shipped.
    """

    def __init__(
        self, index: KnownIndex, out: Outgoing, *, offer: bool, fetch: AskDigests | None
    ) -> None:
        self._index = index
        self._out = out
        self._offer = offer
        self._ask = fetch
        self._asked: set[Future[bytes]] = set()
        self._fetch = None if fetch is None else self._fetch_digests
        self._walker = _Worker(index, out, offer, self._fetch)
        self._small: list[ToRead] = []
        self._waiting: deque[ToRead] = deque()
        self._open: deque[_Reading] = deque()
        self._changed = threading.Condition()
        self._busy = 0
        self._closed = False
        self._stopped = False
        self.read_bytes = 0
        self.dirty_bytes = 0
        self.partial = False

    def read(self, task: ToRead) -> None:
        """Have a file read; called by the thread that walks. Raises PipelineStopped."""
        if task.stat.st_size <= SMALL_BYTES:
            # All of them are on their way from the disk before the first is waited for.
            os.posix_fadvise(task.fd, 0, 0, os.POSIX_FADV_WILLNEED)
            self._small.append(task)
            if len(self._small) >= SMALL_FILES:
                self._read_small()
            return
        with self._changed:
            while len(self._waiting) >= MAX_WAITING_FILES and not self._stopped:
                self._changed.wait()
            if self._stopped:
                os.close(task.fd)
                raise PipelineStopped("the job has stopped")
            self._waiting.append(task)
            self._changed.notify()

    def end(self) -> None:
        """Read the small files that are left; called by the thread that walks, at its end."""
        self._read_small()
        self._walker.flush()

    def _read_small(self) -> None:
        tasks, self._small = deque(self._small), []
        try:
            while tasks:
                with self._changed:
                    if self._stopped:
                        raise PipelineStopped("the job has stopped")
                    self._busy += 1
                reading = _Reading(tasks.popleft(), self._index)
                group = reading.take()
                if not reading.exhausted:
                    # It has grown since: the others may help.
                    self._reopen(reading)
                self._work(self._walker, reading, group)
        finally:
            for task in tasks:
                os.close(task.fd)

    def _reopen(self, reading: _Reading) -> None:
        with self._changed:
            self._open.append(reading)
            self._changed.notify_all()

    def close(self) -> None:
        """Tell that no more files come: the threads end when all are read."""
        with self._changed:
            while self._small:
                os.close(self._small.pop().fd)
            self.read_bytes += self._walker.read_bytes
            self.dirty_bytes += self._walker.dirty_bytes
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Let the threads end soon; files that wait are not read."""
        with self._changed:
            self._stopped = True
            while self._waiting:
                os.close(self._waiting.popleft().fd)
            for asked in self._asked:
                asked.cancel()
            self._changed.notify_all()

    def run(self) -> None:
        """Read until there is no more: the body of each thread. Raises PipelineStopped."""
        worker = _Worker(self._index, self._out, self._offer, self._fetch)
        try:
            while (work := self._take()) is not None:
                self._work(worker, *work)
            worker.flush()
        finally:
            with self._changed:
                self.read_bytes += worker.read_bytes
                self.dirty_bytes += worker.dirty_bytes

    def _fetch_digests(self, file: int, start: int, blocks: int) -> bytes:
        assert self._ask is not None
        with self._changed:
            if self._stopped:
                raise PipelineStopped("the job has stopped")
            asked = self._ask(file, start, blocks)
            self._asked.add(asked)
        try:
            return asked.result()
        except CancelledError as error:
            raise PipelineStopped("the job has stopped") from error
        finally:
            with self._changed:
                self._asked.discard(asked)

    def _take(self) -> tuple[_Reading, list[int]] | None:
        with self._changed:
            while not self._stopped:
                if self._open:
                    reading = self._open[0]
                    group = reading.take()
                    if reading.exhausted:
                        self._open.popleft()
                    return reading, group
                if self._waiting:
                    reading = _Reading(self._waiting.popleft(), self._index)
                    self._busy += 1
                    self._open.append(reading)
                    self._changed.notify_all()
                elif self._closed and not self._busy:
                    return None
                else:
                    self._changed.wait()
        raise PipelineStopped("the job has stopped")

    def _work(self, worker: _Worker, reading: _Reading, group: list[int]) -> None:
        try:
            try:
                for page in group:
                    if worker.read_page(reading, page):
                        reading.content_changed = True
            except OSError as error:
                reading.error = error
            if reading.is_large:
                # Also after an error: nothing of a file may follow its end, which others may tell.
                worker.flush()
        except BaseException:
            self._end(reading)
            raise
        with self._changed:
            reading.out -= 1
            if reading.out or not reading.exhausted:
                return
        self._finish(worker, reading)

    def _finish(self, worker: _Worker, reading: _Reading) -> None:
        after = os.fstat(reading.task.fd)
        before = reading.before
        is_calm = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
            after.st_size,
            after.st_mtime_ns,
            after.st_ctime_ns,
        )
        if not is_calm and reading.error is None and reading.tries < TRIES:
            # What this try has found goes out before what the next one finds.
            worker.flush()
            time.sleep(RETRY_WAIT_S * reading.tries)
            reading.start()
            self._reopen(reading)
            return
        try:
            if reading.error is not None:
                self._failed(worker, reading, reading.error)
            else:
                self._keep(reading, changing=not is_calm)
        finally:
            self._end(reading)

    def _end(self, reading: _Reading) -> None:
        with self._changed:
            os.close(reading.task.fd)
            self._busy -= 1
            if self._closed and not self._busy:
                self._changed.notify_all()

    def _keep(self, reading: _Reading, *, changing: bool) -> None:
        task = reading.task
        xattrs, problems = read_xattrs(task.fd)
        inode = make_inode(
            task.file,
            reading.before,
            fs=task.fs,
            birth_ns=task.birth_ns,
            xattrs=xattrs,
            changing=changing,
        )
        # A name that was made since the walk looked may have got an id of its own.
        is_new_link = reading.before.st_nlink != task.stat.st_nlink
        may_change = may_change_unseen(reading.before, reading.clock_ns)
        suspect = changing or is_new_link or may_change
        row = row_of(inode, size=inode.size, suspect=suspect, changed=0)
        if task.row is not None:
            row = row._replace(changed=task.row.changed)
        if task.row is None or inode_differs(inode, task.row):
            self._out.put(inode)
        self._index.put_file(row, content_changed=reading.content_changed)
        for text in problems:
            self._out.put(Issue(task.path, "metadata", text))
        if changing:
            text = f"it changed each of the {TRIES} times that it was read"
            self._out.put(Issue(task.path, "changing", text))

    def _failed(self, worker: _Worker, reading: _Reading, error: OSError) -> None:
        task = reading.task
        self.partial = True
        text = error.strerror or str(error)
        worker.flush()
        if task.row is None:
            self._out.put(*(GoneName(*name) for name in self._index.retract(task.file)))
            self._out.put(GoneInode(task.file))
            self._out.put(Issue(task.path, "unreadable", text))
            return
        # No Inode tells the store a size: it would keep what was sent of blocks behind the old end,
        # where nobody looks who goes by the size.
        end = blocks_of(task.row.size)
        sent = blocks_of(max(reading.held_bytes, reading.before.st_size)) - end
        if sent > 0:
            self._out.put(Extent(task.file, end, sent, EXTENT_HOLE))
        # Blocks that could be read may be new: the index must not take the file for unchanged.
        self._index.put_file(task.row._replace(ctime_ns=0))
        self._out.put(Issue(task.path, "stale", f"{text}; what could not be read is older"))


class _Worker:
    """What one reading thread has of its own: buffers, a compressor, and a chunk begun."""

    def __init__(
        self, index: KnownIndex, out: Outgoing, offer: bool, fetch: FetchDigests | None
    ) -> None:
        self._index = index
        self._out = out
        self._offer = offer
        self._fetch = fetch
        self._buffer = memoryview(bytearray(STEP_BYTES))
        self._packer = Packer()
        self._compressor = Compressor()
        self.read_bytes = 0
        self.dirty_bytes = 0

    def read_page(self, reading: _Reading, page: int) -> bool:
        """Read one page of a file and send out what differs; tells whether anything did."""
        task = reading.task
        first = page * PAGE_BLOCKS
        blocks = min(PAGE_BLOCKS, blocks_of(reading.before.st_size) - first)
        known = self._old_digests(reading, page, first)
        held = max(0, min(PAGE_BLOCKS, blocks_of(reading.held_bytes) - first))
        # What the store goes on holding where this try sends nothing.
        kept = (UNKNOWN * held if known is None else known)[: held * BLOCK_DIGEST_BYTES]
        old = None if known is None else kept[: blocks * BLOCK_DIGEST_BYTES]
        new = bytearray()
        try:
            self._compare(reading, old, new, first, blocks)
        except OSError:
            self._put_page(task.file, page, bytes(new) + kept[len(new) :])
            raise
        found = bytes(new)
        differs = old is None or found != old.ljust(len(found), b"\0")
        if differs or len(known or b"") > len(kept):
            # Behind the end the store keeps its blocks until it is told the size: a later try, or
            # a later job if this one cannot read the file to its end, compares with them.
            self._put_page(task.file, page, found + kept[len(found) :])
        return differs

    def _compare(
        self, reading: _Reading, old: bytes | None, new: bytearray, first: int, blocks: int
    ) -> None:
        """Read blocks and send out what differs from `old`; `new` gets their digests meanwhile."""
        task = reading.task
        if reading.clock_ns - reading.before.st_ctime_ns < MAY_BE_DIRTY_NS:
            # After `before`, before the first byte: what changes by mmap from now on shows there.
            linux.start_writing_out(task.fd, first * BLOCK_BYTES, blocks * BLOCK_BYTES)
        for start, end in data_runs(task.fd, first * BLOCK_BYTES, (first + blocks) * BLOCK_BYTES):
            self._hole(task, old, new, first, start // BLOCK_BYTES)
            at = start
            while at < end:
                # Steps end at multiples of their size, so that chunks are cut at theirs.
                size = min(end - at, STEP_BYTES - at % STEP_BYTES)
                self._step(reading, old, new, first, at=at, size=size)
                at += size
        self._hole(task, old, new, first, first + blocks)

    def _put_page(self, file: int, page: int, digests: bytes) -> None:
        self._index.put_page(file, page, b"" if digests.count(0) == len(digests) else digests)

    def _old_digests(self, reading: _Reading, page: int, first: int) -> bytes | None:
        task = reading.task
        if task.row is None and reading.tries == 1:
            return b""
        old = self._index.page(task.file, page)
        if old is None and self._fetch is not None and task.row is not None:
            held = min(PAGE_BLOCKS, blocks_of(task.row.size) - first)
            old = self._fetch(task.file, first, held) if held > 0 else b""
            # Whatever differs or not, the index has them again from now on.
            self._index.put_page(task.file, page, old)
        return old

    def _hole(
        self, task: ToRead, old: bytes | None, new: bytearray, first: int, until: int
    ) -> None:
        """Note that the blocks up to `until` are a hole."""
        done = len(new)
        if until - first == done // BLOCK_DIGEST_BYTES:
            return
        new += HOLE * (until - first - done // BLOCK_DIGEST_BYTES)
        start = first + done // BLOCK_DIGEST_BYTES
        self._runs(task, _part(old, done, len(new)), bytes(new[done:]), start, None)

    def _step(
        self,
        reading: _Reading,
        old: bytes | None,
        new: bytearray,
        first: int,
        *,
        at: int,
        size: int,
    ) -> None:
        task = reading.task
        view = self._buffer[:size]
        got = _read_fully(task.fd, view[: reading.before.st_size - at], at)
        if got < size:
            view[got:] = bytes(size - got)
        self.read_bytes += got
        done = len(new)
        found = digests(view)
        new += found
        start = first + done // BLOCK_DIGEST_BYTES
        self._runs(task, _part(old, done, len(new)), found, start, view)

    def _runs(
        self, task: ToRead, old: bytes | None, new: bytes, first: int, view: memoryview | None
    ) -> None:
        for start, blocks, kind in changed_runs(old, new, first):
            if kind != EXTENT_DATA:
                self._out.put(Extent(task.file, start, blocks, kind))
                continue
            assert view is not None
            self.dirty_bytes += blocks * BLOCK_BYTES
            for piece, count in cut(start, blocks):
                at = (piece - first) * BLOCK_BYTES
                plain = view[at : at + count * BLOCK_BYTES]
                for packed in self._packer.add(task.file, piece, plain, task.row is None):
                    self._ship(packed)

    def flush(self) -> None:
        """Send out the chunk that is begun."""
        for packed in self._packer.flush():
            self._ship(packed)

    def _ship(self, packed: Packed) -> None:
        plain, places, may_be_held = packed
        digest = blake3(plain).digest()
        if self._offer and may_be_held:
            self._out.put(ChunkOut(digest, len(plain), None, bytes(plain), places))
        else:
            codec, data = self._compressor.stored(plain)
            self._out.put(ChunkOut(digest, len(plain), codec, data, places))


def _part(old: bytes | None, start: int, end: int) -> bytes | None:
    return None if old is None else old[start:end]


def _read_fully(fd: int, view: memoryview, at: int) -> int:
    got = 0
    while got < len(view):
        count = os.preadv(fd, [view[got:]], at + got)
        if count == 0:
            break
        got += count
    return got
