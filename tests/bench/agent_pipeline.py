"""What the agent's own pipeline can do: walk, read, digest, compress, encode; nothing is stored.

Run: python tests/bench/agent_pipeline.py [FOLDER [MEBIBYTES [SMALL_FILES]]]
The publisher is replaced by a counter that finds everything durable at once. The data are half
compressible; FOLDER should be on a fast file system, as /dev/shm.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from strandline_agent.express_full import Order, make_point
from strandline_contracts.codec import Message
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.policy import Source
from strandline_contracts.shipping import End, Mismatch, Open, Opened, Waited, accept_shipment


class Counter:
    """Takes everything, keeps nothing."""

    max_payload_bytes = 1024 * 1024 - 64 * 1024

    def __init__(self) -> None:
        self.bytes = 0
        self.batches = 0
        self.number = 0
        self.request: Open | None = None
        self.point: RecoveryPoint | None = None

    async def publish(self, subject: str, payload: bytes, *, msg_id: str = "") -> None:
        self.bytes += len(payload)
        self.batches += 1
        if len(payload) < 1000:
            shipment = accept_shipment(payload)
            if isinstance(shipment, End):
                self._commit(shipment)

    def _commit(self, end: End) -> None:
        assert self.request is not None
        self.number += 1
        self.point = RecoveryPoint(
            source="s", number=self.number, kind="express_full", job=end.job, attempt=1,
            parent=self.number - 1, parent_digest=b"", digest=b"d%d" % self.number,
            taken_at_ns=0, received_at_ns=0, consistency="fuzzy", provider="none", tracker="scan",
            server="server", totals=end.totals,
        )  # fmt: skip

    async def call(
        self, role: str, instance: str, call: str, request: Message, reply: Any, **_: object
    ) -> Any:
        if isinstance(request, Open):
            self.request = request
            if request.parent != self.number:
                return Mismatch(newest=self.point)
            self.point = None
            self.batches = 0
            return Opened(credit_bytes=32 << 20, credit_batches=48, holds=False)
        if self.point is not None:
            return Waited(state="committed", durable=self.batches, point=self.point)
        await asyncio.sleep(0.002)
        return Waited(state="open", durable=self.batches)


def half_compressible(rng: random.Random, size: int) -> bytes:
    words = [rng.randbytes(12) for _ in range(200)]
    out = bytearray()
    while len(out) < size:
        out += rng.randbytes(2048)
        out += b"".join(rng.choices(words, k=170))
    return bytes(out[:size])


def make(folder: Path, mebibytes: int, small: int) -> int:
    rng = random.Random(1)
    block = half_compressible(rng, 16 << 20)
    with (folder / "image").open("wb") as file:
        for number in range(mebibytes // 16):
            file.write(block[number * 4096 :] + block[: number * 4096])
    size = mebibytes // 16 * len(block)
    for number in range(small):
        at = rng.randrange(len(block) - 20_000)
        data = block[at : at + rng.randrange(20_000)]
        sub = folder / f"d{number // 200}"
        sub.mkdir(exist_ok=True)
        (sub / f"f{number}").write_bytes(data)
        size += len(data)
    return size


async def measure(folder: Path, state: Path, size: int) -> None:
    line = Counter()
    source = Source(
        id="s", name="s", type="files", server="server", store="store",
        paths=[os.fsencode(folder)],
    )  # fmt: skip
    for number, what in enumerate(("first", "again, unchanged", "again, unchanged")):
        line.bytes = 0
        begin = time.perf_counter()
        cpu = time.process_time()
        done = await make_point(
            line,
            Order(
                source=source, job=f"job{number}", attempt=1, kind="express_full",
                subject="blk.store.server.s", index_path=state / "known.db",
                index_max_bytes=1 << 31,
            ),
            lambda: None,
        )  # fmt: skip
        took = time.perf_counter() - begin
        print(
            f"{what:18} {took:7.2f} s  {size / took / 1e6:7.0f} MB/s"
            f"  cpu {time.process_time() - cpu:6.2f} s"
            f"  sent {line.bytes / 1e6:8.1f} MB  files {done.point.totals.files}"
        )


def main() -> None:
    base = Path(sys.argv[1] if len(sys.argv) > 1 else "/dev/shm") / f"pipeline-{os.getpid()}"
    mebibytes = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    small = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    (base / "data").mkdir(parents=True)
    try:
        size = make(base / "data", mebibytes, small)
        asyncio.run(measure(base / "data", base / "state", size))
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
