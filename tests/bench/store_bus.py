"""Measures the replica store's process over a real bus: MB/s shipped, and its peak memory.

Run: python tests/bench/store_bus.py [--mib 512]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec
from store_ingest import image_batches

from integration.replica_store.conftest import FakeAgent, StoreProcess, assign, ready
from strandline_contracts.codec import encode
from strandline_contracts.streams import StreamLimits
from support.nats import SiteBus
from support.replicas import end_of

WINDOW = 16


async def run(folder: Path, mib: int) -> None:
    site = SiteBus(folder / "site", limits=StreamLimits())
    await site.start()
    store = StoreProcess(site)
    store.start()
    operator, bus = await site.connect("operator"), await site.connect("agent")
    try:
        await assign(operator, site.operator_seed)
        await ready(operator)
        await ship(FakeAgent(bus), store, mib)
    finally:
        await operator.close()
        await bus.close()
        store.end()
        site.server.stop()


async def ship(agent: FakeAgent, store: StoreProcess, mib: int) -> None:
    messages = list(image_batches("j1", mib))
    digests = blake3(b"".join(blake3(message).digest() for message in messages))
    end = msgspec.structs.replace(end_of("j1", []), seq=len(messages), digest=digests.digest())
    await agent.open("j1")
    began = time.perf_counter()
    window = asyncio.Semaphore(WINDOW)

    async def send(seq: int, message: bytes) -> None:
        try:
            await agent.send(message)
        finally:
            window.release()

    async with asyncio.TaskGroup() as group:
        for seq, message in enumerate(messages):
            if seq >= 40 and seq % 10 == 0:
                await agent.wait("j1", seq - 40)
            await window.acquire()
            group.create_task(send(seq, message))
    await agent.send(encode(end))
    waited = await agent.wait("j1", len(messages))
    took_s = time.perf_counter() - began
    assert waited.state == "committed", waited
    status = Path(f"/proc/{store.pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak
    print(f"over the bus  {(mib << 20) / 1e6 / took_s:8.0f} MB/s of plain bytes")
    ticks = sum(
        map(int, Path(f"/proc/{store.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
    )
    print(f"store's CPU   {ticks / os.sysconf('SC_CLK_TCK'):8.2f} s of {took_s:.2f} s")
    print(f"store's peak  {int(peak[1]) >> 10:8} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        uvloop.run(run(folder, options.mib))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
