"""Makes one write of the store fail, or all from one on: in durable.py's calls and in SQLite's."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from unittest.mock import patch

import apsw

from strandline_replica_store.files import durable
from strandline_replica_store.replica import index

AT_RANDOM = 40
"""One call in so many fails."""
_GROWING = frozenset({"writev", "mkdir", "rename", "create", "xWrite"})
"""What may fail for want of room."""
_CHANGING = _GROWING | {"fdatasync", "fsync", "ftruncate", "unlink", "xSync", "xTruncate"}
"""What may fail when the disk does."""
_SQLITE = {
    (errno.ENOSPC, "xWrite"): (apsw.FullError, apsw.SQLITE_FULL),
    (errno.EIO, "xWrite"): (apsw.IOError, apsw.SQLITE_IOERR_WRITE),
    (errno.EIO, "xSync"): (apsw.IOError, apsw.SQLITE_IOERR_FSYNC),
    (errno.EIO, "xTruncate"): (apsw.IOError, apsw.SQLITE_IOERR_TRUNCATE),
}


class FaultyDisk:
    """Counts the calls that can fail while it is armed, and lets the chosen ones do so."""

    def __init__(self) -> None:
        self.calls = 0
        self.failed = ""
        """The call that failed first."""
        self._first = 0
        self._lasting = False
        self._chance: random.Random | None = None
        self._errno = 0

    def arm(self, first: int, number: int, *, lasting: bool) -> None:
        """Let the call numbered `first` (from 1) fail with an errno, and those after it if
        `lasting`; 0: none."""
        self.calls, self.failed = 0, ""
        self._first, self._errno, self._lasting = first, number, lasting

    def arm_at_random(self, chance: random.Random, number: int) -> None:
        """Let each call fail with an errno by chance."""
        self.arm(0, number, lasting=False)
        self._chance = chance

    def disarm(self) -> None:
        """Let everything succeed again."""
        self._first = self._errno = 0
        self._chance = None

    def _fails(self, name: str) -> bool:
        if not self._errno or name not in (_GROWING if self._errno == errno.ENOSPC else _CHANGING):
            return False
        self.calls += 1
        fails = self.calls == self._first or (self._lasting and self.calls > self._first > 0)
        fails = fails or (self._chance is not None and self._chance.random() < 1 / AT_RANDOM)
        if fails:
            self.failed = self.failed or name
        return fails

    def in_durable(self, name: str, *values: Any, **named: Any) -> Any:
        """Make a call of the module os, or fail."""
        kind = "create" if name == "open" and values[1] & os.O_CREAT else name
        if self._fails(kind):
            raise OSError(self._errno, os.strerror(self._errno))
        return getattr(os, name)(*values, **named)

    def in_sqlite(self, name: str) -> None:
        """Fail as SQLite's own file system layer does."""
        if self._fails(name):
            kind, code = _SQLITE[self._errno, name]
            error: Any = kind(f"made up: {os.strerror(self._errno)}")
            error.result, error.extendedresult = code & 0xFF, code
            raise error


class _Os:
    """Stands for the module os in durable.py."""

    def __init__(self, disk: FaultyDisk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name in _CHANGING or name == "open":
            return partial(self._disk.in_durable, name)
        return found


class _Vfs(apsw.VFS):
    def __init__(self, base: str, disk: FaultyDisk) -> None:
        self._base = base
        self._disk = disk
        super().__init__("faulty", base)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:  # noqa: N802
        return _File(self._base, name, flags, self._disk)


class _File(apsw.VFSFile):
    def __init__(
        self, base: str, name: str | apsw.URIFilename | None, flags: list[int], disk: FaultyDisk
    ) -> None:
        self._disk = disk
        super().__init__(base, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.in_sqlite("xWrite")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.in_sqlite("xSync")
        super().xSync(flags)

    def xTruncate(self, size_bytes: int) -> None:  # noqa: N802
        self._disk.in_sqlite("xTruncate")
        super().xTruncate(size_bytes)


class _QuietConnection(apsw.Connection):
    """Closes as SQLite does whose file layer is not in Python: what fails then is not told."""

    def close(self, force: bool = False) -> None:
        with suppress(apsw.Error):
            super().close(force)


class _Apsw:
    """Stands for the module apsw in index.py."""

    Connection = _QuietConnection

    def __getattr__(self, name: str) -> Any:
        return getattr(apsw, name)


@contextmanager
def faulty_disk() -> Iterator[FaultyDisk]:
    """Put a faulty disk, not armed yet, under replicas that are opened meanwhile."""
    disk = FaultyDisk()
    connect, checking_vfs = index.connect, index._checking_vfs
    vfs = _Vfs(checking_vfs(), disk)

    def connect_faulty(path: str) -> apsw.Connection:
        # Only who writes: a connection that only reads is not told of faults.
        with (
            patch.object(index, "_checking_vfs", lambda: "faulty"),
            patch.object(index, "apsw", _Apsw()),
        ):
            return connect(path)

    try:
        with patch.object(durable, "os", _Os(disk)), patch.object(index, "connect", connect_faulty):
            yield disk
    finally:
        vfs.unregister()
