"""The few calls of Linux that Python's os module lacks: statx for the birth time, syncfs, and
sync_file_range."""

from __future__ import annotations

import ctypes
import os
import sys
import time

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_CLOCK_REALTIME_COARSE = 5
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_MASK_AT = 0
_BTIME_AT = 80
"""Offset of stx_btime (seconds: s64, nanoseconds: u32), the same on every architecture."""


def birth_ns(folder: int, name: bytes) -> int:
    """Return when the entry `name` of the open folder was made, in Unix ns; 0 if not known.

    With an empty name: of what `folder` itself is open on.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    flags = _AT_SYMLINK_NOFOLLOW | (0 if name else _AT_EMPTY_PATH)
    if _libc.statx(folder, name, flags, _STATX_BTIME, buffer) != 0:
        return 0
    raw = buffer.raw
    if not int.from_bytes(raw[_MASK_AT : _MASK_AT + 4], sys.byteorder) & _STATX_BTIME:
        return 0
    seconds = int.from_bytes(raw[_BTIME_AT : _BTIME_AT + 8], sys.byteorder, signed=True)
    return seconds * 1_000_000_000 + int.from_bytes(
        raw[_BTIME_AT + 8 : _BTIME_AT + 12], sys.byteorder
    )


def syncfs(fd: int) -> None:
    """Write everything of the file system that `fd` lies on to its disk. Raises OSError."""
    if _libc.syncfs(fd) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def start_writing_out(fd: int, at: int, size: int) -> None:
    """Begin to write what is dirty of a part of a file to its disk, and do not wait for it.

    Who has the file mapped can change a dirty page without leaving a trace; on its way to the disk
    it is protected, so that the next change sets the ctime. Where that is not to be had (tmpfs,
    overlayfs) nothing happens; nor is anything told of errors, which are the writer's.
    """
    _libc.sync_file_range(fd, at, size, _SYNC_FILE_RANGE_WRITE)


def file_clock_ns() -> int:
    """Return the time that the kernel would stamp a file with now, in Unix nanoseconds."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
