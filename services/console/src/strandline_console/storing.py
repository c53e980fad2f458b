"""`strandline store list` and `strandline store clock`."""

from __future__ import annotations

import asyncio
from typing import Any

from strandline_console.documents import time_document
from strandline_console.errors import DONE, FAILED
from strandline_console.fate import Fate
from strandline_console.local_store import local_store, run_tool
from strandline_console.outcome import print_document, say
from strandline_console.replicas import replica_document, replicas_of
from strandline_console.site import Site
from strandline_console.state import state_folder
from strandline_console.text import size_text, table, time_text
from strandline_contracts.reading import ReplicaState
from strandline_runtime.errors import RemoteRefused, Unreachable


async def show_replicas(site: Site, *, as_json: bool) -> int:
    """Print the replicas of every store; 1 when a store does not answer."""
    stores = site.settings.stores
    answers = await asyncio.gather(*(_answer(site, store) for store in stores))
    silent = [store for store, found in zip(stores, answers, strict=True) if found is None]
    for store in silent:
        say(f"strandline: the store {store} does not answer")
    pairs = [(store, one) for store, found in zip(stores, answers, strict=True) if found
             for one in found]  # fmt: skip
    if as_json:
        document: dict[str, Any] = {
            "replicas": [replica_document(store, replica) for store, replica in pairs],
            "silent": silent,
        }
        print_document(document)
    elif pairs:
        head = ["STORE", "NAME", "POINTS", "NEWEST", "STORED", "NEEDED", "VERIFIED", "STATE"]
        rows = [_row(store, replica) for store, replica in pairs]
        print(table(head, rows, right="POINTS NEWEST STORED NEEDED"))
    elif not silent:
        print("no replicas")
    return FAILED if silent else DONE


def show_clock(state: str, store: str, *, accept: bool, as_json: bool) -> int:
    """Print whether a store of this machine believes its clock; 1 when it does not."""
    name, root = local_store(state_folder(state), store)
    found = run_tool("forgetting.clock_guard", root, *(["--accept"] if accept else []))
    doubt, accepted = found["doubt"], found["accepted"]
    if as_json:
        document = {
            "store": name,
            "trusted": not doubt,
            "doubt": doubt or None,
            "accepted": accepted,
            "now": time_document(found["wall_ns"]),
            "highest": time_document(found["highest_ns"]),
        }
        print_document(document)
    elif accepted:
        print(f"{time_text(found['wall_ns'])} is right: {name} goes on from there within an hour")
    elif doubt:
        print(f"{name} does not believe its clock: {doubt}")
        print(f"It stands at {time_text(found['wall_ns'])}; nothing is dropped meanwhile.")
        print("When that is right: strandline store clock --accept")
    else:
        print(f"{name} believes its clock: {time_text(found['wall_ns'])}")
    return FAILED if doubt else DONE


async def _answer(site: Site, store: str) -> list[ReplicaState] | None:
    try:
        return await replicas_of(site, store)
    except (Unreachable, RemoteRefused):
        return None


def _row(store: str, replica: ReplicaState) -> list[str]:
    return [
        store,
        replica.name,
        str(replica.points),
        str(replica.newest or "-"),
        size_text(replica.stored_bytes),
        size_text(replica.live_bytes) if replica.live_bytes else "-",
        time_text(replica.verified_at_ns),
        "; ".join(Fate.of_replica([], replica).remarks()) or "good",
    ]
