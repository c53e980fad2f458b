"""Segments and manifests: golden bytes, round trips, and that nothing torn or flipped is read."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgpack
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.points import CODEC_RAW, CODEC_ZSTD, Extent, Issue, Name, Totals
from strandline_replica_store.errors import BadChunk, Damaged
from strandline_replica_store.files import chunk_check, durable, manifest, segment
from strandline_replica_store.files.compression import zstd
from strandline_replica_store.files.manifest import ChunkName, Delta, Head, ManifestWriter, Tail
from support.replicas import SOURCE, inode

GOLDEN = Path(__file__).parent / "golden"
PLAIN = bytes(range(256)) * 16


def small_segment() -> bytes:
    """Return a segment of one raw chunk: bytes that no compressor's version can change."""
    header = segment.pack_chunk_header(7, CODEC_RAW, len(PLAIN), blake3(PLAIN).digest(), PLAIN)
    return segment.pack_segment_header(3, SOURCE) + header + PLAIN


def whole_in(path: str) -> list[segment.FoundChunk]:
    """Return the chunks of a segment up to the first that is not whole."""
    found = segment.survey(path, segment.SEGMENT_HEADER_BYTES, to_the_end=False)
    return [each for each in found if each.is_sound]


def write_manifest(folder: Path, deltas: list[Delta], number: int = 1) -> manifest.Manifest:
    head = Head(
        format=1,
        source=SOURCE,
        job="j",
        attempt=2,
        number=number,
        parent=0,
        parent_digest=b"",
        kind="express_full",
        server="web-1",
    )
    writer = ManifestWriter.begin(str(folder / "j.2.part"), head)
    for delta in deltas:
        writer.append(delta)
    writer.flush()
    tail = Tail(
        digest=b"",
        frames=0,
        taken_at_ns=5,
        received_at_ns=6,
        consistency="crash",
        provider="none",
        tracker="scan",
        partial=False,
        totals=Totals(files=2),
        stored_bytes=9,
    )
    return writer.finish(manifest.path_of(str(folder), number), tail)


DELTA = Delta(
    [ChunkName(7, b"\1" * 32, 4096)],
    [Extent(2, 0, 1, 0, 7, 0), Extent(2, 1, 5, 1)],
    [inode(2, 4096)],
    [Name(1, b"\xff\n", 2)],
    [9],
    [(1, b"old")],
    [Issue(b"p", "unreadable", "no")],
)


def test_golden_segment() -> None:
    assert small_segment() == (GOLDEN / "segment.sls").read_bytes()


def test_golden_segment_by_the_page() -> None:
    """Reads the golden segment by docs/formats/replica.md alone."""
    data = (GOLDEN / "segment.sls").read_bytes()
    assert data[:8] == b"SLSEG\0\0\1"
    assert struct.unpack_from("<Q", data, 8) == (3,)
    assert data[16:32] == SOURCE.encode()
    assert data[56:64] == blake3(data[:56]).digest()[:8]
    chunk = data[64:]
    assert chunk[:8] == b"SLCK\1\0\0\0"
    assert struct.unpack_from("<QII", chunk, 8) == (7, 4096, 4096)
    assert chunk[24:64] == bytes(40)
    assert chunk[64:96] == blake3(PLAIN).digest()
    assert chunk[96:128] == blake3(chunk[144:]).digest()
    assert chunk[128:136] == bytes(8)
    assert chunk[136:144] == blake3(chunk[:136]).digest()[:8]


def test_golden_manifest_by_the_page() -> None:
    """Reads the golden manifest by docs/formats/replica.md and msgpack alone."""
    data = (GOLDEN / "manifest.slm").read_bytes()
    at, frames = 0, []
    while at < len(data):
        header = data[at : at + 64]
        kind, codec, plain_bytes, stored_bytes = struct.unpack_from("<4xBBxxII", header)
        stored = data[at + 64 : at + 64 + stored_bytes]
        assert header[:4] == b"SLFR"
        assert header[48:] == blake3(header[:48] + stored).digest()[:16]
        plain = zstd.decompress(stored) if codec == 1 else stored
        assert len(plain) == plain_bytes
        frames.append((kind, msgpack.unpackb(plain, raw=False, strict_map_key=False), at))
        at += 64 + stored_bytes
    assert [kind for kind, _, _ in frames] == [1, 2, 3]
    head, delta, tail = (value for _, value, _ in frames)
    assert head["format"] == 1
    assert (head["source"], head["number"], head["replaces"]) == (SOURCE, 1, [])
    assert delta[0] == [[7, b"\1" * 32, 4096]]
    assert delta[1] == [[2, 0, 1, 0, 7, 0], [2, 1, 5, 1, 0, 0]]
    assert delta[3] == [[1, b"\xff\n", 2]]
    assert delta[5] == [[1, b"old"]]
    assert tail["digest"] == blake3(data[: frames[2][2]]).digest()
    assert (tail["frames"], tail["totals"]["files"]) == (1, 2)


