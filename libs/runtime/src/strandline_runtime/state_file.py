"""Small files that a service keeps its state in: read whole, replaced whole.

A reader finds the old or the new, never a part; after `replace` has returned, always the new.
"""

from __future__ import annotations

import os
from pathlib import Path

import aiofiles
import aiofiles.os


async def read(path: Path) -> bytes | None:
    """Return what the file holds, None when there is none. Raises OSError."""
    try:
        async with aiofiles.open(path, "rb") as file:
            return bytes(await file.read())
    except FileNotFoundError:
        return None


async def replace(path: Path, data: bytes) -> None:
    """Make `data` the file's content, and that durable. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    async with aiofiles.open(fresh, "wb") as file:
        await file.write(data)
        await file.flush()
        await _fsync(file.fileno())
    await aiofiles.os.replace(fresh, path)
    await _sync_folder(path.parent)


_fsync = aiofiles.os.wrap(os.fsync)


@aiofiles.os.wrap
def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
