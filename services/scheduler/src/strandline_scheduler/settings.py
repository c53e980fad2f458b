"""The settings of the scheduler."""

from __future__ import annotations

from pathlib import Path

from strandline_runtime.settings import Settings


class SchedulerSettings(Settings, frozen=True, kw_only=True):
    """`signing_seed` is the file with the scheduler's Ed25519 seed, mode 0600."""

    signing_seed: Path
