"""The permission table: what each credential may publish and subscribe to, and nothing else.

The bus's own configuration is generated from it, and a test tries every pair that it forbids.
"""

from __future__ import annotations

from dataclasses import dataclass

from strandline_contracts.commands import SCHEDULER_VERBS
from strandline_contracts.names import Role, caller
from strandline_contracts.policy import server_key
from strandline_contracts.streams import CATALOG_CONSUMER, STORE_CONSUMER
from strandline_contracts.subjects import (
    COMMANDS,
    EVENTS,
    POLICY_STREAM,
    Subjects,
    blocks_stream,
    inbox_prefix,
    policy_subject,
)


@dataclass(frozen=True)
class Permissions:
    """Subjects a credential may publish and subscribe to; wildcards as in NATS.

    `responds` lets it answer, once, the reply subject of each message that it received. Whether
    that subject is the caller's own inbox is checked by the responder (subjects.is_reply_to).
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    responds: bool = False


_DISCOVERY = "$SRV.>"
_READ_ALL_POLICIES = (
    f"$JS.API.DIRECT.GET.{POLICY_STREAM}",
    f"$JS.API.DIRECT.GET.{POLICY_STREAM}.>",
)


def _pull(stream: str, consumer: str) -> tuple[str, ...]:
    return (
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}",
        f"$JS.ACK.{stream}.{consumer}.>",
    )


def permissions(site: str, role: Role, instance: str) -> Permissions:
    """Return the row of the table for one credential."""
    me = caller(role, instance)
    root = Subjects(site).root
    inbox = f"{inbox_prefix(me)}.>"
    publish: tuple[str, ...]
    subscribe: tuple[str, ...] = (inbox,)
    own_calls = f"{root}.svc.{role}.{instance}.>"
    own_commands = f"{root}.cmd.{role}.{instance}.>"
    own_events = f"{root}.evt.{me}.>"
    last_command = f"$JS.API.DIRECT.GET.{COMMANDS}.{own_commands}"
    if role == "provisioner":
        # It makes and widens, and looks; what streams hold it can neither delete nor purge.
        publish = (
            "$JS.API.STREAM.CREATE.*",
            "$JS.API.STREAM.UPDATE.*",
            "$JS.API.STREAM.INFO.*",
            "$JS.API.CONSUMER.DURABLE.CREATE.*.*",
            "$JS.API.CONSUMER.INFO.*.*",
        )
    elif role == "operator":
        publish = (
            f"{root}.cmd.>",
            f"{root}.svc.*.*.*.{me}",
            _DISCOVERY,
            own_events,
            policy_subject(">"),
            *_READ_ALL_POLICIES,
            f"$JS.API.DIRECT.GET.{EVENTS}",
            f"$JS.API.DIRECT.GET.{EVENTS}.>",
        )
        subscribe += (f"{root}.prg.>", f"{root}.evt.>")
    elif role == "scheduler":
        publish = (
            *(f"{root}.cmd.*.*.*.{verb}" for verb in sorted(SCHEDULER_VERBS)),
            *_READ_ALL_POLICIES,
        )
        subscribe += (_DISCOVERY, own_calls, policy_subject(">"))
    elif role == "store":
        publish = (
            own_events,
            f"{root}.prg.*",
            *_pull(blocks_stream(instance), STORE_CONSUMER),
            *(
                f"$JS.API.DIRECT.GET.{POLICY_STREAM}.{policy_subject(keys)}"
                for keys in ("server.*", "group.*", "hold.*")
            ),
            last_command,
        )
        subscribe += (_DISCOVERY, own_calls, own_commands)
    elif role == "agent":
        publish = (
            f"{root}.blk.*.{instance}.*",
            f"{root}.svc.store.*.*.{me}",
            own_events,
            f"{root}.prg.*",
            f"$JS.API.DIRECT.GET.{POLICY_STREAM}.{policy_subject(server_key(instance))}",
            last_command,
        )
        subscribe += (_DISCOVERY, own_calls, own_commands)
    elif role == "catalog":
        publish = (
            f"{root}.svc.store.*.*.{me}",
            *_READ_ALL_POLICIES,
            *_pull(EVENTS, CATALOG_CONSUMER),
            # A new database is filled from the record's beginning; a new record is noticed.
            f"$JS.API.DIRECT.GET.{EVENTS}",
            f"$JS.API.STREAM.INFO.{EVENTS}",
        )
        subscribe += (_DISCOVERY, own_calls, policy_subject(">"))
    else:  # monitor: reads the public record, says nothing
        publish = (f"$JS.API.DIRECT.GET.{EVENTS}", f"$JS.API.DIRECT.GET.{EVENTS}.>")
        subscribe += (f"{root}.evt.>",)
    responds = role in ("scheduler", "store", "agent", "catalog")
    return Permissions(publish=publish, subscribe=subscribe, responds=responds)
