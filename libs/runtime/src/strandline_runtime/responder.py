"""Answering requests: who may be answered where, how many at once, what an error becomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request as MicroRequest
from nats.micro.service import EndpointConfig, Service, ServiceConfig

from strandline_contracts.codec import Message, decode, encode
from strandline_contracts.errors import BadMessage, StrandlineError
from strandline_contracts.names import Role, caller
from strandline_contracts.queries import Refused, Status, StatusIs
from strandline_contracts.subjects import Subjects, is_reply_to, parse_call
from strandline_runtime import lean, metrics
from strandline_runtime.logs import logger

MAX_REQUESTS_IN_FLIGHT = 32
"""More wait in the subscriptions, which are bounded in bytes."""
PENDING_BYTES = 8 * 1024 * 1024
STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request to answer: who asks (a caller token, proved by the bus) and the message's bytes."""

    caller: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer that is encoded already: the bytes of `parts`, one after the other."""

    parts: Sequence[bytes | memoryview]

    def __len__(self) -> int:
        return sum(map(len, self.parts))


Handler = Callable[[Request], Awaitable[Message | Encoded]]


class Responder:
    """Answers the calls of one role and instance, found through nats.micro's discovery.

    A request is answered only in its caller's own inbox. A StrandlineError of a handler becomes
    Refused with its fields; any other becomes Refused(internal) and a traceback in the log.
    """

    def __init__(self, client: Client, subjects: Subjects, role: Role, instance: str) -> None:
        self._client = client
        self._subjects = subjects
        self._role: Role = role
        self._instance = instance
        self._started_at_ns = time.time_ns()
        self._slots = asyncio.Semaphore(MAX_REQUESTS_IN_FLIGHT)
        self._running: set[asyncio.Task[None]] = set()
        self._micro: _Discovery | None = None
        self._log = logger()

    async def start(
        self, handlers: Mapping[str, Handler], status: Callable[[], tuple[bool, dict[str, str]]]
    ) -> None:
        """Subscribe to each call."""

        async def answer_status(request: Request) -> Message:
            decode(request.data, Status)
            ready, detail = status()
            return StatusIs(
                role=self._role,
                instance=self._instance,
                version=version("strandline-runtime"),
                ready=ready,
                started_at_ns=self._started_at_ns,
                detail=detail,
            )

        me = caller(self._role, self._instance)
        config = ServiceConfig(
            name=f"strandline-{self._role}",
            version=version("strandline-runtime"),
            metadata={"instance": self._instance, "site": self._subjects.site},
        )
        self._micro = _Discovery(self._client, config)
        await self._micro.start()
        for call, handler in {**handlers, "status": answer_status}.items():
            subject = self._subjects.call(self._role, self._instance, call, "any")
            await self._micro.add_endpoint(
                EndpointConfig(
                    name=call,
                    handler=self._taker(call, handler),
                    # Of this credential alone: no queue group across instances.
                    queue_group=me,
                    subject=f"{subject.removesuffix('.any')}.*",
                )
            )
        self._micro.bound_pending()

    async def stop(self) -> None:
        """Take no more requests and let those being answered end, for at most 5 s."""
        if self._micro is not None and self._client.is_connected:
            await self._micro.stop()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=STOP_S)
            for task in late:
                task.cancel()

    def _taker(self, call: str, handler: Handler) -> Callable[[MicroRequest], Awaitable[None]]:
        async def take(micro_request: MicroRequest) -> None:
            # nats.micro keeps the reply subject to itself, and it is what must be checked.
            message = micro_request._msg
            asker = self._asker(message)
            if asker is None:
                return
            await self._slots.acquire()
            task = asyncio.create_task(self._answer(call, handler, message, asker))
            self._running.add(task)
            task.add_done_callback(self._done)

        return take

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slots.release()

    def _asker(self, message: Msg) -> str | None:
        """Return who asks, or None if the answer would go anywhere but to the asker."""
        try:
            asker = parse_call(message.subject).caller
        except BadMessage:
            asker = ""
        if asker and is_reply_to(asker, message.reply):
            return asker
        metrics.FOREIGN_REPLIES.inc()
        self._log.warning("bus.foreign_reply", subject=message.subject, reply=message.reply)
        return None

    async def _answer(self, call: str, handler: Handler, message: Msg, asker: str) -> None:
        began = time.perf_counter()
        reply, outcome = await self._outcome(call, handler, Request(asker, message.data))
        data = reply if isinstance(reply, Encoded) else Encoded([encode(reply)])
        if len(data) > self._client.max_payload > 0:
            refused = Refused(code="bus.too_large", message=f"the answer has {len(data)} bytes")
            data, outcome = Encoded([encode(refused)]), "refused"
        try:
            await lean.publish_parts(self._client, message.reply, data.parts)
        except (nats.errors.Error, OSError) as error:
            outcome = "lost"
            self._log.warning("bus.answer_lost", call=call, caller=asker, error=str(error))
        metrics.REQUESTS.labels(call, outcome).inc()
        metrics.REQUEST_SECONDS.labels(call).observe(time.perf_counter() - began)

    async def _outcome(
        self, call: str, handler: Handler, request: Request
    ) -> tuple[Message | Encoded, str]:
        try:
            return await handler(request), "ok"
        except StrandlineError as error:
            self._log.info("bus.refused", call=call, caller=request.caller, code=error.code)
            refused = Refused(
                code=error.code,
                message=error.message,
                hint=error.hint,
                retryable=error.retryable,
            )
            return refused, "refused"
        except Exception:  # noqa: BLE001 - the asker gets an answer, the log the traceback
            self._log.exception("bus.handler_failed", call=call, caller=request.caller)
            return Refused(code="internal", message="an internal error: see the log"), "internal"


class _Discovery(Service):
    """nats.micro's service, which answers discovery in an operator's inbox and nowhere else."""

    async def _handle_ping_request(self, msg: Msg) -> None:
        if _asked_by_operator(msg):
            await super()._handle_ping_request(msg)

    async def _handle_info_request(self, msg: Msg) -> None:
        if _asked_by_operator(msg):
            await super()._handle_info_request(msg)

    async def _handle_stats_request(self, msg: Msg) -> None:
        if _asked_by_operator(msg):
            await super()._handle_stats_request(msg)

    def bound_pending(self) -> None:
        """Lower what each endpoint keeps waiting; nats.micro offers no setting for it."""
        for endpoint in self._endpoints:
            subscription = endpoint._subscription
            if subscription is not None:
                subscription._pending_bytes_limit = PENDING_BYTES


def _asked_by_operator(message: Msg) -> bool:
    asker = message.reply.removeprefix("_INBOX.").partition(".")[0]
    if asker.startswith("operator-") and is_reply_to(asker, message.reply):
        return True
    metrics.FOREIGN_REPLIES.inc()
    logger().warning("bus.foreign_reply", subject=message.subject, reply=message.reply)
    return False
