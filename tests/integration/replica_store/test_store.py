"""The store's process on a real bus: shipping, reading, faults, verify."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from strandline_contracts import reading
from strandline_contracts.codec import Message, encode
from strandline_contracts.commands import Verify
from strandline_contracts.events import DamageFound, PointCommitted, accept_event
from strandline_contracts.jobs import GetJob, GotJob
from strandline_contracts.points import Extent, Name, RecoveryPoint
from strandline_contracts.shipping import Abort, Open, Opened, Waited, Want, Wanted
from strandline_contracts.subjects import EVENTS, blocks_stream
from strandline_replica_store.files.segment import path_of
from strandline_runtime.bus import Bus
from strandline_runtime.errors import RemoteRefused
from support.commands import make_command, signed
from support.nats import SiteBus
from support.replicas import (
    SOURCE,
    batch,
    chunk,
    content,
    end_of,
    inode,
    made_up,
    made_up_content,
    one_file,
)
from support.waiting import until

from .conftest import STORE, FakeAgent, StoreProcess, assign, grant_for, ready


async def ask(bus: Bus, call: str, request: Message, reply: Any) -> Any:
    return await bus.call("store", STORE, call, request, reply, timeout_s=10)


async def events(bus: Bus) -> list[Any]:
    stored = await bus.read(EVENTS, bus.subjects.root + ".evt.store-store-1.>")
    return [accept_event(each.data, each.subject) for each in stored]


async def test_a_job_is_shipped_committed_and_told(
    store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    points: list[RecoveryPoint] = []
    for number in (1, 2):
        waited = await agent.ship(f"j{number}", made_up(f"j{number}", number, 1))
        assert waited.state == "committed"
        assert waited.point is not None
        assert waited.point.number == number
        points.append(waited.point)
    assert (await agent.open("j2")).point == points[-1]
    told = await until(lambda: at_least(events(operator), 2), "events")
    assert [event.number for event in told] == [1, 2]
    assert told[1].data == PointCommitted(point=points[-1])
    store.end()
    for number in (1, 2):
        assert content(store.replica, number) == made_up_content(number)


async def at_least(found: Awaitable[list[Any]], count: int) -> list[Any] | None:
    got = await found
    return got if len(got) >= count else None


async def test_invariant_4_reordered_and_doubled_messages_change_nothing(
    store: StoreProcess, agent: FakeAgent, connect: Callable[..., Awaitable[Bus]]
) -> None:
    for number in range(1, 5):
        messages = made_up(f"j{number}", number, 1)
        waited = await agent.ship(f"j{number}", messages, shuffle=number, twice=True)
        assert waited.state == "committed", waited
    # Late ones of a job that has ended, and of an attempt that was fenced.
    await agent.open("j5", 1)
    await agent.open("j5", 2)
    for message in [*made_up("j4", 4, 1), *made_up("j5", 99, 1)]:
        await agent.send(message)
    waited = await agent.ship("j5", made_up("j5", 5, 2), 2)
    assert waited.state == "committed", waited
    admin = await connect("provisioner")

    async def settled() -> bool:
        found = await admin.api(f"STREAM.INFO.{blocks_stream(STORE)}")
        return bool(found["state"]["messages"] == 0)

    await until(settled, "every message to be settled")
    store.end()
    for number in range(1, 6):
        assert content(store.replica, number) == made_up_content(number)


async def test_poison_fails_its_job_and_the_next_one_works(
    store: StoreProcess, agent: FakeAgent
) -> None:
    await agent.open("j1")
    await agent.send(batch("unknown", 0))
    await agent.send(b"\xc1 rubbish")
    waited = await agent.wait("j1", 0)
    assert (waited.state, waited.code) == ("failed", "store.bad_delta")
    bad = chunk(bytes(4096))
    await agent.open("j2")
    await agent.send(batch("j2", 0, chunks=[chunk(b"x" * 4096), type(bad)(b"y" * 32, *tail(bad))]))
    waited = await agent.wait("j2", 0)
    assert (waited.state, waited.code) == ("failed", "store.bad_chunk")
    assert waited.retryable
    messages = [m.replace(b"\xa7attempt\x01", b"\xa7attempt\x02") for m in one_file("j2", b"good")]
    waited = await agent.ship("j2", messages, 2)
    assert waited.state == "committed", waited
    store.end()
    assert content(store.replica, 1) == b"good"


def tail(record: Any) -> tuple[Any, ...]:
    return record.plain_bytes, record.codec, record.data


async def test_invariant_10_the_store_killed_while_it_receives(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    """Everything sent stays on the bus until it is durable: nobody sends anything again."""
    chance = random.Random(5)
    for number in range(1, 7):
        job = f"j{number}"
        messages = made_up(job, number, 1)
        await agent.open(job)
        kill_at = chance.randrange(len(messages))
        for seq, message in enumerate([*messages, encode(end_of(job, messages))]):
            await agent.send(message)
            if seq == kill_at:
                store.end(signal.SIGKILL)
                store.start()
        await ready(operator)
        waited = await agent.wait(job, len(messages))
        assert waited.state == "committed", waited
    store.end()
    for number in range(1, 7):
        assert content(store.replica, number) == made_up_content(number)


async def test_want_wait_and_abort(store: StoreProcess, agent: FakeAgent) -> None:
    opened = await agent.open("j1")
    assert not opened.holds
    held, other = chunk(b"a" * 4096), chunk(b"b" * 4096)
    await agent.send(batch("j1", 0, chunks=[held]))
    assert (await agent.wait("j1", 0)).durable == 1
    asked = Want(source=SOURCE, job="j1", attempt=1, digests=[other.digest, held.digest])
    assert await agent.ask("want", asked, Wanted) == Wanted(missing=[0])
    gone = await agent.ask(
        "abort", Abort(source=SOURCE, job="j1", attempt=1, reason="enough"), Waited
    )
    assert (gone.state, gone.code) == ("failed", "store.aborted")
    with pytest.raises(RemoteRefused) as caught:
        await agent.ask("want", asked, Wanted)
    assert caught.value.code == "store.aborted"
    assert (await agent.open("j2")).holds


async def test_only_the_assigned_server_ships(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    request = Open(
        source="ff" * 8, job="j", attempt=1, kind="express_full", parent=0, parent_digest=b""
    )
    for bus, code in ((agent.bus, "store.not_allowed"), (operator, "store.not_allowed")):
        with pytest.raises(RemoteRefused) as caught:
            await ask(bus, "open", request, Opened)
        assert caught.value.code == code
    await assign(operator, site.operator_seed, protected=False)

    async def refused() -> bool:
        try:
            await agent.open("j1")
        except RemoteRefused as error:
            return error.code == "store.unprotected"
        return False

    await until(refused, "the new assignment to count", 10)


async def test_reading_a_point(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    plain = [os.urandom(4096) for _ in range(3)]
    await agent.ship("j1", [tree_batch(plain)])
    page = await ask(operator, "points", reading.Points(source=SOURCE), reading.PointPage)
    assert [point.number for point in page.points] == [1]
    whole = reading.Resolve(source=SOURCE, point=1, paths=[b"", b"/d/x", b"e/y", b"d/none"])
    resolved = await ask(operator, "resolve", whole, reading.Resolved)
    assert [i.file if i else None for i in resolved.inodes] == [1, 4, 5, None]
    listed = await ask(
        operator, "list", reading.List(source=SOURCE, point=1, folders=[1, 2]), reading.Listing
    )
    assert [name.name for name in listed.names] == [b"d", b"e", b"w", b"x"]
    assert listed.done == 2
    extents = await ask(
        operator, "extents", reading.Extents(source=SOURCE, point=1, limit=2), reading.ExtentPage
    )
    assert extents.more
    chunks = await ask(
        operator, "chunks", reading.Chunks(source=SOURCE, point=1, chunks=[1, 2]), reading.ChunkPage
    )
    assert [blake3(p).digest() for p in plain[:2]] == [c.digest for c in chunks.chunks]
    digests = await ask(
        agent.bus,
        "block_digests",
        reading.BlockDigests(source=SOURCE, point=1, file=4, start=0, blocks=1),
        reading.BlockDigestPage,
    )
    assert digests.digests == blake3(plain[0]).digest()[:16]
    for call, request in (
        ("list", reading.List(source=SOURCE, point=9, folders=[1])),
        ("list", reading.List(source=SOURCE, point=1, folders=[1] * 1001)),
        ("chunks", reading.Chunks(source=SOURCE, point=1, chunks=[77])),
    ):
        with pytest.raises(RemoteRefused):
            await ask(operator, call, request, reading.Listing)


def tree_batch(plain: list[bytes]) -> bytes:
    """/d/x is file 4, /e/y file 5, /w file 6, a chunk each."""
    return batch(
        "j1",
        0,
        chunks=[chunk(part) for part in plain],
        extents=[Extent(4 + i, 0, 1, 0, i, 0) for i in range(3)],
        inodes=[inode(i, kind="d") for i in (1, 2, 3)] + [inode(i, 4096) for i in (4, 5, 6)],
        names=[
            Name(1, b"d", 2),
            Name(1, b"e", 3),
            Name(2, b"x", 4),
            Name(3, b"y", 5),
            Name(1, b"w", 6),
        ],
    )


async def test_a_grant_reads_what_it_says_and_nothing_else(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, connect: Callable[..., Awaitable[Bus]]
) -> None:
    await agent.ship("j1", [tree_batch([os.urandom(4096) for _ in range(3)])])
    reader = await connect("catalog")
    grant = grant_for(site, "catalog-1", 1, [b"d"])
    kinds: list[tuple[str, Any, Any]] = [
        ("resolve", reading.Resolve(source=SOURCE, point=1, paths=[b"d/x"]), reading.Resolved),
        ("list", reading.List(source=SOURCE, point=1, folders=[1, 2]), reading.Listing),
        ("extents", reading.Extents(source=SOURCE, point=1, files=[4]), reading.ExtentPage),
        ("chunks", reading.Chunks(source=SOURCE, point=1, chunks=[1]), reading.ChunkPage),
    ]
    for call, request, reply in kinds:
        await refused(reader, call, request, b"")
        await refused(reader, call, request, grant_for(site, "agent-web-1", 1))
        await refused(reader, call, request, grant_for(site, "catalog-1", 2))
        found = await ask(reader, call, with_grant(request, grant), reply)
        if call == "list":
            assert [name.name for name in found.names] == [b"d", b"x"]
    others: list[tuple[str, Any]] = [
        ("resolve", reading.Resolve(source=SOURCE, point=1, paths=[b"e/y"])),
        ("list", reading.List(source=SOURCE, point=1, folders=[3])),
        ("extents", reading.Extents(source=SOURCE, point=1, files=[4, 5])),
        ("extents", reading.Extents(source=SOURCE, point=1)),
        ("chunks", reading.Chunks(source=SOURCE, point=1, chunks=[1, 2])),
        ("block_digests", reading.BlockDigests(source=SOURCE, point=1, file=5, start=0, blocks=1)),
    ]
    for call, request in others:
        await refused(reader, call, request, grant)


def with_grant(request: Any, grant: bytes) -> Any:
    return type(request)(
        **{**{f: getattr(request, f) for f in request.__struct_fields__}, "grant": grant}
    )


async def refused(bus: Bus, call: str, request: Any, grant: bytes) -> None:
    with pytest.raises(RemoteRefused) as caught:
        await ask(bus, call, with_grant(request, grant), reading.Listing)
    assert caught.value.code in ("store.not_allowed", "signature.bad"), caught.value


async def test_verify_finds_damage_and_tells_it(
    site: SiteBus, store: StoreProcess, agent: FakeAgent, operator: Bus
) -> None:
    await agent.ship("j1", one_file("j1", os.urandom(4096)))
    sound = await verify(site, operator, "v1")
    assert (sound.state, sound.failure) == ("durable", None)
    path = path_of(str(store.replica / "segments"), 1)
    data = bytearray(Path(path).read_bytes())
    data[300] ^= 1
    Path(path).write_bytes(data)
    damaged = await verify(site, operator, "v2")
    assert damaged.state == "failed"
    assert damaged.failure.code == "store.damage"
    assert "a" in damaged.failure.message

    async def told() -> list[DamageFound]:
        return [e.data for e in await events(operator) if isinstance(e.data, DamageFound)]

    (damage,) = await until(told, "the damage to be told")
    assert (damage.chunk, damage.points, damage.files) == (1, [1], [b"a"])
    request = reading.Chunks(source=SOURCE, point=1, chunks=[1])
    with pytest.raises(RemoteRefused) as caught:
        await ask(operator, "chunks", request, reading.ChunkPage)
    assert caught.value.code == "store.damaged"


async def verify(site: SiteBus, operator: Bus, job: str) -> Any:
    command = make_command(job, args=Verify(), source=SOURCE, role="store", instance=STORE)
    subject = operator.subjects.command("store", STORE, SOURCE, "verify")
    await operator.publish(subject, signed(site.operator_seed, command))

    async def ended() -> Any:
        found = (await ask(operator, "job", GetJob(job=job), GotJob)).job
        return found if found and found.state in ("durable", "failed") else None

    return await until(ended, f"verify {job}", 20)


async def test_a_second_process_on_the_same_root_is_refused(
    site: SiteBus, store: StoreProcess
) -> None:
    second = StoreProcess(site)
    second.start()
    assert second._process is not None
    assert second._process.wait(20) == 1
    assert b"store.locked" in second.log.read_bytes()


async def test_it_stops_cleanly(store: StoreProcess, agent: FakeAgent) -> None:
    await agent.ship("j1", one_file("j1", b"one"))
    await agent.open("j2")
    await agent.send(batch("j2", 0, chunks=[chunk(b"k" * 4096)]))
    await agent.wait("j2", 0)
    assert store.end() == 0
