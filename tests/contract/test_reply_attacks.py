"""Attacks through reply subjects: answers go to the asker alone, and foreign bytes are dropped."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from strandline_contracts.codec import Message, encode
from strandline_contracts.commands import Command, accept_command
from strandline_contracts.errors import BadMessage, BadSignature
from strandline_contracts.events import Event, accept_event
from strandline_contracts.names import Role
from strandline_contracts.queries import SourceList, Sources, Status, StatusIs
from strandline_contracts.shipping import accept_shipment
from strandline_contracts.signing import sign
from strandline_contracts.subjects import EVENTS, parse_command
from strandline_runtime import lean
from strandline_runtime.bus import Bus, Request
from strandline_runtime.consume import Delivery, consume
from support.examples import MESSAGES, SOURCE
from support.nats import SiteBus
from support.rawclient import RawClient
from support.waiting import until

Connect = Callable[..., Awaitable[Bus]]
Thief = Callable[[Role, str], Awaitable[RawClient]]
ROOT = "strandline.v1.hq"
FOREIGN_REPLIES = [
    "_INBOX.operator-2.stolen",
    "_INBOX.catalog-1.x",
    "_INBOX.operator-1",
    "_INBOX.operator-11.x",
    f"{ROOT}.evt.store-store-1.point.committed.{SOURCE}",
    f"{ROOT}.blk.store-1.web-1.{SOURCE}",
    f"{ROOT}.cmd.agent.web-1.{SOURCE}.express_full",
    f"{ROOT}.prg.job1",
    "$KV.POLICY.server.web-1",
    "$JS.API.STREAM.DELETE.EVENTS",
]


@pytest_asyncio.fixture
async def thief(site: SiteBus) -> AsyncIterator[Thief]:
    """Connects bare clients with credentials of the site."""
    made: list[RawClient] = []

    async def connect_raw(role: Role, instance: str) -> RawClient:
        made.append(await RawClient.connect(site, role, instance))
        return made[-1]

    yield connect_raw
    for raw in made:
        await raw.close()


@pytest.mark.parametrize("reply", FOREIGN_REPLIES)
async def test_a_request_with_a_foreign_reply_subject_gets_no_answer(
    connect: Connect,
    thief: Thief,
    monkeypatch: pytest.MonkeyPatch,
    reply: str,
) -> None:
    """Attack (a): the answer would land in another's inbox, or as an event, batch or command."""
    catalog = await connect("catalog")
    handled: list[str] = []

    async def sources(request: Request) -> Message:
        handled.append(request.caller)
        return SourceList(sources=[])

    await catalog.serve({"sources": sources})
    sent: list[str] = []
    publish, publish_parts = catalog._nc.publish, lean.publish_parts

    async def watched(subject: str, *args: Any, **kwargs: Any) -> None:
        sent.append(subject)
        await publish(subject, *args, **kwargs)

    async def watched_parts(client: Any, subject: str, *args: Any) -> None:
        if client is catalog._nc:
            sent.append(subject)
        await publish_parts(client, subject, *args)

    # What the responder really sends, wherever it would go: answers to calls, and to discovery.
    monkeypatch.setattr(catalog._nc, "publish", watched)
    monkeypatch.setattr(lean, "publish_parts", watched_parts)
    raw = await thief("operator", "1")
    await raw.publish(f"{ROOT}.svc.catalog.1.sources.operator-1", encode(Sources()), reply=reply)
    await raw.publish(f"{ROOT}.svc.catalog.1.status.operator-1", encode(Status()), reply=reply)
    # Discovery's subjects name no caller; only operators may ask, and it answers them alone.
    if not reply.startswith("_INBOX.operator-"):
        await raw.publish("$SRV.PING", b"", reply=reply)
        await raw.publish("$SRV.INFO.strandline-catalog", b"", reply=reply)
    # Requests on one subscription are handled in order: once these are answered, those were seen.
    operator = await connect("operator")
    assert await operator.call("catalog", "1", "sources", Sources(), SourceList)
    assert await operator.call("catalog", "1", "status", Status(), StatusIs)
    await operator._nc.request("$SRV.PING", b"", timeout=2)
    await operator._nc.request("$SRV.INFO.strandline-catalog", b"", timeout=2)
    assert handled == ["operator-1"]
    assert reply not in sent
    assert len(sent) == 4


