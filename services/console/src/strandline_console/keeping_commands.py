"""The commands that decide what is kept, for how long, and what goes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from strandline_console.arguments import Json, Name, Points, State, Yes, run
from strandline_console.confirming import check_askable, confirm
from strandline_console.deleting import delete as delete_points
from strandline_console.deleting import undelete as undelete_points
from strandline_console.documents import source_document
from strandline_console.holding import check_not_held, hold_document, hold_text
from strandline_console.holding import hold as hold_points
from strandline_console.holding import release as release_points
from strandline_console.outcome import print_document
from strandline_console.points import check_points
from strandline_console.protecting import unprotect as unprotect_source
from strandline_console.retention_of_group import show_all, show_retention
from strandline_console.retention_rules import MAX_VALUE, parse_span
from strandline_console.site import Site
from strandline_contracts.policy import Hold


def _count(flag: str, kept: str) -> Any:
    """Return the option that sets how many of `kept` there are to be."""
    return typer.Option(flag, metavar="N", min=0, max=MAX_VALUE, help=kept)


def unprotect(
    *,
    name: Name,
    delete_replica: Annotated[
        bool, typer.Option("--delete-replica", help="Delete its recovery points too.")
    ] = False,
    yes: Yes = False,
    state: State = "",
    as_json: Json = False,
) -> None:
    """End the protection of a data source; its replica stays.

    With --delete-replica that goes too when the store's own delay has passed;
    until then `strandline undelete` takes it back.

    \b
    Examples:
      strandline unprotect data
      strandline unprotect data --delete-replica
    """
    if delete_replica:
        check_askable(yes=yes)

    async def work(site: Site) -> int:
        if delete_replica:
            await check_not_held(site, await site.source(name))
            await confirm(name, f"This deletes all recovery points of {name}.", yes=yes)
        source = await unprotect_source(site, name)
        extra = {"unprotected": source_document(source)}
        if delete_replica:
            if not as_json:
                print(f"{name} is no longer protected")
            return await delete_points(site, source, [], as_json=as_json, extra=extra)
        if as_json:
            print_document(extra)
        else:
            print(f"{name} is no longer protected; its recovery points stay")
        return 0

    run(state, work)


def delete(
    name: Name, point: Points = None, yes: Yes = False, state: State = "", as_json: Json = False
) -> None:
    """Delete single recovery points.

    They go when the store's own delay has passed; until then `strandline
    undelete` takes them back. Held ones are refused. All of them at once:
    `strandline unprotect NAME --delete-replica`.

    \b
    Example:
      strandline delete data --point 17 --point 18
    """
    points = point or []
    if not points:
        raise typer.BadParameter(
            "name recovery points with --point; all of them: unprotect --delete-replica"
        )
    check_askable(yes=yes)

    async def work(site: Site) -> int:
        source = await site.source(name)
        await check_points(site, source, points)
        listed = ", ".join(map(str, sorted(set(points))))
        await confirm(name, f"This deletes recovery points of {name}: {listed}.", yes=yes)
        return await delete_points(site, source, points, as_json=as_json, extra={})

    run(state, work)


def undelete(name: Name, point: Points = None, state: State = "", as_json: Json = False) -> None:
    """Take back what was deleted.

    These recovery points, or (none named) all and the replica. A source whose
    protection was ended stays unprotected: `strandline protect` goes on.

    \b
    Examples:
      strandline undelete data
      strandline undelete data --point 17
    """

    async def work(site: Site) -> int:
        source = await site.source(name)
        return await undelete_points(site, source, point or [], as_json=as_json)

    run(state, work)


def hold(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for people.")],
    point: Points = None,
    state: State = "",
    as_json: Json = False,
) -> None:
    """Keep recovery points from being dropped or deleted.

    None named: all, and those that come.

    \b
    Examples:
      strandline hold data --reason 'audit 2026'
      strandline hold data --point 17 --reason 'before the migration'
    """

    async def work(site: Site) -> int:
        source = await site.source(name)
        return _show_hold(await hold_points(site, source, point or [], reason), name, as_json)

    run(state, work)


def release(name: Name, point: Points = None, state: State = "", as_json: Json = False) -> None:
    """End the hold of recovery points.

    None named: of all. The rules count for them again, once the store's own
    delay has passed.

    \b
    Examples:
      strandline release data
      strandline release data --point 17
    """

    async def work(site: Site) -> int:
        source = await site.source(name)
        return _show_hold(await release_points(site, source, point or []), name, as_json)

    run(state, work)


def _show_hold(found: Hold, name: str, as_json: bool) -> int:
    if as_json:
        print_document(hold_document(found, name))
    else:
        print(hold_text(found, name))
    return 0


def retention(
    *,
    group: Annotated[
        str, typer.Argument(metavar="GROUP", help="Of which group (default: show all).")
    ] = "",
    last: Annotated[int | None, _count("--last", "The newest N.")] = None,
    days: Annotated[int | None, _count("--days", "All of the last N days.")] = None,
    hourly: Annotated[int | None, _count("--hourly", "One an hour, for N hours.")] = None,
    daily: Annotated[int | None, _count("--daily", "One a day, for N days.")] = None,
    weekly: Annotated[int | None, _count("--weekly", "One a week, for N weeks.")] = None,
    monthly: Annotated[int | None, _count("--monthly", "One a month, N months.")] = None,
    yearly: Annotated[int | None, _count("--yearly", "One a year, N years.")] = None,
    log_window: Annotated[
        str | None,
        typer.Option(
            "--log-window", metavar="TIME", help="Every logged moment since, such as 14d."
        ),
    ] = None,
    state: State = "",
    as_json: Json = False,
) -> None:
    """Show or set which recovery points a group keeps.

    A recovery point is kept when any of the rules keeps it. Options set the
    rules that they name, the others stay; 0 ends a rule. Where no rule is left
    the default counts: --days 7 --daily 64.

    \b
    Examples:
      strandline retention default
      strandline retention default --days 1 --daily 14 --weekly 8 --monthly 12
    """
    asked = {
        "last": last,
        "days": days,
        "hourly": hourly,
        "daily": daily,
        "weekly": weekly,
        "monthly": monthly,
        "yearly": yearly,
        "log_window_s": parse_span(log_window) if log_window is not None else None,
    }
    rules = {rule: value for rule, value in asked.items() if value is not None}
    if rules and not group:
        raise typer.BadParameter("name the GROUP whose rules these are to be")

    async def work(site: Site) -> int:
        if not group:
            return await show_all(site, as_json=as_json)
        return await show_retention(site, group, rules, as_json=as_json)

    run(state, work)
