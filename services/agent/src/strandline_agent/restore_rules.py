"""What a tree from a store must be like before anything of it is written. Pure.

A replica is not trusted: it may have been forged or damaged to make a restore write elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection

from strandline_agent.errors import HostileReplica
from strandline_contracts.points import BLOCK_BYTES, ROOT, Inode, Name

MAX_NAME_BYTES = 1024
"""Some file systems have names of 255 UTF-16 units, up to 765 bytes; most targets have not."""
MAX_TARGET_BYTES = 4096
MAX_SIZE_BYTES = 2**63 - 1


def check_name(name: bytes) -> bytes:
    """Return `name` if it can be an entry of a folder and nothing else, else raise."""
    if not 1 <= len(name) <= MAX_NAME_BYTES or name in (b".", b"..") or b"/" in name:
        raise HostileReplica(f"the replica names an entry {name!r}")
    if b"\0" in name:
        raise HostileReplica(f"the replica names an entry {name!r}")
    return name


def check_entry(name: Name, inode: Inode, asked: Collection[int]) -> None:
    """Raise HostileReplica unless the entry belongs to a folder that was asked for."""
    check_name(name.name)
    if name.parent not in asked:
        raise HostileReplica(f"the store lists folder {name.parent}, which was not asked for")
    if name.file != inode.file or inode.file <= 0:
        raise HostileReplica(f"the name {name.name!r} leads to another file than its inode")
    if inode.file == ROOT:
        raise HostileReplica("the root folder lies in one of its own folders")
    check_inode(inode)


def check_inode(inode: Inode) -> None:
    """Raise HostileReplica for attributes that no file can have."""
    if not 0 <= inode.size <= MAX_SIZE_BYTES or not 0 <= inode.mode <= 0o7777:
        raise HostileReplica(f"file {inode.file} has the size {inode.size}, mode {inode.mode:o}")
    if inode.type == "l" and not 1 <= len(inode.target) <= MAX_TARGET_BYTES:
        raise HostileReplica(f"link {inode.file} has a target of {len(inode.target)} bytes")
    if b"\0" in inode.target:
        raise HostileReplica(f"link {inode.file} has a target with a zero byte")
    if not (0 <= inode.uid < 2**32 and 0 <= inode.gid < 2**32):
        raise HostileReplica(f"file {inode.file} belongs to {inode.uid}:{inode.gid}")


def select(paths: Collection[bytes]) -> list[list[bytes]]:
    """Return the wanted paths as lists of names, without those that lie in another one.

    An empty list of names is the whole tree. Raises HostileReplica for `..` and the like.
    """
    chosen: list[list[bytes]] = []
    for parts in sorted({tuple(part for part in path.split(b"/") if part) for path in paths}):
        for part in parts:
            check_name(part)
        if not chosen or list(parts[: len(chosen[-1])]) != chosen[-1]:
            chosen.append(list(parts))
    return chosen


def inside(start_block: int, blocks: int, size: int) -> tuple[int, int]:
    """Return the bytes (offset, length) of an extent that lie in a file of `size` bytes."""
    begin = start_block * BLOCK_BYTES
    if start_block < 0 or blocks <= 0 or begin >= size:
        return 0, 0
    return begin, min(size - begin, blocks * BLOCK_BYTES)
