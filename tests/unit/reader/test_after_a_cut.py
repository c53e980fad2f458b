"""What a cut or a compaction may leave in a folder is no damage, but only what they may leave."""

from __future__ import annotations

from pathlib import Path

from integration.reader.conftest import read
from strandline_contracts.points import Extent, Name
from strandline_replica_store.compaction.compact import compact
from strandline_replica_store.store.leases import LEASE_S, Leases
from support.replicas import batch, chunk, inode, new_replica, one_file, ship


def kept(folder: Path) -> Path:
    replica = new_replica(folder)
    ship(replica, "a", one_file("a", b"content"))
    replica.close()
    return folder


def test_a_segment_that_was_only_begun_is_a_note(tmp_path: Path) -> None:
    folder = kept(tmp_path / "replica")
    (folder / "segments" / "00000002.sls").write_bytes(b"")
    (folder / "segments" / "00000003.sls").write_bytes(bytes(5000))
    notes = [note["what"] for note in read("verify", folder)["notes"]]
    assert "segments/00000002.sls" in notes
    assert "segments/00000003.sls" in notes


def test_the_damaged_header_of_a_segment_with_chunks_is_a_finding(tmp_path: Path) -> None:
    folder = kept(tmp_path / "replica")
    path = folder / "segments" / "00000001.sls"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    (finding,) = read("verify", folder, code=4)["findings"]
    assert finding["what"] == "segments/00000001.sls"


def test_a_chunk_that_its_own_manifest_covered_again_may_be_gone(tmp_path: Path) -> None:
    folder = tmp_path / "replica"
    replica = new_replica(folder, segment_limit_bytes=1000)
    block = Extent(2, 0, 1, 0, 0, 0)
    first, second, third = (bytes([number]) * 4096 for number in (1, 2, 3))
    messages = [
        batch("a", 0, inodes=[inode(1, kind="d"), inode(2, 4096)], names=[Name(1, b"a", 2)]),
        batch("a", 1, chunks=[chunk(first, 0)], extents=[block]),
        batch("a", 2, chunks=[chunk(second, 0)], extents=[block]),
    ]
    ship(replica, "a", messages, group=1)
    ship(replica, "b", one_file("b", third, file=3, name=b"b"))
    now_ns = 0
    leases = Leases(lambda: now_ns)
    now_ns = 2 * int(LEASE_S * 1e9)
    compact(replica, leases, force=True)
    replica.close()
    assert not (folder / "segments" / "00000001.sls").exists()
    assert [note["what"] for note in read("verify", folder)["notes"]] == ["chunk 1"]
    read("restore", folder, "--to", tmp_path / "back")
    assert (tmp_path / "back" / "a").read_bytes() == second
