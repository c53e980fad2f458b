"""A bare nats-py client with a credential of the site: what a thief of that credential has."""

from __future__ import annotations

import re
from pathlib import Path

from nats.aio.client import Client

from strandline_contracts.names import Role, caller
from strandline_contracts.subjects import inbox_prefix
from support.nats import SiteBus

_VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.I)


class RawClient:
    """Publishes and subscribes as it likes; what the server denies is in `denied`.

    nats-py makes the server's words small, so `denied` holds subjects in lower case.
    """

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self.denied: set[tuple[str, str]] = set()

    @classmethod
    async def connect(cls, site: SiteBus, role: Role, instance: str) -> RawClient:
        nc = Client()
        raw = cls(nc)

        async def on_error(error: Exception) -> None:
            found = _VIOLATION.search(str(error))
            if found:
                raw.denied.add((found[1].lower(), found[2]))

        seed = Path(site.folder / "keys" / f"{role}-{instance}.nk").read_text()
        await nc.connect(
            servers=[site.server.url],
            nkeys_seed_str=seed,
            inbox_prefix=inbox_prefix(caller(role, instance)),
            error_cb=on_error,
            skip_subject_validation=True,
        )
        return raw

    async def flush(self) -> None:
        """Return when the server has answered all that was sent; nats-py's PING jumps the queue."""
        await self.nc.flush()
        await self.nc.flush()

    async def publish(self, subject: str, data: bytes = b"", reply: str = "") -> bool:
        """Publish; tell whether the server let it through."""
        self.denied.discard(("publish", subject.lower()))
        await self.nc.publish(subject, data, reply=reply)
        await self.flush()
        return ("publish", subject.lower()) not in self.denied

    async def subscribe(self, subject: str) -> bool:
        """Subscribe for a moment; tell whether the server let it."""
        subscription = await self.nc.subscribe(subject)
        await self.flush()
        await subscription.unsubscribe()
        return ("subscription", subject.lower()) not in self.denied

    async def close(self) -> None:
        await self.nc.close()
