"""Logs: one line an event to stderr, JSON for machines or coloured for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

_SECRETS = ("seed", "secret", "password", "credential", "token")


def set_up(level: str, style: str, **always: str) -> None:
    """Configure logging for the process; `always` (role, instance, ...) stands on every line."""
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if style == "console"
        else structlog.processors.JSONRenderer(default=repr)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *([] if style == "console" else [structlog.processors.format_exc_info]),
            hide_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    structlog.contextvars.bind_contextvars(**always)


def logger() -> structlog.typing.FilteringBoundLogger:
    """Return the logger; job, source and server come from `bind`."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return log


@contextmanager
def bind(**fields: str) -> Iterator[None]:
    """Put `job=`, `source=`, `server=` and the like on every line logged inside."""
    with structlog.contextvars.bound_contextvars(**fields):
        yield


def hide_secrets(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Blank the values of fields whose names speak of secrets: a line never holds one."""
    for key in event:
        if any(word in key.lower() for word in _SECRETS):
            event[key] = "(hidden)"
    return event
