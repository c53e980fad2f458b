"""The metrics that every service shares; a service adds its own beside them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

PUBLISHED = Counter("strandline_bus_published", "JetStream publishes by outcome", ["outcome"])
RECONNECTS = Counter("strandline_bus_reconnects", "Times the bus came back")
CONNECTED = Gauge("strandline_bus_connected", "1 while connected to the bus")
BUS_ERRORS = Counter("strandline_bus_errors", "Errors that the bus client told of", ["kind"])
SLOW_CONSUMER = Counter("strandline_bus_slow_consumer", "Messages dropped: we were too slow")
CONSUMED = Counter("strandline_consumed", "Deliveries by subject kind", ["kind"])
SETTLED = Counter("strandline_settled", "Deliveries by kind and end", ["kind", "end"])
REQUESTS = Counter("strandline_requests", "Requests answered by call, outcome", ["call", "outcome"])
REQUEST_SECONDS = Histogram("strandline_request_seconds", "Time to answer by call", ["call"])
FOREIGN_REPLIES = Counter("strandline_foreign_replies", "Requests dropped for their reply subject")
JOBS = Counter("strandline_jobs", "Jobs that came into a state, by verb", ["verb", "state"])
OUTBOX_PENDING = Gauge("strandline_outbox_pending", "Events of the last look not yet on the bus")


def subject_kind(subject: str) -> str:
    """Return the kind of a subject (cmd, blk, evt ...): a label with few values."""
    parts = subject.split(".", 4)
    return parts[3] if len(parts) > 4 and parts[0] == "strandline" else parts[0]
