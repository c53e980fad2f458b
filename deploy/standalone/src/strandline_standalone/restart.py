"""When a dead process is started again, and how its death is told. Pure."""

from __future__ import annotations

import signal

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 30.0
RESET_AFTER_S = 60.0
"""A process that has lived so long has come up: its earlier deaths are forgotten."""
MAX_DEATHS_BEFORE_READY = 3
"""So often may a process die before it was ever ready, then the stack does not come up."""


def delay_s(deaths: int) -> float:
    """Return how long to wait before the start after the `deaths`-th death in a row (1, 2, ...)."""
    return float(min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(deaths - 1, 16)))


def deaths_in_a_row(before: int, lived_s: float) -> int:
    """Return the count after one more death of a process that lived `lived_s`."""
    return 1 if lived_s >= RESET_AFTER_S else before + 1


def why(returncode: int) -> str:
    """Tell how a process ended, from asyncio's return code."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"
