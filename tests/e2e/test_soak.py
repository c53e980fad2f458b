"""Invariant 10 for hours: random jobs, random victims, random moments.

The store forgets by a short policy, deletes and takes back, compacts, and makes its index anew,
all of it under the kills. STRANDLINE_ROUNDS says how many rounds (200), STRANDLINE_SEED repeats
what another run has printed.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest

from support.kills import NAME, VICTIMS, KilledSource
from support.stack import Stack

pytestmark = pytest.mark.soak

ROUNDS = int(os.environ.get("STRANDLINE_ROUNDS", "200"))
SEED = os.environ.get("STRANDLINE_SEED") or str(random.randrange(10**9))
LONGEST_DELAY_S = 0.6
LONGEST_COMMAND_S = 1.5
"""A command of the CLI has done its work by then, most often."""
KEPT = 8
COMPARED = 2
"""Recovery points compared each round; all that are kept at the end."""
SETTINGS = """
[store]
delete_delay_days = 0.002
housekeeping_every_s = 5
lease_s = 10
"""
"""What is deleted goes after three minutes, and the store looks after itself all the time: it
forgets again ten seconds after each of its starts."""
SHIPPING = ["express-full", "express-full", "express-full", "check", "restore"]
KEEPING = ["reindex", "compact", "verify", "delete", "undelete"]


@pytest.fixture
def soaked() -> Iterator[Stack]:
    """A stack whose store forgets quickly."""
    stack = Stack("--server", "here")
    stack.state.mkdir()
    (stack.state / "strandline.toml").write_text(SETTINGS)
    try:
        stack.up()
        yield stack
    finally:
        stack.close()


def test_invariant_10_for_many_rounds(soaked: Stack) -> None:
    print(f"\nSTRANDLINE_SEED={SEED} STRANDLINE_ROUNDS={ROUNDS}")
    rng = random.Random(SEED)
    source = KilledSource(soaked, rng, files=40, most_bytes=3 << 20)
    soaked.json("retention", "default", "--last", str(KEPT), "--days", "0", "--daily", "0")
    kills: Counter[str] = Counter()
    amid: Counter[str] = Counter()
    verdict, rounds = "a recovery point or a job was lost", 0
    try:
        for rounds in range(1, ROUNDS + 1):
            victim = rng.choice(VICTIMS)
            at_work = one_round(source, rng, rounds, victim)
            kills[victim] += 1
            amid[victim] += at_work
        soaked.json("verify", NAME, "--wait")
        for point in source.kept:
            source.compare(point)
        verdict = "every promised recovery point restored as it was"
    finally:
        by_process = ", ".join(f"{name} {kills[name]} ({amid[name]})" for name in sorted(kills))
        print(
            f"{rounds} rounds; kills (of these while the job was at work): {by_process};"
            f" {amid.total()} of {kills.total()} while at work; {verdict}; seed {SEED}"
        )


def one_round(source: KilledSource, rng: random.Random, number: int, victim: str) -> bool:
    verb = rng.choice(SHIPPING + KEEPING)
    longest_s = LONGEST_COMMAND_S if verb in KEEPING else LONGEST_DELAY_S
    delay_s = longest_s * rng.random() ** 2
    print(f"{number}: {verb}, {victim} after {delay_s:.2f} s", end="", flush=True)
    if verb in KEEPING:
        amid = kept_amid(source, rng, verb, victim, delay_s)
    elif verb == "restore":
        amid = restored_amid(source, rng, victim, delay_s)
    else:
        source.change()
        amid = source.killed_amid(victim, verb, NAME, "--wait", delay_s=delay_s)
        source.keep()
        source.forget_oldest(KEPT)
    for point in rng.sample(source.kept, min(COMPARED, len(source.kept))):
        source.compare(point)
    print(" (at work)" if amid else " (over)", flush=True)
    return amid


def restored_amid(source: KilledSource, rng: random.Random, victim: str, delay_s: float) -> bool:
    """Restore a recovery point while a process is killed; compare what came of it."""
    target = source.stack.work / "restored-amid"
    point = rng.choice(source.kept)
    argv = ["restore", NAME, "--at", str(point), "--to", str(target), "--wait"]
    amid = source.killed_amid(victim, *argv, delay_s=delay_s)
    source.is_copy_of(point, target)
    subprocess.run(["rm", "-rf", target], check=True)
    return amid


def kept_amid(
    source: KilledSource, rng: random.Random, verb: str, victim: str, delay_s: float
) -> bool:
    """Run a command to the store while a process is killed; take note of what may go by it."""
    if verb in ("reindex", "compact"):
        return source.killed_during(victim, "store", verb, NAME, "--wait", delay_s=delay_s)
    if verb == "verify":
        return source.killed_during(victim, "verify", NAME, "--wait", delay_s=delay_s)
    older = source.kept[:-1]
    if not older:
        return False
    point = rng.choice(older)
    argv = ["delete", NAME, "--point", str(point), "--yes"]
    if verb == "delete":
        amid = source.killed_during(victim, *argv, delay_s=delay_s)
        source.deleted(point)
        return amid
    source.stack.json(*argv)
    return source.killed_during(victim, "undelete", NAME, "--point", str(point), delay_s=delay_s)
