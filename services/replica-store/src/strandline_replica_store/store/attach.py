"""Makes a replica's folder that was brought here one of this store's.

    python -m strandline_replica_store.store.attach look|copy|move ROOT FOLDER

is a tool for the store's own host; the store may run meanwhile, and finds the folder by itself.
It prints one JSON document: what the folder is, or the error. `strandline store attach` uses it.
The index is made anew, which reads every manifest. What the old store had in hand stays behind:
deletes that waited, policies that it remembered, jobs half received.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from strandline_contracts.errors import StrandlineError
from strandline_replica_store.errors import (
    Damaged,
    Full,
    Locked,
    NotAllowed,
    StoreError,
    translated,
)
from strandline_replica_store.files import durable, manifest, segment
from strandline_replica_store.replica import reindex
from strandline_replica_store.replica.replica import RESERVE_BYTES, Identity, Replica
from strandline_runtime import logs

_SOURCE = re.compile(r"[0-9a-f]{16}\Z")
_LEFT_BEHIND = ("deleted.json", "policies.json")


class NotAReplica(StoreError):
    """The folder is not a replica as docs/formats/replica.md describes it."""

    code = "store.not_a_replica"
    hint = "Name the folder of one replica: that which holds replica.json."


class AlreadyHere(StoreError):
    """The store has a replica of this source."""

    code = "store.already_here"
    hint = "One store keeps one replica of a source; the folder that was named is left as it is."


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What replica.json says."""

    format: int
    source: str
    name: str
    type: str
    store: str = ""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder holds. `server` is the one that made the newest recovery point."""

    source: str
    name: str
    type: str
    server: str
    newest: int
    here: bool
    """Whether the folder is in this store already."""


def look(root: str, folder: str) -> Found:
    """Return what `folder` is if the store at `root` can take it.

    Raises NotAReplica, Damaged, AlreadyHere, Locked, NotAllowed.
    """
    about = _about(folder)
    _check_owner(root)
    target = _target(root, about)
    here = os.path.realpath(folder) == os.path.realpath(target)
    if not here:
        # A store may own the link, or what it leads to.
        for place in (os.path.abspath(folder), os.path.realpath(folder)):
            _check_at_rest(place)
        if os.path.lexists(target):
            raise AlreadyHere(f"the store at {root} has a replica of source {about.source}")
    newest = _newest(folder, about)
    return Found(
        source=about.source,
        name=about.name,
        type=about.type,
        server=newest.head.server,
        newest=newest.head.number,
        here=here,
    )


def copy(root: str, folder: str) -> Found:
    """Copy the replica into the store; it is there wholly or not at all.

    Raises what `look` does, Full, and what opening a replica does.
    """
    found = look(root, folder)
    if found.here:
        return found
    about = _about(folder)
    replicas = os.path.join(root, "replicas")
    coming = os.path.join(replicas, f".copying-{about.source}")
    with _alone(replicas):
        shutil.rmtree(coming, ignore_errors=True)
        _check_room(root, folder)
        try:
            _copy_folder(folder, coming)
            _prepare(root, coming, found)
            durable.rename(coming, _target(root, about))
        except BaseException:
            shutil.rmtree(coming, ignore_errors=True)
            raise
    return found


def move(root: str, folder: str) -> Found:
    """Rename the replica into the store, on one file system; raises as `copy` does.

    What fails leaves the folder where it is, without its index, which can be made anew.
    """
    found = look(root, folder)
    if found.here:
        return found
    # Never a link to it: the store would own what lies in somebody else's place.
    folder = os.path.realpath(folder)
    replicas = os.path.join(root, "replicas")
    if os.stat(folder).st_dev != os.stat(replicas).st_dev:
        raise NotAllowed(f"{folder} lies on another disk than the store", hint="Leave out --move.")
    with _alone(replicas):
        reindex.remove_all(os.path.join(folder, "index.db"))
        for name in _LEFT_BEHIND:
            durable.remove(os.path.join(folder, name))
        shutil.rmtree(os.path.join(folder, "staging"), ignore_errors=True)
        _prepare(root, folder, found)
        durable.rename(folder, _target(root, _about(folder)))
    return found


def _prepare(root: str, folder: str, found: Found) -> None:
    """Make the index, which checks every manifest, and begin a new era for this store's chunks."""
    with open(os.path.join(root, "store.json"), "rb") as file:
        mine = json.load(file)
    identity = Identity(source=found.source, store=mine["store"], site=mine["site"])
    replica = Replica.open(folder, identity)
    newest = replica.newest
    replica.close()
    if newest is None or newest.number != found.newest:
        last = newest.number if newest is not None else 0
        raise Damaged(
            f"of {found.newest} recovery points the manifests hold together up to {last} only",
            hint="strandline_reader.py, in each store's folder, restores what can be read.",
        )
    path = os.path.join(folder, "replica.json")
    with open(path, "rb") as file:
        about = json.load(file)
    about |= {"store": mine["store"], "era": int(about.get("era", 0)) + 1}
    durable.write_file_atomically(path, json.dumps(about, indent=2).encode() + b"\n")


