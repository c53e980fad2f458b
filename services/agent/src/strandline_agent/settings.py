"""The agent's settings."""

from __future__ import annotations

from pathlib import Path

import msgspec

from strandline_runtime.settings import Settings

INDEX_MAX_BYTES = 2 * 1024**3


class AgentSettings(Settings, frozen=True, kw_only=True):
    """Beside what every service has.

    `own_state` are folders that are never protected (the agent's own state folder is one anyway).
    `index_max_bytes` bounds the index of each data source. `max_jobs` run at once.
    """

    own_state: list[str] = msgspec.field(default_factory=list)
    index_max_bytes: int = INDEX_MAX_BYTES
    max_jobs: int = 2

    @property
    def assignment_path(self) -> Path:
        return self.state_dir / "assignment.msgpack"

    @property
    def journal_path(self) -> Path:
        return self.state_dir / "journal.db"

    def index_path(self, source: str) -> Path:
        return self.state_dir / "sources" / source / "known.db"

    def plan_path(self, job: str) -> Path:
        return self.state_dir / "restores" / f"{job}.db"
