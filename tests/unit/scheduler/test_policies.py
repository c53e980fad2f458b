"""From signed documents to policies; what is not signed or makes no sense is left out alone."""

from __future__ import annotations

import msgspec

from strandline_contracts.codec import encode
from strandline_contracts.policy import Assignment, Document, Group, Source, key_of
from strandline_contracts.signing import Authority, public_key, sign
from strandline_contracts.subjects import policy_subject
from strandline_scheduler.policies import read_policies

SEED = b"\x01" * 32
TRUSTED: dict[bytes, Authority] = {public_key(SEED): "operator"}


def source(source_id: str, server: str = "web", **changes: object) -> Source:
    made = Source(id=source_id, name=source_id, type="files", server=server, store="st")
    return msgspec.structs.replace(made, **changes)


def documents(*made: Document, seed: bytes = SEED) -> dict[str, bytes]:
    return {
        policy_subject(key_of(each)): encode(sign(seed, "policy", encode(each))) for each in made
    }


def test_protected_sources_and_groups_are_read() -> None:
    found, refusals = read_policies(
        documents(
            Assignment(
                server="web", revision=1, sources=[source("a"), source("b", protected=False)]
            ),
            Group(name="default", sync_every_s=60),
        ),
        TRUSTED,
    )
    assert refusals == []
    assert [each.id for each in found.sources] == ["a"]
    assert found.schedules["default"].sync_every_s == 60


def test_a_forged_document_and_one_in_another_place_are_refused() -> None:
    good = documents(Assignment(server="web", revision=1, sources=[source("a")]))
    forged = documents(
        Assignment(server="db", revision=1, sources=[source("b", "db")]), seed=b"\x02" * 32
    )
    moved = {policy_subject("server.mail"): next(iter(good.values()))}
    found, refusals = read_policies(good | forged | moved | {"$KV.POLICY.x": b"\xc1"}, TRUSTED)
    assert [each.id for each in found.sources] == ["a"]
    assert {each.subject for each in refusals} == {*forged, *moved, "$KV.POLICY.x"}


def test_a_source_that_cannot_be_named_on_the_bus_does_no_harm_to_others() -> None:
    found, refusals = read_policies(
        documents(
            Assignment(server="web", revision=1, sources=[source("a.b")]),
            Assignment(server="db", revision=1, sources=[source("c", "db"), source("d", "web")]),
        ),
        TRUSTED,
    )
    assert [each.id for each in found.sources] == ["c"]
    assert len(refusals) == 1
