"""MessagePack to typed messages and back; what does not fit its schema is a BadMessage.

Messages are maps with a tag (`m`), so that bytes put on a subject by a wrong turn are refused.
Records that come by the thousand (chunks, extents, inodes, names) are arrays, read by position.
Fields are only ever added, at the end and with a default.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from strandline_contracts.errors import BadMessage

MAX_MESSAGE_BYTES = 8 * 1024 * 1024

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[object, msgspec.msgpack.Decoder[object]] = {}


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="m", omit_defaults=True):
    """A message as a whole; its tag is the subclass's own."""


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One of many in a message: an array on the wire, without a tag."""


class _NoMessage(msgspec.Struct, tag_field="m", tag=""):
    """Beside it a message must name its tag: msgspec asks for one only where there is a choice."""


def _decoder_of(kind: type[T]) -> msgspec.msgpack.Decoder[object]:
    is_message = isinstance(kind, type) and issubclass(kind, Message)
    return msgspec.msgpack.Decoder(kind | _NoMessage if is_message else kind)


def encode(message: msgspec.Struct) -> bytes:
    """Return the MessagePack bytes of `message`."""
    return _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """Return the message of type `kind` that `data` holds, else raise BadMessage."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise BadMessage(f"{len(data)} bytes are more than a message may have")
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = _decoder_of(kind)
    try:
        found = decoder.decode(data)
        if isinstance(found, _NoMessage):
            raise msgspec.ValidationError("no message has this tag")
        return found  # type: ignore[return-value]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        name = getattr(kind, "__name__", str(kind))
        raise BadMessage(f"not a valid {name}: {error}") from error
