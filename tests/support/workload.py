"""What happens to a replica in the crash tests, in the order that a script says.

Before and after each step the workload says what from then on may be, and what must be: `Promises`
collects that, and judges what is found in a folder after a crash.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from strandline_contracts.points import PointKind
from strandline_contracts.shipping import End
from strandline_replica_store.compaction.compact import CompactReport, compact
from strandline_replica_store.compaction.compact import Limits as CompactLimits
from strandline_replica_store.errors import Aborted, Full, StoreError
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.replica.rules import OpenVerdict
from strandline_replica_store.store.leases import Leases
from support.replicas import SERVER, new_replica, open_of
from support.source_model import Limits, Shipment, Tree, add_files, change, shipment, state_of

SEGMENT_LIMIT_BYTES = 24_000
"""So that a few jobs fill several segments."""

SMALL = Limits()
MANY = 200
PAGE_BYTES = 4096

Say = Callable[[dict[str, Any]], None]


def open_again(folder: Path) -> Replica:
    """Open the replica as the store does: its folder is made where it is not there yet."""
    return new_replica(folder, segment_limit_bytes=SEGMENT_LIMIT_BYTES)


class Workload:
    """Drives one replica. `shipments` are those of all attempts, by (job, attempt).

    `states` is what each recovery point restores, `kept` those that there must be."""

    def __init__(self, folder: Path, seed: str, say: Say) -> None:
        self.folder = folder
        self.say = say
        self.rng = random.Random(seed)
        self.fresh = itertools.count(2)
        self.tree = Tree()
        self.shipments: dict[tuple[str, int], Shipment] = {}
        self.states: dict[int, str] = {}
        self.ends: dict[int, End] = {}
        self.kept: list[int] = []
        self.compacted = CompactReport()
        self._jobs = itertools.count(1)
        self.replica = open_again(folder)
        say({"opened": True})

    def moved_to(self, folder: Path) -> Workload:
        """Return the same workload, gone on with in a copy of its folder."""
        other = copy(self)
        other.rng, other.kept, other.states = copy(self.rng), list(self.kept), dict(self.states)
        other.folder, other.replica = folder, open_again(folder)
        return other

    def run(self, script: str) -> None:
        """Run the steps whose names a script gives, separated by blanks."""
        for step in script.split():
            getattr(self, step)()

    # Steps

    def commit(self) -> None:
        """Ship a change and finish it."""
        made, tree = self.begin()
        self.ship(made, len(made.messages))
        self.finish(made, tree)

    def small(self) -> None:
        """Ship one little change."""
        made, tree = self.begin(changes=1)
        self.ship(made, len(made.messages))
        self.finish(made, tree)

    def many(self) -> None:
        """Ship so many files that the tables of the index have pages of every kind."""
        tree = self.tree.copy()
        add_files(tree, self.rng, self.fresh, MANY)
        made = self.shipment_of(tree)
        self.open_job(made)
        self.ship(made, len(made.messages))
        self.finish(made, tree)

    def failed(self) -> None:
        """Ship a part of a change that its agent then gives up; the next job begins anew."""
        made, _ = self.begin()
        self.ship(made, max(1, len(made.messages) - 1))
        self.fail(made, Aborted("given up"))

    def full(self) -> None:
        """Ship a part of a change that fails as if the disk were full."""
        made, _ = self.begin()
        self.ship(made, max(1, len(made.messages) - 1))
        self.fail(made, Full("made up"))

    def fenced(self) -> None:
        """Ship a part of a change, then all of it in a higher attempt."""
        made, tree = self.begin()
        self.ship(made, max(1, len(made.messages) - 1))
        self.say({"ended": made.job})
        again = shipment(self.tree, tree, self.rng, made.job, 2)
        self.shipments[again.job, again.attempt] = again
        self.open_job(again)
        self.ship(again, len(again.messages))
        self.finish(again, tree)

    def interrupted(self) -> None:
        """Stop and start the store in the middle of a job, which then goes on."""
        made, tree = self.begin()
        count = max(1, len(made.messages) - 1)
        self.ship(made, count)
        self.reopen()
        self.ship(made, len(made.messages), count)
        self.finish(made, tree)

    def reopen(self) -> None:
        """Stop and start the store."""
        self.replica.close()
        self.replica = open_again(self.folder)

    def drop(self) -> None:
        """Drop some recovery points, at times in the middle of the chain and at its beginning."""
        self.drop_points(self.rng.sample(self.kept[:-1], min(len(self.kept) - 1, 2)))

    def drop_points(self, numbers: list[int]) -> None:
        """Drop these recovery points; the newest is not among them."""
        self.say({"dropping": numbers})
        assert self.replica.drop(numbers, "the test's") == sorted(numbers)
        self.kept = [number for number in self.kept if number not in numbers]
        self.say({"dropped": numbers})

    def rewrite(self) -> None:
        """Write some manifests anew."""
        self.replica.rewrite(self.rng.sample(self.kept, min(len(self.kept), 2)))

    def compact(self) -> None:
        """Give back what no kept point needs, in small rounds; nobody reads meanwhile."""
        leases = Leases(now_ns=partial(next, itertools.count(step=10**15)))
        limits = CompactLimits(piece_bytes=16_384, round_bytes=32_768, pool_blocks=8)
        self.compacted = compact(self.replica, leases, force=True, limits=limits)

    def reindex(self) -> None:
        """Make the index anew."""
        self.replica.reindex()

    def damaged(self) -> None:
        """Let a page of the index rot while the store is stopped, so that it is made anew."""
        self.replica.close()
        path = self.folder / "index.db"
        with path.open("r+b") as file:
            # In the root page of a table, which is read when the replica is opened.
            file.seek(PAGE_BYTES + 100)
            file.write(b"rot")
            os.fsync(file.fileno())
        self.replica = open_again(self.folder)

    # Parts of steps

    def prepare(self, changes: int | None = None, limits: Limits = SMALL) -> tuple[Shipment, Tree]:
        """Return the next job's shipment, of a few changes if not of so many, and its tree."""
        tree = self.tree.copy()
        for _ in range(changes or self.rng.randrange(1, 9)):
            change(tree, self.rng, self.fresh, limits)
        return self.shipment_of(tree), tree

    def shipment_of(self, tree: Tree) -> Shipment:
        """Return the next job's shipment, which makes this tree of the newest one."""
        made = shipment(self.tree, tree, self.rng, f"j{next(self._jobs)}")
        self.shipments[made.job, made.attempt] = made
        return made

    def begin(self, changes: int | None = None) -> tuple[Shipment, Tree]:
        """Prepare the next job and open it."""
        made, tree = self.prepare(changes)
        self.open_job(made)
        return made, tree

    def open_job(self, made: Shipment, kind: PointKind = "express_full") -> None:
        verdict = self.replica.open_job(SERVER, open_of(self.replica, made.job, made.attempt, kind))
        assert verdict is OpenVerdict.FRESH, verdict
        self.say({"batches": [made.job, made.attempt, 0]})

    def ship(self, made: Shipment, end: int, start: int = 0) -> None:
        end = min(end, len(made.messages))
        while start < end:
            group = made.messages[start : min(end, start + self.rng.randrange(1, 3))]
            start = self.replica.take(made.job, made.attempt, group)
            self.say({"batches": [made.job, made.attempt, start]})

    def fail(self, made: Shipment, error: StoreError) -> None:
        self.say({"ended": made.job})
        self.replica.fail(made.job, made.attempt, error)

    def finish(self, made: Shipment, tree: Tree) -> None:
        newest = self.replica.newest
        number = newest.number + 1 if newest else 1
        self.say({"committing": number, "state": made.state})
        self.say({"ended": made.job})
        point = self.replica.finish(made.end)
        assert point.number == number
        self.tree = tree
        self.states[number] = made.state
        self.ends[number] = made.end
        self.kept.append(number)
        self.say({"committed": number})


