"""Pulling from a provisioned durable consumer, with windows bounded in messages.

Pull requests are made here rather than by nats-py's fetch, which gives what it has only when the
batch is full or the time is over, and raises when there was nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from strandline_runtime import metrics
from strandline_runtime.bus import Bus
from strandline_runtime.errors import BusError
from strandline_runtime.logs import logger

PULL_EXPIRES_S = 5.0
"""After so long the server gives a pull request up; we ask anew."""
LOOK_S = 0.5
REFUSED_PAUSE_S = 1.0
"""After a pull request was refused (no such consumer, too many waiting)."""
MAX_MESSAGE_BYTES = 8 * 1024 * 1024


class Delivery:
    """A message that a durable delivered, to be settled once: ack, nak or term.

    `sequence` is that in the stream; `deliveries` counts from 1. Settling is not confirmed by the
    bus: what was lost on the way is delivered again, so handling must bear repetition.
    """

    __slots__ = ("_bus", "_reply", "data", "deliveries", "sequence", "subject")

    def __init__(self, bus: Bus, message: Msg) -> None:
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>
        tokens = message.reply.split(".")
        self._bus = bus
        self._reply = message.reply
        self.subject = message.subject
        self.data = message.data
        self.deliveries = int(tokens[4])
        self.sequence = int(tokens[5])

    async def ack(self) -> None:
        """It is done: never deliver it again."""
        await self._settle("acked", b"+ACK")

    async def nak(self, delay_s: float = 0.0) -> None:
        """Deliver it again after `delay_s` seconds."""
        await self._settle("naked", b"-NAK " + json.dumps({"delay": int(delay_s * 1e9)}).encode())

    async def term(self) -> None:
        """It is poison: never deliver it again."""
        await self._settle("termed", b"+TERM")

    async def in_progress(self) -> None:
        """Still working: the time until redelivery begins anew."""
        await self._bus.say(self._reply, b"+WPI")

    async def _settle(self, end: str, word: bytes) -> None:
        metrics.SETTLED.labels(metrics.subject_kind(self.subject), end).inc()
        await self._bus.say(self._reply, word)


async def consume(
    bus: Bus,
    stream: str,
    durable: str,
    handle: Callable[[list[Delivery]], Awaitable[None]],
    *,
    batch: int,
    stop: asyncio.Event,
) -> None:
    """Hand lists of 1 to `batch` deliveries to `handle` until `stop`; it settles each.

    At most `batch` messages wait beside those in hand. An error of `handle` ends the consuming: it
    belongs to who called. An outage of the bus only delays.
    """
    pull = await _Pull.start(bus, stream, durable, batch)
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            taking = asyncio.create_task(pull.take())
            await asyncio.wait({stopping, taking}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                taking.cancel()
                with suppress(asyncio.CancelledError):
                    await taking
                break
            deliveries = taking.result()
            if deliveries:
                await handle(deliveries)
    finally:
        stopping.cancel()
        await pull.end()


class _Pull:
    """A standing subscription that pull requests are answered on."""

    def __init__(self, bus: Bus, stream: str, durable: str, batch: int) -> None:
        self._bus = bus
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._ack_prefix = f"$JS.ACK.{stream}.{durable}."
        self._batch = batch
        self._inbox = bus._nc.new_inbox()
        self._subscription: Subscription | None = None
        self._wanted = 0
        self._asked_at_s = 0.0
        self._not_before_s = 0.0
        self._connection = -1

    @classmethod
    async def start(cls, bus: Bus, stream: str, durable: str, batch: int) -> _Pull:
        pull = cls(bus, stream, durable, batch)
        pull._subscription = await bus._nc.subscribe(
            pull._inbox,
            pending_msgs_limit=2 * batch + 16,
            pending_bytes_limit=(batch + 1) * MAX_MESSAGE_BYTES,
        )
        return pull

    async def take(self) -> list[Delivery]:
        """Return what has come, at most a batch; nothing after half a second of nothing."""
        await self._ask()
        found: list[Delivery] = []
        message = await self._next(LOOK_S)
        while message is not None:
            delivery = self._delivery(message)
            if delivery is not None:
                found.append(delivery)
            if len(found) >= self._batch:
                break
            message = await self._next(0) if self._subscription_has_more() else None
        return found

    async def end(self) -> None:
        """Unsubscribe, and give back what waits unhandled."""
        subscription = self._subscription
        if subscription is None or self._bus._nc.is_closed:
            return
        while self._subscription_has_more():
            message = await self._next(0)
            delivery = None if message is None else self._delivery(message)
            if delivery is not None:
                await delivery.nak()
        with suppress(nats.errors.Error):
            await subscription.unsubscribe()

    async def _ask(self) -> None:
        """Ask for a batch unless one is under way on this connection."""
        now_s = asyncio.get_running_loop().time()
        same = self._connection == self._bus.reconnects
        if self._wanted > 0 and same and now_s < self._asked_at_s + PULL_EXPIRES_S + LOOK_S:
            return
        if not self._bus.connected or now_s < self._not_before_s:
            return
        request = {"batch": self._batch, "expires": int(PULL_EXPIRES_S * 1e9)}
        try:
            await self._bus._nc.publish(
                self._subject, json.dumps(request).encode(), reply=self._inbox
            )
        except (nats.errors.Error, OSError) as error:
            logger().info("consume.not_asked", error=str(error))
            return
        self._wanted, self._asked_at_s = self._batch, now_s
        self._connection = self._bus.reconnects

    def _subscription_has_more(self) -> bool:
        return self._subscription is not None and self._subscription.pending_msgs > 0

    async def _next(self, timeout_s: float) -> Msg | None:
        assert self._subscription is not None
        try:
            return await self._subscription.next_msg(timeout=max(timeout_s, 0.001))
        except (TimeoutError, nats.errors.TimeoutError):
            return None
        except nats.errors.Error as error:
            raise BusError(f"pulling from {self._subject}: {error}", code="bus.down") from error

    def _delivery(self, message: Msg) -> Delivery | None:
        """Return a delivery; None for what the server says about the pull request itself."""
        # By its reply subject, which is the server's: any publisher can set a header Status.
        if not message.reply.startswith(self._ack_prefix):
            status = (message.headers or {}).get("Status", "")
            self._wanted = 0
            if status not in ("404", "408"):  # other than: there was nothing, its time is over
                self._not_before_s = asyncio.get_running_loop().time() + REFUSED_PAUSE_S
                logger().info("consume.pull_refused", subject=self._subject, status=status)
            return None
        self._wanted -= 1
        metrics.CONSUMED.labels(metrics.subject_kind(message.subject)).inc()
        return Delivery(self._bus, message)
