"""Logs: job and source on every line, and never a secret."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from strandline_runtime import logs


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def test_lines_are_json_with_what_is_bound_and_no_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.set_up("info", "json", role="agent")
    with logs.bind(job="j1", source="s1"):
        logs.logger().info("job.running", attempt=2, nkey_seed="SUSECRET", path=b"/\xff")
    logs.logger().debug("not.shown")
    logs.logger().info("after")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["job.running", "after"]
    first = lines[0]
    assert (first["job"], first["source"], first["role"], first["level"]) == (
        "j1",
        "s1",
        "agent",
        "info",
    )
    assert "SUSECRET" not in json.dumps(first)
    assert "job" not in lines[1]


def test_a_traceback_is_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "json")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logs.logger().exception("broke")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: division" in json.loads(line)["exception"]
