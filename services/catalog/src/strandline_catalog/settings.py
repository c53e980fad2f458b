"""The settings of the catalog."""

from __future__ import annotations

from pathlib import Path

from strandline_runtime.settings import Settings


class CatalogSettings(Settings, frozen=True, kw_only=True):
    """`dsn_file` holds the database's address (postgresql://...), password included; mode 0600."""

    dsn_file: Path