def test_golden_manifest_is_read_and_its_digest_is_that_of_all_bytes() -> None:
    path = GOLDEN / "manifest.slm"
    found = manifest.check(str(path))
    assert found.digest == blake3(path.read_bytes()).digest()
    assert list(manifest.deltas(str(path))) == [DELTA]


@settings(max_examples=40, deadline=None)
@given(
    chunks=st.lists(
        st.tuples(st.integers(1, 32), st.booleans(), st.binary(min_size=1, max_size=8)),
        min_size=1,
        max_size=6,
    ),
    torn=st.integers(0, 400),
)
def test_segment_round_trip_and_torn_tail(
    tmp_path_factory: pytest.TempPathFactory,
    chunks: list[tuple[int, bool, bytes]],
    torn: int,
) -> None:
    folder = tmp_path_factory.mktemp("segments")
    writer = segment.SegmentWriter(str(folder), SOURCE, limit_bytes=100_000)
    wrote = []
    for number, (blocks, small, seed) in enumerate(chunks, start=1):
        plain = (seed * 4096 * 32)[: blocks * 4096]
        stored = zstd.compress(plain, 1) if small else plain
        codec = CODEC_ZSTD if small else CODEC_RAW
        header = segment.pack_chunk_header(
            number, codec, len(plain), blake3(plain).digest(), stored
        )
        wrote.append((writer.append(header, stored), segment.parse_chunk_header(header)))
    writer.flush()
    writer.close()
    found = [
        ((number, found.offset), found.header)
        for number in segment.numbers_in(str(folder))
        for found in whole_in(segment.path_of(str(folder), number))
    ]
    assert found == wrote
    last = segment.path_of(str(folder), segment.numbers_in(str(folder))[-1])
    size = os.path.getsize(last)
    os.truncate(last, max(64, size - torn))
    whole = [found.offset for found in whole_in(last)]
    kept = [
        (place[1])
        for place, header in wrote
        if segment.path_of(str(folder), place[0]) == last
        and place[1] + 144 + header.stored_bytes <= max(64, size - torn)
    ]
    assert whole == kept


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(small_segment()) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_segment_is_found(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    data = bytearray(small_segment())
    data[at] ^= 1 << bit
    if at < 64:
        with pytest.raises(Damaged):
            segment.parse_segment_header(bytes(data[:64]))
    else:
        with pytest.raises(Damaged):
            segment.check_stored(bytes(data[64:]))


@settings(max_examples=150, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_flipped_bit_or_cut_in_a_manifest_is_found(
    tmp_path_factory: pytest.TempPathFactory, share: float, bit: int, cut: bool
) -> None:
    data = bytearray((GOLDEN / "manifest.slm").read_bytes())
    at = int(len(data) * share)
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.slm"
    path.write_bytes(data)
    with pytest.raises(Damaged):
        manifest.check(str(path))


def test_a_manifest_that_is_resumed_equals_one_written_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    at_once = write_manifest(tmp_path / "a", [DELTA, DELTA])
    head = at_once.head
    path = str(tmp_path / "b" / "j.2.part")
    writer = ManifestWriter.begin(path, head)
    writer.append(DELTA)
    writer.flush()
    end_bytes = writer.end_bytes
    writer.close()
    with open(path, "ab") as file:
        file.write(b"SLFR torn")
    writer = ManifestWriter.resume(path, end_bytes)
    writer.append(DELTA)
    again = writer.finish(manifest.path_of(str(tmp_path / "b"), 1), at_once.tail)
    assert again == at_once


@pytest.mark.parametrize(
    ("codec", "plain_bytes", "stored"),
    [
        (CODEC_RAW, 4096, bytes(4095)),
        (CODEC_RAW, 0, b""),
        (CODEC_RAW, 100, bytes(100)),
        (CODEC_RAW, 262144, bytes(262144)),
        (9, 4096, bytes(4096)),
        (CODEC_ZSTD, 4096, b"rubbish"),
        (CODEC_ZSTD, 4096, zstd.compress(bytes(8192), 1)),
        (CODEC_ZSTD, 4096, zstd.compress(bytes(4096), 1)[:-1]),
        (CODEC_ZSTD, 4096, zstd.compress(bytes(4096), 1) + b"x"),
        (CODEC_ZSTD, 4096, zstd.compress(bytes(1 << 28), 1)),
    ],
)
def test_a_chunk_that_is_not_what_it_says(codec: int, plain_bytes: int, stored: bytes) -> None:
    with pytest.raises(BadChunk):
        chunk_check.check_chunk(blake3(bytes(4096)).digest(), plain_bytes, codec, stored)


def test_writes_that_are_cut_short_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: real(fd, [b"".join(parts)[:7]]))
    fd = durable.create(str(tmp_path / "f"))
    assert durable.write_all(fd, [b"0123456789", b"", memoryview(b"abcdefghij")]) == 20
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"0123456789abcdefghij"
