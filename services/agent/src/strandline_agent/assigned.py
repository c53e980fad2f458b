"""What this server protects: the assignment from the bus, the last good one kept on disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from strandline_agent.errors import NotProtected
from strandline_contracts.codec import decode, encode
from strandline_contracts.errors import BadMessage
from strandline_contracts.policy import Assignment, Source
from strandline_runtime import state_file
from strandline_runtime.logs import logger


class Assigned:
    """The data sources of this server. `fetch` reads the signed assignment from the bus."""

    def __init__(
        self, server: str, path: Path, fetch: Callable[[], Awaitable[Assignment | None]]
    ) -> None:
        self._path = path
        self._fetch = fetch
        self._log = logger()
        self._assignment = _read(path, server)

    async def refresh(self) -> None:
        """Read the assignment again and keep it; an older one is not taken. Raises BusError.

        A disk that does not take it is only told: the file serves no more than the next start.
        """
        found = await self._fetch()
        if found is None or found.revision < self._assignment.revision:
            return
        if found != self._assignment:
            # First, for whoever refreshes meanwhile.
            self._assignment = found
            self._log.info("assignment.changed", sources=len(found.sources))
            try:
                await state_file.replace(self._path, encode(found))
            except OSError as error:
                self._log.error("assignment.not_kept", error=str(error))

    def ids(self) -> list[str]:
        """Return the ids of the sources, those that are not protected any more included."""
        return [source.id for source in self._assignment.sources]

    def protected(self, source_id: str) -> Source:
        """Return a source that is to be protected. Raises NotProtected."""
        for source in self._assignment.sources:
            if source.id == source_id:
                if source.protected:
                    return source
                raise NotProtected(f"the protection of {source.name} has ended")
        raise NotProtected(f"this server does not protect the data source {source_id}")


def _read(path: Path, server: str) -> Assignment:
    try:
        assignment = decode(path.read_bytes(), Assignment)
    except (FileNotFoundError, BadMessage):
        return Assignment(server=server, revision=0)
    return assignment if assignment.server == server else Assignment(server=server, revision=0)
