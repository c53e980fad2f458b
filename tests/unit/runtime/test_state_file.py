"""Small state files: whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from strandline_runtime import state_file


async def test_what_was_put_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state"
    assert await state_file.read(path) is None
    await state_file.replace(path, b"first")
    await state_file.replace(path, b"second")
    assert await state_file.read(path) == b"second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


async def test_a_failed_write_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "state"
    await state_file.replace(path, b"old")
    (tmp_path / "state.new").mkdir()  # in the way of the new one
    with pytest.raises(OSError, match=r"state\.new"):
        await state_file.replace(path, b"new")
    assert await state_file.read(path) == b"old"
