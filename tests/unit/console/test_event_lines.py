"""Every kind of event is told in one line that a person understands."""

from __future__ import annotations

import typing

import msgspec
import pytest

from strandline_console.following import event_line
from strandline_contracts import events
from support.examples import MESSAGES, SOURCE

EVENTS = [message for message in MESSAGES.values() if isinstance(message, events.Event)]


def test_there_is_an_example_of_every_kind() -> None:
    assert {type(event.data) for event in EVENTS} == set(typing.get_args(events.Data))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event.noun}.{event.verb}")
def test_an_event_is_one_line(event: events.Event) -> None:
    line = event_line(event, {SOURCE: "Büro"})
    head, _, told = line.partition(f"Büro  {event.noun} {event.verb}  ")
    assert head.endswith("  ")
    assert told
    assert "\n" not in line


def test_many_points_are_cut_short() -> None:
    (example,) = [event for event in EVENTS if isinstance(event.data, events.PointsDropped)]
    points = list(range(1, 101))
    data = events.PointsDropped(points=points, reason="retention")
    told = event_line(msgspec.structs.replace(example, data=data), {})
    assert told.endswith(
        "recovery points 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 88 more (retention)"
    )
