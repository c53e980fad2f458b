"""Damage on the store's disk, found, told, and mended by the real agent of the source."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from strandline_agent.express_full import Order, Shipped, make_point
from strandline_agent.restore import Restored, RestoreOrder, restore
from strandline_contracts.commands import Verify
from strandline_contracts.events import DamageFound, DamageRepaired, ReplicaVerified, accept_event
from strandline_contracts.jobs import GetJob, GotJob, Job
from strandline_contracts.policy import Source
from strandline_contracts.reading import ReplicaPage, Replicas, ReplicaState
from strandline_contracts.shipping import LostChunks, LostPage, Mend, Mended
from strandline_contracts.subjects import EVENTS
from strandline_replica_store.files.segment import (
    CHUNK_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    path_of,
    survey,
)
from strandline_runtime.bus import Bus
from strandline_runtime.errors import RemoteRefused
from support.commands import make_command, signed
from support.nats import SiteBus
from support.replicas import SERVER, SOURCE, chunk
from support.trees import differences, make_tree
from support.waiting import until

from .conftest import STORE, StoreProcess, assign, ready


class Source1:
    """The source's tree, its agent, and the store's replica of it."""

    def __init__(self, folder: Path, bus: Bus, store: StoreProcess) -> None:
        self.bus = bus
        self.store = store
        self.folder = folder
        self.src = folder / "src"
        self.jobs = 0
        self.folder.mkdir()
        make_tree(self.src)

    async def full(self) -> Shipped:
        self.jobs += 1
        source = Source(
            id=SOURCE,
            name="data",
            type="files",
            server=SERVER,
            store=STORE,
            paths=[os.fsencode(self.src)],
        )
        order = Order(
            source=source,
            job=f"job{self.jobs}",
            attempt=1,
            kind="express_full",
            subject=self.bus.subjects.blocks(STORE, SERVER, SOURCE),
            index_path=self.folder / "known.db",
            index_max_bytes=1 << 30,
        )
        return await make_point(self.bus, order, lambda: None)

    async def back(self, point: int) -> tuple[Restored, str]:
        """Restore a point to a new folder; return how that went, and what differs from now."""
        name = f"out{point}-{len(os.listdir(self.folder))}"
        order = RestoreOrder(
            source=SOURCE,
            point=point,
            store=STORE,
            to=os.fsencode(self.folder / name),
            grant=b"",
            plan_path=self.folder / f"{name}.plan",
            devices=True,
        )
        restored = await restore(self.bus, order)
        return restored, differences(self.src, self.folder / name)

    def damage(self, *, upto: int = 1 << 62) -> int:
        """Flip a bit in each chunk with an id up to `upto`; return how many there were."""
        path = path_of(str(self.store.replica / "segments"), 1)
        chunks = survey(path, SEGMENT_HEADER_BYTES, to_the_end=True)
        found = [(each.offset, each.header) for each in chunks if each.header.id <= upto]
        with open(path, "r+b") as file:
            for offset, head in found:
                at = offset + CHUNK_HEADER_BYTES + head.stored_bytes // 2
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 4]))
        return len(found)


@pytest.fixture
async def source(
    store: StoreProcess, connect: Callable[..., Awaitable[Bus]], tmp_path: Path
) -> Source1:
    return Source1(tmp_path / "agent", await connect("agent"), store)


async def verify(site: SiteBus, operator: Bus, job: str) -> Job:
    command = make_command(job, args=Verify(), source=SOURCE, role="store", instance=STORE)
    subject = operator.subjects.command("store", STORE, SOURCE, "verify")
    await operator.publish(subject, signed(site.operator_seed, command))

    async def ended() -> Any:
        got = await operator.call("store", STORE, "job", GetJob(job=job), GotJob, timeout_s=5)
        return got.job if got.job and got.job.state in ("durable", "failed") else None

    found: Job = await until(ended, f"verify {job}", 30)
    return found


async def told(operator: Bus, kind: type[Any], count: int) -> list[Any]:
    """Return what events of this kind hold, once there are `count`."""

    async def enough() -> list[Any]:
        stored = await operator.read(EVENTS, operator.subjects.root + ".evt.store-store-1.>")
        data = [accept_event(each.data, each.subject).data for each in stored]
        found = [each for each in data if isinstance(each, kind)]
        return found if len(found) >= count else []

    found: list[Any] = await until(enough, f"{count} of {kind.__name__}", 20)
    assert len(found) == count
    return found


async def test_what_the_disk_has_spoiled_is_found_and_mended(
    source: Source1, site: SiteBus, operator: Bus
) -> None:
    await source.full()
    count = source.damage()
    failed = await verify(site, operator, "v1")
    assert failed.state == "failed"
    assert failed.failure is not None
    assert failed.failure.code == "store.damage"
    named = {issue.path: issue for issue in failed.issues}
    assert {issue.code for issue in failed.issues} == {"damaged"}
    assert b"big" in named
    assert named[b"big"].text.startswith("in recovery points 1: ")
    damages = await told(operator, DamageFound, count)
    assert {each.chunk for each in damages} == set(range(1, count + 1))
    restored, _ = await source.back(1)
    assert "damaged" in {issue.code for issue in restored.issues}
    # Found again it is not told again.
    assert (await verify(site, operator, "v2")).state == "failed"
    await told(operator, DamageFound, count)

    assert (await source.full()).point.number == 2
    repaired = await told(operator, DamageRepaired, count)
    assert {each.by for each in repaired} == {f"agent-{SERVER}"}
    assert {each.chunk for each in repaired} == {each.chunk for each in damages}
    for point in (1, 2):
        restored, differing = await source.back(point)
        assert (restored.issues, differing) == ([], "")
    sound = await verify(site, operator, "v3")
    assert (sound.state, sound.issues) == ("durable", [])
    whole = await told(operator, ReplicaVerified, 3)
    assert [each.damaged for each in whole] == [count, count, 0]


async def test_bytes_that_have_changed_stay_bad_and_are_named(
    source: Source1, site: SiteBus, operator: Bus
) -> None:
    await source.full()
    source.damage()
    await verify(site, operator, "v1")
    (source.src / "text").write_bytes(b"another text\n" * 9_000)
    await source.full()
    restored, differing = await source.back(2)
    assert (restored.issues, differing) == ([], "")
    # Small pieces of files share chunks: others may be harmed by what became of this one.
    restored, _ = await source.back(1)
    harmed = {issue.path for issue in restored.issues}
    assert b"text" in harmed
    assert len(harmed) < 40
    assert {issue.code for issue in restored.issues} == {"damaged"}
    again = await verify(site, operator, "v2")
    assert again.state == "failed"
    assert {issue.path for issue in again.issues} == harmed
    assert {issue.text[:24] for issue in again.issues} == {"in recovery points 1: ch"}


async def test_a_killed_store_and_agent_leave_the_rest_to_the_next_job(
    source: Source1, site: SiteBus, operator: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await source.full()
    count = source.damage()
    await verify(site, operator, "v1")
    monkeypatch.setattr("strandline_agent.mending.MAX_MENDED_BYTES", 1 << 20)
    await source.full()
    source.store.end(signal.SIGKILL)
    source.store.start()
    await ready(operator)
    monkeypatch.undo()
    await source.full()
    await told(operator, DamageRepaired, count)
    assert (await verify(site, operator, "v2")).state == "durable"
    restored, differing = await source.back(1)
    assert (restored.issues, differing) == ([], "")


async def test_the_store_finds_damage_by_itself(
    site: SiteBus,
    operator: Bus,
    connect: Callable[..., Awaitable[Bus]],
    tmp_path: Path,
) -> None:
    store = StoreProcess(site, scrub_days="0", housekeeping_every_s="1")
    store.start()
    try:
        await assign(operator, site.operator_seed)
        await ready(operator)
        source = Source1(tmp_path / "agent", await connect("agent"), store)
        await source.full()
        count = source.damage()
        await told(operator, DamageFound, count)
        assert (await replica_state(operator)).damaged_chunks == count
        await source.full()
        await told(operator, DamageRepaired, count)

        async def sound() -> bool:
            found = await replica_state(operator)
            return found.damaged_chunks == 0 and found.verified_at_ns > 0

        await until(sound, "a round after the repair", 20)
        await told(operator, DamageFound, count)
    finally:
        store.end()


async def replica_state(operator: Bus) -> ReplicaState:
    page = await operator.call("store", STORE, "replicas", Replicas(), ReplicaPage, timeout_s=10)
    assert len(page.replicas) == 1
    return page.replicas[0]


async def test_only_the_sources_server_and_the_operator_mend(
    source: Source1,
    site: SiteBus,
    operator: Bus,
    connect: Callable[..., Awaitable[Bus]],
) -> None:
    await source.full()
    source.damage()
    await verify(site, operator, "v1")
    ask = LostChunks(source=SOURCE)
    page = await operator.call("store", STORE, "lost_chunks", ask, LostPage)
    assert page.chunks
    catalog = await connect("catalog")
    forged = Mend(source=SOURCE, chunks=[chunk(bytes(4096))])
    for request, reply, call in ((ask, LostPage, "lost_chunks"), (forged, Mended, "mend")):
        with pytest.raises(RemoteRefused) as refused:
            await catalog.call("store", STORE, call, request, reply)
        assert refused.value.code == "store.not_allowed"
    answer = await operator.call("store", STORE, "mend", forged, Mended)
    assert answer.chunks == []
    lie = chunk(os.urandom(page.chunks[0].plain_bytes))
    lie = type(lie)(page.chunks[0].digest, lie.plain_bytes, lie.codec, lie.data)
    with pytest.raises(RemoteRefused) as refused:
        await source.bus.call("store", STORE, "mend", Mend(source=SOURCE, chunks=[lie]), Mended)
    assert refused.value.code == "store.bad_chunk"
    assert await operator.call("store", STORE, "lost_chunks", ask, LostPage) == page
