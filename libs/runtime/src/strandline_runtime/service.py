"""The shell around a service's process: settings, logs, bus, health, signals, exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, NoReturn, TypeVar

import structlog
import uvloop

from strandline_contracts.errors import StrandlineError
from strandline_contracts.names import Role
from strandline_runtime import logs
from strandline_runtime.bus import Bus
from strandline_runtime.errors import SettingsError
from strandline_runtime.health import HealthServer
from strandline_runtime.settings import Settings, load

S = TypeVar("S", bound=Settings)

STOP_S = 10.0
EXIT_FAILED = 1
EXIT_BUS_CLOSED = 70
EXIT_SETTINGS = 78


class Service(Generic[S]):
    """What a service's `main` gets.

    `main` returns soon after `stop` is set. Set `detail` to a function that gives figures for the
    `status` call.
    """

    def __init__(self, bus: Bus, settings: S) -> None:
        self.bus = bus
        self.settings = settings
        self.stop = asyncio.Event()
        self.log: structlog.typing.FilteringBoundLogger = logs.logger()
        self.detail: Callable[[], dict[str, str]] = dict
        self._ready = False
        bus.status = lambda: (self.is_ready, self.detail())

    def ready(self, is_ready: bool) -> None:
        """Tell whether the service can do its work now (/readyz and `status`)."""
        self._ready = is_ready

    @property
    def is_ready(self) -> bool:
        return self._ready and self.bus.connected


def run(
    role: Role, settings_type: type[S], main: Callable[[Service[S]], Awaitable[None]]
) -> NoReturn:
    """Run a service until it is told to stop, and exit the process.

    SIGTERM or SIGINT: `stop` is set, `main` has 10 s to return; a second one exits at once. Exit
    codes: 0 stopped, 1 failed, 70 the bus closed the connection for good, 78 wrong settings.
    """
    logs.set_up("info", "json", role=role)
    try:
        settings = load(settings_type)
        logs.set_up(settings.log_level, settings.log_format, role=role, instance=settings.instance)
        if settings.watch_fd >= 0:
            _die_with(settings.watch_fd)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_run(role, settings, main))
    except SettingsError as error:
        logs.logger().error("settings.bad", error=str(error), hint=error.hint)
        code = EXIT_SETTINGS
    except StrandlineError as error:
        logs.logger().error("service.failed", code=error.code, error=str(error), hint=error.hint)
        code = EXIT_FAILED
    except Exception:  # noqa: BLE001 - the last to see it: logged, and an exit code
        logs.logger().exception("service.failed")
        code = EXIT_FAILED
    sys.exit(code)


async def _run(role: Role, settings: S, main: Callable[[Service[S]], Awaitable[None]]) -> int:
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop = asyncio.Event()
    _on_signals(stop)
    connecting = asyncio.ensure_future(Bus.connect(settings, role))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not connecting.done():
        connecting.cancel()
        with suppress(asyncio.CancelledError):
            await connecting
        return 0
    service = Service(connecting.result(), settings)
    service.stop = stop
    health = await HealthServer.start(settings, lambda: service.is_ready)
    try:
        service.log.info("service.started", http_port=health.port)
        return await _until_end(service, main)
    finally:
        await health.stop()
        await service.bus.close()
        stopping.cancel()
        service.log.info("service.stopped")


async def _until_end(service: Service[S], main: Callable[[Service[S]], Awaitable[None]]) -> int:
    """Run `main` until it returns, the bus is closed for good, or its time to stop is over."""
    working = asyncio.ensure_future(main(service))
    closed = asyncio.ensure_future(service.bus.closed())
    stopping = asyncio.ensure_future(service.stop.wait())
    code = 0
    try:
        await asyncio.wait({working, closed, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if closed.done():
            service.log.error("bus.closed", reason=closed.result())
            code = EXIT_BUS_CLOSED
            service.stop.set()
        await asyncio.wait({working}, timeout=STOP_S)
        if working.done():
            # With the bus gone, errors of `main` follow from that.
            if code == 0:
                working.result()
            elif working.exception() is not None:
                service.log.warning("service.failed", error=str(working.exception()))
            return code
        service.log.error("service.stopped_late", stop_s=STOP_S)
        return code or EXIT_FAILED
    finally:
        for task in (working, closed, stopping):
            task.cancel()
        await asyncio.wait({working}, timeout=1.0)


def _on_signals(stop: asyncio.Event) -> None:
    def told(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        logs.logger().info("service.stopping", signal=number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number)


def _die_with(watch_fd: int) -> None:
    """Exit at once when the pipe ends: in a thread, so that a busy event loop delays nothing."""

    def watch() -> None:
        try:
            while os.read(watch_fd, 1):
                pass
        except OSError as error:
            logs.logger().error("service.no_watch", error=str(error))
        os._exit(EXIT_FAILED)

    threading.Thread(target=watch, name="watch supervisor", daemon=True).start()
