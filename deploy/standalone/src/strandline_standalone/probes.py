"""How the supervisor sees that a process is ready: over loopback, without a client library."""

from __future__ import annotations

import asyncio
from pathlib import Path

_TIMEOUT_S = 2.0


async def bus_answers(port: int) -> bool:
    """Tell whether a nats-server greets on this port."""
    return (await _exchange(port, b"")).startswith(b"INFO ")


async def service_ready(state_dir: Path) -> bool:
    """Ask /readyz of the service that has written its port to `<state_dir>/http.port`."""
    try:
        port = int((state_dir / "http.port").read_text().strip())
    except (OSError, ValueError):
        return False
    line = await _exchange(port, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return line.split(b" ")[1:2] == [b"200"]


async def _exchange(port: int, request: bytes) -> bytes:
    """Send `request` and return the first line of the answer, empty if there is none."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                return await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return b""
