"""Events about the store itself, or about a replica that is no more: told by the journal's outbox.

Events about a replica are told by the replica's own outbox.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from strandline_contracts.events import ClockDoubted, Data, ReplicaDeleted
from strandline_contracts.subjects import NO_SOURCE
from strandline_replica_store.errors import DiskError
from strandline_runtime import outbox
from strandline_runtime.journal import Journal
from strandline_runtime.logs import logger


class StoreEvents:
    """Records events of one store. Methods block, from any thread; they raise DiskError.

    `on_change` is called, in that thread, when there is an event to deliver.
    """

    def __init__(
        self, journal: Journal, site: str, store: str, on_change: Callable[[], None]
    ) -> None:
        self._journal = journal
        self._site = site
        self._origin = f"store-{store}"
        self._on_change = on_change
        self._log = logger()

    def clock(self, doubt: str, now_ns: int) -> None:
        """Tell that the clock is doubted and why, or (without a reason) trusted again."""
        if doubt:
            self._log.error("clock.doubted", reason=doubt)
        else:
            self._log.info("clock.trusted")
        verb = "doubted" if doubt else "trusted"
        self._record("clock", verb, NO_SOURCE, now_ns, ClockDoubted(reason=doubt))

    def replica(self, verb: str, source: str, now_ns: int, data: ReplicaDeleted) -> None:
        """Tell the fate of a replica that cannot tell it by itself."""
        self._record("replica", verb, source, now_ns, data)

    def _record(self, noun: str, verb: str, source: str, now_ns: int, data: Data) -> None:
        def work(conn: sqlite3.Connection) -> None:
            outbox.record(
                conn,
                site=self._site,
                origin=self._origin,
                noun=noun,
                verb=verb,
                source=source,
                time_ns=now_ns,
                data=data,
            )

        try:
            self._journal.on_database(work)
        except sqlite3.Error as error:
            raise DiskError(f"the journal: {error}") from error
        self._on_change()
