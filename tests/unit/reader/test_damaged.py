"""What is damaged in a folder is told, and hides nothing of what is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.reader.conftest import read
from strandline_contracts.points import BLOCK_BYTES, CODEC_RAW, Extent, Name
from strandline_replica_store.store.deleted import DeletedFiles, Deletion
from support.replicas import SOURCE, batch, chunk, inode, new_replica, one_file, ship

SECOND_NS = 10**9
DUE = "2001-09-09T01:46:40.000000000Z"


def kept(folder: Path) -> Path:
    replica = new_replica(folder)
    ship(replica, "a", one_file("a", b"content"))
    replica.close()
    return folder


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_damaged_files_of_like_names_are_all_there(tmp_path: Path) -> None:
    """A name of 255 bytes is cut for the word behind it; then others may be the same."""
    folder = tmp_path / "replica"
    replica = new_replica(folder)
    stem = b"x" * 240
    # The last is whole, and has the name that a damaged one would get.
    labels = [stem + b"-first", stem + b"-second", stem + b"-third", stem + b".damaged"]
    files = range(2, 2 + len(labels))
    plain = [bytes([file]) * BLOCK_BYTES + bytes([file + 100]) * BLOCK_BYTES for file in files]
    messages = [
        batch(
            "a",
            0,
            inodes=[inode(1, kind="d"), *(inode(file, 2 * BLOCK_BYTES) for file in files)],
            names=[Name(1, label, file) for label, file in zip(labels, files, strict=True)],
        )
    ]
    for file, data in zip(files, plain, strict=True):
        halves = [chunk(data[:BLOCK_BYTES], CODEC_RAW), chunk(data[BLOCK_BYTES:], CODEC_RAW)]
        extents = [Extent(file, 0, 1, 0, 0, 0), Extent(file, 1, 1, 0, 1, 0)]
        messages.append(batch("a", len(messages), chunks=halves, extents=extents))
    ship(replica, "a", messages)
    replica.close()
    # The first half of each file but the last.
    for number in (0, 2, 4):
        flip(folder / "segments" / "00000001.sls", 64 + number * (144 + BLOCK_BYTES) + 200)
    done = read("restore", folder, "--to", tmp_path / "back", code=4)
    found = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    assert found.pop(labels[3].decode()) == plain[3]
    assert sorted(item["path"]["text"] for item in done["harmed"]) == sorted(found)
    lost = bytes(BLOCK_BYTES)
    assert sorted(found.values()) == [lost + data[BLOCK_BYTES:] for data in plain[:3]]


def deleted(folder: Path) -> Path:
    """Delete recovery point 1 as a store does; return the file that says so."""
    due = Deletion(deleted_at_ns=0, due_at_ns=10**9 * SECOND_NS, job="d", by="operator-eve")
    DeletedFiles(lambda _: str(folder)).put(SOURCE, {1: due})
    return folder / "deleted.json"


def test_what_is_deleted_is_told(tmp_path: Path) -> None:
    folder = kept(tmp_path / "replica")
    deleted(folder)
    (point,) = read("points", folder)["points"]
    assert point["deleted"] == DUE


@pytest.mark.parametrize("what", [b"due_at_ns", b"100000000", b'"points"', b'"check"', b'"1"'])
def test_a_damaged_list_of_deletes_is_a_finding_and_says_nothing(
    tmp_path: Path, what: bytes
) -> None:
    folder = kept(tmp_path / "replica")
    path = deleted(folder)
    flip(path, path.read_bytes().index(what) + 1)
    document = read("points", folder, code=4)
    assert [finding["what"] for finding in document["findings"]] == ["deleted.json"]
    (point,) = document["points"]
    assert (point["number"], point["deleted"], point["damage"]) == (1, None, None)
    read("restore", folder, "--to", tmp_path / "back")
