"""The bus: one connection in one role, and everything that is done over it.

nats-py's pitfalls are handled here and nowhere else (tests/integration/runtime):
publishing waits for JetStream's answer under a deadline; headers count against max_payload; a
connection that nats-py has closed for good is reported by `closed`; slow consumers are counted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from strandline_contracts.codec import Message, decode, encode
from strandline_contracts.names import Role, caller
from strandline_contracts.queries import Refused
from strandline_contracts.subjects import Subjects, inbox_prefix
from strandline_runtime import lean, metrics, responder
from strandline_runtime.errors import BusError, NobodyListens, RemoteRefused, Unreachable
from strandline_runtime.keys import read_credential
from strandline_runtime.logs import logger
from strandline_runtime.responder import Encoded, Handler, Request
from strandline_runtime.settings import Settings

__all__ = ["Bus", "Encoded", "Handler", "Listener", "Request", "StatusOf", "Stored", "patiently"]

T = TypeVar("T")

lean.install()

PAYLOAD_RESERVE_BYTES = 64 * 1024
"""What a message's headers and wrapping may take of the server's max_payload."""
SEND_BUFFER_BYTES = 8 * 1024 * 1024
READ_PAGE_BYTES = 4 * 1024 * 1024
READ_PAGE_MSGS = 256
SNAPSHOT_MAX_SUBJECTS = 100_000
API_TIMEOUT_S = 5.0
PATIENT_TRIES = 3

# JetStream's error codes: what they are here, and whether to publish the same again can help.
_FULL = ("bus.full", True)
_CONFLICT = ("bus.conflict", False)
_BY_JETSTREAM_CODE = {
    10077: _FULL,  # the stream's (or the subject's) limit is reached
    10047: _FULL,  # storage resources exceeded
    10023: _FULL,  # insufficient resources
    10002: _FULL,  # the account's resources
    10071: _CONFLICT,  # wrong last sequence
    10164: _CONFLICT,
    10054: ("bus.too_large", False),  # more than the stream's max_msg_size
}
_DUPLICATE_HEADER = "Nats-Msg-Id"
_HEADER_LINE_BYTES = len("NATS/1.0\r\n\r\n")


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as a stream holds it; empty `data` in the policy bucket means deleted."""

    subject: str
    seq: int
    time_ns: int
    data: bytes


Listener = Callable[[str, bytes], Awaitable[None]]
"""Takes a subject and the data of a message on it."""
StatusOf = Callable[[], tuple[bool, dict[str, str]]]
"""Tells whether the service is ready, and figures a person understands."""


