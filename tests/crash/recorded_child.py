"""Runs a workload, saying its promises on standard output; the test records its system calls.

Arguments: the replica's folder, a seed, the script, where to put what was shipped, and the names
of functions of durable.py that are to do nothing: what the test must then find.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from strandline_replica_store.files import durable
from support.workload import Workload


def say(words: dict[str, Any]) -> None:
    """Say it in one system call, so that the record has its moment."""
    os.write(1, json.dumps(words).encode() + b"\n")


folder, seed, script, shipped, *left_out = sys.argv[1:]
workload = Workload(Path(folder), seed, say)
for name in left_out:
    setattr(durable, name, lambda _: None)
workload.run(script)
workload.replica.close()
Path(shipped).write_bytes(msgspec.msgpack.encode(list(workload.shipments.values())))
