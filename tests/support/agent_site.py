"""A source, a store in memory, and the two jobs of an agent between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from strandline_agent.express_full import Order, Shipped, make_point
from strandline_agent.restore import Restored, RestoreOrder, restore
from strandline_contracts.policy import Source
from support.fake_store import FakeStore


class Site:
    """A protected tree `src`, its store, and the agent's state."""

    def __init__(self, folder: Path, store: FakeStore) -> None:
        self.store = store
        self.folder = folder
        self.src = folder / "src"
        self.src.mkdir()
        self.index = folder / "state" / "known.db"
        self.paths = [os.fsencode(self.src)]
        self.excludes: list[str] = []
        self.jobs = 0

    def order(self, **changes: Any) -> Order:
        self.jobs += 1
        values: dict[str, Any] = {
            "source": Source(
                id="s1",
                name="s1",
                type="files",
                server="server",
                store="store",
                paths=self.paths,
                excludes=self.excludes,
            ),
            "job": f"job{self.jobs}",
            "attempt": 1,
            "kind": "express_full",
            "subject": "blk.store.server.s1",
            "index_path": self.index,
            "index_max_bytes": 1 << 30,
        }
        return Order(**(values | changes))

    async def full(self, **changes: Any) -> Shipped:
        self.store.shipped = 0
        self.store.batches = []
        return await make_point(self.store, self.order(**changes), lambda: None)

    async def back(self, name: str, point: int = 0, **changes: Any) -> Restored:
        values: dict[str, Any] = {
            "source": "s1",
            "point": point or len(self.store.points),
            "store": "store",
            "to": os.fsencode(self.folder / name),
            "grant": b"",
            "plan_path": self.folder / "state" / f"{name}.plan",
        }
        return await restore(self.store, RestoreOrder(**(values | changes)))
