"""What the signed documents of the policy bucket say about a source's recovery points.

Read over the bus each time; whatever cannot be read or believed raises, and nothing is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar
from zoneinfo import ZoneInfo

import msgspec

from strandline_contracts.policy import (
    Assignment,
    Group,
    Hold,
    accept_policy,
    group_key,
    hold_key,
    server_key,
)
from strandline_contracts.signing import Authority
from strandline_contracts.subjects import POLICY_STREAM, policy_subject
from strandline_replica_store.errors import BadPolicy
from strandline_replica_store.forgetting.retention import Policy, resolved
from strandline_runtime.bus import Bus

D = TypeVar("D", Assignment, Group, Hold)


class Policies:
    """Reads the documents that concern one store."""

    def __init__(self, bus: Bus, store: str, trusted: Mapping[bytes, Authority]) -> None:
        self._bus = bus
        self._store = store
        self._trusted = trusted

    async def held(self, source: str) -> tuple[int, ...]:
        """Return the numbers of the points that are held, 0 for all; empty without a hold.

        Raises BusError, BadMessage, BadSignature.
        """
        hold = await self._document(hold_key(source), Hold)
        return tuple(sorted(set(hold.points))) if hold else ()

    async def policy(self, source: str, server: str) -> Policy:
        """Return what is in force for a source whose newest point `server` has made.

        A source that this server does not ship to this store (any more) is unprotected.
        Raises BadPolicy when the group has no document or one that cannot be, and as `held` does.
        """
        held = await self.held(source)
        assignment = await self._document(server_key(server), Assignment) if server else None
        for found in assignment.sources if assignment else []:
            if (found.id, found.server, found.store) == (source, server, self._store):
                if not found.protected:
                    break
                group = await self._document(group_key(found.group), Group)
                if group is None:
                    raise BadPolicy(f"there is no protection group {found.group!r}")
                check(group)
                retention = resolved(group.retention, found.type)
                return Policy(retention=retention, timezone=group.timezone, held=held)
        return Policy(held=held, protected=False)

    async def _document(self, key: str, kind: type[D]) -> D | None:
        subject = policy_subject(key)
        data = await self._bus.last(POLICY_STREAM, subject)
        if not data:
            return None
        found = accept_policy(data, subject, self._trusted)
        assert isinstance(found, kind), "its key says what a document is"
        return found


def check(group: Group) -> None:
    """Raise BadPolicy unless the group's retention can be applied."""
    retention: dict[str, int] = msgspec.structs.asdict(group.retention)
    if min(retention.values()) < 0:
        raise BadPolicy(f"group {group.name!r} keeps less than nothing: {group.retention}")
    check_zone(group.timezone)


def check_zone(name: str) -> None:
    """Raise BadPolicy unless this machine knows the time zone."""
    try:
        ZoneInfo(name)
    except (OSError, ValueError, LookupError) as error:
        raise BadPolicy(f"there is no time zone {name!r} here") from error
