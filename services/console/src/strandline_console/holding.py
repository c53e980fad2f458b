"""Holds: recovery points that no rule may drop, as a signed document of the policy bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strandline_console.documents import time_document
from strandline_console.errors import ConsoleError, WrongUse
from strandline_console.fate import ALL
from strandline_console.points import check_points
from strandline_console.site import Site, now_ns
from strandline_contracts.policy import Hold, Source, hold_key


class IsHeld(ConsoleError):
    """What is to be deleted is held."""

    code = "store.held"


async def hold(site: Site, source: Source, points: Sequence[int], reason: str) -> Hold:
    """Hold recovery points (none named: all) beside those that are held already.

    Raises NoSuchThing for a point that is not there.
    """
    await check_points(site, source, points)

    def change(found: Hold | None) -> Hold:
        held = found.points if found is not None else []
        return _made(site, source, [*held, *(points or [ALL])], reason)

    return await site.change_policy(hold_key(source.id), Hold, change)


async def release(site: Site, source: Source, points: Sequence[int]) -> Hold:
    """Release recovery points (none named: all). Raises WrongUse for one that is not held."""

    def change(found: Hold | None) -> Hold:
        found = found or Hold(source=source.id)
        missing = set(points) - set(found.points)
        if missing:
            raise _not_held(source, found, min(missing))
        if not found.points:
            return found
        left = [number for number in found.points if points and number not in points]
        return _made(site, source, left, found.reason)

    return await site.change_policy(hold_key(source.id), Hold, change)


async def check_not_held(site: Site, source: Source) -> None:
    """Raise IsHeld if anything of the source is held: its store would refuse to delete it."""
    found, _ = await site.policy(hold_key(source.id), Hold)
    if found is not None and found.points:
        raise IsHeld(
            f"{hold_text(found, source.name)}" + (f" ({found.reason})" if found.reason else ""),
            hint=f"strandline release {source.name}, if nobody needs them any more.",
        )


def hold_document(found: Hold, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "source": found.source,
        "held": [number for number in found.points if number != ALL],
        "all": ALL in found.points,
        "reason": found.reason,
        "held_at": time_document(found.held_at_ns),
        "by": found.by,
    }


def hold_text(found: Hold, name: str) -> str:
    if not found.points:
        return f"{name}: nothing is held any more"
    if ALL in found.points:
        return f"{name}: all recovery points are held, also those that come"
    several = len(found.points) > 1
    listed = ", ".join(map(str, found.points))
    return f"{name}: recovery point{'s' * several} {listed} {'are' if several else 'is'} held"


def _made(site: Site, source: Source, points: Sequence[int], reason: str) -> Hold:
    return Hold(
        source=source.id,
        points=sorted(set(points)),
        reason=reason if points else "",
        held_at_ns=now_ns(),
        by=site.bus.me,
    )


def _not_held(source: Source, found: Hold, number: int) -> WrongUse:
    if ALL in found.points:
        return WrongUse(
            f"all of {source.name!r} is held: no single recovery point can be released",
            hint=f"strandline release {source.name}, then hold those that are to stay.",
        )
    return WrongUse(
        f"recovery point {number} of {source.name!r} is not held",
        hint=f"Held are {', '.join(map(str, found.points))}." if found.points else "Nothing is.",
    )
