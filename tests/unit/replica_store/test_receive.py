"""A lane follows what its replica receives, whatever happens to the replica meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from strandline_contracts.codec import encode
from strandline_contracts.shipping import Open
from strandline_replica_store.errors import Busy
from strandline_replica_store.files.manifest import ManifestWriter
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.replica.rules import OpenVerdict
from strandline_replica_store.service import receive
from strandline_replica_store.service.outboxes import Outboxes
from strandline_replica_store.service.receive import Held, Lane, Receiver
from strandline_replica_store.service.replica_state import state_of
from strandline_replica_store.store import store as store_module
from strandline_replica_store.store.store import Store
from support.replicas import (
    SERVER,
    SOURCE,
    batch,
    chunk,
    content,
    end_of,
    made_up,
    made_up_content,
)
from support.waiting import until

OTHER = "ffeeddccbbaa9988"
_SEQUENCES = count(1)


class Delivered:
    """A message as the bus delivers it; `end` is what became of it."""

    def __init__(self, data: bytes) -> None:
        self.sequence = next(_SEQUENCES)
        self.subject = f"strandline.v1.hq.blk.store-1.{SERVER}.{SOURCE}"
        self.data = data
        self.end = ""

    async def ack(self) -> None:
        self.end = "ack"

    async def nak(self, delay_s: float = 0) -> None:
        self.end = "nak"

    async def term(self) -> None:
        self.end = "term"

    async def in_progress(self) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"), name="store-1", site="hq", reserve_bytes=0)
    store.create(SOURCE, "data", "files")
    return store


@pytest_asyncio.fixture
async def receiver(store: Store) -> AsyncIterator[Receiver]:
    with ThreadPoolExecutor(4) as threads, ThreadPoolExecutor(4) as committing:
        yield Receiver(store, threads, committing)
    store.close()


async def opened(lane: Lane, job: str) -> object:
    request = Open(
        source=SOURCE, job=job, attempt=1, kind="express_full", parent=0, parent_digest=b""
    )
    return await lane.open(SERVER, request)


async def delivered(receiver: Receiver, messages: list[bytes]) -> list[str]:
    """Return what became of messages that are delivered in this order."""
    deliveries = [Delivered(message) for message in messages]
    await receiver.handle(deliveries)  # type: ignore[arg-type]
    await until(lambda: all(delivery.end for delivery in deliveries), "all to be settled")
    return [delivery.end for delivery in deliveries]


async def check_commits(receiver: Receiver, job: str, sent: list[bytes]) -> None:
    """Send what is not durable, as an agent does; the recovery point is what was sent."""
    lane = await receiver.lane(SOURCE)
    waited = await lane.wait(job, 1, 0, 0)
    assert waited.state == "open"
    rest = [*sent[waited.durable :], encode(end_of(job, sent))]
    assert set(await delivered(receiver, rest)) == {"ack"}
    assert (await lane.wait(job, 1, len(sent), 5)).state == "committed"
    folder = Path(lane.replica.folder)
    assert content(folder, 1) == made_up_content(1)
    assert receiver.held.held_bytes == receiver.early_bytes == 0


async def test_batches_that_come_while_the_index_is_made_anew_come_again(
    receiver: Receiver,
) -> None:
    lane, sent = await receiver.lane(SOURCE), made_up("j1", 1, 1)
    assert await opened(lane, "j1") is OpenVerdict.FRESH
    assert await delivered(receiver, sent[:1]) == ["ack"]
    lane.replica._rebuilding = True
    # In the wrong order: the last one is early.
    assert set(await delivered(receiver, [sent[3], sent[1], sent[2]])) == {"nak"}
    lane.replica._rebuilding = False
    await check_commits(receiver, "j1", sent)


async def test_a_job_that_could_not_be_failed_fails_when_its_batch_comes_again(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane, real = await receiver.lane(SOURCE), Replica.fail
    await opened(lane, "j1")
    bad = [batch("j1", 0, chunks=[chunk(bytes(4096), data=False)])]

    def while_it_is_made_anew(replica: Replica, *values: Any) -> None:
        replica._rebuilding = True
        try:
            real(replica, *values)
        finally:
            replica._rebuilding = False

    with monkeypatch.context() as patch:
        patch.setattr(Replica, "fail", while_it_is_made_anew)
        assert await delivered(receiver, bad) == ["nak"]
    assert await delivered(receiver, bad) == ["term"]
    waited = await lane.wait("j1", 1, 0, 1)
    assert (waited.state, waited.code) == ("failed", "store.missing_chunk")


async def test_the_lane_follows_the_open_attempt_when_opens_cross(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane, sent = await receiver.lane(SOURCE), made_up("j2", 1, 1)
    began, go_on, real = threading.Event(), threading.Event(), Replica.open_job

    def late(replica: Replica, server: str, request: Open) -> object:
        """Open, the first job's thread getting the processor late afterwards."""
        found = real(replica, server, request)
        if request.job == "j1":
            began.set()
            assert go_on.wait(30)
        return found

    monkeypatch.setattr(Replica, "open_job", late)
    first = asyncio.create_task(opened(lane, "j1"))
    await until(began.is_set, "the first job to be open")
    assert await opened(lane, "j2") is OpenVerdict.FRESH
    go_on.set()
    assert await first is OpenVerdict.FRESH
    assert await opened(lane, "j2") is OpenVerdict.SAME
    await check_commits(receiver, "j2", sent)


