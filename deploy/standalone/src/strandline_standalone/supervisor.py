"""The supervisor: brings the stack up in order, keeps it up, takes it down in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from strandline_contracts.errors import StrandlineError
from strandline_standalone import postgres
from strandline_standalone.binaries import find_nats
from strandline_standalone.child import Child, Inherited, Unit
from strandline_standalone.errors import UnitFailed
from strandline_standalone.layout import Layout, prepare, write_private
from strandline_standalone.locks import lock_alive, lock_supervisor
from strandline_standalone.logfile import LogFile
from strandline_standalone.options import Choice, Options, choose, read_options
from strandline_standalone.probes import bus_answers, service_ready
from strandline_standalone.services import (
    ServiceUnit,
    config_path,
    make_keys,
    service_units,
    write_bus_config,
    write_catalog_config,
    write_configs,
)
from strandline_standalone.spawn import run_to_end

READY_WITHIN_S = 60.0
FORMER_STACK_WAIT_S = 15.0
_PROVISION_TIMEOUT_S = 60.0
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")

Tell = Callable[[str], None]


class Stack:
    """One stack on one state folder, from its locks to its last process."""

    def __init__(self, layout: Layout, options: Options, choice: Choice, tell: Tell) -> None:
        self.layout = layout
        self.options = options
        self.choice = choice
        self.nats_url = options.nats.url or f"nats://127.0.0.1:{choice.nats_port}"
        self._tell = tell
        self._children: list[Child] = []
        self._inherited = Inherited(watch=-1, alive=-1)
        self._is_up = False

    async def up(self, inherited: Inherited) -> None:
        """Start everything and return when all is ready. Raises StandaloneError."""
        self._inherited = inherited
        users = make_keys(self.layout, self.choice.servers)
        config = write_bus_config(self.layout, self.options, users, self.choice.nats_port)
        dsn = asyncio.create_task(self._database())
        try:
            if not self.options.nats.url:
                await self._start(self._bus_unit(config))
            write_configs(self.layout, self.options, self.choice.servers, self.nats_url)
            await self._provision()
            units = service_units(self.choice.servers)
            await asyncio.gather(*(self._start_service(unit, dsn) for unit in units))
        finally:
            if not dsn.done():
                dsn.cancel()
                await asyncio.gather(dsn, return_exceptions=True)
        self._is_up = True
        self._write_endpoint()

    def summary(self) -> dict[str, object]:
        """What the stack is: for endpoint.json, and for whoever started it."""
        return {
            "state": str(self.layout.root),
            "site": self.options.site,
            "nats_url": self.nats_url,
            "servers": self.choice.servers,
            "supervisor": os.getpid(),
            "processes": {child.name: child.pid for child in self._children},
        }

    def _write_endpoint(self) -> None:
        """Tell commands where the stack is, and the ids of its processes, while it is up."""
        if not self._is_up:
            return
        try:
            write_private(self.layout.endpoint, json.dumps(self.summary(), indent=2) + "\n")
        except OSError as error:  # a full disk: the stack goes on, and so does what it restarts
            self._tell(f"cannot write {self.layout.endpoint}: {error}")

    async def down(self) -> None:
        """Stop everything: agents, scheduler, store, catalog, then Postgres and the bus."""
        self._is_up = False
        self.layout.endpoint.unlink(missing_ok=True)
        by_name = {child.name: child for child in self._children}
        units = service_units(self.choice.servers)
        order = [[unit.name for unit in units if unit.role == "agent"]]
        order += [[unit.name] for unit in units if unit.role != "agent"]
        order += [["postgres", "nats-server"]]
        for names in order:
            await asyncio.gather(*(by_name[name].stop() for name in names if name in by_name))
        self._children.clear()

    async def _start(self, unit: Unit) -> None:
        log = LogFile(self.layout.log(unit.name))
        child = Child(unit, self._inherited, log, self._tell, self._write_endpoint)
        self._children.append(child)
        await child.start(READY_WITHIN_S)

    def _bus_unit(self, config: Path) -> Unit:
        async def ready(_pid: int) -> bool:
            return await bus_answers(self.choice.nats_port)

        binary = find_nats(self.options.nats)
        return Unit(
            name="nats-server",
            argv=[str(binary), "-c", str(config)],
            # Go takes memory until its limit is near: a soft limit keeps a small bus small.
            # Messages of a MiB make garbage fast. Collected at every doubling of a small heap,
            # which is what Go does unasked, it takes a third of the server's time in a restore.
            env=environment({"GOMEMLIMIT": "192MiB", "GOGC": "400"}),
            is_ready=ready,
        )

    async def _database(self) -> str:
        """Bring Postgres up, unless there is one already; return the catalog's DSN."""
        if self.options.postgres.dsn:
            return self.options.postgres.dsn
        cluster = await postgres.prepare(self.layout, self.options.postgres, self._inherited)

        async def ready(pid: int) -> bool:
            return cluster.is_ready(pid)

        unit = Unit(
            name="postgres",
            argv=cluster.command(self.choice.postgres_port),
            env=cluster.account.environment(),
            is_ready=ready,
            stop_signal=signal.SIGINT,  # fast shutdown
            death_signal=signal.SIGQUIT,  # immediate shutdown: its children end as well
            spawn_options=cluster.account.spawn_options(),
        )
        await self._start(unit)
        return cluster.dsn(self.choice.postgres_port)

    async def _provision(self) -> None:
        own = {"STRANDLINE_CONFIG": str(config_path(self.layout, "provisioner"))}
        try:
            code, said = await run_to_end(
                [sys.executable, "-m", "strandline_runtime.provision"],
                env=environment(own),
                timeout_s=_PROVISION_TIMEOUT_S,
                inherited=self._inherited,
                options={},
            )
        except TimeoutError as error:
            raise UnitFailed(
                f"the bus was not provisioned in {_PROVISION_TIMEOUT_S:g} s"
            ) from error
        log = LogFile(self.layout.log("provisioner"))
        log.write(said)
        log.close()
        if code != 0:
            lines = "\n  ".join(log.tail())
            raise UnitFailed(f"provisioning the bus failed; its last lines:\n  {lines}")

    async def _start_service(self, unit: ServiceUnit, dsn: Awaitable[str]) -> None:
        if unit.role == "catalog":
            write_catalog_config(self.layout, self.options, self.nats_url, await dsn)
        state_dir = self.layout.of(unit.name)

        async def ready(_pid: int) -> bool:
            return await service_ready(state_dir)

        own = {
            "STRANDLINE_CONFIG": str(config_path(self.layout, unit.name)),
            "STRANDLINE_WATCH_FD": str(self._inherited.watch),
        }
        await self._start(
            Unit(
                name=unit.name,
                argv=[sys.executable, "-m", unit.module],
                env=environment(own),
                is_ready=ready,
                before_start=partial((state_dir / "http.port").unlink, missing_ok=True),
            )
        )


