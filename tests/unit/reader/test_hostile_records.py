"""A record that no file can have, of a server that is not ours any more, harms only itself."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from integration.reader.conftest import read
from strandline_contracts.points import (
    BLOCK_BYTES,
    CHUNK_BLOCKS,
    CHUNK_BYTES,
    CODEC_RAW,
    Extent,
    Inode,
    Name,
)
from strandline_replica_store.files import segment
from strandline_replica_store.replica import staging
from support.replicas import batch, chunk, inode, new_replica, ship

CONTENT = b"x" * CHUNK_BYTES


@pytest.fixture(autouse=True)
def no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store refuses most of these; the reader is there for folders that others wrote, too."""
    monkeypatch.setattr(staging, "check_records", lambda _: None)


def mine(file: int, size: int = 0, kind: str = "f", **fields: Any) -> Inode:
    """Return the record of a file of whoever runs this, who can give it back to nobody else."""
    owner = {"uid": os.getuid(), "gid": os.getgid()}
    return msgspec.structs.replace(inode(file, size, kind), **{**owner, **fields})


def kept(folder: Path, kind: str = "f", extents: tuple[Extent, ...] = (), **odd: Any) -> Path:
    """Return a replica with the file `a`, and a file `odd` that has these attributes."""
    replica = new_replica(folder)
    messages = [
        batch(
            "j",
            0,
            inodes=[mine(1, kind="d"), mine(2, len(CONTENT)), mine(3, kind=kind, **odd)],
            names=[Name(1, b"a", 2), Name(1, b"odd", 3)],
        ),
        batch(
            "j", 1, chunks=[chunk(CONTENT)], extents=[Extent(2, 0, CHUNK_BLOCKS, 0, 0, 0), *extents]
        ),
    ]
    ship(replica, "j", messages)
    replica.close()
    return folder


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        ({"mtime_ns": 2**63}, 0),
        ({"atime_ns": -(2**63)}, 0),
        ({"mode": 2**64 - 1}, 0),
        ({"uid": 2**40}, 4),
        ({"gid": 2**64 - 1}, 4),
        ({"size": 2**63}, 4),
        ({"kind": "p", "rdev": 2**64 - 1}, 4),
        ({"kind": "l", "target": b"a\0b"}, 4),
        ({"xattrs": [(b"user.a\0b", b"v")]}, 4),
        ({"xattrs": [(b"user.a", b"v"), (b"user.a", b"w")]}, 0),
    ],
)
def test_all_other_files_come_back(tmp_path: Path, odd: dict[str, Any], code: int) -> None:
    folder = kept(tmp_path / "replica", **odd)
    assert not read("verify", folder)["findings"]
    assert len(read("list", folder)["entries"]) == 2
    done = read("restore", folder, "--to", tmp_path / "back", code=code)
    assert (tmp_path / "back" / "a").read_bytes() == CONTENT
    left_out = {item["path"]["text"] for item in done["left_out"]}
    # Who is not root is told once of all owners that he cannot give files to.
    assert left_out == (set() if code == 0 else {"odd"}) or left_out == {""}


def test_the_latest_time_stands_for_later_ones(tmp_path: Path) -> None:
    (entry,) = [
        entry
        for entry in read("list", kept(tmp_path / "replica", mtime_ns=2**64 - 1))["entries"]
        if entry["name"]["text"] == "odd"
    ]
    assert entry["mtime"] == "2262-04-11T23:47:16.854775807Z"


@pytest.mark.parametrize("kind", [0, 2])
def test_an_extent_behind_the_end_of_a_file_is_none_of_it(tmp_path: Path, kind: int) -> None:
    folder = kept(tmp_path / "replica", size=100, extents=(Extent(3, 1, CHUNK_BLOCKS, kind, 0, 0),))
    read("restore", folder, "--to", tmp_path / "back")
    assert (tmp_path / "back" / "odd").stat().st_size == 100


def test_a_header_with_an_id_that_no_chunk_has_is_none(tmp_path: Path) -> None:
    """A file holds what looks like a chunk, found where the header before it is damaged."""
    made = random.Random(1)
    plain = made.randbytes(BLOCK_BYTES)
    whole = chunk(plain, CODEC_RAW)
    assert whole.data is not None
    header = segment._CHUNK.pack(
        b"SLCK", 1, CODEC_RAW, 0, 0, 2**64 - 1, len(plain), len(plain), whole.digest, whole.digest
    )
    holding = made.randbytes(100) + segment._sealed(header) + plain
    holding += made.randbytes(-len(holding) % BLOCK_BYTES)
    replica = new_replica(tmp_path / "replica")
    sizes = [mine(2, len(holding)), mine(3, len(CONTENT))]
    messages = [
        batch(
            "j", 0, inodes=[mine(1, kind="d"), *sizes], names=[Name(1, b"h", 2), Name(1, b"a", 3)]
        ),
        batch(
            "j",
            1,
            chunks=[chunk(holding, CODEC_RAW), chunk(CONTENT)],
            extents=[
                Extent(2, 0, len(holding) // BLOCK_BYTES, 0, 0, 0),
                Extent(3, 0, CHUNK_BLOCKS, 0, 1, 0),
            ],
        ),
    ]
    ship(replica, "j", messages)
    path = Path(segment.path_of(replica.segments_folder, 1))
    replica.close()
    data = bytearray(path.read_bytes())
    data[segment.SEGMENT_HEADER_BYTES + 70] ^= 1
    path.write_bytes(data)
    read("verify", tmp_path / "replica", code=4)
    read("restore", tmp_path / "replica", "--to", tmp_path / "back", code=4)
    assert (tmp_path / "back" / "a").read_bytes() == CONTENT
