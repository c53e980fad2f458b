"""Which file systems are pseudo ones, kept as empty folders; how file systems are told apart."""

from __future__ import annotations

import os
from collections.abc import Collection

from blake3 import blake3

_ID = 0x7FFF_FFFF_FFFF_FFFF

PSEUDO = frozenset(
    b"proc sysfs devtmpfs devpts cgroup cgroup2 securityfs debugfs tracefs bpf pstore mqueue"
    b" hugetlbfs fusectl configfs binfmt_misc autofs nsfs".split()
)


def pseudo_devices(mountinfo: bytes) -> frozenset[int]:
    """Return the device numbers (st_dev) of the pseudo file systems in /proc/self/mountinfo."""
    found = set()
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(b" - ")
        kind = rest.split(b" ", 1)[0]
        if kind in PSEUDO:
            major, _, minor = fields.split(b" ")[2].partition(b":")
            found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)


def read_pseudo_devices() -> frozenset[int]:
    """Return the device numbers of the pseudo file systems that are mounted now."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return pseudo_devices(file.read())
    except FileNotFoundError:
        return frozenset()


def file_system_id(fd: int, device: int) -> int:
    """Return what tells the file system of an open file from others, in 63 bits.

    It stays the same over a restart where the file system has an id of its own; else it is the
    device number.
    """
    try:
        fsid = os.fstatvfs(fd).f_fsid
    except OSError:
        fsid = 0
    return (fsid or device) & _ID


def apart(fs: int, device: int, others: Collection[int]) -> int:
    """Return the id `fs`, or where another file system has it one that only `device` has. Pure.

    A snapshot, or a copy made by dd, has the id of its original, and the same inodes and births.
    """
    if fs not in others:
        return fs
    return int.from_bytes(blake3(b"%d %d" % (fs, device)).digest(length=8), "little") & _ID
