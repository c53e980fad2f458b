"""Rules: what is left out, which paths count, what a restored tree may be like."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strandline_agent.errors import HostileReplica
from strandline_agent.mounts import pseudo_devices
from strandline_agent.restore_rules import check_name, inside, select
from strandline_agent.rules import BadExclude, Excludes, outermost
from strandline_agent.seen import SeenIds
from strandline_agent.walk import make_plan
from strandline_contracts.errors import StrandlineError

LINES = ["*.tmp", "!keep.tmp", "/build/", "docs/*.pdf", "**/cache/", "a?c", "# comment", ""]
PATHS = [
    "x.tmp", "keep.tmp", "d/keep.tmp", "build/", "d/build/", "docs/a.pdf", "docs/d/a.pdf", "cache/",
    "d/e/cache/", "abc", "d/abc", "abbc", "# comment", "file",
]  # fmt: skip


def test_excludes_mean_what_git_means(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("\n".join(LINES))
    subprocess.run(["git", "init", "-q", tmp_path], check=True, env={**os.environ, "HOME": "/"})
    excludes = Excludes(LINES)
    for path in PATHS:
        full = tmp_path / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.mkdir(exist_ok=True) if path.endswith("/") else full.touch()
        asked = subprocess.run(
            ["git", "-C", tmp_path, "check-ignore", "-q", path], check=False, timeout=10
        )
        found = excludes.leaves_out(os.fsencode(path.rstrip("/")), is_folder=path.endswith("/"))
        assert found == (asked.returncode == 0), path


def test_names_without_utf8_can_be_left_out() -> None:
    assert Excludes(["*.tmp"]).leaves_out(b"\xff\xfe.tmp", is_folder=False)
    assert not Excludes([]).leaves_out(b"\xff", is_folder=False)


def test_a_bad_exclude_is_named() -> None:
    with pytest.raises(BadExclude):
        Excludes(["!"])


def test_outermost_paths() -> None:
    assert outermost([b"/a/b", b"/a/", b"/ab", b"//a//b/./c"]) == [b"/a", b"/ab"]
    assert outermost([b"/", b"/a"]) == [b"/"]
    for bad in (b"a", b"", b"/a/../b"):
        with pytest.raises(StrandlineError):
            outermost([bad])


segment = st.sampled_from([b"a", b"b", b"c-", b"\xff"])
paths = st.lists(st.lists(segment, min_size=1, max_size=4), min_size=1, max_size=6)


@given(paths)
def test_outermost_covers_every_path_once(parts: list[list[bytes]]) -> None:
    given_paths = [b"/" + b"/".join(part) for part in parts]
    kept = outermost(given_paths)
    for path in given_paths:
        assert sum((path + b"/").startswith(one + b"/") for one in kept) == 1
    make_plan(kept)


@given(paths)
def test_selected_ways_cover_every_path_once(parts: list[list[bytes]]) -> None:
    ways = select([b"/".join(part) for part in parts])
    for part in parts:
        assert sum(part[: len(way)] == way for way in ways) == 1


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"x" * 1025])
def test_hostile_names(name: bytes) -> None:
    with pytest.raises(HostileReplica):
        check_name(name)


@given(st.integers(-5, 20), st.integers(-2, 20), st.integers(0, 60_000))
def test_nothing_is_written_outside_a_file(start: int, blocks: int, size: int) -> None:
    offset, length = inside(start, blocks, size)
    assert offset >= 0
    assert length >= 0
    assert offset + length <= size or length == 0


@given(st.lists(st.integers(0, 2**40)), st.integers(0, 2**40))
def test_seen_ids_are_a_set(numbers: list[int], other: int) -> None:
    seen = SeenIds()
    for number in numbers:
        seen.add(number)
    assert all(number in seen for number in numbers)
    assert (other in seen) == (other in set(numbers))


def test_pseudo_file_systems() -> None:
    mountinfo = (
        b"22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n"
        b"23 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        b"24 1 0:5 / /dev rw - devtmpfs udev rw\n"
    )
    assert pseudo_devices(mountinfo) == {os.makedev(0, 21), os.makedev(0, 5)}
