"""What the agent needs of the bus: the seam at which tests put a store of their own."""

from __future__ import annotations

from typing import Protocol, TypeVar

from strandline_contracts.codec import Message
from strandline_contracts.names import Role

T = TypeVar("T")


class Line(Protocol):
    """The part of strandline_runtime.bus.Bus that shipping and restoring use."""

    @property
    def max_payload_bytes(self) -> int: ...

    async def publish(self, subject: str, payload: bytes, *, msg_id: str = "") -> None:
        """Publish; return when JetStream has it. Raises BusError."""

    async def call(
        self,
        role: Role,
        instance: str,
        call: str,
        request: Message,
        reply: type[T],
        *,
        timeout_s: float = 5.0,
    ) -> T:
        """Ask a service. Raises RemoteRefused, Unreachable."""
