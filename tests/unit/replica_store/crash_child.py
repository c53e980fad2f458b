"""Commits job after job until it is killed; says each recovery point that is durable."""

from __future__ import annotations

import sys
from pathlib import Path

from support.replicas import made_up, open_replica, ship_next

replica = open_replica(Path(sys.argv[1]), segment_limit_bytes=300_000)
while True:
    print(ship_next(replica, made_up), flush=True)
