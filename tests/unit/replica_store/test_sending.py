"""Chunks are sent from the buffer that they were read into, and it is not overwritten meanwhile."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.codec import decode
from strandline_contracts.reading import ChunkPage, StoredChunk
from strandline_replica_store.reading.buffers import BUFFER_BYTES, MAX_BUFFERS, Buffers
from strandline_replica_store.service.answers import encoded_page

CHUNKS = st.builds(
    StoredChunk,
    st.integers(0, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 131_072),
    st.sampled_from([0, 1]),
    st.sampled_from([0, 1, 255, 256, 65_535, 65_536, 131_072]).map(os.urandom).map(memoryview),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(CHUNKS, max_size=64))
def test_a_page_in_parts_decodes_to_its_chunks(chunks: list[StoredChunk]) -> None:
    page = encoded_page(chunks)
    data = b"".join(page.parts)
    assert len(page) == len(data)
    assert decode(data, ChunkPage) == ChunkPage(chunks=chunks)


def test_room_is_lent_again_only_when_nobody_sees_it() -> None:
    buffers = Buffers()
    first = buffers.take(10)
    first[:] = b"0123456789"
    part = first[5:]
    del first
    second = buffers.take(10)
    second[:] = bytes(10)
    assert bytes(part) == b"56789"
    whole = part.obj
    del part
    third = buffers.take(20)
    assert third.obj is whole
    assert len(third) == 20


def test_room_is_never_refused_but_not_all_is_kept() -> None:
    buffers = Buffers()
    lent = [buffers.take(BUFFER_BYTES) for _ in range(MAX_BUFFERS + 3)]
    kept = {id(room.obj) for room in lent[:MAX_BUFFERS]}
    assert len({id(room.obj) for room in lent}) == MAX_BUFFERS + 3
    lent.clear()
    again = [buffers.take(1) for _ in range(MAX_BUFFERS)]
    assert {id(room.obj) for room in again} == kept
    assert len(buffers.take(BUFFER_BYTES + 1)) == BUFFER_BYTES + 1
