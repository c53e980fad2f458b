"""Invariant 10 for hours: random jobs, random victims, random moments.

STRANDLINE_ROUNDS says how many (200), STRANDLINE_SEED repeats what another run has printed.
"""

from __future__ import annotations

import os
import random
import subprocess

import pytest

from support.kills import NAME, VICTIMS, KilledSource
from support.stack import Stack

pytestmark = pytest.mark.soak

ROUNDS = int(os.environ.get("STRANDLINE_ROUNDS", "200"))
SEED = os.environ.get("STRANDLINE_SEED") or str(random.randrange(10**9))
LONGEST_DELAY_S = 0.6
KEPT = 8
COMPARED = 2
"""Recovery points compared each round; all that are kept at the end."""


def test_invariant_10_for_many_rounds(stack: Stack) -> None:
    print(f"\nSTRANDLINE_SEED={SEED} STRANDLINE_ROUNDS={ROUNDS}")
    rng = random.Random(SEED)
    source = KilledSource(stack, rng, files=40, most_bytes=3 << 20)
    amid = 0
    for number in range(1, ROUNDS + 1):
        amid += one_round(source, rng, number)
    for point in source.kept:
        source.compare(point)
    print(f"{ROUNDS} rounds, {amid} kills while the job was at work, seed {SEED}")


def one_round(source: KilledSource, rng: random.Random, number: int) -> bool:
    verb = rng.choice(["express-full", "express-full", "check", "restore"])
    victim = rng.choice(VICTIMS)
    delay_s = LONGEST_DELAY_S * rng.random() ** 2
    print(f"{number}: {verb}, {victim} after {delay_s:.2f} s", end="", flush=True)
    target = source.stack.work / "restored-amid"
    if verb == "restore":
        point = rng.choice(source.kept)
        argv = ["restore", NAME, "--at", str(point), "--to", str(target), "--wait"]
    else:
        source.change()
        argv = [verb, NAME, "--wait"]
    amid = source.killed_amid(victim, *argv, delay_s=delay_s)
    if verb == "restore":
        source.is_copy_of(point, target)
        subprocess.run(["rm", "-rf", target], check=True)
    else:
        source.keep()
        source.forget_oldest(KEPT)
    if rng.random() < 0.2:
        source.stack.json("verify", NAME, "--wait")
    for point in rng.sample(source.kept, min(COMPARED, len(source.kept))):
        source.compare(point)
    print(" (at work)" if amid else " (over)", flush=True)
    return amid
