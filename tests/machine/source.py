"""The data source of the machine test: recovery point N of a seed is the same in every place."""

from __future__ import annotations

import itertools
import random

from blake3 import blake3

from strandline_contracts.points import BLOCK_BYTES
from support.source_model import ZERO, Limits, Shipment, Tree, block, change, shipment

LIMITS = Limits(files=24, blocks=48, labels=4000)
MAX_CHANGES = 24
FILES_OF_A_POINT = 1000
"""File ids of recovery point N are taken from N times this on."""

Restored = tuple[str, int, str]
"""Type, mode, and digest of the bytes of a file, empty for a folder."""


class Source:
    """All states of a source, made from a seed."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self._trees = [Tree()]

    def tree(self, number: int) -> Tree:
        """Return what recovery point `number` holds; 0 is the empty beginning."""
        while len(self._trees) <= number:
            following = len(self._trees)
            rng = random.Random(f"{self.seed}-{following}")
            fresh = itertools.count(following * FILES_OF_A_POINT)
            tree = self._trees[-1].copy()
            for _ in range(rng.randrange(1, MAX_CHANGES)):
                change(tree, rng, fresh, LIMITS)
            self._trees.append(tree)
        return self._trees[number]

    def shipment(self, number: int, attempt: int) -> Shipment:
        """Return what an attempt at recovery point `number` ships."""
        rng = random.Random(f"{self.seed}-{number}-{attempt}")
        old, new = self.tree(number - 1), self.tree(number)
        return shipment(old, new, rng, job_of(number), attempt)

    def restored(self, number: int) -> dict[bytes, Restored]:
        """Return what must lie in a folder to which recovery point `number` was restored."""
        tree = self.tree(number)
        found: dict[bytes, Restored] = {}
        folders = [(b"", 1)]
        for path, folder in folders:
            for name, file in tree.children(folder):
                inode, inside = tree.inodes[file], path + b"/" + name
                if inode.type == "d":
                    folders.append((inside, file))
                digest = digest_of(_content(tree, file)) if inode.type == "f" else ""
                found[inside] = (inode.type, inode.mode, digest)
        return found


def job_of(number: int) -> str:
    """Return the name of the job that makes a recovery point."""
    return f"p{number}"


def digest_of(content: bytes) -> str:
    return blake3(content).hexdigest(length=12)


def _content(tree: Tree, file: int) -> bytes:
    size_bytes, blocks = tree.inodes[file].size, tree.blocks[file]
    zeros = bytes(BLOCK_BYTES)
    count = -(-size_bytes // BLOCK_BYTES)
    labels = (blocks.get(number, ZERO) for number in range(count))
    return b"".join(block(label) if label else zeros for label in labels)[:size_bytes]
