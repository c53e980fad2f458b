"""The few steps by which bytes reach the disk for good.

After `sync` the bytes of a file survive a loss of power, after `sync_folder` so does its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

_IOV_MAX = 1024


def create(path: str) -> int:
    """Make an empty file, replacing what is there; return its descriptor (read and write)."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def open_for_append(path: str) -> int:
    """Open a file that exists; return its descriptor (read and write), positioned at its end."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    os.lseek(fd, 0, os.SEEK_END)
    return fd


def write_all(fd: int, buffers: Sequence[bytes | memoryview]) -> int:
    """Write every buffer at the position of `fd`; return how many bytes. Raises OSError."""
    written_bytes = 0
    for first in range(0, len(buffers), _IOV_MAX):
        part = list(buffers[first : first + _IOV_MAX])
        left_bytes = sum(map(len, part))
        written_bytes += left_bytes
        while left_bytes:
            count = os.writev(fd, part)
            left_bytes -= count
            part = _rest(part, count) if left_bytes else []
    return written_bytes


def _rest(buffers: list[bytes | memoryview], count: int) -> list[bytes | memoryview]:
    """Return what is left of `buffers` when their first `count` bytes are gone."""
    for position, buffer in enumerate(buffers):
        if count < len(buffer):
            return [memoryview(buffer)[count:], *buffers[position + 1 :]]
        count -= len(buffer)
    return []


def sync(fd: int) -> None:
    """Bring a file's bytes and length to the disk."""
    os.fdatasync(fd)


def sync_path(path: str) -> None:
    """Bring the bytes of a file that others wrote to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: str) -> None:
    """Bring the names in a folder to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def truncate(fd: int, size_bytes: int) -> None:
    """Cut a file, position `fd` at its new end, and bring that to the disk."""
    os.ftruncate(fd, size_bytes)
    os.lseek(fd, size_bytes, os.SEEK_SET)
    os.fdatasync(fd)


def rename(source: str, target: str) -> None:
    """Rename within a file system and bring both folders to the disk."""
    os.rename(source, target)
    folders = {os.path.dirname(source), os.path.dirname(target)}
    for folder in folders:
        sync_folder(folder)


def write_file_atomically(path: str, data: bytes) -> None:
    """Make `path` hold `data`: after a crash it holds all of it or what it held before."""
    fd = create(path + ".new")
    try:
        write_all(fd, [data])
        sync(fd)
    finally:
        os.close(fd)
    rename(path + ".new", path)


def make_folder(path: str) -> None:
    """Make a folder (0700) if there is none, and bring its name to the disk."""
    if not os.path.isdir(path):
        os.mkdir(path, 0o700)
        sync_folder(os.path.dirname(path) or ".")


def remove(path: str) -> None:
    """Unlink a file if it is there; that it is gone need not survive a crash."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def free_bytes(path: str) -> int:
    """Return how many bytes this process may still write to the file system of `path`."""
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize
