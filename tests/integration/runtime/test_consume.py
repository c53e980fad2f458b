"""Pull consumers on a real nats-server: settling, order, and nothing lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from strandline_runtime.bus import Bus
from strandline_runtime.consume import Delivery, consume
from strandline_runtime.errors import BusError
from support.nats import SiteBus
from support.rawclient import RawClient
from support.waiting import until

Connect = Callable[..., Awaitable[Bus]]
STREAM = "BLOCKS_store-1"
SUBJECT = "strandline.v1.hq.blk.store-1.web-1.s1"


async def left(site: SiteBus) -> tuple[int, int]:
    """Return (messages in the stream, deliveries not yet acked)."""
    raw = await RawClient.connect(site, "provisioner", "1")
    stream = json.loads((await raw.nc.request(f"$JS.API.STREAM.INFO.{STREAM}", timeout=2)).data)
    consumer = json.loads(
        (await raw.nc.request(f"$JS.API.CONSUMER.INFO.{STREAM}.store", timeout=2)).data
    )
    await raw.close()
    return stream["state"]["messages"], consumer["num_ack_pending"]


async def test_batches_are_bounded_ordered_and_whole(site: SiteBus, connect: Connect) -> None:
    agent, store = await connect("agent"), await connect("store")
    stop, sizes, taken = asyncio.Event(), [], []

    async def handle(deliveries: list[Delivery]) -> None:
        sizes.append(len(deliveries))
        for delivery in deliveries:
            taken.append(delivery.data)
            await delivery.ack()
        if len(taken) == 200:
            stop.set()

    consuming = asyncio.create_task(consume(store, STREAM, "store", handle, batch=16, stop=stop))
    for start in range(0, 200, 50):
        for number in range(start, start + 50):
            await agent.publish(SUBJECT, b"%d" % number)
    await asyncio.wait_for(consuming, 20)
    assert taken == [b"%d" % number for number in range(200)]
    assert max(sizes) <= 16

    async def empty() -> bool:
        return await left(site) == (0, 0)

    await until(empty, "an empty stream")


async def test_consuming_lives_on_after_the_servers_death(site: SiteBus, connect: Connect) -> None:
    agent, store = await connect("agent"), await connect("store")
    stop, taken = asyncio.Event(), set()

    async def handle(deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            taken.add(delivery.data)
            await delivery.ack()

    consuming = asyncio.create_task(consume(store, STREAM, "store", handle, batch=8, stop=stop))
    await agent.publish(SUBJECT, b"before")
    await until(lambda: b"before" in taken)
    site.server.kill()
    await until(lambda: not store.connected, "the loss")
    site.server.start()

    async def published() -> bool:
        try:
            await agent.publish(SUBJECT, b"after", msg_id="after", timeout_s=1)
        except BusError:
            return False
        return True

    await until(published, "the bus back", timeout_s=20)
    await until(lambda: b"after" in taken, "deliveries go on", timeout_s=20)
    stop.set()
    await asyncio.wait_for(consuming, 5)


async def test_what_was_not_settled_is_delivered_again(connect: Connect) -> None:
    agent, store = await connect("agent"), await connect("store")
    await agent.publish(SUBJECT, b"x")
    stop = asyncio.Event()
    deliveries: list[int] = []

    async def handle(batch: list[Delivery]) -> None:
        deliveries.extend(delivery.deliveries for delivery in batch)
        if len(deliveries) < 3:
            await batch[0].nak(0.05)
        else:
            await batch[0].ack()
            stop.set()

    await asyncio.wait_for(consume(store, STREAM, "store", handle, batch=1, stop=stop), 10)
    assert deliveries == [1, 2, 3]


async def test_stopping_is_prompt_and_gives_back_what_waits(
    site: SiteBus, connect: Connect
) -> None:
    agent, store = await connect("agent"), await connect("store")
    for number in range(8):
        await agent.publish(SUBJECT, b"%d" % number)
    stop = asyncio.Event()

    async def first(deliveries: list[Delivery]) -> None:
        stop.set()
        for delivery in deliveries:
            await delivery.nak()

    await asyncio.wait_for(consume(store, STREAM, "store", first, batch=8, stop=stop), 5)
    again = asyncio.Event()
    taken: set[bytes] = set()

    async def second(deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            taken.add(delivery.data)
            await delivery.ack()
        if len(taken) == 8:
            again.set()

    # Sooner than the ack_wait of 15 s: they were given back.
    await asyncio.wait_for(consume(store, STREAM, "store", second, batch=8, stop=again), 10)


async def test_no_such_consumer_is_waited_for_without_haste(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await connect("store", "store-1")
    asked = 0
    publish = store._nc.publish

    async def counted(subject: str, *args: Any, **kwargs: Any) -> None:
        nonlocal asked
        asked += 1
        await publish(subject, *args, **kwargs)

    monkeypatch.setattr(store._nc, "publish", counted)
    stop = asyncio.Event()

    async def handle(deliveries: list[Delivery]) -> None:
        raise AssertionError("there is nothing to deliver")

    consuming = asyncio.create_task(consume(store, "EVENTS", "none", handle, batch=1, stop=stop))
    done, _ = await asyncio.wait({consuming}, timeout=1.5)
    assert not done
    assert asked <= 4
    stop.set()
    await asyncio.wait_for(consuming, 5)