def _about(folder: str) -> About:
    path = os.path.join(folder, "replica.json")
    try:
        with open(path, "rb") as file:
            about = msgspec.json.decode(file.read(), type=About)
    except FileNotFoundError as error:
        raise NotAReplica(f"{folder} holds no replica.json") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotAReplica(f"{path} cannot be read: {error}") from error
    if about.format != 1:
        raise NotAReplica(
            f"{path} is of format {about.format}, this store knows format 1",
            hint="A newer version of Strandline wrote it: attach it with that.",
        )
    if not _SOURCE.match(about.source):
        raise NotAReplica(f"{path} names no data source: {about.source!r}")
    return about


def _newest(folder: str, about: About) -> manifest.Manifest:
    """Return the newest manifest, of this source; all of them were checked, so nothing is taken
    away from a folder that will be refused."""
    manifests = os.path.join(folder, "manifests")
    if not (os.path.isdir(manifests) and os.path.isdir(os.path.join(folder, "segments"))):
        raise NotAReplica(f"{folder} holds no segments and manifests")
    numbers = manifest.numbers_in(manifests)
    if not numbers:
        raise NotAReplica(f"{folder} holds no recovery point")
    for number in numbers:
        newest = manifest.check(manifest.path_of(manifests, number))
    if newest.head.source != about.source:
        raise Damaged(f"its manifests are of source {newest.head.source}, not of {about.source}")
    return newest


def _target(root: str, about: About) -> str:
    return os.path.join(os.path.abspath(root), "replicas", about.source)


def _check_owner(root: str) -> None:
    """Refuse to make files in the store's folder that the store could not open."""
    owner = os.stat(os.path.join(root, "replicas")).st_uid
    if os.geteuid() != owner:
        raise NotAllowed(
            f"the store at {root} belongs to user {owner}", hint="Run this as that user."
        )


def _check_at_rest(folder: str) -> None:
    """Refuse a folder, given by its absolute path, that lies in a store whose process runs."""
    lock = os.path.join(os.path.dirname(os.path.dirname(folder)), "store.lock")
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Locked(
            f"{folder} is in use by the store that owns {os.path.dirname(lock)}",
            hint="Stop that store, or attach a copy that was made while it did not run.",
        ) from error
    finally:
        os.close(fd)


@contextmanager
def _alone(replicas: str) -> Iterator[None]:
    """Let nobody else attach to this store meanwhile."""
    fd = os.open(replicas, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked("something is being attached to this store", hint="Try again.") from error
        yield
    finally:
        os.close(fd)


def _files(folder: str) -> Iterator[str]:
    """Yield what makes a replica, relative to its folder: replica.json, segments and manifests."""
    yield "replica.json"
    for number in segment.numbers_in(os.path.join(folder, "segments")):
        yield os.path.relpath(segment.path_of(os.path.join(folder, "segments"), number), folder)
    for number in manifest.numbers_in(os.path.join(folder, "manifests")):
        yield os.path.relpath(manifest.path_of(os.path.join(folder, "manifests"), number), folder)


def _check_room(root: str, folder: str) -> None:
    needed_bytes = sum(os.path.getsize(os.path.join(folder, name)) for name in _files(folder))
    free_bytes = durable.free_bytes(root) - RESERVE_BYTES
    if needed_bytes > free_bytes:
        raise Full(
            f"the replica has {needed_bytes} bytes, {max(0, free_bytes)} are free for it",
            hint="Free space on the store's disk, or --move a folder that lies on it.",
        )


def _copy_folder(folder: str, coming: str) -> None:
    """Copy a replica's files and bring them and their names to the disk."""
    durable.make_folder(coming)
    for name in ("segments", "manifests"):
        durable.make_folder(os.path.join(coming, name))
    for name in _files(folder):
        target = os.path.join(coming, name)
        fd = durable.create(target)
        try:
            shutil.copyfile(os.path.join(folder, name), target, follow_symlinks=True)
            durable.sync(fd)
        finally:
            os.close(fd)
    for name in ("segments", "manifests", ""):
        durable.sync_folder(os.path.join(coming, name))


def main(argv: list[str]) -> int:
    """Run the tool; return 0, or 1 with an error document."""
    work = {"look": look, "copy": copy, "move": move}
    if len(argv) != 3 or argv[0] not in work:
        sys.stderr.write(__doc__ or "")
        return 2
    logs.set_up("error", "console")
    try:
        with translated():
            found = work[argv[0]](argv[1], argv[2])
    except StrandlineError as error:
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        sys.stdout.write(json.dumps({"error": told}) + "\n")
        return 1
    sys.stdout.write(json.dumps(msgspec.to_builtins(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
