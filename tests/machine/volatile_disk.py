"""A disk with a cache that forgets: an NBD server that says exactly what a cut leaves.

What was written is kept for good only by a flush that came after it. When the power is cut, each
other write is kept, lost or torn, as a seeded choice says; so is a real disk's cache.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import threading
from pathlib import Path

SECTOR_BYTES = 512
BLOCK_BYTES = 4096
"""A write of so many bytes is never torn: ext4 does not mount with half a commit block."""

_HELLO = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 0b11)
_OPTION = struct.Struct(">8sII")
_ANSWER = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_ANSWER_MAGIC, _REQUEST_MAGIC, _REPLY_MAGIC = 0x3E889045565A9, 0x25609513, 0x67446698
_OPT_GO = 7
_ACK, _INFO, _UNSUPPORTED = 1, 3, 0x80000001
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_FLAGS = 0b101
"""Flags are sent, and the disk is to be flushed."""
_READ, _WRITE, _DISCONNECT, _FLUSH = range(4)
_MAX_REQUEST_BYTES = 32 << 20
_EINVAL = 22


class VolatileDisk:
    """`kept` is the image that would be found after a cut at this moment; `seen` what is read."""

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self.flushes = 0
        self._seen = kept.with_suffix(".seen")
        self._size_bytes = kept.stat().st_size
        self._unflushed: list[tuple[int, bytes]] = []
        self._broken = ""
        self._writes_left = 0
        self.stopped = threading.Event()
        """Set when the disk answers no more: its power is cut already."""
        self.socket = kept.with_suffix(".socket")
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.socket))
        self._listening.listen(1)
        self._thread = threading.Thread()

    def plug_in(self, max_writes: int) -> None:
        """Serve the next that connects; behind so many writes nothing is answered."""
        self.stopped.clear()
        self._writes_left = max_writes
        shutil.copyfile(self.kept, self._seen)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def cut(self, rng: random.Random) -> tuple[int, int]:
        """Return how many writes were not flushed and how many of these are not kept whole.

        Its reader must be dead.
        """
        self._thread.join(timeout=60)
        if self._thread.is_alive() or self._broken:
            raise RuntimeError(f"the disk does not work: {self._broken or 'it is still in use'}")
        survivors = [_survivor(data, rng) for _, data in self._unflushed]
        lost = 0
        with open(self.kept, "r+b", buffering=0) as kept:
            for (at, data), left in zip(self._unflushed, survivors, strict=True):
                lost += len(left) < len(data)
                os.pwrite(kept.fileno(), left, at)
        count, self._unflushed = len(self._unflushed), []
        return count, lost

    def close(self) -> None:
        """Stop listening."""
        self._listening.close()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        try:
            with connection, open(self._seen, "r+b", buffering=0) as seen:
                self._shake_hands(connection)
                while self._answer(connection, seen.fileno()):
                    pass
        except (EOFError, ConnectionError):
            pass  # The power was cut, in the middle of a request.
        except Exception as error:
            self._broken = repr(error)
            raise

    def _shake_hands(self, connection: socket.socket) -> None:
        connection.sendall(_HELLO)
        _receive(connection, 4)
        while True:
            _, option, size_bytes = _OPTION.unpack(_receive(connection, _OPTION.size))
            _receive(connection, size_bytes)
            if option == _OPT_GO:
                export = struct.pack(">HQH", _INFO_EXPORT, self._size_bytes, _FLAGS)
                sizes = struct.pack(">HIII", _INFO_BLOCK_SIZE, SECTOR_BYTES, 4096, 1 << 20)
                for kind, data in ((_INFO, export), (_INFO, sizes), (_ACK, b"")):
                    connection.sendall(_ANSWER.pack(_ANSWER_MAGIC, option, kind, len(data)) + data)
                return
            connection.sendall(_ANSWER.pack(_ANSWER_MAGIC, option, _UNSUPPORTED, 0))

    def _answer(self, connection: socket.socket, seen: int) -> bool:
        request = _REQUEST.unpack(_receive(connection, _REQUEST.size))
        magic, _, kind, cookie, at, size_bytes = request
        if magic != _REQUEST_MAGIC or size_bytes > _MAX_REQUEST_BYTES:
            raise ValueError(f"a request that cannot be: {request}")
        error, data = 0, b""
        if kind == _READ:
            data = os.pread(seen, size_bytes, at)
        elif kind == _WRITE:
            written = _receive(connection, size_bytes)
            os.pwrite(seen, written, at)
            self._unflushed.append((at, written))
            self._writes_left -= 1
            if not self._writes_left:
                self.stopped.set()
        elif kind == _FLUSH and not self.stopped.is_set():
            self._flush()
        elif kind == _FLUSH:
            pass
        elif kind == _DISCONNECT:
            return False
        else:
            error = _EINVAL
        if self.stopped.is_set():
            return True  # What was sent meanwhile still comes, and may be kept; nobody is told.
        connection.sendall(_REPLY.pack(_REPLY_MAGIC, error, cookie) + data)
        return True

    def _flush(self) -> None:
        with open(self.kept, "r+b", buffering=0) as kept:
            for at, data in self._unflushed:
                os.pwrite(kept.fileno(), data, at)
        self._unflushed = []
        self.flushes += 1


def _survivor(data: bytes, rng: random.Random) -> bytes:
    """Return what is left of a write that was not flushed: all, nothing, or its first sectors."""
    sectors = len(data) // SECTOR_BYTES
    torn = rng.randrange(sectors) if len(data) > BLOCK_BYTES else 0
    return data[: rng.choice([sectors, 0, torn]) * SECTOR_BYTES]


def _receive(connection: socket.socket, count_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < count_bytes:
        part = connection.recv(count_bytes - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
