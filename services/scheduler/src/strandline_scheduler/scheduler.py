"""The scheduler at work: follows the policy bucket, and publishes what is due."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping

from strandline_contracts.codec import encode
from strandline_contracts.commands import Args, Command, ExpressFull, Sync
from strandline_contracts.signing import Authority, sign
from strandline_contracts.subjects import POLICY_STREAM, policy_subject
from strandline_runtime.bus import Bus
from strandline_runtime.errors import BusError
from strandline_runtime.logs import bind, logger
from strandline_runtime.patience import set_within
from strandline_scheduler.cron import SECOND_NS
from strandline_scheduler.errors import BadState
from strandline_scheduler.occurrences import Key, Occurrence, Policies, Verb, due, next_ns, settle
from strandline_scheduler.policies import Refusal, read_policies
from strandline_scheduler.state import State

POLICY_REFRESH_S = 60.0
POLICY_SETTLE_S = 0.2
"""Changes that come together are read together."""
LONGEST_WAIT_S = 30.0
SHORTEST_WAIT_S = 0.2
RETRY_S = 5.0
PUBLISH_TIMEOUT_S = 3.0

_ARGS: dict[Verb, Args] = {"express_full": ExpressFull(), "sync": Sync()}


class Scheduler:
    """Publishes each occurrence of each schedule as a signed command, at least once.

    `now_ns` is the clock. What was emitted is written down after the bus has confirmed it; what
    is published twice for that has the same job id and is refused by its target.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        seed: bytes,
        trusted: Mapping[bytes, Authority],
        state: State,
        now_ns: Callable[[], int],
    ) -> None:
        self._bus = bus
        self._seed = seed
        self._trusted = trusted
        self._state = state
        self._now_ns = now_ns
        self._log = logger()
        self._documents: dict[str, bytes] = {}
        self._policies = Policies()
        self._last: dict[Key, int] = {}
        self._refusals: list[Refusal] = []
        self._known = False
        self._emitted = 0
        self._hint = asyncio.Event()
        self._wake = asyncio.Event()

    def detail(self) -> dict[str, str]:
        """Return figures for the status call."""
        return {
            "sources": str(len(self._policies.sources)),
            "groups": str(len(self._policies.schedules)),
            "refused_policies": str(len(self._refusals)),
            "policies": "followed" if self._known else "cached",
            "emitted": str(self._emitted),
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set."""
        await self._begin()
        end_listening = await self._bus.subscribe(policy_subject(">"), self._hinted)
        self._bus.on_reconnect(self._reconnected)
        try:
            async with asyncio.TaskGroup() as tasks:
                workers = [
                    tasks.create_task(self._follow(stop)),
                    tasks.create_task(self._emit(stop)),
                ]
                try:
                    await stop.wait()
                finally:
                    # asyncio.wait_for, used below us, may swallow a cancellation: they look too.
                    stop.set()
                    for worker in workers:
                        worker.cancel()
                    self._hint.set()
                    self._wake.set()
        finally:
            with contextlib.suppress(BusError):
                await end_listening()

    def wake(self) -> None:
        """Look at the clock again now: it was set."""
        self._wake.set()

    async def _begin(self) -> None:
        """Take up where the files leave off; a broken one costs missed runs, not the service."""
        try:
            self._last = await self._state.last()
            documents = await self._state.documents()
        except BadState as error:
            self._log.error("scheduler.state_lost", code=error.code, error=error.message)
            documents = {}
        self._take(documents)

    # Policies

    async def _hinted(self, _subject: str, _data: bytes) -> None:
        # What is heard may never have been stored (a lost compare-and-swap): the bucket is read.
        self._hint.set()

    async def _reconnected(self) -> None:
        self._hint.set()
        self._wake.set()

    async def _follow(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._hint.clear()
            try:
                await self._refresh()
            except BusError as error:
                self._known = False
                self._log.warning("scheduler.policies_unread", code=error.code, error=error.message)
            await set_within(self._hint, POLICY_REFRESH_S if self._known else RETRY_S)
            await asyncio.sleep(POLICY_SETTLE_S)

    async def _refresh(self) -> None:
        """Read the bucket; keep it on disk and take it up when it has changed."""
        documents = {
            stored.subject: stored.data
            async for stored in self._bus.snapshot(POLICY_STREAM, policy_subject(">"))
            if stored.data
        }
        self._known = True
        if documents != self._documents:
            self._take(documents)
            self._wake.set()
            await self._keep(self._state.save_documents(documents))

    def _take(self, documents: dict[str, bytes]) -> None:
        self._documents = documents
        self._policies, self._refusals = read_policies(documents, self._trusted)
        for subject, error in self._refusals:
            self._log.error(
                "scheduler.policy_refused", subject=subject, code=error.code, error=error.message
            )

    # Occurrences

    async def _emit(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._wake.clear()
            whole = await self._emit_due()
            await set_within(self._wake, self._wait_s() if whole else RETRY_S)

    def _wait_s(self) -> float:
        now = self._now_ns()
        coming = next_ns(self._policies, now)
        wait_s = LONGEST_WAIT_S if coming is None else (coming - now) / SECOND_NS
        return min(max(wait_s, SHORTEST_WAIT_S), LONGEST_WAIT_S)

    async def _emit_due(self) -> bool:
        """Publish what is due and write it down; return whether the bus took all of it."""
        policies, now = self._policies, self._now_ns()
        if not policies.sources and not self._known:
            return True  # nothing is known yet: what the files say must not be forgotten
        last = settle(policies, self._last, now)
        whole = True
        for occurrence in due(policies, last, now):
            try:
                await self._publish(occurrence)
            except BusError as error:
                self._log.warning("scheduler.not_emitted", code=error.code, error=error.message)
                whole = False
                break
            last[occurrence.key] = occurrence.at_ns
        if last != self._last:
            self._last = last
            await self._keep(self._state.save_last(last))
        return whole

    async def _keep(self, saving: Awaitable[None]) -> None:
        """Write a file of ours; a disk that does not take it costs the next start, not this one.

        What is published twice for want of it has the same job id.
        """
        try:
            await saving
        except OSError as error:
            self._log.error("scheduler.not_kept", error=str(error))

    async def _publish(self, occurrence: Occurrence) -> None:
        """Publish the command of `occurrence`. Raises BusError."""
        source, now = occurrence.source, self._now_ns()
        command = Command(
            site=self._bus.site,
            role="agent",
            instance=source.server,
            source=source.id,
            job=occurrence.job,
            scheduled_at_ns=occurrence.at_ns,
            not_after_ns=occurrence.not_after_ns,
            issued_by=self._bus.me,
            args=_ARGS[occurrence.verb],
        )
        ttl_s = max(1, math.ceil((occurrence.not_after_ns - now) / SECOND_NS))
        with bind(job=command.job, source=source.id, server=source.server):
            subject = self._bus.subjects.command("agent", source.server, source.id, occurrence.verb)
            signed = encode(sign(self._seed, "command", encode(command)))
            headers = {"Nats-TTL": f"{ttl_s}s"}
            await self._bus.publish(
                subject, signed, msg_id=command.job, headers=headers, timeout_s=PUBLISH_TIMEOUT_S
            )
            self._emitted += 1
            self._log.info("scheduler.emitted", verb=occurrence.verb, at_ns=occurrence.at_ns)
