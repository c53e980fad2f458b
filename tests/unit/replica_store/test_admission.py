"""Who may ship and read: by signed documents, each case that must be refused."""

from __future__ import annotations

from typing import Any

import pytest

from strandline_contracts.codec import encode
from strandline_contracts.commands import Grant
from strandline_contracts.errors import BadSignature, StrandlineError
from strandline_contracts.policy import Assignment, Source
from strandline_contracts.signing import public_key, sign
from strandline_replica_store.errors import NotAllowed
from strandline_replica_store.service.admission import FRESH_S, Admission

SEED, OTHER = b"\1" * 32, b"\2" * 32
SOURCE = "00112233445566ff"


class World:
    """A clock, a policy bucket, and the admission that looks at them."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.now_ns = 1000
        self.reads = 0
        self.down = False
        self.assignments = {"web-1": self.assignment()}
        self.admission = Admission(
            "hq",
            "store-1",
            {public_key(SEED): "operator", public_key(OTHER): "scheduler"},
            self.read,
            now_s=lambda: self.now_s,
            now_ns=lambda: self.now_ns,
        )

    @staticmethod
    def assignment(**changes: Any) -> Assignment:
        fields = {"id": SOURCE, "name": "n", "type": "files", "server": "web-1", "store": "store-1"}
        return Assignment(server="web-1", revision=1, sources=[Source(**{**fields, **changes})])

    async def read(self, server: str) -> Assignment | None:
        self.reads += 1
        if self.down:
            raise StrandlineError("the bus is away")
        return self.assignments.get(server)


def grant(seed: bytes = SEED, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "site": "hq",
        "store": "store-1",
        "source": SOURCE,
        "point": 3,
        "grantee": "agent-db-1",
        "job": "r",
        "not_after_ns": 2000,
        "paths": [b"a"],
    }
    return encode(sign(seed, "grant", encode(Grant(**{**fields, **changes}))))


async def test_the_assigned_server_ships_and_reads() -> None:
    world = World()
    server, source = await world.admission.shipper("agent-web-1", SOURCE, to_open=True)
    assert (server, source.id) == ("web-1", SOURCE)
    assert await world.admission.reader("agent-web-1", SOURCE, 3, b"") == []
    assert await world.admission.reader("operator-1", "any", 3, b"") == []
    assert world.reads == 1


@pytest.mark.parametrize(
    ("caller", "source", "changes"),
    [
        ("agent-web-2", SOURCE, {}),
        ("agent-web-1", "ff" * 8, {}),
        ("operator-web-1", SOURCE, {}),
        ("web-1", SOURCE, {}),
        ("agent-web-1", SOURCE, {"store": "store-2"}),
        ("agent-web-1", SOURCE, {"server": "web-2"}),
        ("agent-web-1", SOURCE, {"protected": False}),
    ],
)
async def test_others_do_not_ship(caller: str, source: str, changes: dict[str, Any]) -> None:
    world = World()
    world.assignments["web-1"] = world.assignment(**changes)
    with pytest.raises(NotAllowed):
        await world.admission.shipper(caller, source, to_open=True)


async def test_an_unprotected_source_is_still_read_by_its_server() -> None:
    world = World()
    world.assignments["web-1"] = world.assignment(protected=False)
    assert await world.admission.reader("agent-web-1", SOURCE, 1, b"") == []


async def test_an_assignment_is_believed_for_a_while_and_through_an_outage() -> None:
    world = World()
    await world.admission.shipper("agent-web-1", SOURCE)
    world.assignments.clear()
    world.now_s += FRESH_S / 2
    await world.admission.shipper("agent-web-1", SOURCE)
    world.now_s += FRESH_S
    world.down = True
    await world.admission.shipper("agent-web-1", SOURCE)
    world.now_s += FRESH_S
    world.down = False
    with pytest.raises(NotAllowed):
        await world.admission.shipper("agent-web-1", SOURCE)


async def test_of_a_purged_source_only_what_is_read_now_counts() -> None:
    world = World()
    await world.admission.shipper("agent-web-1", SOURCE, to_open=True)
    await world.admission.shipper("agent-web-1", SOURCE, to_open=True, anew=True)
    assert world.reads == 2
    world.down = True
    with pytest.raises(StrandlineError, match="away"):
        await world.admission.shipper("agent-web-1", SOURCE, to_open=True, anew=True)
    world.down = False
    world.assignments["web-1"] = world.assignment(protected=False)
    with pytest.raises(NotAllowed):
        await world.admission.shipper("agent-web-1", SOURCE, to_open=True, anew=True)


async def test_a_grant_is_for_its_holder_point_and_time() -> None:
    world = World()
    data = grant()
    for _ in range(2):
        assert await world.admission.reader("agent-db-1", SOURCE, 3, data) == [b"a"]
    for point, source in ((4, SOURCE), (3, "ff" * 8)):
        with pytest.raises(NotAllowed):
            await world.admission.reader("agent-db-1", source, point, data)
    with pytest.raises(BadSignature):
        await world.admission.reader("agent-db-2", SOURCE, 3, data)
    world.now_ns = 2001
    with pytest.raises(BadSignature):
        await world.admission.reader("agent-db-1", SOURCE, 3, data)


@pytest.mark.parametrize(
    "data",
    [
        grant(OTHER),
        grant(b"\3" * 32),
        grant(store="store-2"),
        grant(site="dr"),
        grant(not_after_ns=1),
        b"rubbish",
    ],
    ids=["scheduler", "unknown", "store", "site", "expired", "rubbish"],
)
async def test_other_grants_do_not_count(data: bytes) -> None:
    with pytest.raises(StrandlineError):
        await World().admission.reader("agent-db-1", SOURCE, 3, data)


async def test_without_a_grant_nobody_else_reads() -> None:
    for caller in ("agent-db-1", "catalog-1", "scheduler-1"):
        with pytest.raises(NotAllowed):
            await World().admission.reader(caller, SOURCE, 3, b"")
