"""Small JSON files that decide about lives: readable by people, and a flipped bit is found.

The last key of the object is `check`: the first 16 bytes, in hexadecimal, of the BLAKE3 digest of
all bytes of the file before `"check"`.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from blake3 import blake3

from strandline_replica_store.errors import Damaged
from strandline_replica_store.files import durable

T = TypeVar("T", bound=msgspec.Struct)

_KEY = b'"check"'


def pack(value: msgspec.Struct) -> bytes:
    """Return the file's bytes for a struct that has fields."""
    body = msgspec.json.format(msgspec.json.encode(value), indent=2).removesuffix(b"\n}")
    body += b",\n  "
    return body + _KEY + b': "' + _check(body) + b'"\n}\n'


def unpack(data: bytes, kind: type[T]) -> T:
    """Return the struct that a file's bytes hold; raise Damaged."""
    body, key, rest = data.rpartition(_KEY)
    if not key or rest != b': "' + _check(body) + b'"\n}\n':
        raise Damaged("its bytes do not match their digest")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise Damaged(f"not what it should be: {error}") from error


def read(path: str, kind: type[T]) -> T | None:
    """Return what a file holds, None where there is none. Raises Damaged, OSError."""
    try:
        with open(path, "rb") as file:
            return unpack(file.read(), kind)
    except FileNotFoundError:
        return None
    except Damaged as error:
        raise Damaged(f"{path}: {error.message}") from error


def write(path: str, value: msgspec.Struct) -> None:
    """Make `path` hold the struct, atomically and for good. Raises OSError."""
    durable.write_file_atomically(path, pack(value))


def _check(body: bytes) -> bytes:
    return blake3(body).hexdigest(length=16).encode()
