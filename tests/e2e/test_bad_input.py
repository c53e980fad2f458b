"""Files as they are found on real servers, and questions that have no answer."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from support.stack import Stack, differences
from support.trees import make_huge, make_tree

MANY = 10_000
LONGEST_PATH = 3900
"""rsync, the judge, ends at 4,096 bytes; integration tests go deeper."""


def make_long_path(root: Path) -> None:
    folder = root
    while len(os.fsencode(folder)) < LONGEST_PATH - 210:
        folder = folder / ("p" * 200)
    folder.mkdir(parents=True)
    (folder / "bottom").write_bytes(b"deep")


@pytest.fixture(scope="module")
def odd(stack: Stack) -> Path:
    data = stack.work / "odd"
    make_tree(data)
    make_long_path(data)
    make_huge(data / "huge")
    many = data / "many"
    many.mkdir()
    for number in range(MANY):
        (many / f"{number}").write_bytes(b"%d" % number)
    stack.json("protect", data, "--name", "odd", "--server", "here", "--wait")
    return data


def test_odd_files_come_back_as_they_were(stack: Stack, odd: Path) -> None:
    target = stack.work / "bak"
    devices = ["--devices"] if os.geteuid() == 0 else []
    stack.restore("odd", 1, target, *devices)
    assert differences(odd, target, "--exclude=/huge") == ""
    assert len(os.listdir(target / "many")) == MANY
    assert stat.S_ISSOCK((target / "socket").stat().st_mode)
    assert (target / "mode0").stat().st_mode & 0o7777 == 0o4755


def test_a_sparse_file_of_1_tib_comes_back_sparse(stack: Stack, odd: Path) -> None:
    target = stack.work / "huge-again"
    stack.restore("odd", 1, target, "--path", "huge")
    was, made = os.stat(odd / "huge"), os.stat(target / "huge")
    assert (made.st_size, made.st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    assert made.st_blocks * 512 <= 1 << 20
    with (target / "huge").open("rb") as file:
        assert file.read(6) == b"begin\0"
        file.seek(made.st_size // 2 + 77)
        assert file.read(7) == b"middle\0"


def test_an_unchanged_odd_tree_ships_nothing(stack: Stack, odd: Path) -> None:
    stack.json("express-full", "odd", "--wait")
    assert stack.points("odd")[-1]["totals"]["shipped_bytes"] == 0


def test_a_parent_of_the_state_folder_is_protected_without_it(stack: Stack, odd: Path) -> None:
    made = stack.json(
        "protect", stack.work, "--name", "all", "--exclude", "/odd/", "--server", "here", "--wait"
    )
    assert made["protected"]["excludes"] == ["/odd/"]
    names = {entry["name"]["text"] for entry in stack.json("browse", "all")["entries"]}
    assert "bak" in names
    assert not {"state", "odd"} & names


@pytest.mark.parametrize(
    ("argv", "nearest"),
    [
        (["express-full", "od", "--wait"], "odd"),
        (["browse", "odd", "many/1234x"], "/many/1234"),
        (["restore", "odd", "--path", "txet", "--to", "/nowhere"], "/text"),
        (["restore", "odd", "--server", "hree", "--to", "/nowhere"], "here"),
        (["restore", "odd", "--at", "99", "--to", "/nowhere"], None),
        (["restore", "odd", "--at", "1999-01-01", "--to", "/nowhere"], None),
    ],
)
def test_what_is_not_there_gives_exit_3(
    stack: Stack, odd: Path, argv: list[str], nearest: str | None
) -> None:
    error = stack.json(*argv, code=3)["error"]
    assert nearest is None or error["nearest"][0] == nearest
    assert error["hint"]


def test_a_path_that_is_not_there_cannot_be_protected(stack: Stack) -> None:
    missing = stack.work / "not here"
    here = stack.json("protect", missing, "--name", "missing", "--server", "here", code=2)
    assert "No such file" in here["error"]["message"]


def test_a_source_that_has_gone_fails_clearly_and_keeps_its_points(stack: Stack) -> None:
    data = stack.work / "unmounted"
    data.mkdir()
    (data / "file").write_bytes(b"content")
    stack.json("protect", data, "--name", "gone", "--server", "here", "--wait")
    data.rename(stack.work / "moved")
    job = stack.json("express-full", "gone", "--wait", code=1)
    assert job["failure"]["code"] == "agent.source_missing"
    assert job["failure"]["hint"]
    stack.restore("gone", 1, stack.work / "gone-restored")
    assert differences(stack.work / "moved", stack.work / "gone-restored") == ""
