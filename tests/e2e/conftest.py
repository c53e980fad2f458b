"""One stack for all end-to-end tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.stack import Stack


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack("--server", "here", "--server", "there")
    try:
        stack.up()
        yield stack
    finally:
        stack.close()
