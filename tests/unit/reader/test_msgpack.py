"""The reader's own MessagePack against the msgpack library, and against bytes that are none."""

from __future__ import annotations

import msgpack
import pytest
import strandline_reader as reader
from hypothesis import given
from hypothesis import strategies as st

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=20)
    ),
    max_leaves=30,
)


@given(values)
def test_it_reads_what_the_library_writes(value: object) -> None:
    assert reader.unpack(msgpack.packb(value, use_bin_type=True)) == value


@given(st.binary(max_size=40))
def test_other_bytes_are_damage_and_nothing_else(data: bytes) -> None:
    try:
        reader.unpack(data)
    except reader.Damage:
        return
    assert data


@given(values, st.data())
def test_a_value_that_is_cut_short_is_damage(value: object, data: st.DataObject) -> None:
    packed = msgpack.packb(value, use_bin_type=True)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(reader.Damage):
        reader.unpack(packed[:cut])


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\xa1a",  # a key without its value
        b"\x82\xa1a\x01\xa1a\x02",  # a key that is doubled
        b"\x81\x90\x01",  # a list as a key
        b"\xa1\xff",  # a text that is not UTF-8
        b"\xc1",  # a code that is not used
        b"\xd4\x01\x00",  # an extension type
        b"\xdd\xff\xff\xff\xff",  # a list longer than memory
        b"\x91" * 1000 + b"\x01",  # deeper than any value of ours
        b"\x01\x02",  # two values
    ],
)
def test_odd_values_are_damage(data: bytes) -> None:
    with pytest.raises(reader.Damage):
        reader.unpack(data)
