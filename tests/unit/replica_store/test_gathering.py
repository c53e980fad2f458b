"""The rules of compaction, each against the obvious way to say it."""

from __future__ import annotations

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.points import CHUNK_BLOCKS
from strandline_replica_store.compaction import gathering, liveness
from strandline_replica_store.compaction.gathering import Moved, Run
from strandline_replica_store.compaction.liveness import ChunkUse, Live, Past, SegmentUse, Survey
from strandline_replica_store.replica import tree

runs = st.lists(
    st.builds(
        lambda chunk, first, count: Run(chunk, first, min(count, CHUNK_BLOCKS - first)),
        st.integers(1, 4),
        st.integers(0, CHUNK_BLOCKS - 1),
        st.integers(1, CHUNK_BLOCKS),
    ),
    max_size=12,
)


def blocks_of(found: list[Run]) -> list[tuple[int, int]]:
    return [(run.chunk, run.first + i) for run in found for i in range(run.blocks)]


@given(st.integers(0, (1 << CHUNK_BLOCKS) - 1))
def test_spans_are_the_bits_of_a_mask(mask: int) -> None:
    found = list(tree.spans(mask))
    assert sum(liveness.bits(first, count) for first, count in found) == mask
    ends = [first + count for first, count in found]
    assert all(end < first for end, (first, _) in zip(ends, found[1:], strict=False))


@given(runs, st.dictionaries(st.integers(1, 4), st.integers(0, (1 << CHUNK_BLOCKS) - 1)))
def test_what_is_left_out_is_left_out(given_runs: list[Run], left_out: dict[int, int]) -> None:
    found = gathering.without(given_runs, left_out)
    assert blocks_of(found) == [
        (chunk, block)
        for chunk, block in blocks_of(given_runs)
        if not left_out.get(chunk, 0) >> block & 1
    ]


@given(runs)
def test_joined_and_filled_runs_are_the_same_blocks(given_runs: list[Run]) -> None:
    assert blocks_of(gathering.joined(given_runs)) == blocks_of(given_runs)
    chunks = list(gathering.filled(given_runs))
    assert [place for chunk in chunks for place in blocks_of(chunk)] == blocks_of(given_runs)
    sizes = [len(blocks_of(chunk)) for chunk in chunks]
    assert all(size == CHUNK_BLOCKS for size in sizes[:-1])
    assert all(0 < size <= CHUNK_BLOCKS for size in sizes)


@given(st.lists(runs, max_size=12))
def test_packed_groups_are_whole_and_fit(groups: list[list[Run]]) -> None:
    groups = [group for group in groups if 0 < len(blocks_of(group)) <= CHUNK_BLOCKS]
    chunks = [blocks_of(chunk) for chunk in gathering.packed(groups)]
    assert all(0 < len(chunk) <= CHUNK_BLOCKS for chunk in chunks)
    assert sorted(chain(*chunks)) == sorted(chain(*map(blocks_of, groups)))
    for group in map(blocks_of, groups):
        text = [chunk[i : i + len(group)] for chunk in chunks for i in range(len(chunk))]
        assert group in text


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 30), st.integers(1, 70)), max_size=6))
def test_windows_are_the_blocks_of_rows_between_multiples(
    given_rows: list[tuple[int, int, int]],
) -> None:
    rows, position, last_file = [], 0, 0
    for file, gap, blocks in sorted(given_rows, key=lambda row: row[0]):
        position = gap if file != last_file else position + gap
        rows.append((file, position, blocks, 9, 0))
        last_file, position = file, position + blocks
    numbered = []
    expected: dict[tuple[int, int], list[int]] = {}
    for at, (file, start, blocks, _, _) in enumerate(rows):
        numbered.append((file, start, blocks, at + 1, 0))
        for block in range(start, start + blocks):
            expected.setdefault((file, block // CHUNK_BLOCKS), []).append(at + 1)
    found = list(gathering.windows(numbered))
    assert [[chunk for chunk, _ in blocks_of(window)] for window in found] == list(
        expected.values()
    )
    assert all(len(blocks_of(window)) <= CHUNK_BLOCKS for window in found)


@given(
    st.integers(0, 20),
    st.integers(1, 20),
    st.lists(st.integers(0, 40), unique=True, max_size=8).map(sorted),
)
def test_a_row_follows_its_blocks(chunk_block: int, blocks: int, cuts: list[int]) -> None:
    moved = [
        Moved(first, last - first, 100 + at, 3)
        for at, (first, last) in enumerate(zip(cuts[::2], cuts[1::2], strict=False))
    ]
    place = {move.first + i: (move.chunk, move.chunk_block + i)
             for move in moved for i in range(move.blocks)}  # fmt: skip
    start = 1000
    pieces = gathering.repointed(start, blocks, 7, chunk_block, moved)
    found = {
        piece.start + i: (piece.chunk, piece.chunk_block + i)
        for piece in pieces
        for i in range(piece.blocks)
    }
    assert sum(piece.blocks for piece in pieces) == blocks
    assert pieces[0].start == start
    assert found == {
        start + i: place.get(chunk_block + i, (7, chunk_block + i)) for i in range(blocks)
    }


points = st.lists(st.integers(1, 30), unique=True, min_size=1).map(sorted)


@given(points, st.sets(st.integers(1, 30)))
def test_a_row_is_named_by_the_first_point_kept_since(kept: list[int], born: set[int]) -> None:
    expected = {min(n for n in kept if n >= b) for b in born if b <= kept[-1]}
    assert gathering.points_naming(born, kept) == expected


@given(
    points,
    st.lists(st.tuples(st.integers(1, 29), st.integers(1, 9), st.integers(0, 8)), max_size=8),
)
def test_a_block_dies_with_the_last_point_that_needs_it(
    kept: list[int], given_rows: list[tuple[int, int, int]]
) -> None:
    rows = [Past(1, 0, born, born + age, 2, 5, block) for born, age, block in given_rows]
    expected: dict[tuple[int, int], int] = {}
    for row in rows:
        last = max((n for n in kept if n < row.died), default=0)
        for block in (row.chunk_block, row.chunk_block + 1):
            expected[5, block] = max(expected.get((5, block), 0), last)
    assert gathering.deaths(rows, kept) == expected


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 20), st.integers(1, 5)), max_size=10))
def test_shared_blocks_are_those_that_two_rows_name(
    given_rows: list[tuple[int, int, int]],
) -> None:
    rows = [Live(2, at * 100, 1, n, chunk, b) for at, (chunk, b, n) in enumerate(given_rows)]
    named = [(row.chunk, row.chunk_block + i) for row in rows for i in range(row.blocks)]
    found = gathering.shared_blocks(rows)
    assert {
        (chunk, block) for chunk, mask in found.items() for block in range(32) if mask >> block & 1
    } == {place for place in named if named.count(place) > 1}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 1000)), min_size=1, max_size=8))
