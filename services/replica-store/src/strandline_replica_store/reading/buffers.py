"""Room for what is sent, used again: fresh memory is page faults, and they cost as a copy does."""

from __future__ import annotations

import threading

BUFFER_BYTES = 1024 * 1024 + 16 * 1024
"""Room for the chunks of the largest answer, with the headers that they have in a segment."""
MAX_BUFFERS = 24
"""So many are kept; what is needed beyond that is given back."""


class Buffers:
    """Lends room; it is free again when nobody holds a view of it any more. Safe for threads."""

    def __init__(self) -> None:
        self._held: list[bytearray] = []
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> memoryview:
        """Return room for so many bytes, whatever is in it."""
        if size_bytes > BUFFER_BYTES:
            return memoryview(bytearray(size_bytes))
        with self._lock:
            buffer = next(filter(_is_free, self._held), None)
            if buffer is None:
                buffer = bytearray(BUFFER_BYTES)
                if len(self._held) < MAX_BUFFERS:
                    self._held.append(buffer)
            return memoryview(buffer)[:size_bytes]


def _is_free(buffer: bytearray) -> bool:
    """Tell whether there is no view of `buffer`: Python forbids to resize it while there is."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    buffer.pop()
    return True
