"""A made-up data source: trees as plain dicts, the batches between two of them, and their reading.

The oracle of the crash tests: it knows nothing of segments, manifests or the index.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from strandline_contracts.codec import encode
from strandline_contracts.points import (
    BLOCK_BYTES,
    CODEC_RAW,
    CODEC_ZSTD,
    EXTENT_DATA,
    EXTENT_HOLE,
    EXTENT_ZERO,
    ROOT,
    Extent,
    Inode,
    Name,
)
from strandline_contracts.shipping import Chunk, End
from strandline_replica_store.files.chunk_check import check_chunk, plain_of
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica import tree
from support.replicas import batch, chunk, end_of, inode

ZERO = 0
"""The label of an allocated block of zeros; those above it stand for 4 KiB made of them."""
HOLE = -1
"""Never in a tree: what a change makes of a block that is there no more."""
TAIL_BYTES = 128
"""So many bytes at the end of every block are zero: a file may end among them."""


@cache
def block(label: int) -> bytes:
    """Return the bytes that a label stands for: odd ones do not compress, even ones do."""
    seed = label.to_bytes(8, "little")
    size_bytes = BLOCK_BYTES - TAIL_BYTES
    many = blake3(seed).digest(length=size_bytes) if label % 2 else seed * (size_bytes // 8)
    return many + bytes(TAIL_BYTES)


@cache
def _digest(label: int) -> bytes:
    return blake3(block(label)).digest(length=16) if label else b"zero"


class Tree:
    """One state of a source: `blocks` is file -> block -> label. A new one is without a root:
    what a replica is before its first recovery point."""

    def __init__(self) -> None:
        self.inodes: dict[int, Inode] = {}
        self.names: dict[tuple[int, bytes], int] = {}
        self.blocks: dict[int, dict[int, int]] = {}

    def copy(self) -> Tree:
        other = Tree()
        other.inodes = dict(self.inodes)
        other.names = dict(self.names)
        other.blocks = {file: dict(blocks) for file, blocks in self.blocks.items()}
        return other

    def of_type(self, kind: str) -> list[int]:
        return sorted(file for file, record in self.inodes.items() if record.type == kind)

    def children(self, folder: int) -> list[tuple[bytes, int]]:
        return sorted(
            (name, file) for (parent, name), file in self.names.items() if parent == folder
        )

    def resize(self, file: int, size_bytes: int) -> None:
        """Give a file a size; blocks behind it are gone."""
        self.inodes[file] = msgspec.structs.replace(self.inodes[file], size=size_bytes)
        end = -(-size_bytes // BLOCK_BYTES)
        self.blocks[file] = {b: label for b, label in self.blocks[file].items() if b < end}

    def collect(self) -> None:
        """Forget inodes that no name leads to any more, and what was in them."""
        while True:
            held = {ROOT, *self.names.values()}
            lost = self.inodes.keys() - held
            if not lost:
                return
            for file in lost:
                del self.inodes[file]
                self.blocks.pop(file, None)
            self.names = {k: file for k, file in self.names.items() if k[0] not in lost}

    def state(self) -> str:
        """Return a digest of everything that a restore of this tree must bring back."""
        return _state_digest(self._lines(ROOT, b"/"))

    def _lines(self, file: int, path: bytes) -> Iterator[object]:
        blocks = self.blocks.get(file, {})
        yield path, encode(self.inodes[file]), [(b, _digest(blocks[b])) for b in sorted(blocks)]
        for name, child in self.children(file):
            yield from self._lines(child, path + b"/" + name)


def _state_digest(lines: Iterator[object]) -> str:
    return blake3(msgspec.msgpack.encode(list(lines))).hexdigest(length=12)


def state_of(reader: Reader, point: int) -> str:
    """Return the digest of what a recovery point restores, every byte read from the disk.

    Raises what the store raises when it cannot read something.
    """
    return _state_digest(_read_lines(reader, point, ROOT, b"/", {}))


def _read_lines(
    reader: Reader, point: int, file: int, path: bytes, known: dict[int, bytes]
) -> Iterator[object]:
    record = tree.inode_record(reader.conn, point, file)
    assert record is not None, f"inode {file} is not in point {point}"
    blocks: list[tuple[int, bytes]] = []
    for extent in tree.blocks_of(reader.conn, point, file, 0, 1 << 40):
        for position in range(extent.blocks):
            if extent.kind == EXTENT_ZERO:
                blocks.append((extent.start + position, b"zero"))
            else:
                plain = _plain(reader, extent.chunk, known)
                at = (extent.chunk_block + position) * BLOCK_BYTES
                digest = blake3(plain[at : at + BLOCK_BYTES]).digest(length=16)
                blocks.append((extent.start + position, digest))
    yield path, record, blocks
    for entry in tree.entries(reader.conn, point, file, b"", 10_000):
        yield from _read_lines(reader, point, entry.file, path + b"/" + entry.name, known)


def _plain(reader: Reader, number: int, known: dict[int, bytes]) -> bytes:
    if number not in known:
        (stored,) = reader.chunks([number], 0)
        check_chunk(stored.digest, stored.plain_bytes, stored.codec, stored.data)
        known[number] = bytes(plain_of(stored.codec, stored.plain_bytes, stored.data))
    return known[number]


# Changing a tree


class Limits(NamedTuple):
    """How large made-up trees get."""

    files: int = 8
    blocks: int = 12
    labels: int = 40


def change(state: Tree, rng: random.Random, fresh: Iterator[int], limits: Limits) -> None:
    """Make a random change; `fresh` gives file ids that were never used."""
    state.inodes.setdefault(ROOT, inode(ROOT, kind="d"))
    files, folders = state.of_type("f"), state.of_type("d")
    kinds = ["write"] * 4 + ["hole", "zero", "truncate", "regrow", "rename", "link", "remove"]
    kind = rng.choice(kinds) if files else "new"
    if len(files) < limits.files and rng.random() < 0.3:
        kind = rng.choice(["new", "new", "folder"])
    if kind in ("new", "folder"):
        _add(state, rng, next(fresh), "f" if kind == "new" else "d", rng.choice(folders))
        return
    file = rng.choice(files)
    if kind in ("rename", "link", "remove"):
        _move(state, rng, kind, rng.choice(sorted(state.names)), rng.choice(folders))
    elif kind in ("truncate", "regrow"):
        state.resize(file, _size(rng, rng.randrange(limits.blocks // 2 + 1)))
        if kind == "regrow":
            state.resize(file, _size(rng, limits.blocks))
    else:
        start = rng.randrange(limits.blocks)
        end = min(limits.blocks, start + rng.randrange(1, 6))
        blocks = state.blocks[file]
        if kind != "hole":
            needed = end * BLOCK_BYTES - rng.randrange(TAIL_BYTES)
            state.resize(file, max(state.inodes[file].size, needed))
            blocks = state.blocks[file]
        for number in range(start, end):
            if kind == "write":
                blocks[number] = rng.randrange(1, limits.labels)
            elif kind == "zero":
                blocks[number] = ZERO
            else:
                blocks.pop(number, None)


def add_files(state: Tree, rng: random.Random, fresh: Iterator[int], count: int) -> None:
    """Add so many files of a block each."""
    state.inodes.setdefault(ROOT, inode(ROOT, kind="d"))
    for file in islice(fresh, count):
        _add(state, rng, file, "f", ROOT)
        state.resize(file, _size(rng, 1))
        state.blocks[file] = {0: 10_000 + file}


def _size(rng: random.Random, blocks: int) -> int:
    return max(0, blocks * BLOCK_BYTES - rng.randrange(TAIL_BYTES))


def _add(state: Tree, rng: random.Random, file: int, kind: str, folder: int) -> None:
    state.inodes[file] = inode(file, kind=kind, mode=rng.choice([0o600, 0o644, 0o755]))
    if kind == "f":
        state.blocks[file] = {}
    state.names[folder, b"%s%d" % (kind.encode(), file)] = file


def _move(state: Tree, rng: random.Random, kind: str, key: tuple[int, bytes], folder: int) -> None:
    file = state.names[key]
    is_folder = state.inodes[file].type == "d"
    if kind == "remove":
        del state.names[key]
    elif kind == "link" and not is_folder:
        state.names[folder, b"l%d" % rng.randrange(4)] = file
    elif not (is_folder and _within(state, folder, file)):
        del state.names[key]
        state.names[folder, b"r%d" % rng.randrange(4)] = file
    # What was replaced or taken away may have been the last name of a file, or of a folder.
    state.collect()


def _within(state: Tree, folder: int, above: int) -> bool:
    parents = {file: parent for (parent, _), file in state.names.items()}
    while folder != ROOT:
        if folder == above:
            return True
        folder = parents[folder]
    return False


# Shipping a change


class Shipment(NamedTuple):
    """What a job ships, and what its recovery point must restore."""

    job: str
    attempt: int
    messages: list[bytes]
    end: End
    state: str


def shipment(old: Tree, new: Tree, rng: random.Random, job: str, attempt: int = 1) -> Shipment:
    """Return the batches that bring a replica from `old` to `new`, arranged at random.

    Some blocks are shipped wrong first and right later, some files are cut to nothing and grown
    again, blocks of several files share chunks, and what the replica holds is shipped once more.
    """
    inodes = [i for file, i in sorted(new.inodes.items()) if old.inodes.get(file) != i]
    names = [Name(*key, file) for key, file in new.names.items() if old.names.get(key) != file]
    cut = [i for i in inodes if i.type == "f" and i.file in old.inodes and rng.random() < 0.3]
    changed = _changed(old, new, {i.file for i in cut})
    wrong = [(file, number, 7) for file, number, _ in changed if rng.random() < 0.1]
    middle = rng.randrange(len(changed) + 1)
    parts: list[dict[str, Any]] = [
        {
            "gone_names": sorted(old.names.keys() - new.names.keys()),
            "gone_inodes": sorted(old.inodes.keys() - new.inodes.keys()),
            "inodes": [msgspec.structs.replace(i, size=0) for i in cut],
            **_with_chunks(wrong, rng),
        },
        {"inodes": inodes, "names": names, **_with_chunks(changed[:middle], rng)},
        _with_chunks(changed[middle:], rng),
    ]
    parts = [part for part in parts if any(part.values())]
    messages = [batch(job, seq, attempt, **part) for seq, part in enumerate(parts)]
    return Shipment(job, attempt, messages, end_of(job, messages, attempt), new.state())


_Change = tuple[int, int, int]
"""file, block, label; HOLE stands for a hole."""


def _changed(old: Tree, new: Tree, cut: set[int]) -> list[_Change]:
    """Return the blocks that differ, sorted; all blocks of files that are `cut` first."""
    changes: list[_Change] = []
    for file, blocks in sorted(new.blocks.items()):
        before = {} if file in cut else old.blocks.get(file, {})
        for number in sorted(before.keys() | blocks.keys()):
            label = blocks.get(number, HOLE)
            if before.get(number, HOLE) != label:
                changes.append((file, number, label))
    return changes


def _with_chunks(changes: list[_Change], rng: random.Random) -> dict[str, Any]:
    """Return chunks and extents of a batch; a chunk takes up to six blocks, of any files."""
    chunks: list[Chunk] = []
    extents: list[Extent] = []
    data = [change for change in changes if change[2] not in (HOLE, ZERO)]
    while data:
        size = rng.choice([1, 1, 2, 4, 6])
        group, data = data[:size], data[size:]
        plain = b"".join(block(label) for _, _, label in group)
        for position, (file, number, _) in enumerate(group):
            extents.append(Extent(file, number, 1, EXTENT_DATA, len(chunks), position))
        chunks.append(chunk(plain, rng.choice([CODEC_ZSTD, CODEC_RAW])))
    for file, number, label in changes:
        if label in (HOLE, ZERO):
            extents.append(Extent(file, number, 1, EXTENT_HOLE if label == HOLE else EXTENT_ZERO))
    return {"chunks": chunks, "extents": _joined(extents)}


def _joined(extents: list[Extent]) -> list[Extent]:
    """Make neighbouring extents one where their bytes are neighbours too."""
    joined: list[Extent] = []
    for extent in extents:
        last = joined[-1] if joined else None
        if (
            last is not None
            and (last.file, last.kind, last.chunk) == (extent.file, extent.kind, extent.chunk)
            and last.start + last.blocks == extent.start
            and (last.kind != EXTENT_DATA or last.chunk_block + last.blocks == extent.chunk_block)
        ):
            joined[-1] = msgspec.structs.replace(last, blocks=last.blocks + extent.blocks)
        else:
            joined.append(extent)
    return joined