async def test_the_caller_in_the_subject_is_proved_by_the_bus(
    thief: Thief,
) -> None:
    raw = await thief("agent", "web-1")
    own = f"{ROOT}.svc.store.store-1.status."
    assert await raw.publish(f"{own}agent-web-1", b"", reply="_INBOX.agent-web-1.x")
    assert not await raw.publish(f"{own}operator-1", b"", reply="_INBOX.operator-1.x")


async def test_direct_get_can_store_foreign_bytes_and_everybody_refuses_them(
    site: SiteBus, connect: Connect, thief: Thief
) -> None:
    """Attack (b): JetStream answers on the reply subject, with its own rights."""
    agent = await connect("agent")
    example = MESSAGES["event-point_committed"]
    assert isinstance(example, Event)
    real = Event(
        **{f: getattr(example, f) for f in example.__struct_fields__} | {"origin": "agent-web-1"}
    )
    # Without Nats-Msg-Id, which the answer would repeat: EVENTS would drop it as a double.
    await agent.publish(real.subject(), encode(real))
    targets = {
        "event": f"{ROOT}.evt.store-store-1.point.committed.{SOURCE}",
        "command": f"{ROOT}.cmd.agent.web-1.{SOURCE}.express_full",
        "shipment": f"{ROOT}.blk.store-1.web-1.{SOURCE}",
    }
    raw = await thief("monitor", "1")
    for target in targets.values():
        assert await raw.publish(f"$JS.API.DIRECT.GET.EVENTS.{real.subject()}", b"", reply=target)
    stored = await _stored_under(site, targets)

    assert stored["event"] == stored["command"] == stored["shipment"] == encode(real)
    accept_event(stored["event"], real.subject())
    with pytest.raises(BadMessage):
        accept_event(stored["event"], targets["event"])
    with pytest.raises(BadMessage):
        accept_command(stored["command"], parse_command(targets["command"]), "hq", site.trusted)
    with pytest.raises(BadMessage):
        accept_shipment(stored["shipment"])


async def test_a_publish_ack_can_be_stored_and_everybody_refuses_it(
    site: SiteBus, thief: Thief
) -> None:
    targets = {
        "event": f"{ROOT}.evt.store-store-1.point.committed.{SOURCE}",
        "command": f"{ROOT}.cmd.store.store-1.{SOURCE}.verify",
        "shipment": f"{ROOT}.blk.store-1.db-1.{SOURCE}",
    }
    raw = await thief("agent", "web-1")
    for target in targets.values():
        assert await raw.publish(f"{ROOT}.evt.agent-web-1.job.running.s1", b"x", reply=target)
    stored = await _stored_under(site, targets)

    assert all(json.loads(data)["stream"] == EVENTS for data in stored.values())
    with pytest.raises(BadMessage):
        accept_event(stored["event"], targets["event"])
    with pytest.raises(BadMessage):
        accept_command(stored["command"], parse_command(targets["command"]), "hq", site.trusted)
    with pytest.raises(BadMessage):
        accept_shipment(stored["shipment"])


async def test_a_true_command_replayed_to_another_target_is_refused(
    site: SiteBus, connect: Connect, thief: Thief
) -> None:
    command = MESSAGES["command-express_full"]
    assert isinstance(command, Command)
    signed = encode(sign(site.operator_seed, "command", encode(command)))
    source = f"{ROOT}.cmd.agent.web-1.{SOURCE}.express_full"
    await (await connect("operator")).publish(source, signed)
    target = f"{ROOT}.cmd.agent.db-1.{SOURCE}.express_full"
    raw = await thief("agent", "web-1")
    assert await raw.publish(f"$JS.API.DIRECT.GET.COMMANDS.{source}", b"", reply=target)
    stored = await _stored_under(site, {"command": target})

    assert stored["command"] == signed
    accept_command(stored["command"], parse_command(source), "hq", site.trusted)
    with pytest.raises(BadSignature):
        accept_command(stored["command"], parse_command(target), "hq", site.trusted)


