"""Housekeeping: one thing after the other, out of the way of jobs, and soon at rest."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strandline_contracts.points import BLOCK_BYTES, CODEC_RAW, Extent
from strandline_replica_store import housekeeping
from strandline_replica_store.compaction import gathering
from strandline_replica_store.compaction.compact import CompactReport, Limits, compact
from strandline_replica_store.errors import Damaged
from strandline_replica_store.housekeeping import Housekeeping, Receiving
from strandline_replica_store.pace import Pace
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.store.store import Store
from support.replicas import SERVER, SOURCE, batch, chunk, inode, leases_at_rest, open_of, ship
from support.waiting import until

OTHER = "ffeeddccbbaa0099"
FAST = 1 << 40
PIECE = Limits(piece_bytes=64 * BLOCK_BYTES)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "store"), name="store-1", site="hq", reserve_bytes=0)
    store.leases = leases_at_rest()
    for source in (SOURCE, OTHER):
        store.create(source, "data", "files")
        store.replica(source)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def little_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "DEAD_MIN_BYTES", 100_000)


async def nothing(_: str) -> None:
    return None


def of(store: Store, bytes_per_second: int = FAST) -> Housekeeping:
    return Housekeeping(
        store, Pace(bytes_per_second), forget=nothing, scrub=nothing, every_s=0.05, limits=PIECE
    )


def with_waste(replica: Replica, blocks: int = 1024) -> None:
    """Fill a replica with a file of which half is overwritten and then dropped."""
    rng = random.Random(1)
    for number, step in enumerate((1, 2), start=1):
        job = f"j{number}"
        messages = [batch(job, 0, inodes=[inode(1, kind="d"), inode(2, blocks * BLOCK_BYTES)])]
        places = range(0, blocks, step)
        for first in range(0, len(places), 32):
            mine = places[first : first + 32]
            data = chunk(rng.randbytes(len(mine) * BLOCK_BYTES), CODEC_RAW)
            extents = [Extent(2, block, 1, 0, 0, at) for at, block in enumerate(mine)]
            messages.append(batch(job, len(messages), chunks=[data], extents=extents))
        ship(replica, job, messages)
    replica.drop([1], "retention")


def stored_bytes(replica: Replica) -> int:
    return sum(path.stat().st_size for path in Path(replica.segments_folder).iterdir())


async def test_it_goes_round_one_thing_after_the_other(store: Store) -> None:
    said: list[str] = []

    async def forget(source: str) -> None:
        said.append(f"forget {source}")
        await asyncio.sleep(0)
        if source == SOURCE:
            raise Damaged("made up")
        raise ZeroDivisionError

    async def scrub(source: str) -> None:
        said.append(f"scrub {source}")

    changed: list[str] = []
    keeping = Housekeeping(
        store, Pace(FAST), forget=forget, scrub=scrub, every_s=0.01, on_change=changed.append
    )
    stop = asyncio.Event()
    running = asyncio.create_task(keeping.run(stop))
    await until(lambda: len(said) >= 8)
    stop.set()
    await asyncio.wait_for(running, 1)
    one_round = [f"{what} {source}" for source in (SOURCE, OTHER) for what in ("forget", "scrub")]
    assert said[:8] == one_round * 2
    assert {SOURCE, OTHER} == set(changed)


async def test_what_is_dead_goes_by_itself(store: Store) -> None:
    replica = store.replica(SOURCE)
    with_waste(replica)
    before = stored_bytes(replica)
    keeping, stop = of(store), asyncio.Event()
    running = asyncio.create_task(keeping.run(stop))
    await until(lambda: stored_bytes(replica) < before * 3 // 4)
    stop.set()
    await asyncio.wait_for(running, 5)


async def test_it_stops_within_a_second_however_slow_it_has_to_be(store: Store) -> None:
    replica = store.replica(SOURCE)
    with_waste(replica)
    before = stored_bytes(replica)
    keeping, stop = of(store, bytes_per_second=1000), asyncio.Event()
    running = asyncio.create_task(keeping.run(stop))
    # The first piece is there, and the pace allows the next one in minutes.
    await until(lambda: stored_bytes(replica) > before)
    began_s = time.monotonic()
    stop.set()
    await asyncio.wait_for(running, 5)
    assert time.monotonic() - began_s < 1
    assert replica.rewriting.acquire(blocking=False)
    replica.rewriting.release()


async def test_it_gives_way_to_a_job_that_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "QUIET_S", 0.3)
    replica = store.replica(SOURCE)
    with_waste(replica)
    before = stored_bytes(replica)
    replica.open_job(SERVER, open_of(replica, "long"))
    keeping, stop = of(store), asyncio.Event()
    running = asyncio.create_task(keeping.run(stop))
    for seq in range(20):
        replica.take("long", 1, [batch("long", seq)])
        await asyncio.sleep(0.03)
    assert stored_bytes(replica) == before
    # Its agent is silent now.
    await until(lambda: stored_bytes(replica) != before)
    stop.set()
    await asyncio.wait_for(running, 5)


def test_a_job_counts_as_received_while_something_comes(store: Store) -> None:
    replica, now = store.replica(SOURCE), [0.0]
    receiving = Receiving(replica, lambda: now[0])
    assert not receiving()
    replica.open_job(SERVER, open_of(replica, "j"))
    assert receiving()
    now[0] += housekeeping.QUIET_S - 1
    replica.take("j", 1, [batch("j", 0)])
    assert receiving()
    now[0] += housekeeping.QUIET_S - 1
    assert receiving()
    now[0] += 1
    assert not receiving()


async def test_it_looks_only_where_something_has_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def look(replica: Replica, *values: Any, **options: Any) -> CompactReport:
        looked.append(replica.identity.source)
        return compact(replica, *values, **options)

    monkeypatch.setattr(housekeeping, "compact", look)
    monkeypatch.setattr(housekeeping, "SURVEY_SHARE", 0)
    keeping = of(store)
    for _ in range(3):
        await keeping._compact_if_due(SOURCE)
    assert looked == [SOURCE]
    ship(store.replica(SOURCE), "j1", [batch("j1", 0, inodes=[inode(1, kind="d")])])
    for _ in range(3):
        await keeping._compact_if_due(SOURCE)
    assert looked == [SOURCE] * 2


async def test_what_waits_for_readers_goes_by_itself(store: Store) -> None:
    replica = store.replica(SOURCE)
    with_waste(replica)
    keeping = of(store)
    await keeping._compact_if_due(OTHER)
    store.leases.take(SOURCE, 2, "reader")
    assert (await keeping.compact_now(SOURCE)).waiting_bytes
    before = stored_bytes(replica)
    store.leases = leases_at_rest()
    stop = asyncio.Event()
    running = asyncio.create_task(keeping.run(stop))
    await until(lambda: stored_bytes(replica) < before // 2)
    stop.set()
    await asyncio.wait_for(running, 5)


async def test_the_command_compacts_at_once_and_whole(store: Store) -> None:
    replica = store.replica(SOURCE)
    with_waste(replica)
    report = await of(store, bytes_per_second=1).compact_now(SOURCE)
    assert report.is_complete
    assert report.freed_bytes
    assert report.stored_bytes == report.live_bytes
