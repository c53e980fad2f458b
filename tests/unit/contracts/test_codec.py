"""Every message survives the wire, in our decoder and in `msgpack`; rubbish is a BadMessage."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from strandline_contracts.codec import MAX_MESSAGE_BYTES, Message, decode, encode
from strandline_contracts.errors import BadMessage
from support.examples import MESSAGES

KINDS = sorted({type(message) for message in MESSAGES.values()}, key=lambda kind: kind.__name__)
PLAIN: dict[type[inspect.Type], st.SearchStrategy[Any]] = {
    inspect.IntType: st.integers(-(2**63), 2**64 - 1),
    inspect.StrType: st.text(max_size=20),
    inspect.BytesType: st.binary(max_size=40),
    inspect.MemoryViewType: st.binary(max_size=40).map(memoryview),
    inspect.BoolType: st.booleans(),
    inspect.NoneType: st.none(),
}


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a type, as msgspec describes it."""
    if type(kind) in PLAIN:
        return PLAIN[type(kind)]
    match kind:
        case inspect.LiteralType(values=choices):
            return st.sampled_from(choices)
        case inspect.ListType(item_type=item):
            return st.lists(values(item), max_size=3)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(values, items))
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=3)
        case inspect.UnionType(types=types):
            return st.one_of(*map(values, types))
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values(field.type) for field in fields})
    raise AssertionError(f"a kind of field that no message had before: {kind}")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_message_survives_the_wire(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(values(inspect.type_info(kind)))
    wire = encode(message)
    assert decode(wire, kind) == message
    independent = msgpack.unpackb(wire, raw=False)
    assert decode(msgpack.packb(independent), kind) == message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"\x80", b"\x81\xa1m\xa0"])
def test_a_map_without_its_tag_is_a_bad_message(kind: type[Message], data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(data, kind)


@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_rubbish_is_a_bad_message(data: bytes, kind: type[Message]) -> None:
    with pytest.raises(BadMessage):
        decode(data, kind)


@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_cut_and_changed_messages_are_whole_or_bad(name: str, data: st.DataObject) -> None:
    wire, kind = bytearray(encode(MESSAGES[name])), type(MESSAGES[name])
    with pytest.raises(BadMessage):
        decode(bytes(wire[: data.draw(st.integers(0, len(wire) - 1))]), kind)
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(BadMessage):
        assert isinstance(decode(bytes(wire), kind), kind)


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_a_message_is_no_other(name: str) -> None:
    wire = encode(MESSAGES[name])
    for kind in KINDS:
        if kind is not type(MESSAGES[name]):
            with pytest.raises(BadMessage):
                decode(wire, kind)


def test_a_message_has_a_largest_size() -> None:
    with pytest.raises(BadMessage, match="more than a message may have"):
        decode(bytes(MAX_MESSAGE_BYTES + 1), msgspec.Raw)