async def test_headers_cannot_make_an_event_look_like_anothers(connect: Connect) -> None:
    """Headers that only the server should set change nothing of what is read."""
    agent = await connect("agent")
    mine = agent.subjects.event("agent-web-1", "job", "running", "s1")
    forged = {
        "Nats-Subject": agent.subjects.event("store-store-1", "point", "committed", "s1"),
        "Nats-Sequence": "999",
        "Status": "404",
        "Description": "Message Not Found",
    }
    await agent.publish(mine, b"forged", headers=forged)
    await agent.publish(mine, b"after")
    operator = await connect("operator")
    page = await operator.read(EVENTS, f"{ROOT}.evt.>")
    assert [(s.subject, s.seq, s.data) for s in page] == [(mine, 1, b"forged"), (mine, 2, b"after")]
    newest = await operator.last_stored(EVENTS, mine)
    assert newest is not None
    assert newest.seq == 2

    taken: list[tuple[str, bytes]] = []
    stop = asyncio.Event()

    async def take(deliveries: list[Delivery]) -> None:
        taken.extend((delivery.subject, delivery.data) for delivery in deliveries)
        if len(taken) == 2:
            stop.set()

    catalog = await connect("catalog")
    await asyncio.wait_for(
        consume(catalog, EVENTS, "catalog", take, batch=4, stop=stop), timeout=10
    )
    assert taken == [(mine, b"forged"), (mine, b"after")]


async def test_a_responder_publishes_to_no_inbox_that_asked_nothing(
    connect: Connect, thief: Thief
) -> None:
    """Attack (c): allow_responses is for one answer to each request, and no more."""
    victim = await thief("operator", "1")
    got: list[bytes] = []

    async def on_message(message: Msg) -> None:
        got.append(message.data)

    await victim.nc.subscribe("_INBOX.operator-1.>", cb=on_message)
    await victim.flush()
    store = await thief("store", "store-1")
    replies: list[str] = []

    async def on_request(message: Msg) -> None:
        replies.append(message.reply)

    await store.nc.subscribe(f"{ROOT}.svc.store.store-1.status.*", cb=on_request)
    await store.flush()
    assert not await store.publish("_INBOX.operator-1.unasked", b"forged")

    await victim.publish(
        f"{ROOT}.svc.store.store-1.status.operator-1", b"", reply="_INBOX.operator-1.asked"
    )
    await until(lambda: replies, "the request")
    assert await store.publish(replies[0], b"answer")
    assert not await store.publish(replies[0], b"a second answer")
    assert not await store.publish("_INBOX.operator-1.other", b"forged")
    await until(lambda: got, "the answer")
    await victim.flush()
    assert got == [b"answer"]


async def _stored_under(site: SiteBus, targets: dict[str, str]) -> dict[str, bytes]:
    """Return the last message of each subject."""
    auditor = await site.audit()
    streams = {"event": "EVENTS", "command": "COMMANDS", "shipment": "BLOCKS_store-1"}
    found: dict[str, bytes] = {}

    async def read(kind: str) -> bytes | None:
        body = json.dumps({"last_by_subj": targets[kind]}).encode()
        answer = await auditor.request(f"$JS.API.STREAM.MSG.GET.{streams[kind]}", body, timeout=2)
        message = json.loads(answer.data).get("message")
        return None if message is None else base64.b64decode(message["data"])

    for kind in targets:
        found[kind] = await until(partial(read, kind), f"bytes under {targets[kind]}")
    await auditor.close()
    return found
