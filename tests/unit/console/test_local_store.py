"""Where a store of this machine lies, and what its tools say."""

from __future__ import annotations

from pathlib import Path

import pytest

from strandline_console.local_store import NotLocal, ToolFailed, local_store, run_tool


def stack(state: Path, *, root: str = "") -> Path:
    """Make what `strandline up` writes about a store; return the store's root folder."""
    (state / "config").mkdir()
    (state / "config" / "operator.toml").write_text('stores = ["store-7", "store-8"]\n')
    own = f'root = "{root}"\n' if root else ""
    text = f'state_dir = "{state}/store-7"\n{own}'
    (state / "config" / "store-7.toml").write_text(text)
    folder = Path(root or state / "store-7" / "store")
    folder.mkdir(parents=True)
    (folder / "store.json").write_text("{}")
    return folder


def test_the_first_store_of_the_stack(tmp_path: Path) -> None:
    folder = stack(tmp_path)
    assert local_store(tmp_path, "") == ("store-7", folder)


def test_a_root_that_was_set(tmp_path: Path) -> None:
    folder = stack(tmp_path, root=str(tmp_path / "elsewhere"))
    assert local_store(tmp_path, "store-7") == ("store-7", folder)


@pytest.mark.parametrize("store", ["", "store-8"])
def test_a_store_that_is_not_here(tmp_path: Path, store: str) -> None:
    (stack(tmp_path) / "store.json").unlink()
    with pytest.raises(NotLocal, match="not"):
        local_store(tmp_path, store)


def test_the_tools_own_error_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match=r"holds no replica\.json") as caught:
        run_tool("store.attach", "look", tmp_path, tmp_path)
    assert caught.value.code == "store.not_a_replica"


def test_a_tool_that_cannot_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match=r"No module named .*no_such_tool"):
        run_tool("no_such_tool", tmp_path)