def environment(own: dict[str, str]) -> dict[str, str]:
    """Return the environment of a child: little of ours, and what it is told."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {"PATH": os.defpath, "PYTHONUNBUFFERED": "1", **kept, **own}


def supervise(
    root: Path, servers: Sequence[str], on_ready: Callable[[dict[str, object]], None], tell: Tell
) -> None:
    """Run a stack in this process until it is told to stop; nothing is left when this returns.

    `on_ready` gets the summary once, when all is up; `tell` each line for the supervisor's log.
    Raises StandaloneError when the stack does not come up.
    """
    os.umask(0o077)
    layout = prepare(root)
    lock = lock_supervisor(layout.run)
    log = LogFile(layout.log("supervisor"))

    def record(line: str) -> None:
        try:
            tell(log.line(line))
        except OSError as error:  # a full disk must not end the supervisor
            tell(f"{line} (not logged: {error})")

    watch, watched = os.pipe()
    try:
        layout.endpoint.unlink(missing_ok=True)
        alive = lock_alive(layout.run, FORMER_STACK_WAIT_S)
        options = read_options(layout.options)
        choice = choose(layout, list(servers))
        stack = Stack(layout, options, choice, record)
        _run(stack, Inherited(watch=watch, alive=alive), on_ready, record)
        os.close(alive)
    except StrandlineError as error:
        record(f"the stack did not come up: {error}")
        raise
    finally:
        os.close(watched)
        os.close(watch)
        log.close()
        os.close(lock)


def _run(
    stack: Stack,
    inherited: Inherited,
    on_ready: Callable[[dict[str, object]], None],
    tell: Tell,
) -> None:
    if sys.version_info < (3, 12):
        # The older default waits for each child in a thread; from 3.12 on this is the default.
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    asyncio.run(_live(stack, inherited, on_ready, tell))


async def _live(
    stack: Stack,
    inherited: Inherited,
    on_ready: Callable[[dict[str, object]], None],
    tell: Tell,
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    began = time.monotonic()
    stopping = asyncio.create_task(stop.wait())
    coming = asyncio.create_task(stack.up(inherited))
    try:
        await asyncio.wait((stopping, coming), return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            await coming
            took_s = time.monotonic() - began
            tell(f"up in {took_s:.2f} s")
            on_ready({**stack.summary(), "seconds": round(took_s, 2)})
            await stopping
        tell("stopping")
    finally:
        coming.cancel()
        stopping.cancel()
        await asyncio.gather(coming, stopping, return_exceptions=True)
        await stack.down()
        tell("stopped")
