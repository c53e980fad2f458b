"""Commands for tests: plain, and signed as they travel."""

from __future__ import annotations

import time

from strandline_contracts.codec import encode
from strandline_contracts.commands import Args, Command, ExpressFull
from strandline_contracts.names import Role
from strandline_contracts.signing import sign

SECOND_NS = 1_000_000_000


def make_command(
    job: str,
    *,
    args: Args | None = None,
    source: str = "s1",
    role: Role = "agent",
    instance: str = "web-1",
    at_ns: int | None = None,
    valid_s: float = 60.0,
) -> Command:
    """Return a command scheduled now (or at `at_ns`) that may be started for `valid_s`."""
    scheduled = time.time_ns() if at_ns is None else at_ns
    return Command(
        site="hq",
        role=role,
        instance=instance,
        source=source,
        job=job,
        scheduled_at_ns=scheduled,
        not_after_ns=scheduled + int(valid_s * SECOND_NS),
        issued_by="operator-1",
        args=args or ExpressFull(),
    )


def signed(seed: bytes, command: Command) -> bytes:
    return encode(sign(seed, "command", encode(command)))
