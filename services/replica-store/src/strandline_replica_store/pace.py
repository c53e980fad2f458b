"""Pace: how fast work in the background may read and write."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 0.25
"""So much of a second's bytes may be taken at once."""


class Pace:
    """Lets at most `bytes_per_second` through, all users together; of any thread."""

    def __init__(self, bytes_per_second: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_second = max(bytes_per_second, 1)
        self._now_s = now_s
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def take(self, count_bytes: int, stop: threading.Event) -> None:
        """Wait until `count_bytes` may be read or written, or `stop` is set."""
        with self._lock:
            begin_s = max(self._free_at_s, self._now_s() - BURST_S)
            self._free_at_s = begin_s + count_bytes / self._bytes_per_second
            wait_s = self._free_at_s - self._now_s()
        if wait_s > 0:
            stop.wait(wait_s)
