"""The data that the benchmarks protect, and how it changes; the same for each seed."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

BLOCK = 4096
MIB = 1024 * 1024


@dataclass(frozen=True)
class Size:
    image_bytes: int
    small_files: int

    @property
    def text(self) -> str:
        return f"{self.image_bytes / 2**30:.2g} GiB image + {self.small_files} small files"


def make(folder: Path, size: Size, seed: int) -> None:
    """Make a half-compressible image and small files of 1 to 20 KiB, 100 a folder."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    text = b"the tide leaves a line for every state that the sea was in. " * 40
    with (folder / "image.raw").open("wb") as image:
        for _ in range(size.image_bytes // MIB):
            noise = rng.randbytes(MIB // 2)
            half = BLOCK // 2
            blocks = [noise[at : at + half] + text[:half] for at in range(0, len(noise), half)]
            image.write(b"".join(blocks))
    for number in range(size.small_files):
        place = folder / "small" / f"{number // 100:04}"
        if number % 100 == 0:
            place.mkdir(parents=True)
        content = rng.randbytes(rng.randrange(256, 10240))
        (place / f"{number:06}.dat").write_bytes(content + text[: len(content) % len(text)])


def empty_files(folder: Path, count: int) -> None:
    """Make `count` files of some bytes each, 200 a folder: for the cost of walking."""
    for number in range(count):
        place = folder / f"{number // 200:05}"
        if number % 200 == 0:
            place.mkdir(parents=True)
        (place / f"{number:06}").write_bytes(b"%06d\n" % number)


def change(folder: Path, seed: int, blocks: int, small_files: int) -> int:
    """Overwrite random blocks of the image and some small files; return the bytes dirtied."""
    rng = random.Random(seed)
    image = folder / "image.raw"
    count = image.stat().st_size // BLOCK
    with image.open("r+b") as file:
        for block in sorted(rng.sample(range(count), blocks)):
            file.seek(block * BLOCK)
            file.write(rng.randbytes(BLOCK // 2) * 2)
    dirtied = blocks * BLOCK
    names = sorted(folder.glob("small/*/*.dat"))
    for name in rng.sample(names, small_files):
        name.write_bytes(rng.randbytes(4096))
        dirtied += BLOCK
    os.sync()
    return dirtied
