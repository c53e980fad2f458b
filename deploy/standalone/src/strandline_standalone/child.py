"""One process of the stack: started so that it cannot outlive us, logged, restarted, stopped."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from strandline_runtime.patience import set_within
from strandline_standalone.errors import UnitFailed
from strandline_standalone.logfile import LogFile
from strandline_standalone.restart import (
    MAX_DEATHS_BEFORE_READY,
    deaths_in_a_row,
    delay_s,
    why,
)
from strandline_standalone.spawn import spawn

READY_POLL_S = 0.03
_PIPE_READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Unit:
    """What is to run: a name, a command, when it is ready, how it is ended.

    `is_ready` gets the process id. `death_signal` comes from the kernel if the supervisor dies.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    is_ready: Callable[[int], Awaitable[bool]]
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s: float = 15.0
    death_signal: signal.Signals = signal.SIGKILL
    spawn_options: Mapping[str, Any] = field(default_factory=dict)
    before_start: Callable[[], None] = lambda: None


class Inherited(NamedTuple):
    """Descriptors that each child gets: the pipe whose end tells our death, and the lock file."""

    watch: int
    alive: int


class Child:
    """Keeps one unit running until `stop`."""

    def __init__(
        self,
        unit: Unit,
        inherited: Inherited,
        log: LogFile,
        tell: Callable[[str], None],
        on_start: Callable[[], None],
    ) -> None:
        self.unit = unit
        self.pid = 0
        self._inherited = inherited
        self._log = log
        self._tell = tell
        self._on_start = on_start
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure = ""

    @property
    def name(self) -> str:
        return self.unit.name

    async def start(self, within_s: float) -> None:
        """Start it and return when it is ready for the first time, else raise UnitFailed."""
        self._task = asyncio.create_task(self._keep())
        if not await set_within(self._ready, within_s):
            self._failure = f"was not ready after {within_s:g} s"
        if self._failure:
            lines = "\n  ".join(self._log.tail()) or "(it said nothing)"
            raise UnitFailed(f"{self.name} {self._failure}; its last lines:\n  {lines}")

    async def stop(self) -> None:
        """End it by its stop signal, or by SIGKILL if that takes too long."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _keep(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            returncode = await self._run_once()
            if self._stopping.is_set():
                return
            lived_s = time.monotonic() - began
            deaths = deaths_in_a_row(deaths, lived_s)
            text = f"{why(returncode)} after {lived_s:.1f} s"
            if not self._ready.is_set() and deaths >= MAX_DEATHS_BEFORE_READY:
                self._failure = text
                self._ready.set()
                return
            last = self._log.tail(1)
            self._tell(
                f"{self.name} {text}; starting it again in {delay_s(deaths):g} s"
                + (f"; it last said: {last[0]}" if last else "")
            )
            await set_within(self._stopping, delay_s(deaths))

    async def _run_once(self) -> int:
        """Run the process to its end, asked for or not, and return its code."""
        try:
            process = await self._spawn()
        except OSError as error:
            self._tell(f"cannot start {self.unit.argv[0]}: {error}")
            return 127
        self.pid = process.pid
        self._on_start()
        reading = asyncio.create_task(self._read(process))
        waiting = asyncio.create_task(self._wait_ready(process.pid))
        stopping = asyncio.create_task(self._stopping.wait())
        ended = asyncio.create_task(process.wait())
        await asyncio.wait((stopping, ended), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        stopping.cancel()
        if not ended.done():
            await self._end(process, ended)
        self.pid = 0
        await _settle(reading)
        return await ended

    async def _spawn(self) -> asyncio.subprocess.Process:
        self.unit.before_start()
        return await spawn(
            self.unit.argv,
            env=self.unit.env,
            death_signal=self.unit.death_signal,
            inherited=self._inherited,
            options=self.unit.spawn_options,
        )

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(_PIPE_READ_BYTES):
            try:
                self._log.write(data)
            except OSError as error:  # a full disk must not stop the process
                self._tell(f"cannot write {self._log.path}: {error}")
                await asyncio.sleep(1)

    async def _wait_ready(self, pid: int) -> None:
        while not await self.unit.is_ready(pid):  # noqa: ASYNC110 (another process's state)
            await asyncio.sleep(READY_POLL_S)
        self._ready.set()

    async def _end(self, process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
        process.send_signal(self.unit.stop_signal)
        done, _ = await asyncio.wait((ended,), timeout=self.unit.stop_s)
        if not done:
            self._tell(f"{self.name} did not stop in {self.unit.stop_s:g} s: killed")
            process.kill()
            await ended


async def _settle(reading: asyncio.Task[None]) -> None:
    """Take the last words; a grandchild that still holds the pipe is not waited for."""
    done, _ = await asyncio.wait((reading,), timeout=1)
    if not done:
        reading.cancel()
