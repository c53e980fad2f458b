"""The scheduler's two files: what it emitted last, and the policies as it saw them last.

Both are written whole beside the old one and renamed: a reader finds the old or the new.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from strandline_scheduler.errors import BadState
from strandline_scheduler.occurrences import Key, Verb


class State:
    """The files in `folder`, which must exist. Blocking: call it in a thread."""

    def __init__(self, folder: Path) -> None:
        self._last = folder / "last-emitted.json"
        self._policies = folder / "policies.msgpack"

    def last(self) -> dict[Key, int]:
        """Return up to which instant each schedule was dealt with. Raises BadState."""
        try:
            rows = msgspec.json.decode(self._last.read_bytes(), type=list[tuple[str, Verb, int]])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise BadState(f"{self._last}: {error}") from error
        return {Key(source, verb): at_ns for source, verb, at_ns in rows}

    def save_last(self, last: Mapping[Key, int]) -> None:
        rows = [(key.source, key.verb, at_ns) for key, at_ns in last.items()]
        _write(self._last, msgspec.json.encode(rows))

    def documents(self) -> dict[str, bytes]:
        """Return the policy documents kept, signatures and all. Raises BadState."""
        try:
            return msgspec.msgpack.decode(self._policies.read_bytes(), type=dict[str, bytes])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise BadState(f"{self._policies}: {error}") from error

    def save_documents(self, documents: Mapping[str, bytes]) -> None:
        _write(self._policies, msgspec.msgpack.encode(documents))


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
