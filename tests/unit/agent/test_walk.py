"""The folders on the way: their paths, and what they take."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

from strandline_agent.changes import Listed
from strandline_agent.rules import Excludes
from strandline_agent.walk import Folder, Walk


def below(walk: Walk, folder: Folder, *names: bytes) -> Folder:
    for name in names:
        listed = Listed(name, os.stat_result((0o40755, *[0] * 9)))
        folder = walk.child(folder, listed, 7, known=False)
    return folder


def test_paths_of_one_protected_folder(tmp_path: Path) -> None:
    walk = Walk([os.fsencode(tmp_path)], Excludes([]), ())
    root, _ = walk.root(known=False)
    assert (root.path, root.relative) == (os.fsencode(tmp_path), b"")
    folder = below(walk, root, b"a", b"b")
    assert (folder.path, folder.relative) == (os.fsencode(tmp_path) + b"/a/b", b"a/b/")


def test_paths_of_several_protected_folders() -> None:
    walk = Walk([b"/srv/data", b"/etc"], Excludes([]), ())
    root, _ = walk.root(known=False)
    data = below(walk, root, b"srv", b"data")
    assert [(folder.path, folder.relative) for folder in (root, data, below(walk, data, b"a"))] == [
        (b"", b""),
        (b"/srv/data", b""),
        (b"/srv/data/a", b"a/"),
    ]


def test_the_depth_of_a_tree_takes_no_memory_by_its_square(tmp_path: Path) -> None:
    walk = Walk([os.fsencode(tmp_path)], Excludes([]), ())
    root, _ = walk.root(known=False)
    tracemalloc.start()
    try:
        deepest = below(walk, root, *[b"p" * 250] * 1000)
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(deepest.relative) == 251_000
