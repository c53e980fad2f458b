"""The index against plain dictionaries, through random histories; every past point stays right."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.points import EXTENT_HOLE, Extent, Name
from strandline_replica_store.errors import means_damage
from strandline_replica_store.files.manifest import Delta
from strandline_replica_store.replica import index, tree
from support.index_oracle import Oracle, deltas, filled, paged, seen, without
from support.replicas import inode


@settings(max_examples=150, deadline=None)
@given(
    history=st.lists(st.lists(deltas(), min_size=1, max_size=3), min_size=1, max_size=6),
    gone=st.lists(st.integers(0, 5), max_size=2, unique=True),
)
def test_every_point_reads_as_it_was(history: list[list[Delta]], gone: list[int]) -> None:
    conn = index.connect(":memory:")
    oracle, states = Oracle(), []
    dead: set[int] = set()
    for number, point_deltas in enumerate(history, start=1):
        applier = index.Applier(conn, number)
        for delta in [
            *point_deltas,
            *([Delta(gone_inodes=[number + 1])] if number in gone else []),
        ]:
            dead.update(delta.gone_inodes)
            alive = without(delta, dead)
            applier.apply(alive)
            oracle.apply(alive)
        states.append(copy.deepcopy(oracle))
    for number, state in enumerate(states, start=1):
        found = seen(conn, number)
        assert found.inodes == state.inodes
        assert found.names == state.names
        assert filled(found) == filled(state)
        assert filled(paged(conn, number, [])) == filled(state)
        some = [2, 4]
        wanted = {file: blocks for file, blocks in filled(state).items() if file in some}
        for few in (20_000, 0):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tree, "FEW_EXTENTS", few)
                assert filled(paged(conn, number, some)) == wanted
    conn.close()


def test_a_page_of_extents_is_a_range_of_an_index(tmp_path: Path) -> None:
    """Also when nearly all rows are dead: reading the newest state never wades through them."""
    conn = index.connect(str(tmp_path / "index.db"))
    for number in range(1, 40):
        with index.transaction(conn):
            index.Applier(conn, number).apply(
                Delta(extents=[Extent(2, b, 1, 0, number * 100 + b, 0) for b in range(100)])
            )
    plans: list[tuple[str, Any]] = []

    def trace(_: object, query: str, values: Any) -> bool:
        if "FROM extent" in query:
            plans.append((query, values))
        return True

    conn.exec_trace = trace
    page = tree.extents(conn, 39, [], (-1, 0, 0), 10)
    conn.exec_trace = None
    assert [extent.chunk for extent in page] == [3900 + b for b in range(10)]
    assert plans
    for query, values in plans:
        steps = [row[3] for row in conn.execute("EXPLAIN QUERY PLAN " + query, values)]
        assert len(steps) == 1, "no sorting"
        assert "_by_chunk" in steps[0], steps
    conn.close()


def test_a_name_that_leads_nowhere_does_not_end_a_listing() -> None:
    """Who lists takes a page that is not full for the last one."""
    conn = index.connect(":memory:")
    names = [Name(1, name, file) for file, name in enumerate((b"a", b"b", b"c", b"d"), start=2)]
    inodes = [inode(file) for file in (1, 3, 4)]
    index.Applier(conn, 1).apply(Delta(inodes=inodes, names=names))
    found = tree.entries(conn, 1, 1, b"", 2)
    assert [entry.name for entry in found] == [b"b", b"c"]


def test_a_large_hole_ends_many_extents_within_bounds() -> None:
    conn = index.connect(":memory:")
    count = 3 * index.OVERLAP_PAGE_ROWS
    index.Applier(conn, 1).apply(
        Delta(extents=[Extent(2, b * 2, 2, 0, b + 1, 0) for b in range(count)])
    )
    index.Applier(conn, 2).apply(Delta(extents=[Extent(2, 1, count * 2 - 2, EXTENT_HOLE)]))
    left = list(tree.blocks_of(conn, 2, 2, 0, count * 2))
    assert left == [Extent(2, 0, 1, 0, 1, 0), Extent(2, count * 2 - 1, 1, 0, count, 1)]
    # The first and the last one are in two parts now: what ended, and what still holds.
    before = list(tree.blocks_of(conn, 1, 2, 0, count * 2))
    assert len(before) == count + 2
    assert sum(extent.blocks for extent in before) == count * 2
    conn.close()


def test_a_flipped_bit_of_the_index_is_an_error(tmp_path: Path) -> None:
    """Whichever bit of a page it is: nobody ever reads another number than was written."""
    path = tmp_path / "index.db"
    conn = index.connect(str(path))
    with index.transaction(conn):
        index.Applier(conn, 1).apply(
            Delta(extents=[Extent(2, b, 1, 0, b + 1, 0) for b in range(2000)])
        )
    conn.close()
    sound = path.read_bytes()
    for at in range(0, len(sound), 4999):
        spoiled = bytearray(sound)
        spoiled[at] ^= 1 << at % 8
        path.write_bytes(spoiled)
        assert is_refused(path), at
    path.write_bytes(sound)
    assert not is_refused(path)


def is_refused(path: Path) -> bool:
    """Tell whether reading all of an index fails for being damaged; else it reads as written."""
    try:
        conn = index.connect_to_read(str(path))
    except (index.Outdated, apsw.Error) as error:
        return isinstance(error, index.Outdated) or means_damage(error)
    try:
        if index.check_pages(conn):
            return True
        rows = [row[0] for row in conn.execute("SELECT chunk FROM extent ORDER BY chunk")]
        assert rows == list(range(1, 2001))
    finally:
        conn.close()
    return False


def test_what_sticks_out_of_a_change_keeps_its_birth() -> None:
    conn = index.connect(":memory:")
    for number, extents_ in enumerate(
        ([Extent(2, 0, 10, 0, 1, 0)], [Extent(2, 3, 1, 0, 2, 0), Extent(2, 6, 2, 1)]), start=1
    ):
        index.Applier(conn, number).apply(Delta(extents=extents_))
    live = conn.execute(
        "SELECT start, blocks, born, chunk, chunk_block FROM extent ORDER BY start"
    ).fetchall()
    past = conn.execute(
        "SELECT start, blocks, born, died, chunk_block FROM extent_past ORDER BY start"
    ).fetchall()
    assert live == [(0, 3, 1, 1, 0), (3, 1, 2, 2, 0), (4, 2, 1, 1, 4), (8, 2, 1, 1, 8)]
    assert past == [(3, 1, 1, 2, 3), (6, 2, 1, 2, 6)]
    conn.close()
