"""Every stream and durable consumer of a site, with every limit written out.

Plain data in the form of the JetStream API; the provisioner alone applies it. Durations are
nanoseconds there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from strandline_contracts.subjects import (
    COMMANDS,
    EVENTS,
    POLICY_STREAM,
    Subjects,
    blocks_stream,
    policy_subject,
)

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS

COMMAND_MAX_AGE_NS = 7 * DAY_NS
EVENT_MAX_AGE_NS = 400 * DAY_NS
STORE_CONSUMER = "store"
CATALOG_CONSUMER = "catalog"
STORE_ACK_WAIT_NS = 5 * SECOND_NS
STORE_MAX_ACK_PENDING = 96
"""Batches of up to 1 MiB that a store holds unacked: its memory is bounded by this."""


@dataclass(frozen=True)
class StreamLimits:
    """What an operator may set to the size of the bus's disk, in bytes."""

    blocks_bytes: int = 2 * 1024**3
    events_bytes: int = 1024**3
    commands_bytes: int = 64 * 1024**2
    policy_bytes: int = 64 * 1024**2


def streams(site: str, stores: list[str], limits: StreamLimits) -> list[dict[str, Any]]:
    """Return the configuration of each stream of the site."""
    root = Subjects(site).root
    common: dict[str, Any] = {
        "storage": "file",
        "num_replicas": 1,
        "max_consumers": 64,
        "max_msgs": -1,
        "allow_direct": True,
        "deny_delete": True,
        "deny_purge": True,
    }
    configs: list[dict[str, Any]] = [
        common
        | {
            "name": COMMANDS,
            "subjects": [f"{root}.cmd.>"],
            "retention": "limits",
            "discard": "old",
            "max_msgs_per_subject": 1,
            "max_bytes": limits.commands_bytes,
            "max_msg_size": 64 * 1024,
            "max_age": COMMAND_MAX_AGE_NS,
            "allow_msg_ttl": True,
            "duplicate_window": 120 * SECOND_NS,
        },
        common
        | {
            "name": EVENTS,
            "subjects": [f"{root}.evt.>"],
            "retention": "limits",
            "discard": "old",
            "max_msgs_per_subject": -1,
            "max_bytes": limits.events_bytes,
            "max_msg_size": 256 * 1024,
            "max_age": EVENT_MAX_AGE_NS,
            "duplicate_window": 600 * SECOND_NS,
        },
        common
        | {
            "name": POLICY_STREAM,
            "subjects": [policy_subject(">")],
            "retention": "limits",
            "discard": "new",
            "max_msgs_per_subject": 8,
            "max_bytes": limits.policy_bytes,
            "max_msg_size": 1024 * 1024,
            "max_age": 0,
            "allow_rollup_hdrs": True,
            "duplicate_window": 120 * SECOND_NS,
            "deny_purge": False,
        },
    ]
    configs += [
        common
        | {
            "name": blocks_stream(store),
            "subjects": [f"{root}.blk.{store}.>"],
            "retention": "workqueue",
            "discard": "new",
            "discard_new_per_subject": True,
            "max_msgs_per_subject": 512,
            "max_bytes": limits.blocks_bytes,
            "max_msg_size": 1024 * 1024,
            "max_age": 0,
            "allow_direct": False,
            "duplicate_window": 120 * SECOND_NS,
        }
        for store in stores
    ]
    return configs


def consumers(stores: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return (stream, configuration) of each durable consumer."""
    pull: dict[str, Any] = {
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "max_deliver": -1,
        "max_waiting": 16,
    }
    found: list[tuple[str, dict[str, Any]]] = [
        (
            EVENTS,
            pull
            | {
                "durable_name": CATALOG_CONSUMER,
                "ack_wait": 30 * SECOND_NS,
                "max_ack_pending": 1024,
            },
        )
    ]
    for store in stores:
        config = pull | {
            "durable_name": STORE_CONSUMER,
            "ack_wait": STORE_ACK_WAIT_NS,
            "max_ack_pending": STORE_MAX_ACK_PENDING,
        }
        found.append((blocks_stream(store), config))
    return found
