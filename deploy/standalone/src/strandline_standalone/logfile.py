"""A log file of bounded size: full, it becomes `<name>.1` and a new one is begun."""

from __future__ import annotations

import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

MAX_BYTES = 8 * 1024 * 1024
TAIL_LINES = 20
_TAIL_LINE_BYTES = 2000


class LogFile:
    """Appends what a process says, and remembers its last lines."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._fd = -1
        self._size_bytes = 0
        self._open()

    def write(self, data: bytes) -> None:
        """Append `data`: as little as a pipe gives at once, into the page cache."""
        if self._size_bytes + len(data) > self._max_bytes:
            self._rotate()
        self._size_bytes += os.write(self._fd, data)
        for line in data.splitlines():
            if line.strip():
                self._tail.append(line[:_TAIL_LINE_BYTES].decode(errors="replace"))

    def line(self, text: str) -> str:
        """Append a line of our own, with the time; return it."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = f"{stamp} {text}"
        self.write(line.encode(errors="replace") + b"\n")
        return line

    def tail(self, lines: int = TAIL_LINES) -> list[str]:
        return list(self._tail)[-lines:]

    def close(self) -> None:
        os.close(self._fd)

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._size_bytes = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        full = self._fd
        self.path.replace(self.path.with_name(self.path.name + ".1"))
        self._open()
        os.close(full)
