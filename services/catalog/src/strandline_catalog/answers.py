"""What an answer may hold: pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")

MAX_SOURCES = 1000
MAX_POINTS = 1000
MAX_JOBS = 500
MAX_NEAREST = 5


def bounded(asked: int, most: int) -> int:
    """Return how many an answer may have when `asked` are wanted."""
    return min(max(asked, 1), most)


def fitting(bodies: Sequence[tuple[int, T]], limit_bytes: int) -> list[T]:
    """Return the first of `bodies` (size in bytes, thing) that together fit; one at least."""
    found: list[T] = []
    for size_bytes, body in bodies:
        limit_bytes -= size_bytes
        if found and limit_bytes < 0:
            break
        found.append(body)
    return found


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return those of `names` that somebody who wrote `name` may have meant, best first."""
    by_folded = {each.casefold(): each for each in sorted(names, reverse=True)}
    found = get_close_matches(name.casefold(), by_folded, n=MAX_NEAREST, cutoff=0.5)
    return [by_folded[each] for each in found]
