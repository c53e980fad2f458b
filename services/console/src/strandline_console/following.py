"""Jobs and events: what has happened, and with --follow what happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from strandline_console.documents import event_document, job_document
from strandline_console.outcome import print_document, print_line, say
from strandline_console.site import Site
from strandline_console.text import path_text, size_text, table, time_text
from strandline_contracts.errors import BadMessage
from strandline_contracts.events import (
    ClockDoubted,
    DamageFound,
    DamageRepaired,
    Event,
    JobChanged,
    PointCommitted,
    PointsDropped,
    ReplicaDeleted,
    ReplicaVerified,
    SourceChanged,
    accept_event,
)
from strandline_contracts.jobs import ENDED, Job
from strandline_contracts.queries import JobList, Jobs
from strandline_contracts.subjects import EVENTS
from strandline_runtime.bus import Stored
from strandline_runtime.errors import RemoteRefused, Unreachable
from strandline_runtime.patience import set_within

READ_EVERY_S = 5.0
"""How often a follower looks for itself, should a hint have been lost."""
MAX_LISTED = 12
"""So many recovery points are listed in one line."""


async def show_jobs(
    site: Site, name: str, limit: int, *, open_only: bool, follow: bool, as_json: bool
) -> int:
    """Print jobs, newest first; with `follow` each change as it comes, until interrupted."""
    source = (await site.source(name)).id if name else ""
    names = {one.id: one.name for one in await site.sources()}
    if not follow:
        jobs, answered_by = await _jobs(site, source, limit, open_only=open_only)
        if as_json:
            document = {"answered_by": answered_by, "jobs": [job_document(job) for job in jobs]}
            print_document(document)
        else:
            _print_jobs(jobs, names)
        return 0

    def show(event: Event) -> None:
        if isinstance(event.data, JobChanged) and source in ("", event.source):
            if as_json:
                print_line(job_document(event.data.job))
            else:
                print("  ".join(_job_row(event.data.job, names)), flush=True)

    await _follow(site, "job", show, from_seq=await _newest_seq(site))
    return 0


async def show_events(site: Site, name: str, limit: int, *, follow: bool, as_json: bool) -> int:
    """Print the newest events, oldest first; with `follow` go on until interrupted."""
    source = (await site.source(name)).id if name else ""
    names = {one.id: one.name for one in await site.sources()}
    newest = await _newest_seq(site)
    stored = await _last_events(site, source or "*", limit, newest)
    events = [event for one in stored if (event := _event(one)) is not None]

    def show(event: Event) -> None:
        if source not in ("", event.source):
            return
        if as_json:
            print_line(event_document(event))
        else:
            print(event_line(event, names), flush=True)

    if as_json and not follow:
        print_document({"events": [event_document(event) for event in events]})
        return 0
    for event in events:
        show(event)
    if follow:
        await _follow(site, "*", show, from_seq=newest)
    return 0


async def _jobs(site: Site, source: str, limit: int, *, open_only: bool) -> tuple[list[Job], str]:
    """Ask the catalog for jobs; when it is away, read them from the record."""
    try:
        answer = await site.bus.call(
            "catalog",
            site.settings.catalog,
            "jobs",
            Jobs(source=source, limit=limit, open_only=open_only),
            JobList,
        )
    except (Unreachable, RemoteRefused) as error:
        say(f"the catalog does not answer ({error.code}): reading the record")
    else:
        return answer.jobs, "catalog"
    found: dict[str, Job] = {}
    after_seq = 0
    subject = f"{site.bus.subjects.root}.evt.*.job.*.{source or '*'}"
    while page := await site.bus.read(EVENTS, subject, after_seq=after_seq):
        after_seq = page[-1].seq
        for stored in page:
            event = _event(stored)
            if event is not None and isinstance(event.data, JobChanged):
                found.pop(event.data.job.job, None)
                found[event.data.job.job] = event.data.job
                if len(found) > 10 * limit:
                    found.pop(next(iter(found)))
    jobs = [job for job in reversed(found.values()) if not open_only or job.state not in ENDED]
    return jobs[:limit], "record"


async def _newest_seq(site: Site) -> int:
    """Return the sequence of the newest event, 0 when there is none."""
    stored = await site.bus.last_stored(EVENTS, f"{site.bus.subjects.root}.evt.>")
    return stored.seq if stored is not None else 0


async def _last_events(site: Site, source: str, limit: int, newest: int) -> list[Stored]:
    """Return the last `limit` events: look back in steps that grow until enough are found."""
    subject = f"{site.bus.subjects.root}.evt.*.*.*.{source}"
    span = 2 * limit
    while True:
        after_seq = max(0, newest - span)
        first = after_seq
        found: list[Stored] = []
        while page := await site.bus.read(EVENTS, subject, after_seq=after_seq):
            after_seq = page[-1].seq
            found = (found + [one for one in page if one.seq <= newest])[-limit:]
        if len(found) >= limit or first == 0:
            return found
        span *= 8


async def _follow(site: Site, noun: str, show: Callable[[Event], None], *, from_seq: int) -> None:
    """Show each event after `from_seq`; a message on the bus hurries the next look."""
    hint = asyncio.Event()

    async def on_event(_subject: str, _data: bytes) -> None:
        hint.set()

    await site.bus.subscribe(f"{site.bus.subjects.root}.evt.>", on_event)
    subject = f"{site.bus.subjects.root}.evt.*.{noun}.*.*"
    while True:
        hint.clear()
        while page := await site.bus.read(EVENTS, subject, after_seq=from_seq):
            from_seq = page[-1].seq
            for stored in page:
                event = _event(stored)
                if event is not None:
                    show(event)
        await set_within(hint, READ_EVERY_S)


def _event(stored: Stored) -> Event | None:
    try:
        return accept_event(stored.data, stored.subject)
    except BadMessage as error:
        say(f"event {stored.seq} was left out: {error}")
        return None


def _print_jobs(jobs: list[Job], names: dict[str, str]) -> None:
    if not jobs:
        print("no jobs")
        return
    head = ["UPDATED", "SOURCE", "VERB", "STATE", "POINT", "TARGET", "JOB", "DETAIL"]
    print(table(head, [_job_row(job, names) for job in jobs], right="POINT"))


def _job_row(job: Job, names: dict[str, str]) -> list[str]:
    detail = job.failure.message if job.failure is not None else job.detail
    state = f"{job.state}, partial" if job.partial else job.state
    return [
        time_text(job.updated_at_ns),
        names.get(job.source, job.source),
        job.verb.replace("_", " "),
        state,
        str(job.point or "-"),
        job.instance,
        job.job,
        detail,
    ]


def event_line(event: Event, names: dict[str, str]) -> str:
    """Return an event as one line."""
    head = f"{time_text(event.time_ns)}  {names.get(event.source, event.source)}"
    return f"{head}  {event.noun} {event.verb}  {_told(event)}".rstrip()


def _told(event: Event) -> str:
    data = event.data
    if isinstance(data, PointCommitted):
        point = data.point
        partial = ", partial" if point.partial else ""
        return f"recovery point {point.number}, {size_text(point.stored_bytes)} stored{partial}"
    if isinstance(data, JobChanged):
        job = data.job
        why = f": {job.failure.message}" if job.failure is not None else ""
        return f"{job.verb.replace('_', ' ')} {job.job} on {job.instance}{why}"
    if isinstance(data, SourceChanged):
        return f"{data.source.server}: {', '.join(map(path_text, data.source.paths))}"
    return _told_by_store(data)


def _told_by_store(
    data: DamageFound
    | DamageRepaired
    | PointsDropped
    | ReplicaDeleted
    | ReplicaVerified
    | ClockDoubted,
) -> str:
    if isinstance(data, DamageFound):
        return f"segment {data.segment} at {data.offset}: {data.reason}; points {data.points}"
    if isinstance(data, DamageRepaired):
        of_file = "a segment's header" if data.by == "name" else "a manifest"
        what = f"chunk {data.chunk}" if data.chunk else of_file
        return f"{what} by {data.by}; points {data.points}"
    if isinstance(data, PointsDropped):
        return f"{_points_text(data.points)} ({data.reason})"
    if isinstance(data, ReplicaDeleted):
        what = _points_text(data.points) if data.points else "the whole replica"
        until = f", until {time_text(data.due_at_ns)}" if data.due_at_ns else ""
        return f"{what}{until}" + (f", by {data.by}" if data.by else "")
    if isinstance(data, ReplicaVerified):
        return f"{data.chunks} chunks, {size_text(data.read_bytes)}; {data.damaged} damaged"
    return data.reason


def _points_text(points: list[int]) -> str:
    """Return which recovery points, the first few of many by number."""
    listed = ", ".join(map(str, points[:MAX_LISTED]))
    more = len(points) - MAX_LISTED
    return f"recovery point{'s' if len(points) > 1 else ''} {listed}" + (
        f" and {more} more" if more > 0 else ""
    )
