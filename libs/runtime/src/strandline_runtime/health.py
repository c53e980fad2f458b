"""Health and metrics over HTTP, on loopback alone: /healthz, /readyz, /metrics."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from strandline_runtime.settings import Settings

REQUEST_MAX_BYTES = 8 * 1024
REQUEST_TIMEOUT_S = 5.0
PORT_FILE = "http.port"


class HealthServer:
    """A very small HTTP server: GET, one request a connection."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self.port = int(server.sockets[0].getsockname()[1])

    @classmethod
    async def start(cls, settings: Settings, is_ready: Callable[[], bool]) -> HealthServer:
        """Listen on 127.0.0.1 and write the port to `<state_dir>/http.port`."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _answer(reader, writer, is_ready)

        health = cls(
            await asyncio.start_server(
                handle, "127.0.0.1", settings.http_port, limit=REQUEST_MAX_BYTES
            )
        )
        port_file = settings.state_dir / PORT_FILE
        temporary = port_file.with_name(f".{PORT_FILE}")
        temporary.write_text(f"{health.port}\n")
        os.replace(temporary, port_file)
        return health

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_ready: Callable[[], bool]
) -> None:
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, *_ = [*head.split(b" ", 2), b"", b""]
            status, kind, body = _page(method, path, is_ready)
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        # Whoever asked has gone, or never asked properly; they get nothing.
        writer.transport.abort()
    finally:
        writer.close()


def _page(method: bytes, path: bytes, is_ready: Callable[[], bool]) -> tuple[str, str, bytes]:
    text = "text/plain; charset=utf-8"
    if method != b"GET":
        return "405 Method Not Allowed", text, b"GET only\n"
    if path == b"/healthz":
        return "200 OK", text, b"alive\n"
    if path == b"/readyz":
        ready = is_ready()
        status = "200 OK" if ready else "503 Service Unavailable"
        return status, text, b"ready\n" if ready else b"not ready\n"
    if path == b"/metrics":
        return "200 OK", CONTENT_TYPE_LATEST, generate_latest()
    return "404 Not Found", text, b"/healthz /readyz /metrics\n"
