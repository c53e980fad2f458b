"""Events: their subject, their CloudEvents headers, and whose they are."""

from __future__ import annotations

import msgspec
import pytest

from strandline_contracts.codec import encode
from strandline_contracts.errors import BadMessage
from strandline_contracts.events import Event, accept_event
from support.examples import MESSAGES

EVENTS = [message for message in MESSAGES.values() if isinstance(message, Event)]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.noun)
def test_an_event_belongs_on_its_subject_alone(event: Event) -> None:
    subject = event.subject()
    assert (
        subject == f"strandline.v1.hq.evt.{event.origin}.{event.noun}.{event.verb}.{event.source}"
    )
    assert accept_event(encode(event), subject) == event
    for field in ("site", "origin", "noun", "verb", "source"):
        other = msgspec.structs.replace(event, **{field: "other"})
        with pytest.raises(BadMessage):
            accept_event(encode(other), subject)


def test_headers_are_cloudevents() -> None:
    event = EVENTS[0]
    headers = event.headers()
    required = {"ce-specversion", "ce-id", "ce-source", "ce-type"}
    assert required <= set(headers)
    assert headers["Nats-Msg-Id"] == headers["ce-id"] == event.id
    assert headers["ce-time"].endswith("Z")
    assert headers["ce-type"] == f"strandline.v1.{event.noun}.{event.verb}"
