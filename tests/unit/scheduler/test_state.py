"""The scheduler's files: whole or not there, and an error where they are broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from strandline_scheduler.errors import BadState
from strandline_scheduler.occurrences import Key
from strandline_scheduler.state import State


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert (state.last(), state.documents()) == ({}, {})
    last = {Key("a", "sync"): 5, Key("a", "express_full"): 2**62}
    state.save_last(last)
    state.save_documents({"x": b"\xff"})
    again = State(tmp_path)
    assert (again.last(), again.documents()) == (last, {"x": b"\xff"})


def test_a_broken_file_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "last-emitted.json").write_bytes(b'[["a","sync"')
    (tmp_path / "policies.msgpack").write_bytes(b"\xc1")
    with pytest.raises(BadState):
        State(tmp_path).last()
    with pytest.raises(BadState):
        State(tmp_path).documents()
