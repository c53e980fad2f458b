"""Asking a store again while it cannot answer: every question of the protocols may be repeated."""

from __future__ import annotations

import asyncio
import random
from typing import TypeVar

from strandline_agent.line import Line
from strandline_contracts.codec import Message
from strandline_contracts.errors import StrandlineError

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
PATIENCE_S = 300.0
"""How long a store may be silent before the job's attempt fails (the job is then tried again)."""

T = TypeVar("T")


def pause_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row, jittered."""
    longest = min(FIRST_PAUSE_S * 2.0 ** min(failures, 10), LONGEST_PAUSE_S)
    return longest * random.uniform(0.5, 1.0)


async def ask(
    line: Line,
    store: str,
    call: str,
    request: Message,
    reply: type[T],
    *,
    timeout_s: float = 10.0,
    patience_s: float = PATIENCE_S,
) -> T:
    """Ask `store`, again and again for `patience_s` while the error is retryable."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + patience_s
    failures = 0
    while True:
        try:
            return await line.call("store", store, call, request, reply, timeout_s=timeout_s)
        except StrandlineError as error:
            if not error.retryable or loop.time() > give_up_at:
                raise
        failures += 1
        await asyncio.sleep(pause_s(failures))