async def test_an_open_that_is_asked_again_brings_back_what_the_lane_has_lost(
    receiver: Receiver,
) -> None:
    lane, sent = await receiver.lane(SOURCE), made_up("j1", 1, 1)
    await opened(lane, "j1")
    lane._follow(None)
    assert set(await delivered(receiver, sent[:2])) == {"nak"}
    assert await opened(lane, "j1") is OpenVerdict.SAME
    assert set(await delivered(receiver, sent[:2])) == {"ack"}
    await check_commits(receiver, "j1", sent)


async def test_a_job_goes_on_byte_for_byte_when_its_replica_was_closed_under_it(
    receiver: Receiver, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batches that were durable, one that waits in the lane, and one that came too early."""
    monkeypatch.setattr(store_module, "MAX_OPEN_REPLICAS", 1)
    lane, sent = await receiver.lane(SOURCE), made_up("j1", 1, 1)
    await opened(lane, "j1")
    assert set(await delivered(receiver, sent[:2])) == {"ack"}
    early = Delivered(sent[3])
    await receiver.handle([early])  # type: ignore[list-item]
    assert receiver.early_bytes == len(sent[3])
    store.create(OTHER, "other", "files")
    store.replica(OTHER)
    assert not store.is_open(SOURCE)
    late = Delivered(sent[2])
    await lane.put(SERVER, Held(receive.decode_label(late.data), late))  # type: ignore[arg-type]
    await until(lambda: late.end and early.end, "what was held to be given back")
    assert (late.end, early.end) == ("nak", "nak")
    again = await receiver.lane(SOURCE)
    assert again is not lane
    assert (await again.wait("j1", 1, 2, 0)).durable == 2
    await check_commits(receiver, "j1", sent)


async def test_what_came_early_is_given_back_when_the_replica_was_closed(
    receiver: Receiver, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_OPEN_REPLICAS", 1)
    lane, sent = await receiver.lane(SOURCE), made_up("j1", 1, 1)
    await opened(lane, "j1")
    early = Delivered(sent[2])
    await receiver.handle([early])  # type: ignore[list-item]
    waiting = asyncio.create_task(lane.wait("j1", 1, 0, 30))
    store.create(OTHER, "other", "files")
    store.replica(OTHER)
    assert (await (await receiver.lane(SOURCE)).wait("j1", 1, 0, 0)).state == "open"
    assert early.end == "nak"
    with pytest.raises(Busy):
        await asyncio.wait_for(waiting, 5)
    await check_commits(receiver, "j1", sent)


async def test_commits_hold_up_no_other_source(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one thread to write, a commit that takes long, and an agent that asks all the while."""
    with ThreadPoolExecutor(1) as writing, ThreadPoolExecutor(1) as committing:
        receiver = Receiver(store, writing, committing)
        lane, sent = await receiver.lane(SOURCE), made_up("j1", 1, 1)
        await opened(lane, "j1")
        assert set(await delivered(receiver, sent)) == {"ack"}
        began, go_on, real = threading.Event(), threading.Event(), ManifestWriter.finish

        def slow(*values: Any) -> None:
            began.set()
            assert go_on.wait(30)
            real(*values)

        monkeypatch.setattr(ManifestWriter, "finish", slow)
        end = Delivered(encode(end_of("j1", sent)))
        await receiver.handle([end])  # type: ignore[list-item]
        await until(began.is_set, "the commit to begin")
        with pytest.raises(Busy):
            await opened(lane, "j2")
        assert await delivered(receiver, [batch("old", 0)]) == ["nak"]
        assert (await lane.wait("j1", 1, len(sent), 0)).state == "open"
        outboxes = Outboxes(cast(Any, None), store, writing)
        outboxes.changed(SOURCE)
        with pytest.raises(Busy):
            await outboxes._on_first(lambda _: [])
        assert state_of(store, SOURCE).points == 0
        # Another source's.
        store.create(OTHER, "other", "files")
        other = await receiver.lane(OTHER)
        assert await asyncio.wait_for(opened(other, "k1"), 5) is OpenVerdict.FRESH
        go_on.set()
        await until(lambda: end.end, "the commit to end")
        assert (await lane.wait("j1", 1, len(sent), 0)).state == "committed"
    store.close()
