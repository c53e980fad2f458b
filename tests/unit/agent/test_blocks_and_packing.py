"""Runs of changed blocks and chunks of pieces, against simple oracles."""

from __future__ import annotations

from itertools import pairwise

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_agent.blocks import HOLE, ZERO_DIGEST, changed_runs, digests
from strandline_agent.packing import OWN_CHUNK_BLOCKS, Packed, Packer, cut
from strandline_contracts.points import (
    BLOCK_BYTES,
    CHUNK_BLOCKS,
    EXTENT_DATA,
    EXTENT_HOLE,
    EXTENT_ZERO,
)

LETTERS = {"a": b"a" * 16, "b": b"b" * 16, "h": HOLE, "z": ZERO_DIGEST}
KINDS = {"a": EXTENT_DATA, "b": EXTENT_DATA, "h": EXTENT_HOLE, "z": EXTENT_ZERO}
states = st.text(alphabet="abhz", max_size=40)


def joined(letters: str) -> bytes:
    return b"".join(LETTERS[letter] for letter in letters)


@settings(max_examples=300)
@given(st.one_of(st.none(), states), states, st.integers(0, 10**9))
def test_runs_are_what_a_block_by_block_comparison_finds(
    old: str | None, new: str, first: int
) -> None:
    expected = {}
    for at, letter in enumerate(new):
        before = None if old is None else (old[at] if at < len(old) else "h")
        if before != letter:
            expected[first + at] = KINDS[letter]
    runs = changed_runs(None if old is None else joined(old), joined(new), first)
    found = {run.start + at: run.kind for run in runs for at in range(run.blocks)}
    assert found == expected
    for one, following in pairwise(runs):
        assert one.start + one.blocks <= following.start
        if one.start + one.blocks == following.start:
            assert one.kind != following.kind


def test_digests_are_those_of_single_blocks() -> None:
    plain = b"x" * BLOCK_BYTES + bytes(BLOCK_BYTES)
    expected = blake3(b"x" * BLOCK_BYTES).digest(length=16) + ZERO_DIGEST
    assert digests(plain) == expected


@given(st.integers(0, 10_000), st.integers(0, 300))
def test_cuts_lie_at_multiples_of_a_chunk(start: int, blocks: int) -> None:
    pieces = list(cut(start, blocks))
    assert [at for first, count in pieces for at in range(first, first + count)] == list(
        range(start, start + blocks)
    )
    assert all(0 < count <= CHUNK_BLOCKS for _, count in pieces)
    assert all(first % CHUNK_BLOCKS == 0 for first, _ in pieces[1:])


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, CHUNK_BLOCKS)), max_size=40))
def test_chunks_hold_each_piece_once(pieces: list[tuple[int, int]]) -> None:
    packer = Packer()
    packed: list[Packed] = []
    expected: dict[tuple[int, int], bytes] = {}
    start = 0
    for file, blocks in pieces:
        plain = b"".join(
            (start + at).to_bytes(4, "little") * (BLOCK_BYTES // 4) for at in range(blocks)
        )
        for at in range(blocks):
            expected[file, start + at] = plain[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]
        packed += packer.add(file, start, plain, may_be_held=False)
        start += blocks
    packed += packer.flush()
    assert packer.flush() == []
    found = {}
    for chunk in packed:
        assert len(chunk.plain) <= CHUNK_BLOCKS * BLOCK_BYTES
        if len(chunk.places) > 1:
            assert all(place.blocks < OWN_CHUNK_BLOCKS for place in chunk.places)
        for place in chunk.places:
            for at in range(place.blocks):
                begin = (place.chunk_block + at) * BLOCK_BYTES
                found[place.file, place.start + at] = bytes(
                    chunk.plain[begin : begin + BLOCK_BYTES]
                )
    assert found == expected
