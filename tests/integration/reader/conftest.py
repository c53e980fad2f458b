"""A stack with one data source in several states, and the second reader beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.stack import Stack, copy
from support.trees import change_tree, make_tree

READER = Path(__file__).parents[3] / "reader" / "strandline_reader.py"

# Runs the reader as somebody would who has nothing of ours: whatever else is installed here.
ALONE = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("strandline_"):
            raise ImportError(f"the reader imports {name}")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def read(*argv: str | Path, code: int = 0) -> Any:
    """Run the reader with `--json`; return its document."""
    command = [sys.executable, "-I", "-c", ALONE, READER, *argv, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout)


class Kept(NamedTuple):
    """A replica folder, and a copy of the tree for each of its recovery points."""

    stack: Stack
    folder: Path
    copies: dict[int, Path]


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    stack = Stack()
    try:
        stack.up()
        tree = stack.work / "tree"
        make_tree(tree, 7)
        copies: dict[int, Path] = {}
        for number in range(1, 5):
            if number == 1:
                stack.json("protect", tree, "--name", "kept", "--wait")
            else:
                change_tree(tree, number)
                stack.json("express-full", "kept", "--wait")
            copies[number] = stack.work / f"copy-{number}"
            copy(tree, copies[number])
        (folder,) = stack.work.glob("**/store/replicas/*")
        yield Kept(stack, folder, copies)
    finally:
        stack.close()