class Found(msgspec.Struct):
    """What was found in a folder: points by number, and the job that goes on."""

    points: dict[int, str]
    job: tuple[str, int, int] | None
    """Job, attempt, batches that are durable."""


def look(folder: Path) -> Found:
    """Open the replica in a folder, read every point from the disk, close it."""
    replica = open_again(folder)
    try:
        row = replica.open_attempt
        job = (row.job, row.attempt, row.durable) if row else None
        return Found(points=read_points(folder), job=job)
    finally:
        replica.close()


def read_points(folder: Path) -> dict[int, str]:
    """Return the state of every recovery point that the index names, every byte read."""
    reader = Reader(str(folder))
    try:
        return {number: state_of(reader, number) for number in point_numbers(reader)}
    finally:
        reader.close()


def point_numbers(reader: Reader) -> list[int]:
    """Return the numbers of the recovery points that the index names, rising."""
    rows = reader.conn.execute("SELECT number FROM point ORDER BY number")
    return [number for (number,) in rows if isinstance(number, int)]


class Promises:
    """What the workload has said so far."""

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.must: set[int] = set()
        self.may: set[int] = set()
        self.job: tuple[str, int, int] | None = None

    def hear(self, said: dict[str, Any]) -> None:
        """Take note of what was said."""
        if "committing" in said:
            self.states[said["committing"]] = said["state"]
            self.may.add(said["committing"])
        elif "committed" in said:
            self.must.add(said["committed"])
        elif "dropping" in said:
            self.must -= set(said["dropping"])
        elif "dropped" in said:
            self.may -= set(said["dropped"])
        elif "batches" in said:
            job, attempt, count = said["batches"]
            self.job = (job, attempt, count)
        elif "ended" in said and self.job and self.job[0] == said["ended"]:
            self.job = None

    def broken_by(self, found: Found, *, resumable: bool = True) -> list[str]:
        """Return in words what of the promises does not hold; empty when all do."""
        wrong = [f"point {n} is lost" for n in sorted(self.must - found.points.keys())]
        wrong += [f"point {n} is there" for n in sorted(found.points.keys() - self.may)]
        wrong += [
            f"point {n} is another state"
            for n, state in sorted(found.points.items())
            if self.states.get(n) != state
        ]
        if resumable and self.job is not None:
            job, attempt, count = self.job
            there = found.job
            if there is None or there[:2] != (job, attempt) or there[2] < count:
                wrong.append(f"{count} batches of {job}.{attempt} were durable, found {there}")
        return wrong