class Bus:
    """A connection to the bus in one role. Make it with `connect`.

    `me` is the caller token of this credential. `status` answers the call of this name.
    """

    def __init__(self, site: str, role: Role, instance: str) -> None:
        self.site = site
        self.role: Role = role
        self.instance = instance
        self.me = caller(role, instance)
        self.subjects = Subjects(site)
        self.status: StatusOf = lambda: (True, {})
        self.reconnects = 0
        self._closing = False
        self._nc = Client()
        self._up = asyncio.Event()
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._callbacks: list[Callable[[], Awaitable[None]]] = []
        self._reconnection: asyncio.Task[None] | None = None
        self._responder: responder.Responder | None = None
        self._log = logger()

    @classmethod
    async def connect(cls, settings: Settings, role: Role, *, wait_s: float = 30.0) -> Bus:
        """Connect, trying for `wait_s` seconds; afterwards the connection comes back by itself.

        Raises BusError (bus.down), KeyFileError.
        """
        bus = cls(settings.site, role, settings.instance)
        try:
            async with asyncio.timeout(wait_s):
                await bus._nc.connect(
                    servers=settings.nats_urls,
                    name=bus.me,
                    nkeys_seed_str=read_credential(settings.credential),
                    inbox_prefix=inbox_prefix(bus.me),
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    connect_timeout=5,
                    ping_interval=5,
                    max_outstanding_pings=3,
                    pending_size=SEND_BUFFER_BYTES,
                    error_cb=bus._on_error,
                    disconnected_cb=bus._on_disconnected,
                    reconnected_cb=bus._on_reconnected,
                    closed_cb=bus._on_closed,
                )
        except TimeoutError as error:
            reason = bus._nc.last_error or "no answer"
            await bus._nc.close()
            raise BusError(
                f"no connection to {', '.join(settings.nats_urls)} as {bus.me}: {reason}",
                code="bus.down",
            ) from error
        bus._up.set()
        metrics.CONNECTED.set(1)
        return bus

    @property
    def max_payload_bytes(self) -> int:
        """The most that a message's payload should have: the server's max_payload less 64 KiB."""
        return self._nc.max_payload - PAYLOAD_RESERVE_BYTES

    @property
    def connected(self) -> bool:
        return self._nc.is_connected

    # Publishing

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        msg_id: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """Publish to a stream; return when JetStream has confirmed it, else raise BusError.

        It may have been stored although BusError was raised: publish again with the same `msg_id`,
        and receivers must bear doubles. Codes: bus.down, bus.timeout, bus.full, bus.conflict,
        bus.refused, bus.too_large.
        """
        sent = dict(headers or {})
        if msg_id:
            sent[_DUPLICATE_HEADER] = msg_id
        try:
            answer = await self._ask(subject, payload, timeout_s=timeout_s, headers=sent or None)
            _check_confirmed(subject, answer.data)
        except BusError as error:
            metrics.PUBLISHED.labels(error.code).inc()
            raise
        metrics.PUBLISHED.labels("ok").inc()

    async def say(self, subject: str, payload: bytes) -> None:
        """Publish without confirmation; lost when the bus is down, and then no error."""
        if not self.connected:
            return
        self._check_size(subject, payload, None)
        try:
            await self._nc.publish(subject, payload)
        except (nats.errors.Error, OSError) as error:
            self._log.debug("bus.said_in_vain", subject=subject, error=str(error))

    async def _ask(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout_s: float,
        headers: dict[str, str] | None = None,
    ) -> Msg:
        """Send a request and return the answer, all under one deadline."""
        self._check_size(subject, payload, headers)
        code = "bus.down"
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
                code = "bus.timeout"
                answer = await self._nc.request(
                    subject, payload, timeout=timeout_s, headers=headers
                )
                _heed_cancellation()
                return answer
        except nats.errors.NoRespondersError as error:
            raise BusError(f"nobody listens to {subject}", code="bus.unreachable") from error
        except (TimeoutError, nats.errors.TimeoutError) as error:
            raise BusError(f"no answer on {subject} in {timeout_s:g} s", code=code) from error
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"{subject}: {error}", code="bus.down") from error

    def _check_size(self, subject: str, payload: bytes, headers: Mapping[str, str] | None) -> None:
        # nats-py counts the payload alone; the server counts both and closes the connection.
        size_bytes = len(payload) + _headers_bytes(headers)
        if size_bytes > self._nc.max_payload > 0:
            raise BusError(
                f"{size_bytes} bytes on {subject} are more than the bus's {self._nc.max_payload}",
                code="bus.too_large",
                retryable=False,
            )

    # Asking and answering

    async def call(
        self,
        role: Role,
        instance: str,
        call: str,
        request: Message,
        reply: type[T],
        *,
        timeout_s: float = 5.0,
    ) -> T:
        """Ask a service and return its answer, of type `reply` (which may be a union).

        Raises RemoteRefused (it said no), Unreachable (nobody answered), BadMessage.
        """
        subject = self.subjects.call(role, instance, call, self.me)
        try:
            answer = await self._ask(subject, encode(request), timeout_s=timeout_s)
        except BusError as error:
            if error.code == "bus.too_large":
                raise
            kind = NobodyListens if error.code == "bus.unreachable" else Unreachable
            raise kind(f"{role} {instance} did not answer {call}: {error}") from error
        found = decode(answer.data, cast("type[T | Refused]", reply | Refused))
        if isinstance(found, Refused):
            raise RemoteRefused.of(found)
        return found

    async def serve(self, handlers: Mapping[str, Handler]) -> None:
        """Answer these calls (by name) and `status` until `close`; see responder.py."""
        self._responder = responder.Responder(self._nc, self.subjects, self.role, self.instance)
        await self._responder.start(handlers, self._status)
        await self._flush()

    def _status(self) -> tuple[bool, dict[str, str]]:
        # `status` may be replaced after `serve`.
        return self.status()

    # Reading streams

    async def last(self, stream: str, subject: str) -> bytes | None:
        """Return the data of the last message of exactly `subject`, None where there is none."""
        stored = await self.last_stored(stream, subject)
        return None if stored is None else stored.data

    async def last_stored(self, stream: str, subject: str) -> Stored | None:
        """As `last`, with sequence and time (for Nats-Expected-Last-Subject-Sequence)."""
        answer = await patiently(
            lambda: self._ask(
                f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", timeout_s=API_TIMEOUT_S
            )
        )
        status = _status(answer)
        if status == "404":
            return None
        _check_status(stream, status, answer)
        return _stored(answer)

    async def snapshot(self, stream: str, filter_subject: str) -> AsyncIterator[Stored]:
        """Give the last message of each subject that matches, by rising sequence.

        Reads the stream through in order rather than by `multi_last`, which ends at 1,024 subjects.
        """
        newest: dict[str, Stored] = {}
        after_seq = 0
        while page := await self.read(stream, filter_subject, after_seq=after_seq):
            for stored in page:
                newest.pop(stored.subject, None)
                newest[stored.subject] = stored
            after_seq = page[-1].seq
            if len(newest) > SNAPSHOT_MAX_SUBJECTS:
                raise BusError(
                    f"{filter_subject} has more than {SNAPSHOT_MAX_SUBJECTS} subjects",
                    code="bus.too_large",
                    retryable=False,
                )
        for stored in newest.values():
            yield stored

    async def read(self, stream: str, filter_subject: str, *, after_seq: int = 0) -> list[Stored]:
        """Return the next messages that match, in order; none at the end.

        At most READ_PAGE_MSGS messages and about 4 MiB: go on after the last one's `seq`.
        """
        asked = {
            "seq": after_seq + 1,
            "next_by_subj": filter_subject,
            "batch": READ_PAGE_MSGS,
            "max_bytes": READ_PAGE_BYTES,
        }
        return await patiently(lambda: self._read(stream, asked))

    async def _read(self, stream: str, asked: Mapping[str, object]) -> list[Stored]:
        inbox = self._nc.new_inbox()
        page: list[Stored] = []
        try:
            async with asyncio.timeout(API_TIMEOUT_S):
                await self._up.wait()
                subscription = await self._nc.subscribe(
                    inbox,
                    pending_msgs_limit=2 * READ_PAGE_MSGS,
                    pending_bytes_limit=4 * READ_PAGE_BYTES,
                )
                try:
                    await self._nc.publish(
                        f"$JS.API.DIRECT.GET.{stream}", json.dumps(asked).encode(), reply=inbox
                    )
                    while True:
                        answer = await subscription.next_msg(timeout=API_TIMEOUT_S)
                        status = _status(answer)
                        if status in ("204", "404"):  # end of batch; nothing (more) matches
                            return page
                        _check_status(stream, status, answer)
                        page.append(_stored(answer))
                finally:
                    await subscription.unsubscribe()
        except (TimeoutError, nats.errors.TimeoutError) as error:
            raise BusError(f"reading {stream}: no answer", code="bus.timeout") from error
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"reading {stream}: {error}", code="bus.down") from error

    async def api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask JetStream's API (`$JS.API.` + `subject`); the answer may hold an `error`."""
        payload = json.dumps(body).encode() if body is not None else b""
        answer = await self._ask(f"$JS.API.{subject}", payload, timeout_s=API_TIMEOUT_S)
        return cast("dict[str, Any]", json.loads(answer.data))

    # Subscribing

    async def subscribe(
        self,
        subject: str,
        handler: Listener,
        *,
        pending_bytes_limit: int = 8 * 1024 * 1024,
        pending_msgs_limit: int = 4096,
    ) -> Callable[[], Awaitable[None]]:
        """Hand each message on `subject` to `handler`, one at a time; return what ends it.

        What comes while so much waits is dropped and counted. An error in `handler` is logged.
        """

        async def listen(message: Msg) -> None:
            try:
                await handler(message.subject, message.data)
            except Exception:  # noqa: BLE001 - one bad message must not end the subscription
                metrics.BUS_ERRORS.labels("listener").inc()
                self._log.exception("bus.listener_failed", subject=message.subject)

        subscription = await self._nc.subscribe(
            subject,
            cb=listen,
            pending_bytes_limit=pending_bytes_limit,
            pending_msgs_limit=pending_msgs_limit,
        )
        # The server has the subscription when this returns: what is published now will come.
        await self._flush()

        async def end() -> None:
            if not self._nc.is_closed:
                await subscription.unsubscribe()

        return end

    async def _flush(self) -> None:
        """Return when the server has seen all that was sent before."""
        if self.connected:
            try:
                # nats-py writes the PING ahead of what its buffer holds: the first round trip only
                # sees the buffer sent, the second is answered after it.
                await self._nc.flush(timeout=10)
                await self._nc.flush(timeout=10)
            except (nats.errors.Error, OSError) as error:
                raise BusError(f"the bus went away: {error}", code="bus.down") from error

    # Life

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call `callback` each time that the bus has come back; its errors are logged."""
        self._callbacks.append(callback)

    async def closed(self) -> str:
        """Wait until the connection is closed for good (nobody reconnects); return the reason."""
        return await asyncio.shield(self._closed)

    async def close(self) -> None:
        """End: stop answering, send what is buffered, disconnect."""
        self._closing = True
        if self._responder is not None:
            await self._responder.stop()
        if self._reconnection is not None:
            self._reconnection.cancel()
        await self._nc.close()

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            metrics.SLOW_CONSUMER.inc()
            self._log.warning("bus.slow_consumer", subject=error.subject)
            return
        metrics.BUS_ERRORS.labels(type(error).__name__).inc()
        level = self._log.debug if isinstance(error, OSError) else self._log.warning
        level("bus.error", error=str(error) or type(error).__name__)

    async def _on_disconnected(self) -> None:
        self._up.clear()
        metrics.CONNECTED.set(0)
        if not self._closing:
            self._log.warning("bus.disconnected")

    async def _on_reconnected(self) -> None:
        self.reconnects += 1
        self._up.set()
        metrics.CONNECTED.set(1)
        metrics.RECONNECTS.inc()
        self._log.info("bus.reconnected")
        # In a task of its own: nats-py waits for this callback before it is wholly connected.
        if self._reconnection is not None:
            self._reconnection.cancel()
        self._reconnection = asyncio.create_task(self._tell_reconnected())

    async def _tell_reconnected(self) -> None:
        for callback in self._callbacks:
            try:
                await callback()
            except Exception:  # noqa: BLE001 - the others are called all the same
                metrics.BUS_ERRORS.labels("on_reconnect").inc()
                self._log.exception("bus.on_reconnect_failed")

    async def _on_closed(self) -> None:
        self._up.clear()
        metrics.CONNECTED.set(0)
        if not self._closed.done():
            self._closed.set_result(str(self._nc.last_error or "closed"))


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what `ask` gives, asking again where the bus may just be being started again.

    For what may be asked twice. Raises what `ask` raises at last.
    """
    for _ in range(PATIENT_TRIES - 1):
        try:
            return await ask()
        except BusError as error:
            if error.code not in ("bus.down", "bus.timeout"):
                raise
    return await ask()


