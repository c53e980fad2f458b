"""Receiving large messages with one copy instead of five, and sending them with none.

nats-py reads through asyncio's StreamReader (a copy in, a copy out), and its parser gathers a
message in one buffer (in, cut, out). At a MiB a message that is most of what an agent's event loop
does in a restore (docs/performance.md). These two subclasses hand on the pieces as they come from
the socket, and join them once. They stand on the seams of the pinned nats-py: `install` puts them
in its place, and tests/integration/runtime/test_lean.py holds them to what nats-py does.
`publish_parts` hands the parts of a payload to the socket as they are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import nats.errors
from nats.aio import client as nats_client
from nats.aio.transport import TcpTransport
from nats.protocol.parser import AWAITING_CONTROL_LINE, AWAITING_MSG_PAYLOAD, Parser

HELD_BYTES = 1024 * 1024
"""What may wait unread before the socket is stopped."""
_CRLF_BYTES = 2


def install() -> None:
    """Let nats-py's clients that are made from now on receive through this module."""
    vars(nats_client).update(TcpTransport=LeanTransport, Parser=LeanParser)


async def publish_parts(
    client: nats_client.Client, subject: str, parts: Sequence[bytes | memoryview]
) -> None:
    """Publish a message whose payload is in parts; they must not change until they are sent.

    What nats-py's `publish` does, which however joins a command, its payload and its end to new
    bytes. Raises what that raises.
    """
    size_bytes = sum(map(len, parts))
    if client.is_closed:
        raise nats.errors.ConnectionClosedError
    held_bytes = client.pending_data_size + size_bytes
    if not client.is_connected and held_bytes > client._max_pending_size:
        raise nats.errors.OutboundBufferLimitError
    if size_bytes > client.max_payload:
        raise nats.errors.MaxPayloadError
    head = f"PUB {subject} {size_bytes}\r\n".encode()
    # All at once, without an await: no other command may come between them.
    cast("list[bytes | memoryview]", client._pending).extend((head, *parts, b"\r\n"))
    client._pending_data_size += len(head) + size_bytes + _CRLF_BYTES
    client.stats["out_msgs"] += 1
    client.stats["out_bytes"] += size_bytes
    if 0 < client._max_pending_size < client._pending_data_size:
        await client._flush_pending(force_flush=True)
    elif client._flush_queue is not None and client._flush_queue.empty():
        await client._flush_pending()


class PieceReader(asyncio.StreamReader):
    """A StreamReader that keeps what came in pieces; `read` gives the next one as it is."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=HELD_BYTES, loop=loop)
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._came = asyncio.Event()
        self._ended = False
        self._stopped: asyncio.Transport | None = None
        self._socket: asyncio.Transport | None = None

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        super().set_transport(transport)
        self._socket = transport if isinstance(transport, asyncio.Transport) else None

    def feed_data(self, data: Any) -> None:
        self._pieces.append(bytes(data))
        self._held_bytes += len(data)
        self._came.set()
        if self._held_bytes > HELD_BYTES and self._stopped is None and self._socket is not None:
            self._socket.pause_reading()
            self._stopped = self._socket

    def feed_eof(self) -> None:
        self._ended = True
        self._came.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self._ended = True
        self._came.set()

    def at_eof(self) -> bool:
        return self._ended and not self._pieces

    async def read(self, n: int = -1) -> bytes:  # noqa: ARG002 - the base class's signature
        """Return the next piece, whatever `n` is; b"" at the end."""
        while not self._pieces:
            if (error := self.exception()) is not None:
                raise error
            if self._ended:
                return b""
            self._came.clear()
            await self._came.wait()
        piece = self._pieces.popleft()
        self._held_bytes -= len(piece)
        if self._stopped is not None and self._held_bytes <= HELD_BYTES // 2:
            self._stopped.resume_reading()
            self._stopped = None
        return piece

    async def readline(self) -> bytes:
        """Return up to the next line feed; what there is at the end."""
        line = b""
        while piece := await self.read():
            head, feed, rest = piece.partition(b"\n")
            line += head + feed
            if feed:
                if rest:
                    self._pieces.appendleft(rest)
                    self._held_bytes += len(rest)
                break
        return line


class LeanTransport(TcpTransport):
    """nats-py's TCP transport on a PieceReader; after an upgrade to TLS it is nats-py's own."""

    async def connect(
        self,
        uri: Any,
        buffer_size: int,  # noqa: ARG002 - the base class's signature
        connect_timeout: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        reader = PieceReader(loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: protocol, uri.hostname, uri.port)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = writer


class LeanParser(Parser):
    """nats-py's parser, but a payload that comes in several pieces is joined once."""

    def reset(self) -> None:
        super().reset()
        self._parts: list[bytes | memoryview] = []
        self._missing = 0

    async def parse(self, data: bytes = b"") -> None:
        rest: bytes | memoryview = data
        if self._missing:
            part = memoryview(data)[: self._missing]
            self._parts.append(part)
            self._missing -= len(part)
            if self._missing:
                return
            rest = memoryview(data)[len(part) :]
            await self._deliver()
        if len(rest):
            await super().parse(rest)  # type: ignore[arg-type]
        if self.state == AWAITING_MSG_PAYLOAD:
            # The base class has taken all whole messages: this one's rest is still to come.
            self._missing = self.needed + _CRLF_BYTES - len(self.buf)
            self._parts = [bytes(self.buf)]
            self.buf.clear()

    async def _deliver(self) -> None:
        parts, self._parts = self._parts, []
        argument, header_bytes = self.msg_arg, self.header_needed
        self.header_needed = 0
        self.state = AWAITING_CONTROL_LINE
        header: bytes | None = None
        if header_bytes and len(parts[0]) >= header_bytes and len(parts[-1]) > _CRLF_BYTES:
            header = bytes(parts[0][:header_bytes])
            parts[0] = memoryview(parts[0])[header_bytes:]
            parts[-1] = parts[-1][:-_CRLF_BYTES]
            payload = b"".join(parts)
        elif not header_bytes and len(parts[-1]) > _CRLF_BYTES:
            parts[-1] = parts[-1][:-_CRLF_BYTES]
            payload = b"".join(parts)
        else:  # a header or the end of the line is itself in pieces: seldom
            whole = b"".join(parts)
            header = whole[:header_bytes] if header_bytes else None
            payload = whole[header_bytes:-_CRLF_BYTES]
        await self.nc._process_msg(
            argument["sid"], argument["subject"], argument["reply"], payload, header
        )
