"""Pages of extents, told in as few as there can be, against the rows one by one."""

from __future__ import annotations

from itertools import pairwise

import apsw
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.points import EXTENT_DATA, EXTENT_ZERO, Extent
from strandline_replica_store.files.manifest import Delta
from strandline_replica_store.replica import index, tree

FIRST = (-1, 0, 0)


def extent(file: int, start: int, blocks: int, chunk: int, chunk_block: int) -> Extent:
    """Chunk 0 makes it zeros."""
    if not chunk:
        return Extent(file, start, blocks, EXTENT_ZERO)
    # Few chunks and few places in them: neighbours in file and chunk are the rule.
    return Extent(file, start, blocks, EXTENT_DATA, chunk, min(chunk_block, 32 - blocks))


extents = st.builds(
    extent,
    st.integers(2, 3),
    st.integers(0, 20),
    st.integers(1, 6),
    st.integers(0, 3),
    st.integers(0, 31),
)
in_line = st.builds(
    lambda file, start, blocks, chunk: Extent(file, start, blocks, EXTENT_DATA, chunk, start),
    st.integers(2, 3),
    st.integers(0, 20),
    st.integers(1, 6),
    st.integers(1, 3),
)
histories = st.lists(st.lists(extents | in_line, max_size=6), min_size=1, max_size=5)


def index_of(history: list[list[Extent]]) -> apsw.Connection:
    conn = index.connect(":memory:")
    for number, changed in enumerate(history, start=1):
        with index.transaction(conn):
            for each in changed:
                index.Applier(conn, number).apply(Delta(extents=[each]))
            conn.execute("INSERT INTO point VALUES (?, x'', '', x'')", (number,))
    return conn


def rows_of(conn: apsw.Connection, point: int) -> list[tuple[int, ...]]:
    """Return chunk, file, start, blocks, kind, chunk_block of all rows, in order."""
    columns = "SELECT chunk, file, start, blocks, kind, chunk_block FROM"
    live = conn.execute(f"{columns} extent WHERE born <= ?", (point,))
    past = conn.execute(f"{columns} extent_past WHERE born <= ? AND died > ?", (point, point))
    return sorted([*live, *past])


def pages(conn: apsw.Connection, point: int, files: list[int], limit: int) -> list[Extent]:
    found: list[Extent] = []
    after = FIRST
    while page := tree.extents(conn, point, files, after, limit):
        assert len(page) <= limit
        found += page
        after = (page[-1].chunk, page[-1].file, page[-1].start)
    return found


@settings(max_examples=150, deadline=None)
@given(histories, st.integers(1, 4), st.sampled_from([[], [2], [2, 3]]), st.booleans())
def test_pages_are_the_rows_with_neighbours_joined(
    history: list[list[Extent]], limit: int, files: list[int], walk: bool
) -> None:
    conn = index_of(history)
    few, tree.FEW_EXTENTS = tree.FEW_EXTENTS, 0 if walk else tree.FEW_EXTENTS
    try:
        for point in range(1, len(history) + 1):
            rows = [row for row in rows_of(conn, point) if not files or row[1] in files]
            found = pages(conn, point, files, limit)
            assert found == list(tree.joined(rows))
            assert blocks_of(found) == blocks_of(
                [Extent(row[1], row[2], row[3], row[4], row[0], row[5]) for row in rows]
            )
            places = [(e.chunk, e.file, e.start) for e in found]
            assert all(a < b for a, b in pairwise(places))
    finally:
        tree.FEW_EXTENTS = few
        conn.close()


def blocks_of(found: list[Extent]) -> dict[tuple[int, int], tuple[int, int, int]]:
    blocks: dict[tuple[int, int], tuple[int, int, int]] = {}
    for each in found:
        for at in range(each.blocks):
            place = each.chunk_block + at if each.kind == EXTENT_DATA else 0
            assert (each.file, each.start + at) not in blocks
            blocks[each.file, each.start + at] = (each.kind, each.chunk, place)
    return blocks


@given(histories)
def test_rows_that_are_joined_are_neighbours_in_file_and_chunk(
    history: list[list[Extent]],
) -> None:
    conn = index_of(history)
    found = pages(conn, len(history), [], 100)
    for one, other in pairwise(found):
        assert not (
            one.kind == other.kind == EXTENT_DATA
            and (one.file, one.chunk) == (other.file, other.chunk)
            and one.start + one.blocks == other.start
            and one.chunk_block + one.blocks == other.chunk_block
        )
    conn.close()