def test_victims_bring_a_replica_down_to_its_goal(given: list[tuple[int, int]]) -> None:
    segments = {
        number: SegmentUse(size, size * live // 1000, size * live // 1000)
        for number, (size, live) in enumerate(given, start=1)
    }
    survey = Survey(segments)
    chosen = gathering.victims(survey, frozenset(), force=False)
    left = survey.stored_bytes - sum(segments[number].dead_bytes for number in chosen)
    worthless = [
        use
        for number, use in segments.items()
        if number not in chosen
        and use.dead_bytes * 1000 > use.stored_bytes * gathering.SEGMENT_DEAD_PERMILLE
    ]
    assert not worthless or left <= survey.live_bytes * gathering.LEFT_PERMILLE // 1000
    forced = gathering.victims(survey, frozenset({1}), force=True)
    assert set(forced) == {n for n, use in segments.items() if use.dead_bytes and n != 1}


def test_what_is_due_follows_from_the_bars() -> None:
    mib = 1 << 20
    assert not gathering.is_too_large(Survey({1: SegmentUse(112 * mib, 100 * mib)}), force=False)
    assert gathering.is_too_large(Survey({1: SegmentUse(114 * mib, 100 * mib)}), force=False)
    assert not gathering.is_too_large(Survey({1: SegmentUse(7 * mib, mib)}), force=False)
    assert gathering.is_too_large(Survey({1: SegmentUse(7 * mib, mib)}), force=True)
    assert not gathering.is_scattered(Survey({}, 100 * mib, 120 * mib), force=False)
    assert gathering.is_scattered(Survey({}, 100 * mib, 121 * mib), force=False)
    assert not gathering.is_scattered(Survey({}, mib, 8 * mib), force=False)


def test_a_survey_adds_up_what_chunks_cost() -> None:
    full, half = (1 << 32) - 1, (1 << 16) - 1
    uses = [
        ChunkUse(1, 32, 1000, 1, is_staged=False, is_bad=False, newest=full, needed=full),
        ChunkUse(2, 32, 1000, 1, is_staged=False, is_bad=False, newest=0, needed=half),
        ChunkUse(3, 32, 1000, 1, is_staged=True, is_bad=False, newest=0, needed=0),
        ChunkUse(4, 32, 1000, 2, is_staged=False, is_bad=False, newest=1, needed=1),
    ]
    survey = liveness.tally(
        uses, {1: 4000, 2: 2000, 3: 64}, is_sparse=lambda use: use.id == 2, keep_staged=False
    )
    assert survey.segments[1].live_bytes == 64 + 1144 + 572
    assert survey.segments[1].kept_bytes == 64 + 1144 + 572
    assert survey.segments[2].live_bytes == 64 + 1144 // 32
    assert survey.segments[2].kept_bytes == 64 + 1144
    assert survey.segments[3].live_bytes == 0
    assert (survey.newest_bytes, survey.touched_bytes) == (33 * 4096, 64 * 4096)
    kept = liveness.tally(uses, {1: 4000}, is_sparse=lambda _: False, keep_staged=True)
    assert kept.segments[1].live_bytes == 64 + 1144 + 572 + 1144
