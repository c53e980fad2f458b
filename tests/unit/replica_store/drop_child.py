"""Commits, drops and makes the index anew until it is killed; says each newest recovery point."""

from __future__ import annotations

import sys
from pathlib import Path

from support.replicas import doomed, made_up, open_replica, ship_next

replica = open_replica(Path(sys.argv[1]), segment_limit_bytes=300_000)
while True:
    number = ship_next(replica, made_up)
    print(number, flush=True)
    replica.drop(doomed(number), "retention")
    if number % 5 == 0:
        replica.reindex()
    if number % 7 == 0:
        replica.rewrite(range(number - 3, number + 1))
