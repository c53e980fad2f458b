"""A source, a store in memory, and the agent's jobs between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.agent_site import Site
from support.fake_store import FakeStore


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    return Site(tmp_path, FakeStore())
