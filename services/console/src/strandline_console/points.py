"""Finds recovery points: the catalog knows them quickly, the store truly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strandline_console.documents import point_document
from strandline_console.errors import ConsoleError, NoSuchThing
from strandline_console.fate import Fate
from strandline_console.moment import At
from strandline_console.outcome import print_document, say
from strandline_console.replicas import fate_of
from strandline_console.site import Site
from strandline_console.text import size_text, table, time_text
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.policy import Source
from strandline_contracts.queries import PointAt, PointList, PointsOf
from strandline_contracts.reading import NO_SUCH, PointPage, Points
from strandline_runtime.errors import RemoteRefused, Unreachable

STORE_PAGE = 1000
STORE_MAX_PAGES = 1000
CATALOG_MAX_PAGE = 1000


async def show_points(site: Site, name: str, limit: int, before: int, *, as_json: bool) -> int:
    """Print the recovery points of a data source, newest first."""
    source = await site.source(name)
    points, more, answered_by = await list_points(site, source, limit, before)
    fate = await fate_of(site, source)
    if as_json:
        document: dict[str, Any] = {
            "name": name,
            "source": source.id,
            "answered_by": answered_by,
            "points": [
                {**point_document(point), **fate.document(point.number)} for point in points
            ],
            "more": more,
        }
        print_document(document)
        return 0
    if not points:
        print(f"{name} has no recovery points" + (f" before {before}" if before else " yet"))
        return 0
    head = ["POINT", "TAKEN", "STATE", "FILES", "SIZE", "CHANGED", "STORED", "KIND"]
    print(
        table(
            head, [_row(point, fate) for point in points], right="POINT FILES SIZE CHANGED STORED"
        )
    )
    if more:
        print(f"older ones: strandline points {name} --before {points[-1].number}")
    return 0


def _row(point: RecoveryPoint, fate: Fate) -> list[str]:
    totals = point.totals
    state = f"{point.consistency}, partial" if point.partial else point.consistency
    state = ", ".join([state, *fate.words(point.number)])
    return [
        str(point.number),
        time_text(point.taken_at_ns),
        state,
        str(totals.files),
        size_text(totals.bytes),
        size_text(totals.dirty_bytes),
        size_text(point.stored_bytes),
        point.kind.replace("_", " "),
    ]


async def list_points(
    site: Site, source: Source, limit: int, before: int = 0
) -> tuple[list[RecoveryPoint], bool, str]:
    """Return up to `limit` points below `before` (0: from the newest), whether there are more,
    and who has answered: the catalog, or the store when the catalog does not.
    """
    try:
        found: list[RecoveryPoint] = []
        while True:
            page = await site.bus.call(
                "catalog",
                site.settings.catalog,
                "points",
                PointsOf(
                    source=source.id,
                    before=found[-1].number if found else before,
                    limit=min(limit - len(found), CATALOG_MAX_PAGE),
                ),
                PointList,
            )
            found += page.points
            if not page.more or not page.points or len(found) >= limit:
                return found, page.more, "catalog"
    except (Unreachable, RemoteRefused) as error:
        say(f"the catalog does not answer ({error.code}): asking the store {source.store}")
    points = [
        point
        for point in await points_after(site, source, 0)
        if not before or point.number < before
    ]
    return points[::-1][:limit], len(points) > limit, "store"


async def points_after(site: Site, source: Source, after: int) -> list[RecoveryPoint]:
    """Ask the store for all recovery points with higher numbers than `after`, rising."""
    found: list[RecoveryPoint] = []
    for _ in range(STORE_MAX_PAGES):
        page = await _store_page(site, source, found[-1].number if found else after, STORE_PAGE)
        found += page.points
        if not page.more or not page.points:
            return found
    raise ConsoleError(f"{source.name!r} has more recovery points than can be listed here")


async def _store_page(site: Site, source: Source, after: int, limit: int) -> PointPage:
    """Ask the store for points above `after`; a source that it has no replica of has none."""
    question = Points(source=source.id, after=after, limit=limit)
    try:
        return await site.ask_store(source.store, "points", question, PointPage)
    except RemoteRefused as error:
        if error.code == NO_SUCH:
            return PointPage(points=[], more=False)
        raise


async def check_points(site: Site, source: Source, points: Sequence[int]) -> None:
    """Raise NoSuchThing unless the store has each of these recovery points."""
    for number in points:
        await find_point(site, source, At(number=number))


async def find_point(site: Site, source: Source, at: At) -> RecoveryPoint:
    """Return the point that `at` names. Raises NoSuchThing.

    The catalog may lag behind: for a time, and for the newest, the store is asked what came after.
    """
    if at.number:
        page = await _store_page(site, source, at.number - 1, 1)
        if page.points and page.points[0].number == at.number:
            return page.points[0]
        raise NoSuchThing(
            f"{source.name!r} has no recovery point {at.number}",
            hint=f"strandline points {source.name}",
        )
    known = await _catalogs_answer(site, source, at)
    later = await points_after(site, source, known.number if known is not None else 0)
    fitting = [point for point in later if not at.time_ns or point.taken_at_ns <= at.time_ns]
    if fitting:
        if not at.time_ns:
            return fitting[-1]
        return max(fitting, key=lambda point: (point.taken_at_ns, point.number))
    if known is not None:
        return known
    if at.time_ns:
        raise NoSuchThing(
            f"{source.name!r} has no recovery point as old as {time_text(at.time_ns)}",
            hint=f"strandline points {source.name}",
        )
    raise NoSuchThing(
        f"{source.name!r} has no recovery point yet",
        hint=f"strandline express-full {source.name} --wait",
    )


async def _catalogs_answer(site: Site, source: Source, at: At) -> RecoveryPoint | None:
    question = (
        PointAt(source=source.id, at_ns=at.time_ns)
        if at.time_ns
        else PointsOf(source=source.id, limit=1)
    )
    call = "point_at" if at.time_ns else "points"
    try:
        found = await site.bus.call("catalog", site.settings.catalog, call, question, PointList)
    except (Unreachable, RemoteRefused):
        return None
    return found.points[0] if found.points else None
