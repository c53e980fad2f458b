"""A replica against a trivial oracle: whatever happens to it, in whatever order.

Hypothesis chooses what happens next. The oracle is a dict: recovery point -> digest of its tree.

In `make soak` STRANDLINE_EXAMPLES says how many runs; STRANDLINE_SEED repeats a printed one.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, core, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from strandline_replica_store.checking.verify import verify
from strandline_replica_store.errors import Aborted, BadDelta, Fenced, Full, StoreError
from strandline_replica_store.reading.reader import Reader
from support.replicas import SERVER, open_of
from support.source_model import Shipment, Tree, shipment, state_of
from support.workload import Workload, open_again, read_points

EXAMPLES = 250
STEPS = 30
SOAK_EXAMPLES = int(os.environ.get("STRANDLINE_EXAMPLES", "2000"))
SEED = int(os.environ.get("STRANDLINE_SEED") or random.randrange(10**9))
SEEDS = st.integers(0, 2**32)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def is_open(machine: RuleBasedStateMachine) -> bool:
    return cast("ReplicaMachine", machine).job is not None


def is_idle(machine: RuleBasedStateMachine) -> bool:
    return not is_open(machine)


def has_points(machine: RuleBasedStateMachine) -> bool:
    return bool(cast("ReplicaMachine", machine).workload.kept)


class ReplicaMachine(RuleBasedStateMachine):
    """`job` is the shipment that is being received, its tree, and how many batches are durable."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="strandline-model-", dir=MEMORY))
        self.job: tuple[Shipment, Tree, int] | None = None
        self.crashes = 0

    @initialize(seed=SEEDS)
    def begin_replica(self, seed: int) -> None:
        self.workload = Workload(self.root / "0", str(seed), lambda _: None)

    def teardown(self) -> None:
        try:
            if hasattr(self, "workload"):
                self.all_points_are_what_they_were()
                self.workload.replica.close()
        finally:
            shutil.rmtree(self.root)

    # Jobs

    @precondition(is_idle)
    @rule(seed=SEEDS, changes=st.integers(1, 12))
    def commit(self, seed: int, changes: int) -> None:
        self.begin(seed, changes)
        self.finish(seed)

    @precondition(is_idle)
    @rule(seed=SEEDS, changes=st.integers(1, 12))
    def begin(self, seed: int, changes: int) -> None:
        self.workload.rng = random.Random(seed)
        made, tree = self.workload.begin(changes)
        self.job = (made, tree, 0)

    @precondition(is_open)
    @rule(seed=SEEDS)
    def ship(self, seed: int) -> None:
        assert self.job is not None
        made, tree, durable = self.job
        self.workload.rng = random.Random(seed)
        end = self.workload.rng.randint(durable, len(made.messages))
        self.workload.ship(made, end, durable)
        self.job = (made, tree, end)

    @precondition(is_open)
    @rule(seed=SEEDS)
    def finish(self, seed: int) -> None:
        assert self.job is not None
        made, tree, durable = self.job
        self.workload.rng = random.Random(seed)
        self.workload.ship(made, len(made.messages), durable)
        self.workload.finish(made, tree)
        self.job = None

    @precondition(is_open)
    @rule()
    def finish_too_early(self) -> None:
        assert self.job is not None
        made, _, durable = self.job
        if durable < len(made.messages):
            with pytest.raises(BadDelta):
                self.workload.replica.finish(made.end)

    @precondition(is_open)
    @rule(error=st.sampled_from([Aborted("given up"), Full("made up"), BadDelta("made up")]))
    def fail(self, error: StoreError) -> None:
        assert self.job is not None
        self.workload.fail(self.job[0], error)
        self.job = None

    @precondition(is_open)
    @rule(seed=SEEDS)
    def fence(self, seed: int) -> None:
        """A higher attempt takes the place; what the lower one still sends changes nothing."""
        assert self.job is not None
        before, tree, _ = self.job
        workload = self.workload
        attempt = before.attempt + 1
        made = shipment(workload.tree, tree, random.Random(seed), before.job, attempt)
        workload.replica.open_job(SERVER, open_of(workload.replica, made.job, attempt))
        with pytest.raises(Fenced):
            workload.replica.take(before.job, before.attempt, before.messages[:1])
        with pytest.raises(Fenced):
            workload.replica.finish(before.end)
        self.job = (made, tree, 0)

    @precondition(has_points)
    @rule(data=st.data())
    def finish_again(self, data: st.DataObject) -> None:
        """The end of a job that is committed comes once more."""
        number = data.draw(st.sampled_from(self.workload.kept))
        end = self.workload.ends[number]
        assert self.workload.replica.finish(end).number == number

    # The store's own life

    @rule()
    def reopen(self) -> None:
        self.workload.reopen()
        self._job_goes_on()

    @rule(index=st.sampled_from(["kept", "kept", "deleted"]))
    def crash(self, index: str) -> None:
        """Go on with a copy of the folder as it is now, as after a SIGKILL."""
        self.crashes += 1
        folder = self.root / f"{self.crashes}"
        left_out = shutil.ignore_patterns("index.db*" if index == "deleted" else "*-shm")
        shutil.copytree(self.workload.folder, folder, ignore=left_out)
        self.workload.replica.close()
        shutil.rmtree(self.workload.folder)
        self.workload.folder = folder
        self.workload.replica = open_again(folder)
        if index == "deleted":
            self.job = None
        self._job_goes_on()

    def _job_goes_on(self) -> None:
        row = self.workload.replica.open_attempt
        made = self.job and (self.job[0].job, self.job[0].attempt, self.job[2])
        assert (row and (row.job, row.attempt, row.durable)) == made

    @precondition(has_points)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        older = self.workload.kept[:-1]
        if older:
            numbers = data.draw(st.lists(st.sampled_from(older), min_size=1, unique=True))
            self.workload.drop_points(sorted(numbers))

    @precondition(has_points)
    @rule(data=st.data())
    def rewrite(self, data: st.DataObject) -> None:
        numbers = data.draw(st.lists(st.sampled_from(self.workload.kept), unique=True))
        self.workload.replica.rewrite(numbers)

    @rule()
    def compact(self) -> None:
        self.workload.compact()
        assert self.workload.compacted.is_complete, self.workload.compacted.reason

    @rule()
    def reindex(self) -> None:
        self.workload.reindex()

    # Asking

    @precondition(has_points)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.workload.kept))
        reader = Reader(str(self.workload.folder))
        assert state_of(reader, number) == self.workload.states[number]
        reader.close()

    @precondition(has_points)
    @rule()
    def verify(self) -> None:
        reader = Reader(str(self.workload.folder))
        report = verify(reader, self.workload.replica.newest)
        reader.close()
        assert report.damages == []

    @invariant()
    def newest_is_known(self) -> None:
        if hasattr(self, "workload"):
            newest = self.workload.replica.newest
            assert (newest.number if newest else None) == max(self.workload.kept, default=None)

    def all_points_are_what_they_were(self) -> None:
        kept = {number: self.workload.states[number] for number in self.workload.kept}
        assert read_points(self.workload.folder) == kept


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        ReplicaMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        ),
    )


def test_a_replica_is_what_the_oracle_says() -> None:
    run(EXAMPLES, STEPS)


@pytest.mark.soak
def test_a_replica_is_what_the_oracle_says_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"\nSTRANDLINE_SEED={SEED} STRANDLINE_EXAMPLES={SOAK_EXAMPLES}")
    monkeypatch.setattr(core, "global_force_seed", SEED)
    run(SOAK_EXAMPLES, 2 * STEPS)
