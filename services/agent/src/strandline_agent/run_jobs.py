"""Runs the agent's jobs: from a command to shipping or restoring, and back to an outcome."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Coroutine
from contextlib import suppress
from typing import TypeVar

from strandline_agent.assigned import Assigned
from strandline_agent.errors import AgentError
from strandline_agent.express_full import Order, make_point
from strandline_agent.restore import RestoreOrder, forget_plan, restore
from strandline_agent.settings import AgentSettings
from strandline_agent.ship import Route, abort
from strandline_contracts.commands import Restore
from strandline_contracts.errors import StrandlineError
from strandline_contracts.points import PointKind, Totals
from strandline_runtime.bus import Bus
from strandline_runtime.targets import JobCancelled, JobContext, Outcome

VERBS = ("express_full", "sync", "check", "restore")

T = TypeVar("T")


class StateUnusable(AgentError):
    """The agent's own state folder cannot be read or written."""

    code = "agent.state_unusable"
    hint = "Is the disk of the agent's state folder full or read-only?"
    retryable = True


class AgentJobs:
    """Carries out the jobs of one agent; `run` is what a JobRunner calls."""

    def __init__(self, bus: Bus, settings: AgentSettings, assigned: Assigned) -> None:
        self._bus = bus
        self._settings = settings
        self._assigned = assigned

    async def run(self, context: JobContext) -> Outcome:
        """Do one attempt of a job. Raises StrandlineError."""
        context.check_cancelled()
        try:
            if isinstance(context.command.args, Restore):
                return await self._restore(context, context.command.args)
            return await self._ship(context)
        except sqlite3.Error as error:
            raise StateUnusable(f"the agent's state: {error}") from error

    async def _ship(self, context: JobContext) -> Outcome:
        command = context.command
        source = self._assigned.protected(command.source)
        kind: PointKind = "check" if command.verb == "check" else "express_full"
        subject = self._bus.subjects.blocks(source.store, self._bus.instance, source.id)

        def progress(phase: str, files: int, read_bytes: int, sent_bytes: int) -> None:
            context.progress(phase, files=files, done_bytes=read_bytes, sent_bytes=sent_bytes)

        order = Order(
            source=source,
            job=command.job,
            attempt=context.attempt,
            kind=kind,
            subject=subject,
            index_path=self._settings.index_path(source.id),
            index_max_bytes=self._settings.index_max_bytes,
            own_state=await asyncio.to_thread(own_state, self._settings),
            progress=progress,
        )
        try:
            shipped = await _unless_cancelled(
                context, make_point(self._bus, order, context.shipped)
            )
        except JobCancelled:
            route = Route(subject, source.store, source.id, command.job, context.attempt)
            # The store may be down; an unfinished job expires there by itself.
            with suppress(StrandlineError):
                await abort(self._bus, route, "cancelled")
            raise
        point = shipped.point
        return Outcome(
            point=point.number,
            partial=point.partial,
            totals=point.totals,
            issues=shipped.issues,
            detail=f"recovery point {point.number}",
        )

    async def _restore(self, context: JobContext, args: Restore) -> Outcome:
        command = context.command

        def progress(phase: str, files: int, done_bytes: int, total_bytes: int) -> None:
            context.progress(phase, files=files, done_bytes=done_bytes, total_bytes=total_bytes)

        order = RestoreOrder(
            source=command.source,
            point=args.point,
            store=args.store,
            to=args.to,
            grant=args.grant,
            plan_path=self._settings.plan_path(command.job),
            paths=tuple(args.paths),
            overwrite=args.overwrite,
            devices=args.devices,
            progress=progress,
        )
        try:
            done = await _unless_cancelled(context, restore(self._bus, order))
        except StrandlineError as error:
            if not error.retryable:
                await asyncio.to_thread(forget_plan, order.plan_path)
            raise
        return Outcome(
            point=args.point,
            partial=done.issue_count > 0,
            totals=Totals(files=done.files, bytes=done.bytes, issues=done.issue_count),
            issues=done.issues,
            detail=f"{done.files} files to {args.to.decode('utf-8', 'replace')}",
        )


async def _unless_cancelled(context: JobContext, work: Coroutine[object, object, T]) -> T:
    """Return what `work` does, or stop it and raise JobCancelled when the job is cancelled."""
    working = asyncio.ensure_future(work)
    cancelled = asyncio.ensure_future(context.cancelled.wait())
    try:
        await asyncio.wait({working, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise JobCancelled(f"job {context.job.job} was cancelled")
        return working.result()
    finally:
        cancelled.cancel()
        if not working.done():
            working.cancel()
            # Its threads and files are given back before anything else may use them.
            await asyncio.wait({working})


def own_state(settings: AgentSettings) -> frozenset[tuple[int, int]]:
    """Return the folders of Strandline's own state, as (st_dev, st_ino)."""
    found = set()
    for path in (str(settings.state_dir), *settings.own_state):
        with suppress(OSError):
            stat = os.stat(path)
            found.add((stat.st_dev, stat.st_ino))
    return frozenset(found)
