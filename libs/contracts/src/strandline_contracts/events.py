"""The public record: what happened, told once and kept in the stream EVENTS.

An event's subject is `evt.<origin>.<noun>.<verb>.<source>`. It repeats these in its body, so that
bytes which somebody had stored under a subject that is not theirs are dropped. CloudEvents
attributes travel as headers beside it (docs/formats/messages.md).
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from strandline_contracts.codec import Message, decode
from strandline_contracts.errors import BadMessage
from strandline_contracts.jobs import Job
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.policy import Source
from strandline_contracts.subjects import Subjects, parse_event


class PointCommitted(msgspec.Struct, frozen=True, kw_only=True, tag="point_committed"):
    """`evt.<store>.point.committed.<source>`: a recovery point is durable and can be restored."""

    point: RecoveryPoint


class JobChanged(msgspec.Struct, frozen=True, kw_only=True, tag="job_changed"):
    """`evt.<target>.job.<state>.<source>`: a job came into a new state."""

    job: Job


class SourceChanged(msgspec.Struct, frozen=True, kw_only=True, tag="source_changed"):
    """`evt.<operator>.source.<protected|unprotected>.<source>`: what is protected has changed."""

    source: Source


class DamageFound(msgspec.Struct, frozen=True, kw_only=True, tag="damage_found"):
    """`evt.<store>.damage.found.<source>`: stored bytes do not match their digest.

    `chunk` is 0 when a manifest is damaged. `points` are those that cannot be restored wholly and
    `files` some of the paths concerned (at most 100).
    """

    chunk: int
    segment: int
    offset: int
    reason: str
    points: list[int] = []
    files: list[bytes] = []


class DamageRepaired(msgspec.Struct, frozen=True, kw_only=True, tag="damage_repaired"):
    """`evt.<store>.damage.repaired.<source>`: a damaged chunk is whole again (0: a manifest,
    or a segment's header).

    `by` is who brought the bytes: an agent's caller token, `index`, `name` (a segment's header says
    what its name does), `store` (they were read wrongly and are sound), later a tape or a site.
    """

    chunk: int
    by: str
    points: list[int] = []


class PointsDropped(msgspec.Struct, frozen=True, kw_only=True, tag="points_dropped"):
    """`evt.<store>.point.dropped.<source>`: recovery points that are no more.

    `reason` is retention or deleted.
    """

    points: list[int]
    reason: str


class ReplicaDeleted(msgspec.Struct, frozen=True, kw_only=True, tag="replica_deleted"):
    """`evt.<store>.replica.<deleted|undeleted|purged>.<source>`: the fate of a delete.

    `points` are those that it names, empty for the whole replica. Until `due_at_ns` (the store's
    clock) it can be taken back.
    """

    points: list[int] = []
    due_at_ns: int = 0
    by: str = ""


class ReplicaVerified(msgspec.Struct, frozen=True, kw_only=True, tag="replica_verified"):
    """`evt.<store>.replica.verified.<source>`: all that the store holds was read again."""

    chunks: int
    read_bytes: int
    damaged: int
    began_at_ns: int


class ClockDoubted(msgspec.Struct, frozen=True, kw_only=True, tag="clock_doubted"):
    """`evt.<store>.clock.<doubted|trusted>.-`: whether the store's clock may end a life."""

    reason: str = ""


Data = (
    PointCommitted
    | JobChanged
    | SourceChanged
    | DamageFound
    | DamageRepaired
    | PointsDropped
    | ReplicaDeleted
    | ReplicaVerified
    | ClockDoubted
)


class Event(Message, frozen=True, kw_only=True, tag="event"):
    """One event. `number` counts those of this origin, noun and source from 1 without a gap.

    `origin` is a caller token, `id` unique and the same at each redelivery.
    """

    id: str
    site: str
    origin: str
    noun: str
    verb: str
    source: str
    number: int
    time_ns: int
    data: Data

    def subject(self) -> str:
        return Subjects(self.site).event(self.origin, self.noun, self.verb, self.source)

    def headers(self) -> dict[str, str]:
        """Return the CloudEvents 1.0 attributes, and the id by which JetStream drops doubles."""
        time = datetime.fromtimestamp(self.time_ns / 1e9, UTC)
        return {
            "Nats-Msg-Id": self.id,
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-source": f"/strandline/{self.site}/{self.origin}",
            "ce-type": f"strandline.v1.{self.noun}.{self.verb}",
            "ce-subject": self.source,
            "ce-time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "ce-datacontenttype": "application/msgpack",
        }


def accept_event(data: bytes | memoryview, subject: str) -> Event:
    """Return the event that `data` holds if it belongs on `subject`, else raise BadMessage."""
    event = decode(data, Event)
    if event.subject() != subject:
        raise BadMessage(f"an event of {event.subject()} came on {subject}")
    parse_event(subject)
    return event
