"""Forgetting: carries out deletes that are due, and drops what retention lets go.

A small shell around retention, policy_history, clock_guard, and the deletes of the store. When
anything is in doubt (the clock, a policy, a hold, what is deleted) nothing is forgotten. Each step
may be killed anywhere: the next round decides anew from what is there.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from strandline_contracts.errors import StrandlineError
from strandline_contracts.events import DamageFound, ReplicaDeleted
from strandline_replica_store.errors import StoreError, translated
from strandline_replica_store.forgetting import policy_history, retention
from strandline_replica_store.forgetting.clock_guard import ClockGuard
from strandline_replica_store.forgetting.policies import Policies, check_zone
from strandline_replica_store.forgetting.retention import Point, Policy
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.store import purging
from strandline_replica_store.store.deleted import WHOLE, DeletedDamaged, Deletions, due
from strandline_replica_store.store.events import StoreEvents
from strandline_replica_store.store.store import Store
from strandline_runtime.logs import logger

_DAMAGED = (
    "SELECT e.born, 9223372036854775807 FROM chunk c JOIN extent e ON e.chunk = c.id WHERE c.bad"
    " UNION SELECT e.born, e.died FROM chunk c JOIN extent_past e ON e.chunk = c.id WHERE c.bad"
)
"""From which recovery point to before which one anything damaged is part of the state."""


class _Record(msgspec.Struct, frozen=True):
    """What retention needs of a RecoveryPoint; the rest is skipped unread."""

    number: int
    received_at_ns: int
    partial: bool = False


class Forgotten(NamedTuple):
    """The recovery points that were dropped; and why no more were, where a rule is not why."""

    dropped: list[int]
    waits: str = ""


class Forgetting:
    """Forgets for one store. `on_change` hears (in a thread) of sources with new events.

    `is_wanted_back` tells (in a thread) whether an undelete of a source waits for its turn.
    """

    def __init__(
        self,
        store: Store,
        policies: Policies,
        clock: ClockGuard,
        events: StoreEvents,
        *,
        delay_ns: int,
        is_wanted_back: Callable[[str], bool],
        on_change: Callable[[str], None],
    ) -> None:
        self._store = store
        self._policies = policies
        self._clock = clock
        self._leases = store.leases
        self._events = events
        self._delay_ns = delay_ns
        self._is_wanted_back = is_wanted_back
        self._on_change = on_change
        self._stop = threading.Event()
        self._told: dict[str, str] = {}
        self._log = logger()

    async def run(self, source: str, *, force: bool = False) -> Forgotten:
        """Forget what is due of a source.

        `force` drops at once rather than in groups. What cannot be decided now is left for the
        next round, and logged when the reason is a new one.
        """
        try:
            return await self._forget(source, force=force)
        except StrandlineError as error:
            if self._told.get(source) != error.code:
                self._told[source] = error.code
                await asyncio.to_thread(self._tell, source, error)
            return Forgotten([], error.message)

    async def resume(self) -> None:
        """Look at the clock, and finish the purges that an earlier process had begun.

        Returns soon after `stop`.
        """
        try:
            await asyncio.to_thread(self._trusted_now_ns)
            await asyncio.to_thread(self._finish_purges)
        except StrandlineError as error:
            self._log.error("purge.later", code=error.code, error=str(error))

    def stop(self) -> None:
        """Let what is being removed wait for the next process."""
        self._stop.set()

    async def _forget(self, source: str, *, force: bool) -> Forgotten:
        now_ns = await asyncio.to_thread(self._trusted_now_ns)
        if now_ns is None:
            return Forgotten([], "the store does not believe its clock")
        deletions = await asyncio.to_thread(self._store.deletions.of, source)
        if WHOLE in deletions:
            held = await self._policies.held(source)
            policy = Policy(held=held, protected=False)
            in_force, _ = await asyncio.to_thread(self._in_force, source, policy, now_ns)
            is_free = not any(each.held for each in in_force)
            if is_free and self._leases.oldest_taken_at(source) is None:
                await asyncio.to_thread(self._purge, source, now_ns)
            return Forgotten([], "the replica is deleted as a whole")
        points = await asyncio.to_thread(self._points, source)
        if not points:
            return Forgotten([])
        server = await asyncio.to_thread(self._newest_server, source)
        policy = await self._policies.policy(source, server)
        dropped = await asyncio.to_thread(self._drop, source, points, policy, now_ns, force)
        self._told.pop(source, None)
        if not dropped and self._leases.leased_points(source) is None:
            return Forgotten([], "after its start a store waits for readers to come back")
        return Forgotten(dropped)

    # In threads

    def _tell(self, source: str, error: StrandlineError) -> None:
        self._log.warning("forget.later", source=source, code=error.code, error=str(error))
        if not isinstance(error, DeletedDamaged):
            return
        damage = DamageFound(chunk=0, segment=0, offset=0, reason=error.message)
        try:
            self._store.replica(source).record_damage(damage)
        except StoreError as failure:
            self._log.error("damage.not_recorded", source=source, error=str(failure))
        self._on_change(source)

    def _trusted_now_ns(self) -> int | None:
        with translated():
            return self._clock.now_ns()

    def _newest_server(self, source: str) -> str:
        newest = self._store.replica(source).newest
        return newest.server if newest else ""

    def _points(self, source: str) -> list[Point]:
        with self._store.reader(source) as reader, translated():
            return points_of(reader)

    def _drop(
        self, source: str, points: list[Point], policy: Policy, now_ns: int, force: bool
    ) -> list[int]:
        """Drop what is due, if that is worth it now; return what was dropped."""
        deletions = self._store.deletions.of(source)
        due_of = self._rules(source, policy, deletions, now_ns)
        gone = due_of(points, now_ns)
        earlier_ns = now_ns - retention.OVERDUE_NS
        earlier = [point for point in points if point.received_at_ns <= earlier_ns]
        if not retention.is_worth_dropping(
            kept_count=len(points) - len(gone),
            due_count=len(gone),
            overdue=bool(gone) and bool(gone & due_of(earlier, earlier_ns)),
            deleted=bool(gone & deletions.keys()),
            force=force,
        ):
            self._tidy(source)
            return []
        gone = due_of(self._with_damage(source, points), now_ns)
        return self._carry_out(source, gone & deletions.keys(), gone - deletions.keys())

    def _rules(
        self, source: str, policy: Policy, deletions: Deletions, now_ns: int
    ) -> Callable[[Sequence[Point], int], set[int]]:
        """Return what tells which of some points are due at a time, by all that counts now."""
        policies, spared_until_ns = self._in_force(source, policy, now_ns)
        deleted = {number: each.due_at_ns for number, each in deletions.items()}
        leased = self._leases.leased_points(source)

        def due_of(points: Sequence[Point], at_ns: int) -> set[int]:
            kept = retention.kept(
                points,
                policies,
                now_ns=at_ns,
                leased=leased,
                deleted=deleted,
                spared_until_ns=spared_until_ns,
            )
            return {point.number for point in points if point.number not in kept.rules}

        return due_of

    def _in_force(self, source: str, policy: Policy, now_ns: int) -> tuple[list[Policy], int]:
        """Take note of a source's policy; return all that count now, and until when all is
        spared."""
        path = os.path.join(self._store.folder_of(source), "policies.json")
        with translated():
            before = policy_history.read(path)
            history = policy_history.noted(before, policy, now_ns, self._delay_ns)
            if history != before:
                policy_history.write(path, history)
        found = policy_history.in_force(history, now_ns, self._delay_ns)
        for each in found:
            check_zone(each.timezone)
        return found, policy_history.spared_until_ns(history, now_ns, self._delay_ns)

    def _with_damage(self, source: str, points: list[Point]) -> list[Point]:
        """Return the points, those that are known to be damaged marked so."""
        with self._store.reader(source) as reader, translated():
            ranges = {(born, died) for born, died in reader.conn.execute(_DAMAGED)}
        damaged = retention.damaged_points((p.number for p in points), ranges)
        return [point._replace(damaged=point.number in damaged) for point in points]

    def _carry_out(self, source: str, deleted: set[int], expired: set[int]) -> list[int]:
        replica = self._store.replica(source)
        dropped: list[int] = []
        with self._store.deletions.settling(source, deleted) as stands:
            if deleted and stands and not self._is_wanted_back(source):
                dropped += replica.drop(self._unread(source, deleted), "deleted")
        if expired:
            dropped += replica.drop(self._unread(source, expired), "retention")
        if dropped:
            self._on_change(source)
            self._log.info("points.dropped", source=source, count=len(dropped), points=dropped[:20])
            self._tidy(source)
        return sorted(dropped)

    def _unread(self, source: str, numbers: set[int]) -> list[int]:
        """Return those of some points that nobody reads now: deciding may have taken minutes."""
        leased = self._leases.leased_points(source)
        return [] if leased is None else sorted(numbers - leased)

    def _tidy(self, source: str) -> None:
        """Forget deletes of points that are no more."""
        deletions = self._store.deletions
        # In this order: a point that comes and is deleted from here on is in neither.
        known = deletions.of(source).keys() - {WHOLE}
        if not known:
            return
        gone = known - {point.number for point in self._points(source)}
        if gone:
            with deletions.lock, translated():
                current = deletions.of(source)
                deletions.put(source, {n: each for n, each in current.items() if n not in gone})

    def _purge(self, source: str, now_ns: int) -> None:
        """Take a whole replica away, unless the delete was taken back meanwhile."""
        deletions = self._store.deletions
        with deletions.lock, translated():
            if WHOLE not in due(deletions.of(source), now_ns) or self._is_wanted_back(source):
                return
            self._store.take_away(source, purging.name_of(source, now_ns))
            deletions.forget(source)
        self._told.pop(source, None)
        self._log.info("replica.purged", source=source)
        self._finish_purges()

    def _finish_purges(self) -> None:
        def tell(source: str, at_ns: int) -> None:
            self._events.replica("purged", source, at_ns, ReplicaDeleted())

        with translated():
            purging.resume(
                os.path.join(self._store.root, "replicas"), self._store.tombstones, tell, self._stop
            )


def points_of(reader: Reader) -> list[Point]:
    """Return what the rules know of a replica's points: of times the store's receipt alone."""
    rows = reader.conn.execute("SELECT record FROM point ORDER BY number")
    records = (msgspec.msgpack.decode(record, type=_Record) for (record,) in rows)
    return [Point(each.number, each.received_at_ns, each.partial) for each in records]
