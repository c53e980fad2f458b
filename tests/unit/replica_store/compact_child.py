"""Commits, drops and compacts until it is killed; says each recovery point and its state."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

from strandline_replica_store.compaction.compact import Limits, compact
from support.replicas import SERVER, leases_at_rest, open_of, open_replica
from support.source_model import Limits as TreeLimits
from support.source_model import Tree, change, shipment

LIMITS = TreeLimits(files=12, blocks=80, labels=400)

folder, seed = Path(sys.argv[1]), sys.argv[2]
rng = random.Random(seed)
replica = open_replica(folder, segment_limit_bytes=100_000)
leases = leases_at_rest()
fresh = itertools.count(2)
number = 0
before, state = Tree(), Tree()
limits = Limits(piece_bytes=16 * 4096)
print("begin", flush=True)
while True:
    for _ in range(6):
        change(state, rng, fresh, LIMITS)
    job = f"j{number + 1}"
    made = shipment(before, state, rng, job)
    replica.open_job(SERVER, open_of(replica, job))
    for message in made.messages:
        replica.take(job, 1, [message])
    number = replica.finish(made.end).number
    print(number, made.state, flush=True)
    before = state.copy()
    points = replica.points()
    if len(points) > 4:
        gone = rng.sample(points[:-1], 2)
        print("drop", *gone, flush=True)
        replica.drop(gone, "retention")
    compact(replica, leases, force=rng.random() < 0.7, limits=limits)
