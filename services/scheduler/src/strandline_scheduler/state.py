"""The scheduler's two files: what it emitted last, and the policies as it saw them last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from strandline_runtime import state_file
from strandline_scheduler.errors import BadState
from strandline_scheduler.occurrences import Key, Verb


class State:
    """The files in `folder`, which must exist."""

    def __init__(self, folder: Path) -> None:
        self._last = folder / "last-emitted.json"
        self._policies = folder / "policies.msgpack"

    async def last(self) -> dict[Key, int]:
        """Return up to which instant each schedule was dealt with. Raises BadState."""
        data = await state_file.read(self._last)
        if data is None:
            return {}
        try:
            rows = msgspec.json.decode(data, type=list[tuple[str, Verb, int]])
        except msgspec.DecodeError as error:
            raise BadState(f"{self._last}: {error}") from error
        return {Key(source, verb): at_ns for source, verb, at_ns in rows}

    async def save_last(self, last: Mapping[Key, int]) -> None:
        rows = [(key.source, key.verb, at_ns) for key, at_ns in last.items()]
        await state_file.replace(self._last, msgspec.json.encode(rows))

    async def documents(self) -> dict[str, bytes]:
        """Return the policy documents kept, signatures and all. Raises BadState."""
        data = await state_file.read(self._policies)
        if data is None:
            return {}
        try:
            return msgspec.msgpack.decode(data, type=dict[str, bytes])
        except msgspec.DecodeError as error:
            raise BadState(f"{self._policies}: {error}") from error

    async def save_documents(self, documents: Mapping[str, bytes]) -> None:
        await state_file.replace(self._policies, msgspec.msgpack.encode(documents))
