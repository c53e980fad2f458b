"""From the documents of the policy bucket to policies: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from strandline_contracts.errors import StrandlineError
from strandline_contracts.names import token
from strandline_contracts.policy import Assignment, Group, Source, accept_policy
from strandline_contracts.signing import Authority
from strandline_scheduler.occurrences import Policies, Schedule, read_schedule


class Refusal(NamedTuple):
    """A document that is not obeyed, and why."""

    subject: str
    error: StrandlineError


def read_policies(
    documents: Mapping[str, bytes], trusted: Mapping[bytes, Authority]
) -> tuple[Policies, list[Refusal]]:
    """Return what the documents (subject to signed bytes) order, and those that are refused."""
    sources: list[Source] = []
    schedules: dict[str, Schedule] = {}
    refusals: list[Refusal] = []
    for subject, data in documents.items():
        try:
            document = accept_policy(data, subject, trusted)
            if isinstance(document, Assignment):
                sources += protected_sources(document)
            elif isinstance(document, Group):
                schedules[document.name] = read_schedule(document)
        except StrandlineError as error:
            refusals.append(Refusal(subject, error))
    # A source that two servers are assigned stays with one: its commands must not go to both.
    unique = {source.id: source for source in sources}
    return Policies(sources=tuple(unique.values()), schedules=schedules), refusals


def protected_sources(assignment: Assignment) -> list[Source]:
    """Return the sources that `assignment` protects. Raises BadName where one cannot be named."""
    for source in assignment.sources:
        token(source.id)
    token(assignment.server)
    return [
        each for each in assignment.sources if each.protected and each.server == assignment.server
    ]
