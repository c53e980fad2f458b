"""Invariant 9: memory is bounded by configuration, not by data."""

from __future__ import annotations

import os
from pathlib import Path

from support.stack import Stack

LIMIT_MIB = 300
DATA_MIB = 640


def peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) // 1024


def test_invariant_9_more_data_than_memory_may_be_used(stack: Stack) -> None:
    data = stack.work / "data"
    data.mkdir()
    with (data / "noise").open("wb") as file:
        for _ in range(DATA_MIB):
            file.write(os.urandom(1 << 20))
    stack.json("protect", data, "--name", "large", "--server", "here", "--wait")
    stack.restore("large", 1, stack.work / "restored")
    stack.json("verify", "large", "--wait")
    stack.json("check", "large", "--wait")
    for process in ("agent", "store", "catalog", "scheduler", "nats"):
        assert peak_mib(stack.pid(process)) <= LIMIT_MIB, process
