"""What a folder's listing changed against what is known of it. Pure."""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_TYPE = stat_module.S_IFMT(0o170000)
_FOLDER = stat_module.S_IFDIR
_INO = 2**63 - 1
"""The bits of an inode number that the index has: attributes.index_ino, without a call."""


class Known(NamedTuple):
    """An entry of a folder as the index has it; `mode` holds the type too, as in st_mode."""

    name: bytes
    file: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int
    fs: int
    birth_ns: int


class Listed(NamedTuple):
    """An entry of a folder as it was found."""

    name: bytes
    stat: os.stat_result


class Differences(NamedTuple):
    """How a listing differs from what is known.

    `changed` pairs each entry that is new or looks different with what is known under its name;
    `same_folders` look as before (what is in them may have changed all the same).
    """

    changed: list[tuple[Listed, Known | None]]
    same_folders: list[tuple[Listed, Known]]
    gone: list[Known]


def compare(
    known: Iterable[Known], listed: Iterable[Listed], fs_of: Mapping[int, int]
) -> Differences:
    """Compare a folder as listed with the folder as known.

    `fs_of` maps each device number (st_dev) that occurs to the file system's id. An entry is the
    same when size, both times, mode, owners, inode and file system are: its content is not read.
    """
    changed: list[tuple[Listed, Known | None]] = []
    same_folders: list[tuple[Listed, Known]] = []
    left = {entry[0]: entry for entry in known}
    for entry in listed:
        stat = entry[1]
        old = left.pop(entry[0], None)
        # The hot loop of an unchanged tree: fields by position, the likeliest to differ first.
        if (
            old is None
            or old[5] != stat.st_ctime_ns
            or old[4] != stat.st_mtime_ns
            or old[2] != stat.st_ino & _INO
            or old[3] != stat.st_size
            or old[6] != stat.st_mode
            or old[7] != stat.st_uid
            or old[8] != stat.st_gid
            or old[9] != fs_of[stat.st_dev]
        ):
            changed.append((entry, None if old is None else Known(*old)))
        elif stat.st_mode & _TYPE == _FOLDER:
            same_folders.append((entry, old))
    return Differences(changed, same_folders, [Known(*entry) for entry in left.values()])


def all_changed(known: Iterable[Known], listed: Iterable[Listed]) -> Differences:
    """Take every entry found for changed, as a consistency check does."""
    left = {entry[0]: entry for entry in known}
    changed: list[tuple[Listed, Known | None]] = []
    for entry in listed:
        old = left.pop(entry[0], None)
        changed.append((entry, None if old is None else Known(*old)))
    return Differences(changed, [], [Known(*entry) for entry in left.values()])
