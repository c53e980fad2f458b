"""Who may do what here: servers by their signed assignment, readers by their signed grant."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

from blake3 import blake3

from strandline_contracts.commands import Grant, accept_grant
from strandline_contracts.errors import StrandlineError
from strandline_contracts.policy import Assignment, Source
from strandline_contracts.signing import Authority
from strandline_replica_store.errors import NotAllowed

FRESH_S = 3.0
"""So long an assignment is believed without looking again."""
MAX_ASSIGNMENTS = 1024
MAX_GRANTS = 256

ReadAssignment = Callable[[str], Awaitable[Assignment | None]]


class Admission:
    """Decides by signed documents alone; of the event loop's thread."""

    def __init__(
        self,
        site: str,
        store: str,
        trusted: Mapping[bytes, Authority],
        read: ReadAssignment,
        *,
        now_s: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._site = site
        self._store = store
        self._trusted = trusted
        self._read = read
        self._now_s = now_s
        self._now_ns = now_ns
        self._assignments: OrderedDict[str, tuple[float, Assignment | None]] = OrderedDict()
        self._grants: OrderedDict[bytes, Grant] = OrderedDict()

    async def shipper(
        self, caller: str, source: str, *, to_open: bool = False, anew: bool = False
    ) -> tuple[str, Source]:
        """Return the server that `caller` is and its source; raise NotAllowed.

        `to_open` asks that the source be protected still; `anew` believes only what is read now,
        and raises BusError when that cannot be.
        """
        server = caller.removeprefix("agent-")
        if anew:
            self._assignments.pop(server, None)
        found = await self._source_of(server, source) if server != caller else None
        if to_open and server != caller and (found is None or not found.protected):
            # What has just been signed counts at once: a job is opened seldom, so look again.
            self._assignments.pop(server, None)
            found = await self._source_of(server, source)
        if found is None:
            raise NotAllowed(f"{caller} does not ship source {source} to this store")
        if to_open and not found.protected:
            raise NotAllowed(f"source {source} is no longer protected", code="store.unprotected")
        return server, found

    async def reader(self, caller: str, source: str, point: int, grant: bytes) -> list[bytes]:
        """Return the paths to which reading is limited (none: all); raise NotAllowed, BadSignature.

        `point` 0 asks about the source rather than one recovery point.
        """
        if caller.startswith("operator-"):
            return []
        if grant:
            given = self._grant(grant, caller)
            if given.source != source or point not in (0, given.point):
                raise NotAllowed(
                    f"the grant is for point {given.point} of {given.source}, not {point}"
                )
            return given.paths
        if caller.startswith("agent-"):
            await self.shipper(caller, source)
            return []
        raise NotAllowed(f"{caller} needs a grant to read")

    def _grant(self, data: bytes, caller: str) -> Grant:
        """Return a grant whose signature, grantee and time hold; each is verified once."""
        key = blake3(data + b"\0" + caller.encode()).digest()
        grant = self._grants.get(key)
        if grant is None or self._now_ns() > grant.not_after_ns:
            grant = accept_grant(
                data,
                site=self._site,
                store=self._store,
                caller=caller,
                now_ns=self._now_ns(),
                trusted=self._trusted,
            )
            self._grants[key] = grant
            if len(self._grants) > MAX_GRANTS:
                self._grants.popitem(last=False)
        return grant

    async def _source_of(self, server: str, source: str) -> Source | None:
        assignment = await self._assignment(server)
        for found in assignment.sources if assignment else []:
            if (found.id, found.server, found.store) == (source, server, self._store):
                return found
        return None

    async def _assignment(self, server: str) -> Assignment | None:
        known = self._assignments.get(server)
        if known is not None and self._now_s() < known[0] + FRESH_S:
            return known[1]
        try:
            assignment = await self._read(server)
        except StrandlineError:
            # The bus may be away for a moment; what was signed stays true until we hear otherwise.
            if known is None:
                raise
            assignment = known[1]
        self._assignments[server] = (self._now_s(), assignment)
        self._assignments.move_to_end(server)
        if len(self._assignments) > MAX_ASSIGNMENTS:
            self._assignments.popitem(last=False)
        return assignment
