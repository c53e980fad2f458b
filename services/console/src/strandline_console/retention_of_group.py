"""`strandline retention`: shows or sets which recovery points a protection group keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from strandline_console.errors import NoSuchThing
from strandline_console.nearest import nearest
from strandline_console.outcome import print_document
from strandline_console.retention_rules import (
    changed,
    effective,
    goes_by_count_alone,
    retention_text,
    rules_of,
    shortens,
)
from strandline_console.site import Site
from strandline_console.text import table
from strandline_contracts.policy import Group, Retention, group_key


async def show_retention(site: Site, group: str, rules: Mapping[str, int], *, as_json: bool) -> int:
    """Print a group's retention, with `rules` set in it before if there are any."""
    before = await find_group(site, group)
    after = await _set(site, group, rules) if rules else before
    shortened = shortens(before.retention, after.retention)
    if as_json:
        print_document({**retention_document(after), "shortened": shortened})
        return 0
    print(f"{group} keeps" + (" (the default)" if after.retention == Retention() else "") + ":")
    for line in retention_text(after.retention):
        print(f"  {line}")
    print(f"Days begin at midnight, {after.timezone}. The newest and what is held always stay.")
    if rules and goes_by_count_alone(after.retention):
        print("A server that was taken over can push old ones out by making many: a rule over")
        print("time beside it (--days, --daily, ...) keeps one of each period whatever comes.")
    if shortened:
        print("It keeps less than before: the store lets nothing go because of that before its")
        print("own delay has passed (delete_delay_days). Until then the change can be taken back.")
    return 0


async def show_all(site: Site, *, as_json: bool) -> int:
    """Print the retention of every protection group."""
    groups = sorted(await site.documents("group", Group), key=lambda group: group.name)
    if as_json:
        print_document({"groups": [retention_document(group) for group in groups]})
    elif groups:
        rows = [[group.name, "; ".join(retention_text(group.retention))] for group in groups]
        print(table(["GROUP", "KEEPS"], rows))
    else:
        print("no protection groups: strandline protect makes the first")
    return 0


async def find_group(site: Site, name: str) -> Group:
    """Return the group called `name`. Raises NoSuchThing with names like it."""
    found, _ = await site.policy(group_key(name), Group)
    if found is not None:
        return found
    names = sorted(group.name for group in await site.documents("group", Group))
    raise NoSuchThing(
        f"no protection group is called {name!r}",
        nearest=nearest(name, names),
        hint=f"Groups: {', '.join(names)}." if names else "Nothing is protected yet.",
    )


async def _set(site: Site, group: str, rules: Mapping[str, int]) -> Group:
    def change(found: Group | None) -> Group:
        if found is None:
            raise NoSuchThing(f"the group {group!r} is gone")
        retention = changed(found.retention, rules)
        return msgspec.structs.replace(found, retention=retention)

    return await site.change_policy(group_key(group), Group, change)


def retention_document(group: Group) -> dict[str, Any]:
    return {
        "group": group.name,
        "timezone": group.timezone,
        "default": group.retention == Retention(),
        "retention": rules_of(effective(group.retention)),
    }
