"""Creates and changes the streams and consumers of a site: the only one who may.

    python -m strandline_runtime.provision

Idempotent; speaks JetStream's API in its own JSON, so that every limit of contracts arrives.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop

from strandline_contracts.errors import StrandlineError
from strandline_contracts.streams import StreamLimits, consumers, streams
from strandline_runtime import logs
from strandline_runtime.bus import Bus
from strandline_runtime.errors import BusError
from strandline_runtime.settings import Settings, load

# JetStream's error codes: the name is taken by a different configuration; no such stream; and
# "error creating store", which passes (docs: notes on nats-server, seen now and then).
_EXISTS = 10058
_STORE_FAILED = 10049
_ATTEMPTS = 5


class ProvisionSettings(Settings, frozen=True, kw_only=True):
    """`stores` are the instances of replica stores; the rest are stream limits in bytes."""

    stores: list[str]
    blocks_bytes: int = StreamLimits.blocks_bytes
    events_bytes: int = StreamLimits.events_bytes
    commands_bytes: int = StreamLimits.commands_bytes
    policy_bytes: int = StreamLimits.policy_bytes


async def provision(bus: Bus, stores: list[str], limits: StreamLimits) -> None:
    """Bring every stream and consumer to what contracts say. Raises BusError."""
    for config in streams(bus.site, stores, limits):
        name = config["name"]
        if not await _applied(bus, f"STREAM.CREATE.{name}", config):
            await _applied(bus, f"STREAM.UPDATE.{name}", config)
    for stream, config in consumers(stores):
        durable = config["durable_name"]
        await _applied(
            bus,
            f"CONSUMER.DURABLE.CREATE.{stream}.{durable}",
            {"stream_name": stream, "config": config},
        )


async def _applied(bus: Bus, subject: str, body: dict[str, Any]) -> bool:
    """Ask for a change; False if the name is taken, BusError if it is refused otherwise."""
    error: dict[str, Any] = {}
    for attempt in range(_ATTEMPTS):
        error = (await bus.api(subject, body)).get("error", {})
        if not error:
            logs.logger().info("provisioned", subject=subject)
            return True
        if error.get("err_code") == _EXISTS:
            return False
        if error.get("err_code") != _STORE_FAILED:
            break
        await asyncio.sleep(0.2 * 2**attempt)
    raise BusError(
        f"{subject}: {error.get('description')}",
        code="bus.refused",
        hint="Compare the limits in the settings with the bus's max_file_store.",
        retryable=False,
    )


async def _main(settings: ProvisionSettings) -> None:
    bus = await Bus.connect(settings, "provisioner")
    try:
        limits = StreamLimits(
            blocks_bytes=settings.blocks_bytes,
            events_bytes=settings.events_bytes,
            commands_bytes=settings.commands_bytes,
            policy_bytes=settings.policy_bytes,
        )
        await provision(bus, settings.stores, limits)
    finally:
        await bus.close()


def main() -> int:
    """Provision the site of the settings; the exit code is 0, or 1 with an error in the log."""
    try:
        settings = load(ProvisionSettings)
        logs.set_up(settings.log_level, settings.log_format, role="provisioner")
        uvloop.run(_main(settings))
    except StrandlineError as error:
        logs.logger().error("provision.failed", code=error.code, error=str(error), hint=error.hint)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
