"""Questions to the catalog, and to any service about itself.

Catalog calls (`svc.catalog.<instance>.<call>`): `sources`, `points`, `point_at`, `jobs`.
Any request may be answered by Refused instead of its answer.
"""

from __future__ import annotations

import msgspec

from strandline_contracts.codec import Message
from strandline_contracts.jobs import Job
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.policy import Source


class Refused(Message, frozen=True, kw_only=True, tag="refused"):
    """The answer when a request is refused or fails: the fields of a StrandlineError."""

    code: str
    message: str
    hint: str = ""
    retryable: bool = False


class Sources(Message, frozen=True, kw_only=True, tag="sources"):
    """Ask for the data sources: all, or the one called `name`; those after the label `after`."""

    name: str = ""
    after: str = ""


class SourceState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    source: Source
    points: int = 0
    newest: RecoveryPoint | None = None
    last_job: Job | None = None
    bytes: int = 0
    stored_bytes: int = 0
    deleted: list[int] = []
    """Recovery points that an operator has deleted (0: the whole replica), until `due_at_ns`."""
    due_at_ns: int = 0
    damaged_chunks: int = 0
    verified_at_ns: int = 0
    """As in ReplicaState."""


class SourceList(Message, frozen=True, kw_only=True, tag="source_list"):
    """Sources by name. `nearest` lists names like the one asked when there is none such.

    With `more`, ask again `after` the last name: an answer is bounded by the bus's max_payload.
    """

    sources: list[SourceState]
    nearest: list[str] = []
    more: bool = False


class PointsOf(Message, frozen=True, kw_only=True, tag="points_of"):
    """Ask for a source's recovery points with numbers below `before` (0: newest on), falling."""

    source: str
    before: int = 0
    limit: int = 100


class PointList(Message, frozen=True, kw_only=True, tag="point_list"):
    points: list[RecoveryPoint]
    more: bool = False


class PointAt(Message, frozen=True, kw_only=True, tag="point_at"):
    """Ask for the newest recovery point taken at or before `at_ns`. Answered by a PointList."""

    source: str
    at_ns: int


class Jobs(Message, frozen=True, kw_only=True, tag="jobs"):
    """Ask for jobs, newest first; of one source unless `source` is empty."""

    source: str = ""
    limit: int = 50
    open_only: bool = False


class JobList(Message, frozen=True, kw_only=True, tag="job_list"):
    jobs: list[Job]


class Status(Message, frozen=True, kw_only=True, tag="status"):
    """Ask any service how it is. Every service answers the call `status`."""


class StatusIs(Message, frozen=True, kw_only=True, tag="status_is"):
    """`ready` tells whether it can do its work now, `detail` has figures a person understands."""

    role: str
    instance: str
    version: str
    ready: bool
    started_at_ns: int
    detail: dict[str, str] = {}
