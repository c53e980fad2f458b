"""What the crash tests share: a folder in memory, and no log lines by the ten thousand."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog


@pytest.fixture(autouse=True, scope="session")
def quiet() -> Iterator[None]:
    """Every crash, and every fault, is worth a line of the store's log; here nobody reads them."""
    silent = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=silent)
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def shared_memory() -> Iterator[Path]:
    """A folder in memory, where there is such a file system, for the tests of a module."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="strandline-crash-", dir=where))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def memory(shared_memory: Path) -> Iterator[Path]:
    """A folder in memory of a test's own."""
    folder = Path(tempfile.mkdtemp(dir=shared_memory))
    yield folder
    shutil.rmtree(folder)
