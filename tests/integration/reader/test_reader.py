"""What the second reader gets out of a replica is what Strandline gets, and what was protected."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.reader.conftest import READER, Kept, read
from support.stack import differences


@pytest.mark.parametrize("point", [1, 2, 3, 4])
def test_each_point_comes_back_as_it_was(kept: Kept, tmp_path: Path, point: int) -> None:
    done = read(
        "restore", kept.folder, "--point", str(point), "--to", tmp_path / "back", "--devices"
    )
    assert done["harmed"] == []
    assert differences(kept.copies[point], tmp_path / "back") == ""


def test_it_restores_what_strandline_restores(kept: Kept, tmp_path: Path) -> None:
    kept.stack.restore("kept", 3, kept.stack.work / "ours", "--devices")
    read("restore", kept.folder, "--point", "3", "--to", tmp_path / "theirs", "--devices")
    assert differences(kept.stack.work / "ours", tmp_path / "theirs") == ""


def test_points_are_those_that_the_store_lists(kept: Kept) -> None:
    ours = kept.stack.points("kept")
    theirs = read("points", kept.folder)["points"]
    fields = ("number", "digest", "taken_at", "received_at", "parent")
    assert [[p[f] for f in fields] for p in theirs] == [
        [p[f] for f in fields] for p in sorted(ours, key=lambda p: -p["number"])
    ]


def test_the_folder_may_be_copied_and_read_only(kept: Kept, tmp_path: Path) -> None:
    shutil.copytree(kept.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("index.db*"))
    for root, _, _ in os.walk(tmp_path / "copy"):
        os.chmod(root, 0o500)
    read("verify", tmp_path / "copy")
    read("restore", tmp_path / "copy", "--to", tmp_path / "back", "--devices")
    assert differences(kept.copies[4], tmp_path / "back") == ""


def test_one_path_comes_back_alone(kept: Kept, tmp_path: Path) -> None:
    entries = read("list", kept.folder, "--point", "2")["entries"]
    name = next(entry["name"]["text"] for entry in entries if entry["type"] == "f")
    read("restore", kept.folder, "--point", "2", "--to", tmp_path / "back", name)
    assert os.listdir(tmp_path / "back") == [name]
    assert (tmp_path / "back" / name).read_bytes() == (kept.copies[2] / name).read_bytes()


def test_a_target_that_is_not_empty_is_refused(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    error = read("restore", kept.folder, "--to", tmp_path, code=2)["error"]
    assert error["code"] == "reader.not_empty"
    assert os.listdir(tmp_path) == ["mine"]


def test_what_cannot_be_taken_is_wrong_use(kept: Kept) -> None:
    for argv in (["points", kept.folder, "x"], ["list", kept.folder, "a", "b"], ["list", "--x"]):
        command = [sys.executable, READER, *argv]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def _flip_a_chunk(folder: Path) -> None:
    _flip(folder / "segments" / "00000001.sls", 64 + 144 + 1000)


def _flip_a_chunk_header(folder: Path) -> None:
    _flip(folder / "segments" / "00000001.sls", 64 + 20)


def _cut_a_segment(folder: Path) -> None:
    os.truncate(folder / "segments" / "00000001.sls", 64 + 144 + 1000)


@pytest.mark.parametrize("harm", [_flip_a_chunk, _flip_a_chunk_header, _cut_a_segment])
def test_lost_bytes_are_named_and_never_pass_as_the_file(
    kept: Kept, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(kept.folder, folder)
    harm(folder)
    findings = read("verify", folder, code=4)["findings"]
    named = {h["path"]["text"] for finding in findings for h in finding["harms"]}
    to = tmp_path / "back"
    done = read("restore", folder, "--point", "1", "--to", to, "--devices", code=4)
    harmed = {item["path"]["text"] for item in done["harmed"]}
    assert harmed
    # A name of 255 bytes is cut for the word behind it.
    assert {path.removesuffix(".damaged")[:240] for path in harmed} <= {p[:240] for p in named}
    for path in harmed:
        assert not (to / path.removesuffix(".damaged")).exists()
    for restored in (to).rglob("*"):
        if restored.is_file() and not restored.name.endswith(".damaged"):
            original = kept.copies[1] / restored.relative_to(to)
            assert restored.is_symlink() or restored.read_bytes() == original.read_bytes()


def test_a_damaged_manifest_loses_its_points_alone(kept: Kept, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(kept.folder, folder)
    _flip(folder / "manifests" / "00000003.slm", 200)
    points = {p["number"]: p["damage"] for p in read("points", folder, code=4)["points"]}
    assert points[1] is None
    assert points[2] is None
    assert points[3]
    assert points[4]
    assert read("restore", folder, "--to", tmp_path / "no", code=1)["error"]["code"] == (
        "reader.damaged_point"
    )
    read("restore", folder, "--point", "2", "--to", tmp_path / "back", "--devices")
    assert differences(kept.copies[2], tmp_path / "back") == ""
