"""A real nats-server for tests, and a whole bus of Strandline's on it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

from nats.aio.client import Client

from strandline_contracts.names import Role
from strandline_contracts.signing import Authority
from strandline_contracts.streams import StreamLimits
from strandline_runtime.bus import Bus
from strandline_runtime.keys import make_credential, make_signing_seed, read_signing_seed
from strandline_runtime.nats_conf import User, server_config
from strandline_runtime.provision import provision
from strandline_runtime.settings import Settings

START_S = 10.0
_AUDITOR = '{ user: "auditor", password: "auditor" }'
SMALL_LIMITS = StreamLimits(
    blocks_bytes=64 * 1024**2,
    events_bytes=64 * 1024**2,
    commands_bytes=16 * 1024**2,
    policy_bytes=16 * 1024**2,
)


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_nats_server() -> str:
    """Return the nats-server on PATH, or beside the running Python."""
    beside = os.path.join(os.path.dirname(sys.executable), "nats-server")
    found = shutil.which("nats-server") or (beside if os.access(beside, os.X_OK) else None)
    assert found, "no nats-server on PATH or beside Python"
    return found


class NatsServer:
    """A nats-server process on a free port, with `config` as its configuration.

    In `config`, {port} and {dir} stand for its port and its folder; a text without them is taken
    as it is and then must name `port` itself.
    """

    def __init__(self, folder: Path, config: str, port: int | None = None) -> None:
        self.folder = folder
        self.port = free_port() if port is None else port
        self.url = f"nats://127.0.0.1:{self.port}"
        self._config = folder / "nats.conf"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(config)

    def configure(self, config: str) -> None:
        """Write another configuration; it counts from the next start."""
        text = config.replace("{port}", str(self.port)).replace("{dir}", str(self.folder))
        self._config.write_text(text)

    def start(self) -> None:
        """Start it and wait until it speaks."""
        with open(self.folder / "nats.log", "ab") as log:
            self._process = subprocess.Popen(
                [find_nats_server(), "-c", str(self._config)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    probe.settimeout(1)
                    if probe.recv(5) == b"INFO ":
                        return
            except OSError:
                pass
            exited = self._process.poll()
            if exited is not None or time.monotonic() > deadline:
                text = (self.folder / "nats.log").read_text(errors="replace")[-2000:]
                self.kill()
                raise AssertionError(f"nats-server did not start (exit {exited}):\n{text}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it in peace, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it do nothing more until it is killed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class SiteBus:
    """A site's bus as in real life: generated permissions, nkeys, provisioned streams.

    `connect(role)` gives a Bus; `settings(role)` what a service would read. Signing seeds:
    `operator_seed`, `scheduler_seed`; `trusted` as receivers hold it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        site: str = "hq",
        instances: dict[Role, list[str]] | None = None,
        stores: list[str] | None = None,
        limits: StreamLimits = SMALL_LIMITS,
        max_payload_bytes: int = 1024 * 1024,
    ) -> None:
        self.site = site
        self.folder = folder
        self.stores = ["store-1"] if stores is None else stores
        self.limits = limits
        self.instances: dict[Role, list[str]] = {role: ["1"] for role in get_args(Role)}
        self.instances["agent"] = ["web-1"]
        self.instances["store"] = list(self.stores)
        self.instances |= instances or {}
        keys = folder / "keys"
        keys.mkdir(parents=True)
        self.users = [
            User(role, instance, make_credential(keys / f"{role}-{instance}.nk"))
            for role, names in self.instances.items()
            for instance in names
        ]
        operator = make_signing_seed(keys / "operator.seed")
        scheduler = make_signing_seed(keys / "scheduler.seed")
        self.operator_seed = read_signing_seed(keys / "operator.seed")
        self.scheduler_seed = read_signing_seed(keys / "scheduler.seed")
        self.trusted: dict[bytes, Authority] = {operator: "operator", scheduler: "scheduler"}
        (folder / "trusted.json").write_text(
            f'{{"{operator.hex()}": "operator", "{scheduler.hex()}": "scheduler"}}'
        )
        port = free_port()
        config = server_config(
            site=site,
            users=self.users,
            port=port,
            store_dir=folder / "jetstream",
            max_payload_bytes=max_payload_bytes,
        ).replace("  users: [\n", f"  users: [\n    {_AUDITOR}\n")
        self.server = NatsServer(folder / "nats", config, port)

    def settings(self, role: Role, instance: str | None = None) -> Settings:
        """Return the settings of a role's first (or the named) instance."""
        name = instance or self.instances[role][0]
        return Settings(
            site=self.site,
            instance=name,
            nats_urls=[self.server.url],
            credential=self.folder / "keys" / f"{role}-{name}.nk",
            trusted_keys=self.folder / "trusted.json",
            state_dir=self.folder / f"{role}-{name}",
        )

    async def connect(self, role: Role, instance: str | None = None) -> Bus:
        return await Bus.connect(self.settings(role, instance), role)

    async def audit(self) -> Client:
        """Connect as one who may see everything, and is nobody outside of tests."""
        client = Client()
        await client.connect(self.server.url, user="auditor", password="auditor")
        return client

    async def start(self) -> None:
        """Start the server and provision the site."""
        self.server.start()
        bus = await self.connect("provisioner")
        try:
            await provision(bus, self.stores, self.limits)
        finally:
            await bus.close()
