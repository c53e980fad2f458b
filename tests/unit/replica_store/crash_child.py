"""Commits job after job until it is killed; says each recovery point that is durable."""

from __future__ import annotations

import sys
from pathlib import Path

from strandline_replica_store.rules import OpenVerdict
from support.replicas import SERVER, end_of, made_up, open_of, open_replica

replica = open_replica(Path(sys.argv[1]), segment_limit_bytes=300_000)
while True:
    number = (replica.newest.number if replica.newest else 0) + 1
    job = f"j{number}"
    last = replica.job(job)
    attempt = last.attempt + 1 if last else 1
    messages = made_up(job, number, attempt)
    found = replica.open_job(SERVER, open_of(replica, job, attempt))
    assert found is OpenVerdict.FRESH, found
    for message in messages:
        replica.take(job, attempt, [message])
    point = replica.finish(end_of(job, messages, attempt))
    print(point.number, flush=True)
