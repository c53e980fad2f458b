"""Receives the commands of a target: nothing missed, nothing done twice, nobody else obeyed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

from strandline_contracts.codec import Message, decode
from strandline_contracts.commands import Assign, Cancel, Command, accept_command
from strandline_contracts.errors import BadMessage, BadSignature
from strandline_contracts.jobs import GetJob, GotJob
from strandline_contracts.signing import Authority
from strandline_contracts.subjects import COMMANDS, NO_SOURCE, CommandSubject, parse_command
from strandline_runtime import metrics
from strandline_runtime.bus import Bus, Request
from strandline_runtime.errors import BusError
from strandline_runtime.job_rules import Future, JobRefused, Known
from strandline_runtime.journal import Journal
from strandline_runtime.logs import bind, logger

READS_AT_ONCE = 16
FUTURE_AGAIN_S = 60.0


class CommandReceiver:
    """Takes the commands of this role and instance, refuses what it must, journals the rest.

    Live from its subscription and, on each connection, from the last message of each subject, read
    directly: `verbs` of each of `sources()`, their cancels, and `assign` of no source.
    `on_command` gets the commands of accepted jobs, and every Assign (which is no job);
    `on_cancel` the id of a job to cancel. `poke` is called when the journal's outbox has grown.
    """

    def __init__(
        self,
        bus: Bus,
        journal: Journal,
        trusted: Mapping[bytes, Authority],
        *,
        verbs: Collection[str],
        sources: Callable[[], list[str]],
        on_command: Callable[[Command], Awaitable[None]],
        on_cancel: Callable[[str], None],
        poke: Callable[[], None] = lambda: None,
    ) -> None:
        self._bus = bus
        self._journal = journal
        self._trusted = trusted
        self._verbs = frozenset(verbs) | {"cancel"}
        self._sources = sources
        self._on_command = on_command
        self._on_cancel = on_cancel
        self._poke = poke
        self._one_at_a_time = asyncio.Lock()
        self._future_refused = False
        self._looking_again: asyncio.Task[None] | None = None
        self._log = logger()

    async def start(self) -> None:
        """Subscribe, read what was missed, and read again on each reconnection."""
        await self._bus.subscribe(
            self._bus.subjects.commands_to(self._bus.role, self._bus.instance), self._receive
        )
        self._bus.on_reconnect(self.catch_up)
        await self.catch_up()

    async def catch_up(self) -> None:
        """Read the last command of each (source, verb); call it too when sources have come.

        Raises BusError when the bus goes away meanwhile: the next reconnection reads again.
        """
        wanted = [(source, verb) for source in self._sources() for verb in sorted(self._verbs)]
        wanted.append((NO_SOURCE, "assign"))
        slots = asyncio.Semaphore(READS_AT_ONCE)

        async def read(source: str, verb: str) -> None:
            subject = self._bus.subjects.command(self._bus.role, self._bus.instance, source, verb)
            async with slots:
                data = await self._bus.last(COMMANDS, subject)
            if data:
                await self._receive(subject, data)

        results = await asyncio.gather(*(read(*each) for each in wanted), return_exceptions=True)
        for result in results:
            if isinstance(result, BusError):
                self._log.warning("command.not_read", code=result.code, error=str(result))
            elif isinstance(result, BaseException):
                raise result

    async def answer_job(self, request: Request) -> Message:
        """The handler of the call `job`: GetJob -> GotJob."""
        asked = decode(request.data, GetJob)
        return GotJob(job=await asyncio.to_thread(self._journal.get, asked.job))

    async def _receive(self, subject: str, data: bytes) -> None:
        try:
            addressed = parse_command(subject)
            command = accept_command(data, addressed, self._bus.site, self._trusted)
        except (BadMessage, BadSignature) as error:
            metrics.BUS_ERRORS.labels("bad_command").inc()
            self._log.warning("command.refused", subject=subject, code=error.code, error=str(error))
            return
        async with self._one_at_a_time:
            with bind(job=command.job, source=command.source):
                await self._obey(command, addressed)

    async def _obey(self, command: Command, addressed: CommandSubject) -> None:
        if isinstance(command.args, Cancel):
            await self._cancel(command.args.target)
        elif isinstance(command.args, Assign):
            await self._on_command(command)
        elif addressed.verb not in self._verbs:
            self._log.warning("command.refused", code="job.verb", verb=addressed.verb)
        else:
            await self._accept(command)

    async def _cancel(self, job_id: str) -> None:
        job = await asyncio.to_thread(self._journal.request_cancel, job_id, time.time_ns())
        self._log.info("job.cancel", target=job_id, state=job.state if job else "unknown")
        self._on_cancel(job_id)
        self._poke()

    async def _accept(self, command: Command) -> None:
        try:
            await asyncio.to_thread(self._journal.accept, command, time.time_ns())
        except Known:
            self._log.debug("job.known")
        except Future as error:
            self._log.warning(
                "command.refused", code=error.code, verb=command.verb, error=str(error)
            )
            self._future_refused = True
            if self._looking_again is None or self._looking_again.done():
                self._looking_again = asyncio.create_task(self._look_again())
        except JobRefused as error:
            self._log.info("command.refused", code=error.code, verb=command.verb)
            self._poke()
        else:
            self._log.info("job.accepted", verb=command.verb, issued_by=command.issued_by)
            self._poke()
            await self._on_command(command)

    async def _look_again(self) -> None:
        """Read the bus every minute while there is what was refused as of the future.

        The command waits there, and when a clock is set right nothing else would say so.
        """
        while self._future_refused:
            self._future_refused = False
            await asyncio.sleep(FUTURE_AGAIN_S)
            await self.catch_up()