def _headers_bytes(headers: Mapping[str, str] | None) -> int:
    if not headers:
        return 0
    return _HEADER_LINE_BYTES + sum(
        len(key.encode()) + len(value.encode()) + 4 for key, value in headers.items()
    )


def _check_confirmed(subject: str, data: bytes) -> None:
    """Raise BusError unless `data` is the PubAck of a stream."""
    try:
        answer = json.loads(data)
        failed = answer.get("error")
        stream = answer.get("stream")
    except (ValueError, AttributeError) as error:
        raise BusError(f"{subject}: an answer that is no PubAck", code="bus.refused") from error
    if failed is None and stream:
        return
    problem = failed or {"description": "the answer names no stream"}
    code, retryable = _BY_JETSTREAM_CODE.get(problem.get("err_code", 0), ("bus.refused", True))
    raise BusError(f"{subject}: {problem.get('description')}", code=code, retryable=retryable)


def _status(answer: Msg) -> str:
    """Return the status of an answer that the server itself gives, empty for a stored message.

    Whoever published a message may have given it a header called Status; the server adds
    Nats-Subject to stored messages alone, after their own headers, and the last one counts.
    """
    headers = answer.headers or {}
    return "" if "Nats-Subject" in headers else headers.get("Status", "")


def _check_status(stream: str, status: str, answer: Msg) -> None:
    if status:
        text = (answer.headers or {}).get("Description", "")
        raise BusError(f"reading {stream}: {status} {text}", code="bus.refused")


def _stored(answer: Msg) -> Stored:
    headers = answer.headers or {}
    try:
        return Stored(
            subject=headers["Nats-Subject"],
            seq=int(headers["Nats-Sequence"]),
            time_ns=_rfc3339_ns(headers["Nats-Time-Stamp"]),
            data=answer.data,
        )
    except (KeyError, ValueError) as error:
        raise BusError(f"an answer of JetStream without {error}", code="bus.refused") from error


def _rfc3339_ns(text: str) -> int:
    """Return the Unix nanoseconds of a time such as 2026-01-02T03:04:05.678901234Z."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000_000 + int((fraction or "0").ljust(9, "0")[:9])


def _heed_cancellation() -> None:
    # nats-py waits with asyncio.wait_for, which on Python 3.11 loses a cancellation that comes
    # together with the answer: whoever cancelled would wait for ever.
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
