"""Compaction: gives back the room of what no kept recovery point needs, and keeps the newest state
together (docs/compaction.md).

A round gathers and copies, lets the index point to the copies, rewrites the manifests that named
the old chunks, and only then lets go of segments. It may be killed anywhere: what was moved is
found in the index (`stale`, `retired`), and what was only copied is garbage like any other.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import apsw

from strandline_contracts.points import BLOCK_BYTES, CHUNK_BYTES
from strandline_replica_store.compaction import liveness
from strandline_replica_store.compaction.gathering import (
    Run,
    crumbs,
    deaths,
    filled,
    is_scattered,
    is_sparse,
    is_too_large,
    is_worth_gathering,
    packed,
    shared_blocks,
    victims,
    windows,
    without,
)
from strandline_replica_store.compaction.liveness import ChunkUse, Rows, Survey, bits, rows_of
from strandline_replica_store.compaction.moving import Mover
from strandline_replica_store.errors import Busy, Full, translated
from strandline_replica_store.files import durable, segment
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica import index
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.replica.tree import spans
from strandline_replica_store.store.leases import Leases

PIECE_BYTES = 32 * 1024 * 1024
"""So much is copied between two looks at whether to go on, and changed in one transaction."""
ROUND_BYTES = 1024 * 1024 * 1024
"""So much is gathered before manifests are rewritten and the old segments go."""
POOL_BLOCKS = 65_536
"""So many blocks of the past are sorted by their death at once."""
WINDOWS_AT_ONCE = 512
PAGE_ROWS = 4096
PAGE_CHUNKS = 1024
STAGED_KEPT_NS = 24 * 3600 * 1_000_000_000
"""So long what a failed job has staged waits for its next attempt."""

_LIVE_BYTES = "live_bytes"


class Limits(NamedTuple):
    """How much at once, and who says how fast (`pace` waits) and how far (`may_go_on`)."""

    piece_bytes: int = PIECE_BYTES
    round_bytes: int = ROUND_BYTES
    pool_blocks: int = POOL_BLOCKS
    pace: Callable[[int], None] = lambda _: None
    may_go_on: Callable[[], bool] = lambda: True


@dataclass
class CompactReport:
    """What was done; bytes of moved blocks are plain, all others are of files."""

    moved_bytes: int = 0
    freed_bytes: int = 0
    waiting_bytes: int = 0
    """In segments that go when the leases on them have ended."""
    stored_bytes: int = 0
    live_bytes: int = 0
    rounds: int = 0
    is_complete: bool = True
    reason: str = ""
    """Why it is not complete."""

    def text(self) -> str:
        """Return one line for a person."""
        said = (
            f"moved {self.moved_bytes >> 20} MiB, freed {self.freed_bytes >> 20} MiB;"
            f" {self.stored_bytes >> 20} MiB are stored, {self.live_bytes >> 20} MiB needed"
        )
        if self.waiting_bytes:
            said += f"; {self.waiting_bytes >> 20} MiB go when they are read no more"
        return said if self.is_complete else f"{said}; not complete: {self.reason}"


class _Stopped(Exception):
    """Somebody wants it to stop."""


def compact(
    replica: Replica, leases: Leases, *, force: bool = False, limits: Limits | None = None
) -> CompactReport:
    """Compact a replica if it is due (`force`: whatever can be given back); blocks for long.

    Raises Busy when somebody does so already, and StoreError for a disk that fails. A full disk, or
    being stopped, only ends it early: the report says so, and the next call goes on.
    """
    if not replica.rewriting.acquire(blocking=False):
        raise Busy("the replica is being compacted already")
    try:
        generation = replica.index_generation
        with closing(Reader(replica.folder)) as reader, closing(Mover(replica, reader)) as mover:
            work = _Compaction(
                replica, leases, reader, mover, limits or Limits(),
                generation=generation, force=force,
            )  # fmt: skip
            return work.run()
    finally:
        replica.rewriting.release()


class _Compaction:
    """One call of `compact`."""

    def __init__(
        self,
        replica: Replica,
        leases: Leases,
        reader: Reader,
        mover: Mover,
        limits: Limits,
        *,
        generation: int,
        force: bool,
    ) -> None:
        self._replica = replica
        self._leases = leases
        self._reader = reader
        self._conn = reader.conn
        self._mover = mover
        self._limits = limits
        self._generation = generation
        self._force = force
        self._report = CompactReport()

    def run(self) -> CompactReport:
        report = self._report
        try:
            with translated():
                self._work()
        except Full as error:
            report.is_complete, report.reason = False, error.message
        report.waiting_bytes = sum(map(self._size, self._retired()))
        return report

    def _work(self) -> None:
        try:
            self._settle()
            self._rounds()
            self._take_note()
        except _Stopped:
            self._report.is_complete, self._report.reason = False, "it was stopped"
            # An index that has to be made anew must not put blocks back to where they were.
            self._rewrite_stale()

    def _rounds(self) -> None:
        survey = self._survey()
        empty = [number for number, use in survey.segments.items() if not use.live_bytes]
        if empty:
            self._retire(empty)
            survey = self._survey()
        wasted_bytes = survey.wasted_bytes + 1
        while survey.wasted_bytes < wasted_bytes:
            wasted_bytes = survey.wasted_bytes
            too_large = is_too_large(survey, force=self._force)
            scattered = is_scattered(survey, force=self._force)
            if not too_large and not scattered and not self._crumbs(survey):
                return
            self._replica.leave_segment()
            self._report.rounds += 1
            self._round(survey, also_scattered=scattered)
            survey = self._survey()

    def _round(self, survey: Survey, *, also_scattered: bool) -> None:
        """Move what is worth it, up to a bound, and let go of what that has emptied."""
        chosen = victims(survey, self._fixed(), force=self._force)
        full: Full | None = None
        try:
            self._gather(frozenset(chosen), also_scattered=also_scattered)
            survey = self._survey()
            chosen = self._crumbs(survey)
            if is_too_large(survey, force=self._force):
                chosen = victims(survey, self._fixed(), force=self._force) + chosen
            self._evacuate(list(dict.fromkeys(chosen)))
        except Full as error:
            # What could be moved makes room for the rest.
            full = error
        self._settle()
        self._retire(chosen)
        if full is not None:
            raise full

    def _take_note(self) -> None:
        live_bytes = self._report.live_bytes
        if live_bytes != known_live_bytes(self._conn):
            self._replica.on_database(
                lambda conn: index.put_meta(conn, _LIVE_BYTES, str(live_bytes))
            )

    # What there is

    def _survey(self) -> Survey:
        found = liveness.survey(
            self._conn,
            self._replica.segments_folder,
            is_sparse=self._is_sparse,
            keep_staged=self._keeps_staged(),
            without=self._retired(),
        )
        self._report.stored_bytes = found.stored_bytes
        self._report.live_bytes = found.live_bytes
        return found

    def _retired(self) -> frozenset[int]:
        rows = self._conn.execute("SELECT segment FROM retired")
        return frozenset(number for (number,) in rows)

    def _fixed(self) -> frozenset[int]:
        """Return the segments that still grow: what lies in them is not moved."""
        return frozenset({self._replica.receiving_segment, *self._mover.segments})

    def _keeps_staged(self) -> bool:
        """Tell whether staged chunks are still of use: to an open job, or to a failed one's next
        attempt."""
        row = self._conn.execute(
            "SELECT state, opened_at_ns FROM job ORDER BY opened_at_ns DESC LIMIT 1"
        ).fetchone()
        if row is None or row[0] == "committed":
            return False
        age_ns = time.time_ns() - row[1]
        return row[0] == "open" or (not self._force and age_ns < STAGED_KEPT_NS)

    def _crumbs(self, survey: Survey) -> list[int]:
        return crumbs(survey, self._fixed(), self._replica.segment_limit_bytes // 16)

    def _size(self, number: int) -> int:
        try:
            return os.path.getsize(segment.path_of(self._replica.segments_folder, number))
        except FileNotFoundError:
            return 0

    # Moving

    def _step(self, move: Callable[..., int], what: Sequence[object], *, newest: bool) -> int:
        """Copy one piece, at the pace that is allowed; return how many plain bytes it had."""
        if not what:
            return 0
        if not self._limits.may_go_on():
            raise _Stopped
        if self._replica.room_bytes < 2 * self._limits.piece_bytes:
            raise Full("no room to move chunks in")
        moved_bytes = move(what, newest=newest)
        self._report.moved_bytes += moved_bytes
        self._limits.pace(2 * moved_bytes)
        return moved_bytes

    def _gather(self, chosen: frozenset[int], *, also_scattered: bool) -> None:
        """Bring windows of the newest state together, up to a bound."""
        # Half of the room is for what is copied out of segments after this.
        bound_bytes = min(self._limits.round_bytes, self._replica.room_bytes // 2)
        moved_bytes = 0
        stream = windows(self._newest_rows())
        chunks: list[list[Run]] = []
        blocks = 0
        while batch := list(islice(stream, WINDOWS_AT_ONCE)):
            for runs in packed(self._worth_gathering(batch, chosen, also_scattered=also_scattered)):
                chunks.append(runs)
                blocks += sum(run.blocks for run in runs)
                if blocks * BLOCK_BYTES >= self._limits.piece_bytes:
                    moved_bytes += self._step(self._mover.gather, chunks, newest=True)
                    chunks, blocks = [], 0
            if moved_bytes >= bound_bytes:
                break
        self._step(self._mover.gather, chunks, newest=True)

    def _newest_rows(self) -> Iterator[tuple[int, ...]]:
        """Yield the rows of the newest state in order of file and start, read page by page."""
        file = start = -1
        while True:
            rows = list(
                self._conn.execute(
                    "SELECT file, start, blocks, chunk, chunk_block FROM extent"
                    " WHERE (file, start) > (?, ?) AND chunk > 0 ORDER BY file, start LIMIT ?",
                    (file, start, PAGE_ROWS),
                )
            )
            if not rows:
                return
            yield from rows
            file, start = rows[-1][:2]

    def _worth_gathering(
        self, batch: Sequence[list[Run]], chosen: frozenset[int], *, also_scattered: bool
    ) -> Iterator[list[Run]]:
        inside = self._chunks_in(batch, chosen)
        looked_at = [
            window
            for window in batch
            if (also_scattered and len(window) > 1)
            or not inside.isdisjoint(run.chunk for run in window)
        ]
        rows = rows_of(self._conn, {run.chunk for window in looked_at for run in window})
        sparse = frozenset(
            chunk for chunk in inside if chunk in rows.uses and self._is_sparse(rows.uses[chunk])
        )
        left_out = _left_out(rows)
        for window in looked_at:
            runs = without(window, left_out)
            if is_worth_gathering(runs, rows.uses, sparse, also_scattered=also_scattered):
                yield runs

    def _chunks_in(self, batch: Sequence[list[Run]], chosen: frozenset[int]) -> set[int]:
        """Return those chunks of the windows that lie in the chosen segments."""
        if not chosen:
            return set()
        chunks = {run.chunk for window in batch for run in window}
        rows = self._conn.execute(
            "SELECT id FROM chunk WHERE id IN (SELECT value FROM json_each(?))"
            " AND segment IN (SELECT value FROM json_each(?))",
            (json.dumps(list(chunks)), json.dumps(list(chosen))),
        )
        return {chunk for (chunk,) in rows}

    def _is_sparse(self, use: ChunkUse) -> bool:
        return is_sparse(use, force=self._force)

    def _evacuate(self, chosen: Sequence[int]) -> None:
        """Copy what is needed out of segments, up to a bound."""
        moved_bytes = 0
        pool = _Pool(self._kept())
        for number in chosen:
            for ids in self._chunks_of(number):
                rows = rows_of(self._conn, ids)
                moved_bytes += self._carry(rows, ids)
                pool.add(rows, {c for c in ids if self._falls_apart(rows.uses[c])})
                if pool.blocks >= self._limits.pool_blocks:
                    moved_bytes += self._empty(pool)
            if moved_bytes >= self._limits.round_bytes:
                break
        self._empty(pool)

    def _falls_apart(self, use: ChunkUse) -> bool:
        """Tell whether a chunk's blocks are moved one by one."""
        return bool(use.needed) and not use.is_bad and self._is_sparse(use)

    def _carry(self, rows: Rows, ids: Sequence[int]) -> int:
        """Move the chunks that are still dense, in their order, those of the newest state apart."""
        keeps_staged = self._keeps_staged()
        dense = [
            use
            for use in (rows.uses[chunk] for chunk in ids)
            if not use.is_bad
            and ((use.needed and not self._is_sparse(use)) or (use.is_staged and keeps_staged))
        ]
        moved_bytes = 0
        for newest in (True, False):
            mine = [use for use in dense if bool(use.newest) is newest]
            for piece in _pieces(mine, self._limits.piece_bytes):
                moved_bytes += self._step(self._mover.carry, piece, newest=newest)
        return moved_bytes

    def _empty(self, pool: _Pool) -> int:
        """Make chunks of the blocks in the pool: the newest by file, others by their death."""
        moved_bytes = 0
        for newest, runs in ((True, pool.newest()), (False, pool.past())):
            chunks = list(filled(runs))
            per_step = max(self._limits.piece_bytes // CHUNK_BYTES, 1)
            for first in range(0, len(chunks), per_step):
                piece = chunks[first : first + per_step]
                moved_bytes += self._step(self._mover.gather, piece, newest=newest)
        pool.clear()
        return moved_bytes

    def _chunks_of(self, number: int) -> Iterator[list[int]]:
        after = -1
        while True:
            rows = list(
                self._conn.execute(
                    "SELECT id, offset FROM chunk WHERE segment = ? AND offset > ?"
                    " ORDER BY offset LIMIT ?",
                    (number, after, PAGE_CHUNKS),
                )
            )
            if not rows:
                return
            yield [chunk for chunk, _ in rows]
            after = rows[-1][1]

    def _kept(self) -> list[int]:
        return [n for (n,) in self._conn.execute("SELECT number FROM point ORDER BY number")]

    # Letting go

    def _settle(self) -> None:
        """Rewrite the manifests that name chunks from which blocks have moved; then let go."""
        self._rewrite_stale()
        self._let_go()

    def _rewrite_stale(self) -> None:
        rows = self._conn.execute("SELECT point FROM stale ORDER BY point")
        stale = [point for (point,) in rows]
        if stale:
            self._replica.rewrite(stale)
            self._replica.on_database(
                lambda conn: conn.executemany(
                    "DELETE FROM stale WHERE point = ?", ((point,) for point in stale)
                )
            )

    def _retire(self, numbers: Iterable[int]) -> None:
        """Retire those of the segments that hold nothing that is needed; let go of what can be."""
        if not self._limits.may_go_on():
            raise _Stopped
        now_ns = self._leases.now_ns()
        fixed = self._fixed()
        keeps_staged = self._keeps_staged()

        def retire(conn: apsw.Connection) -> None:
            for number in numbers:
                if number not in fixed and _is_unneeded(conn, number, keeps_staged=keeps_staged):
                    conn.execute("INSERT OR IGNORE INTO retired VALUES (?, ?, 0)", (number, now_ns))

        self._replica.letting_go(self._generation, retire)
        self._let_go()

    def _let_go(self) -> None:
        """Unlink retired segments that nobody can be reading, after a last look at each."""
        source = self._replica.identity.source
        rows = list(self._conn.execute("SELECT segment, at_ns FROM retired"))
        for number, at_ns in rows:
            if self._leases.ended_since(source, at_ns):
                size_bytes = self._size(number)
                if self._forget(number):
                    self._unlink(number)
                    self._report.freed_bytes += size_bytes

    def _forget(self, number: int) -> bool:
        """Take a segment's chunks out of the index, unless some of it is needed again."""
        keeps_staged = self._keeps_staged()

        def forget(conn: apsw.Connection) -> bool:
            rows = conn.execute("SELECT id FROM chunk WHERE segment = ?", (number,))
            named = self._replica.named_by_job([chunk for (chunk,) in rows])
            unneeded = _is_unneeded(conn, number, keeps_staged=keeps_staged)
            if named or not unneeded or number == self._replica.receiving_segment:
                conn.execute("DELETE FROM retired WHERE segment = ?", (number,))
                return False
            conn.execute(
                "DELETE FROM former WHERE chunk IN (SELECT id FROM chunk WHERE segment = ?)",
                (number,),
            )
            conn.execute("DELETE FROM chunk WHERE segment = ?", (number,))
            conn.execute("UPDATE retired SET gone = 1 WHERE segment = ?", (number,))
            return True

        return bool(self._replica.letting_go(self._generation, forget))

    def _unlink(self, number: int) -> None:
        durable.remove(segment.path_of(self._replica.segments_folder, number))
        durable.sync_folder(self._replica.segments_folder)
        self._reader.forget(number)
        self._replica.on_database(
            lambda conn: conn.execute("DELETE FROM retired WHERE segment = ?", (number,))
        )


_IS_NEEDED = (
    "SELECT 1 FROM chunk c WHERE segment = ?1 AND ((staged AND ?2)"
    " OR EXISTS (SELECT 1 FROM extent e WHERE e.chunk = c.id)"
    " OR EXISTS (SELECT 1 FROM extent_past p WHERE p.chunk = c.id)) LIMIT 1"
)
_HAS_HIGHEST = "SELECT 1 FROM chunk WHERE id = (SELECT max(id) FROM chunk) AND segment = ?"


def known_live_bytes(conn: apsw.Connection) -> int:
    """Return what the kept points needed of the segments when compaction last looked; 0: never."""
    return int(index.get_meta(conn, _LIVE_BYTES) or 0)


def _is_unneeded(conn: apsw.Connection, number: int, *, keeps_staged: bool) -> bool:
    """Tell whether a segment may go: nothing names its chunks.

    That of the highest chunk id stays: no id is given twice, and the segments remember them.
    """
    if conn.execute(_IS_NEEDED, (number, keeps_staged)).fetchone() is not None:
        return False
    return conn.execute(_HAS_HIGHEST, (number,)).fetchone() is None


def _left_out(rows: Rows) -> dict[int, int]:
    """Return the blocks that are not gathered: what files share, and what is damaged."""
    left_out = shared_blocks(rows.live)
    for use in rows.uses.values():
        if use.is_bad:
            left_out[use.id] = bits(0, use.plain_blocks)
    return left_out


def _pieces(uses: Iterable[ChunkUse], piece_bytes: int) -> Iterator[list[int]]:
    """Yield the ids of chunks in pieces of about so many bytes."""
    piece: list[int] = []
    held_bytes = 0
    for use in uses:
        piece.append(use.id)
        held_bytes += use.plain_blocks * BLOCK_BYTES
        if held_bytes >= piece_bytes:
            yield piece
            piece, held_bytes = [], 0
    if piece:
        yield piece


class _Pool:
    """Blocks of sparse chunks that wait to be put together anew."""

    def __init__(self, kept: Sequence[int]) -> None:
        self._kept = kept
        self._newest: list[tuple[int, int, Run]] = []
        self._past: list[tuple[int, int, int]] = []

    @property
    def blocks(self) -> int:
        return sum(run.blocks for *_, run in self._newest) + len(self._past)

    def add(self, rows: Rows, chunks: set[int]) -> None:
        """Take the needed blocks of `chunks`, which are among the rows."""
        taken: dict[int, int] = {}
        for row in sorted(rows.live):
            if row.chunk in chunks:
                mine = bits(row.chunk_block, row.blocks) & ~taken.get(row.chunk, 0)
                taken[row.chunk] = taken.get(row.chunk, 0) | mine
                for first, count in spans(mine):
                    start = row.start + first - row.chunk_block
                    self._newest.append((row.file, start, Run(row.chunk, first, count)))
        past = (row for row in rows.past if row.chunk in chunks)
        for (chunk, block), last in deaths(past, self._kept).items():
            if not taken.get(chunk, 0) >> block & 1:
                self._past.append((last, chunk, block))

    def newest(self) -> list[Run]:
        """Return the blocks of the newest state, in order of file."""
        return [run for *_, run in sorted(self._newest)]

    def past(self) -> list[Run]:
        """Return the other blocks, those first that die first."""
        return [Run(chunk, block, 1) for _, chunk, block in sorted(self._past)]

    def clear(self) -> None:
        self._newest, self._past = [], []
