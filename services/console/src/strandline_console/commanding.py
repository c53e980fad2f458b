"""Sends signed commands, and waits for the truth about their jobs from their targets."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from strandline_console.documents import job_document
from strandline_console.errors import IN_PART, JobNotDone, WrongUse
from strandline_console.outcome import print_document, say
from strandline_console.site import Site, now_ns
from strandline_console.text import path_text, size_text, time_text
from strandline_contracts.codec import decode
from strandline_contracts.commands import (
    Args,
    Assign,
    Check,
    Command,
    ExpressFull,
    Sync,
    Verify,
    verb_of,
)
from strandline_contracts.errors import BadMessage
from strandline_contracts.jobs import ENDED, GetJob, GotJob, Job, Progress
from strandline_contracts.names import Role, new_job_id
from strandline_contracts.points import Issue
from strandline_contracts.policy import Source
from strandline_contracts.subjects import NO_SOURCE
from strandline_runtime.bus import patiently
from strandline_runtime.errors import RemoteRefused, Unreachable
from strandline_runtime.patience import set_within

QUEUED_FOR_S = 24 * 3600
"""A target that is away may begin a job for so long; then the job has expired."""
ASK_EVERY_S = 1.0
SEND_AGAIN_S = 2.0
SILENT_AFTER_S = 5.0
REPEAT_EVERY_S = 30.0
RUN_NOW: dict[str, type[ExpressFull | Sync | Check | Verify]] = {
    "express_full": ExpressFull,
    "sync": Sync,
    "check": Check,
    "verify": Verify,
}


@dataclass(frozen=True)
class Sent:
    """A command that was published, with all that is needed to publish it again."""

    command: Command
    subject: str
    payload: bytes

    @property
    def job(self) -> str:
        return self.command.job


async def send(
    site: Site, role: Role, instance: str, source: str, args: Args, *, job: str = ""
) -> Sent:
    """Sign a command and publish it; the bus keeps it until its target takes it or it expires."""
    at_ns = now_ns()
    command = Command(
        site=site.bus.site,
        role=role,
        instance=instance,
        source=source,
        job=job or new_job_id(),
        scheduled_at_ns=at_ns,
        not_after_ns=at_ns + QUEUED_FOR_S * 1_000_000_000,
        issued_by=site.bus.me,
        args=args,
    )
    sent = Sent(
        command,
        site.bus.subjects.command(role, instance, source, verb_of(args)),
        site.signed(command, "command"),
    )
    await _publish(site, sent)
    return sent


async def _publish(site: Site, sent: Sent) -> None:
    left_s = max(1, (sent.command.not_after_ns - now_ns()) // 1_000_000_000)
    headers = {"Nats-TTL": f"{left_s}s"}
    # Sent twice it is one job all the same: its target knows its id.
    await patiently(lambda: site.bus.publish(sent.subject, sent.payload, headers=headers))


async def send_assign(site: Site, server: str) -> None:
    """Tell the agent of `server` that its assignment has changed."""
    await send(site, "agent", server, NO_SOURCE, Assign())


async def run_now(site: Site, source: Source, verb: str) -> Sent:
    """Command `verb` for a data source: the store verifies, the agent does the rest."""
    if not source.protected and verb != "verify":
        raise WrongUse(
            f"{source.name!r} is no longer protected",
            hint=f"strandline protect PATH... --name {source.name}",
        )
    args = RUN_NOW[verb]()
    if verb == "verify":
        return await send(site, "store", source.store, source.id, args)
    return await send(site, "agent", source.server, source.id, args)


async def finish(
    site: Site, sent: Sent, name: str, *, wait: bool, as_json: bool, extra: dict[str, Any]
) -> int:
    """Print the job, or wait for its end and print that; return the exit code."""
    if not wait:
        document = {"job": sent.job, "name": name, "verb": sent.command.verb, **extra}
        if as_json:
            print_document(document)
        else:
            print(f"{_verb_text(sent.command.verb)} of {name}: job {sent.job}")
        return 0
    job = await wait_for_end(site, sent)
    if as_json:
        print_document({**extra, "name": name, **job_document(job)})
    return ending(job, name, as_json=as_json)


def ending(job: Job, name: str, *, as_json: bool) -> int:
    """Tell how a job ended and return the exit code; raise JobNotDone unless it is durable."""
    verb = _verb_text(job.verb)
    if job.state != "durable":
        failure = job.failure
        error = JobNotDone(
            f"{verb} of {name} {job.state}"
            + (f": {failure.message} ({failure.code})" if failure is not None else ""),
            code=failure.code if failure is not None else f"job.{job.state}",
            hint=failure.hint if failure is not None else "",
        )
        if not as_json:
            raise error
        say(f"strandline: {error.message}")
        if error.hint:
            say(f"  {error.hint}")
        return error.exit_code
    if not as_json:
        point = f", recovery point {job.point}" if job.point else ""
        detail = f" ({job.detail})" if job.detail not in ("", f"recovery point {job.point}") else ""
        print(f"{verb} of {name} done{point}{detail}")
    if not job.partial:
        return 0
    say(f"strandline: {verb} of {name} was done in part; missing or not as it should be:")
    for issue in job.issues:
        say(f"  {issue_line(issue)}")
    if job.totals.issues > len(job.issues):
        say(f"  and {job.totals.issues - len(job.issues)} more")
    return IN_PART


def issue_line(issue: Issue) -> str:
    return f"{path_text(issue.path)}: {issue.code}" + (f" ({issue.text})" if issue.text else "")


@dataclass
class Watch:
    """What is known of a job that is waited for."""

    name: str
    began_s: float = field(default_factory=time.monotonic)
    heard_s: float = field(default_factory=time.monotonic)
    sent_again_s: float = field(default_factory=time.monotonic)
    told_silence_s: float = float("-inf")
    job: Job | None = None
    progress: Progress | None = None


async def wait_for_end(site: Site, sent: Sent) -> Job:
    """Ask the target until the job has ended; its word alone counts, events only hurry the asking.

    Raises JobNotDone when the command can no longer be taken.
    """
    watch = Watch(sent.command.verb)
    hint = asyncio.Event()

    async def on_progress(_subject: str, data: bytes) -> None:
        try:
            watch.progress = decode(data, Progress)
        except BadMessage:
            return
        _show(watch)

    async def on_event(_subject: str, _data: bytes) -> None:
        hint.set()

    subjects = site.bus.subjects
    events = f"{subjects.root}.evt.*.*.*.{sent.command.source}"
    ends = [
        await site.bus.subscribe(subjects.progress(sent.job), on_progress),
        await site.bus.subscribe(events, on_event),
    ]
    try:
        while True:
            job = await _ask(site, sent, watch)
            if job is not None and job.state in ENDED:
                return job
            _check_expired(sent, watch)
            hint.clear()
            if not await set_within(hint, ASK_EVERY_S):
                _show(watch)
    finally:
        _clear()
        for end in ends:
            await end()


async def _ask(site: Site, sent: Sent, watch: Watch) -> Job | None:
    """Ask the target for the job; publish the command again if it answers that it has none."""
    command = sent.command
    role: Role = "store" if command.role == "store" else "agent"
    try:
        answer = await site.bus.call(
            role, command.instance, "job", GetJob(job=sent.job), GotJob, timeout_s=3.0
        )
    except (Unreachable, RemoteRefused):
        _tell_silence(sent, watch)
        return None
    now_s = time.monotonic()
    watch.heard_s = now_s
    _tell_again(command, watch.job, answer.job)
    watch.job = answer.job
    if answer.job is None and now_s - watch.sent_again_s > SEND_AGAIN_S:
        # It was away when the command came, and did not know to look for it: same job, same id.
        watch.sent_again_s = now_s
        await _publish(site, sent)
    return answer.job


def _check_expired(sent: Sent, watch: Watch) -> None:
    command = sent.command
    if watch.job is None and now_ns() > command.not_after_ns:
        raise JobNotDone(
            f"{command.role} {command.instance} has not taken the job until "
            f"{time_text(command.not_after_ns)}: it has expired",
            code="job.expired",
            hint="strandline status tells whether that service runs.",
        )


def _tell_silence(sent: Sent, watch: Watch) -> None:
    now_s = time.monotonic()
    silent_s = now_s - watch.heard_s
    told_s = now_s - watch.told_silence_s
    if silent_s < SILENT_AFTER_S or told_s < REPEAT_EVERY_S:
        return
    watch.told_silence_s = now_s
    _clear()
    command = sent.command
    queued = f"the job stays queued until {time_text(command.not_after_ns)}"
    going = "the job goes on when it is back" if watch.job is not None else queued
    say(f"the {command.role} {command.instance} has not answered for {silent_s:.0f} s; {going}")


def _tell_again(command: Command, before: Job | None, job: Job | None) -> None:
    """Tell that an attempt has failed when another one has begun."""
    if before is not None and job is not None and job.attempt > before.attempt >= 1:
        _clear()
        where = f"the log of the {command.role} {command.instance}"
        say(f"attempt {before.attempt} did not succeed ({where} says why): trying again")


def _show(watch: Watch) -> None:
    """Show progress on one line of the terminal, if there is one."""
    if not sys.stderr.isatty():
        return
    state = watch.job.state if watch.job is not None else "queued"
    parts = [f"{_verb_text(watch.name)}: {state}"]
    progress = watch.progress
    if progress is not None:
        parts.append(progress.phase)
        if progress.files:
            parts.append(f"{progress.files} files")
        if progress.total_bytes:
            parts.append(f"{size_text(progress.done_bytes)} of {size_text(progress.total_bytes)}")
        elif progress.done_bytes:
            parts.append(size_text(progress.done_bytes))
        if progress.sent_bytes:
            parts.append(f"{size_text(progress.sent_bytes)} sent")
    parts.append(f"{time.monotonic() - watch.began_s:.0f} s")
    sys.stderr.write("\r\x1b[K" + ", ".join(parts)[:120])
    sys.stderr.flush()


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _verb_text(verb: str) -> str:
    return verb.replace("_", " ")
