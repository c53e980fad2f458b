"""The scheduler's files: whole or not there, and an error where they are broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from strandline_scheduler.errors import BadState
from strandline_scheduler.occurrences import Key
from strandline_scheduler.state import State


async def test_what_was_saved_is_read(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert (await state.last(), await state.documents()) == ({}, {})
    last = {Key("a", "sync"): 5, Key("a", "express_full"): 2**62}
    await state.save_last(last)
    await state.save_documents({"x": b"\xff"})
    again = State(tmp_path)
    assert (await again.last(), await again.documents()) == (last, {"x": b"\xff"})


async def test_a_broken_file_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "last-emitted.json").write_bytes(b'[["a","sync"')
    (tmp_path / "policies.msgpack").write_bytes(b"\xc1")
    with pytest.raises(BadState):
        await State(tmp_path).last()
    with pytest.raises(BadState):
        await State(tmp_path).documents()
