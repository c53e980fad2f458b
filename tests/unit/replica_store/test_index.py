"""The index against plain dictionaries, through random histories; every past point stays right."""

from __future__ import annotations

import copy
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.codec import decode
from strandline_contracts.points import EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO, Extent, Inode, Name
from strandline_replica_store import index, tree
from strandline_replica_store.manifest import Delta
from support.replicas import inode

FILES = range(2, 7)
FOLDERS = (1, 2)
NAMES = (b"a", b"b", b"c")
BLOCKS = 24


@dataclass
class Oracle:
    """A tree as plain dictionaries: the obvious way to apply a delta."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    names: dict[tuple[int, bytes], int] = field(default_factory=dict)
    blocks: dict[int, dict[int, tuple[int, int, int]]] = field(default_factory=dict)

    def apply(self, delta: Delta) -> None:
        for key in delta.gone_names:
            self.names.pop(key, None)
        for file in delta.gone_inodes:
            self.inodes.pop(file, None)
            self.blocks.pop(file, None)
            self.names = {key: to for key, to in self.names.items() if key[0] != file}
        for record in delta.inodes:
            self.inodes[record.file] = record
            end = -(-record.size // 4096)
            kept = self.blocks.get(record.file, {})
            self.blocks[record.file] = {b: place for b, place in kept.items() if b < end}
        for name in delta.names:
            self.names[name.parent, name.name] = name.file
        for extent in delta.extents:
            held = self.blocks.setdefault(extent.file, {})
            for i in range(extent.blocks):
                held.pop(extent.start + i, None)
                if extent.kind == EXTENT_DATA:
                    held[extent.start + i] = (0, extent.chunk, extent.chunk_block + i)
                elif extent.kind == EXTENT_ZERO:
                    held[extent.start + i] = (2, 0, 0)


def extents() -> st.SearchStrategy[Extent]:
    def make(file: int, start: int, blocks: int, kind: int, chunk: int, at: int) -> Extent:
        data = kind == EXTENT_DATA
        return Extent(file, start, blocks, kind, chunk if data else 0, at if data else 0)

    return st.builds(
        make,
        st.sampled_from(FILES),
        st.integers(0, BLOCKS - 1),
        st.integers(1, 12),
        st.sampled_from([EXTENT_DATA, EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO]),
        st.integers(1, 9),
        st.integers(0, 20),
    )


def deltas() -> st.SearchStrategy[Delta]:
    keys = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES))
    return st.builds(
        lambda e, i, n, gone: Delta([], e, i, n, [], gone, []),
        st.lists(extents(), max_size=6),
        st.lists(
            st.builds(inode, st.sampled_from(FILES), st.integers(0, BLOCKS * 4096)), max_size=3
        ),
        st.lists(
            st.builds(lambda key, file: Name(key[0], key[1], file), keys, st.sampled_from(FILES)),
            max_size=3,
        ),
        st.lists(keys, max_size=2),
    )


def seen(conn: sqlite3.Connection, point: int) -> Oracle:
    """Read a whole recovery point back through the questions that readers ask."""
    found = Oracle()
    for file in (1, *FILES):
        record = tree.inode_record(conn, point, file)
        if record is not None:
            found.inodes[file] = decode(record, Inode)
        for parent, name in tree.parents(conn, point, file):
            found.names[parent, name] = file
        for extent in tree.blocks_of(conn, point, file, 0, 1 << 40):
            add(found, extent)
    return found


def add(found: Oracle, extent: Extent) -> None:
    held = found.blocks.setdefault(extent.file, {})
    for i in range(extent.blocks):
        assert extent.start + i not in held
        at = (0, extent.chunk, extent.chunk_block + i) if extent.kind == EXTENT_DATA else (2, 0, 0)
        held[extent.start + i] = at


def filled(oracle: Oracle) -> dict[int, dict[int, tuple[int, int, int]]]:
    return {file: blocks for file, blocks in oracle.blocks.items() if blocks}


def paged(conn: sqlite3.Connection, point: int, files: list[int]) -> Oracle:
    """Read all extents through pages of three."""
    found, after = Oracle(), (-1, 0, 0)
    while page := tree.extents(conn, point, files, after, 3):
        for extent in page:
            key = (extent.chunk, extent.file, extent.start)
            assert key > after
            after = key
            add(found, extent)
    return found


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


def without(delta: Delta, dead: set[int]) -> Delta:
    """Leave out what a dead file cannot have: its id never comes back."""
    return Delta(
        [],
        [e for e in delta.extents if e.file not in dead],
        [i for i in delta.inodes if i.file not in dead],
        [n for n in delta.names if n.file not in dead and n.parent not in dead],
        delta.gone_inodes,
        delta.gone_names,
        [],
    )


def test_a_page_of_extents_is_a_range_of_an_index(tmp_path: Path) -> None:
    """Also when nearly all rows are dead: reading the newest state never wades through them."""
    conn = index.connect(str(tmp_path / "index.db"))
    for number in range(1, 40):
        with index.transaction(conn):
            index.Applier(conn, number).apply(
                Delta(extents=[Extent(2, b, 1, 0, number * 100 + b, 0) for b in range(100)])
            )
    plans: list[str] = []
    conn.set_trace_callback(plans.append)
    page = tree.extents(conn, 39, [], (-1, 0, 0), 10)
    conn.set_trace_callback(None)
    assert [extent.chunk for extent in page] == [3900 + b for b in range(10)]
    for query in plans:
        steps = [row[3] for row in conn.execute("EXPLAIN QUERY PLAN " + query)]
        assert len(steps) == 1, "no sorting"
        assert "_by_chunk" in steps[0], steps
    conn.close()


def test_a_large_hole_ends_many_extents_within_bounds() -> None:
    conn = index.connect(":memory:")
    count = 3 * index.OVERLAP_PAGE_ROWS
    index.Applier(conn, 1).apply(
        Delta(extents=[Extent(2, b * 2, 2, 0, b + 1, 0) for b in range(count)])
    )
    index.Applier(conn, 2).apply(Delta(extents=[Extent(2, 1, count * 2 - 2, EXTENT_HOLE)]))
    left = list(tree.blocks_of(conn, 2, 2, 0, count * 2))
    assert left == [Extent(2, 0, 1, 0, 1, 0), Extent(2, count * 2 - 1, 1, 0, count, 1)]
    assert len(list(tree.blocks_of(conn, 1, 2, 0, count * 2))) == count
    conn.close()
