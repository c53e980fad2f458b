"""Invariant 10, on the whole stack: any process is killed midway, and it goes on by itself."""

from __future__ import annotations

import os
import random

import pytest

from support.kills import NAME, VICTIMS, KilledSource
from support.stack import Stack

SEED = os.environ.get("STRANDLINE_SEED", "20071")
FILES = 30
MOST_BYTES = 4 << 20
"""So about 45 MB change each time."""
LONGEST_DELAY_S = 0.4
TRIES = 4


@pytest.fixture(scope="module")
def source(stack: Stack) -> KilledSource:
    return KilledSource(stack, random.Random(SEED), files=FILES, most_bytes=MOST_BYTES)


@pytest.mark.parametrize("victim", VICTIMS)
def test_invariant_10_killed_in_the_middle(source: KilledSource, victim: str) -> None:
    delay_s = random.Random(f"{SEED}-{victim}").uniform(0.0, LONGEST_DELAY_S)
    for _ in range(TRIES):
        before = source.stack.points(NAME)[-1]["number"]
        source.change()
        amid = source.killed_amid(victim, "express-full", NAME, "--wait", delay_s=delay_s)
        source.keep()
        assert source.kept[-1] == before + 1
        if amid:
            return
        delay_s /= 3  # a quick machine: the job was over
    pytest.fail(f"the job was always over before the {victim} was killed")


def test_a_command_waits_for_a_store_that_is_just_started_again(source: KilledSource) -> None:
    source.stack.kill("store")
    listed = source.stack.json("browse", NAME, "--at", str(source.kept[-1]))
    assert listed["entries"]


def test_invariant_10_no_recovery_point_is_wrong(source: KilledSource) -> None:
    assert len(source.kept) > 1
    source.stack.json("verify", NAME, "--wait")
    for point in source.kept:
        source.compare(point)
