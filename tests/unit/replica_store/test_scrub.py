"""Scrub: everything is read again in time, a little at a time, and damage is told once."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from strandline_contracts.events import DamageFound, DamageRepaired, Event, ReplicaVerified
from strandline_replica_store.checking.scrub import Round, Scrub, Verified, note_verified, verified
from strandline_replica_store.files import manifest, segment
from strandline_replica_store.files.segment import CHUNK_HEADER_BYTES
from strandline_replica_store.pace import Pace
from strandline_replica_store.reading.reader import DamagedChunk
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.store.leases import Leases
from strandline_replica_store.store.store import Store
from strandline_runtime import outbox
from support.replicas import SOURCE, content, made_up, made_up_content, ship

DAY_NS = 86_400 * 10**9
DAYS = 30
FAST = 1 << 40


class World:
    """A store with one replica of two recovery points, and its scrub under a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.now_ns = 1_000 * DAY_NS
        self.open(folder)
        self.store.create(SOURCE, "data", "files")
        for number in (1, 2):
            ship(self.replica, f"job{number}", made_up(f"job{number}", number, 1))
        self.take_events()

    def open(self, folder: Path | str) -> None:
        self.store = Store(str(folder), name="store-1", site="hq", reserve_bytes=0)
        self.store.now_ns = lambda: self.now_ns

    @property
    def replica(self) -> Replica:
        return self.store.replica(SOURCE)

    def work(self, days: float = 0, slice_s: float = 60) -> None:
        """Let some days pass and scrub."""
        self.now_ns += int(days * DAY_NS)
        scrub = Scrub(self.store, Pace(FAST), days=DAYS, slice_s=slice_s)
        scrub.work(SOURCE, threading.Event())

    def verified(self) -> Verified:
        found: Verified = self.replica.on_database(verified)
        return found

    def take_events(self) -> list[Event]:
        """Return the events that were recorded since the last time."""

        def take(conn: outbox.Database) -> list[Event]:
            found = outbox.pending(conn, 1000)
            for key, _ in found:
                outbox.done(conn, key)
            return [event for _, event in found]

        events: list[Event] = self.replica.on_database(take)
        return events

    def told(self) -> list[str]:
        return [f"{event.noun}.{event.verb}" for event in self.take_events()]

    def flip_chunk(self, number: int) -> int:
        """Damage the chunk at this position of the replica; return its id."""
        rows = self.replica.on_database(
            lambda conn: list(
                conn.execute("SELECT id, segment, offset FROM chunk ORDER BY segment, offset")
            )
        )
        chunk, number, offset = rows[number]
        flip(segment.path_of(self.replica.segments_folder, number), offset + CHUNK_HEADER_BYTES + 9)
        return int(chunk)


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "store")
    yield made
    made.store.close()


def test_nothing_is_read_before_it_is_due(world: World) -> None:
    world.work()
    world.work(days=DAYS * 0.79)
    assert (world.told(), world.verified()) == ([], Verified(0, 0))


def test_a_round_reads_everything_and_is_told(world: World) -> None:
    world.work()
    world.work(days=DAYS * 0.81)
    [event] = world.take_events()
    assert isinstance(event.data, ReplicaVerified)
    chunks = world.replica.on_database(lambda c: c.execute("SELECT count(*) FROM chunk").get)
    assert (event.data.chunks, event.data.damaged) == (chunks, 0)
    assert event.data.read_bytes > 100_000
    assert world.verified() == Verified(world.now_ns, 0)
    world.work(days=1)
    assert world.told() == []
    world.work(days=DAYS)
    assert world.told() == ["replica.verified"]


def test_what_came_since_is_verified_when_its_time_comes(world: World) -> None:
    world.work()
    world.work(days=20)
    ship(world.replica, "job3", made_up("job3", 3, 1))
    world.take_events()
    world.work()
    world.work(days=5)
    [event] = world.take_events()
    assert isinstance(event.data, ReplicaVerified)
    assert event.data.began_at_ns == world.now_ns


def test_a_round_goes_on_where_it_was_stopped(world: World) -> None:
    """Slices of no time at all: each takes one step, in a store opened anew."""
    world.work()
    world.now_ns += DAYS * DAY_NS
    root = world.store.root
    rounds = 0
    while not (told := world.told()):
        rounds += 1
        assert rounds < 20
        world.store.close()
        world.open(root)
        world.work(slice_s=0)
    assert told == ["replica.verified"]
    assert rounds == 3, "a segment, the manifests, and the end"


def test_a_verify_that_was_asked_for_counts(world: World) -> None:
    world.work()
    world.now_ns += 23 * DAY_NS
    note_verified(world.replica, [1], 2, Round(world.now_ns, chunks=7))
    assert world.told() == ["replica.verified"]
    assert world.verified().at_ns == world.now_ns
    world.work(days=20)
    assert world.told() == []
    world.work(days=5)
    assert world.told() == ["replica.verified"]


def test_what_was_verified_is_known_to_an_index_made_anew(world: World) -> None:
    world.work()
    world.work(days=DAYS)
    before = world.verified()
    world.store.reindex(SOURCE)
    world.take_events()
    assert world.verified() == before
    world.work(days=20)
    assert world.told() == []


def test_without_its_index_a_replica_is_verified_again(world: World) -> None:
    world.work()
    world.work(days=DAYS)
    root, folder = world.store.root, world.replica.folder
    world.store.close()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{folder}/index.db{suffix}").unlink(missing_ok=True)
    world.open(root)
    world.take_events()
    assert world.verified() == Verified(0, 0)
    world.work()
    world.work(days=DAYS)
    assert world.told() == ["replica.verified"]


def test_a_stop_in_the_middle_counts_for_nothing(world: World) -> None:
    world.work()
    world.now_ns += DAYS * DAY_NS
    stop = threading.Event()
    slow = Scrub(world.store, Pace(1), days=DAYS)
    threading.Timer(0.1, stop.set).start()
    slow.work(SOURCE, stop)
    marks = world.replica.on_database(lambda c: list(c.execute("SELECT at_ns FROM verified")))
    assert [at_ns for (at_ns,) in marks] == [0, 0, 0]
    world.work()
    assert world.told() == ["replica.verified"]


async def test_a_cancelled_run_ends_soon(world: World) -> None:
    world.work()
    world.now_ns += DAYS * DAY_NS
    slow = Scrub(world.store, Pace(1), days=DAYS)
    task = asyncio.create_task(slow.run(SOURCE))
    await asyncio.sleep(0.1)
    task.cancel()
    async with asyncio.timeout(1):
        with pytest.raises(asyncio.CancelledError):
            await task


def test_a_bad_chunk_is_told_once_named_and_not_read_any_more(world: World) -> None:
    chunk = world.flip_chunk(0)
    world.work()
    world.work(days=DAYS)
    events = world.take_events()
    assert [f"{event.noun}.{event.verb}" for event in events] == [
        "damage.found",
        "replica.verified",
    ]
    found = events[0].data
    assert isinstance(found, DamageFound)
    assert (found.chunk, found.points, found.files) == (chunk, [1], [b"a"])
    assert world.verified() == Verified(world.now_ns, 1)
    with pytest.raises(DamagedChunk):
        content(Path(world.replica.folder), 1)
    assert content(Path(world.replica.folder), 2) == made_up_content(2)
    world.work(days=DAYS)
    assert world.told() == ["replica.verified"]


def test_damage_in_what_nothing_needs_any_more_harms_nobody(world: World) -> None:
    world.replica.drop([1], "retention")
    world.take_events()
    chunk = world.flip_chunk(0)
    world.work()
    world.work(days=DAYS)
    events = world.take_events()
    found, whole = events[0].data, events[1].data
    assert isinstance(found, DamageFound)
    assert (found.chunk, found.points) == (chunk, [])
    assert isinstance(whole, ReplicaVerified)
    assert whole.damaged == 0
    assert world.verified().damaged_chunks == 0


def test_a_bad_manifest_is_told_put_aside_and_written_anew(world: World) -> None:
    path = manifest.path_of(world.replica.manifests_folder, 1)
    flip(path, os.path.getsize(path) // 2)
    bad = Path(path).read_bytes()
    world.work()
    world.work(days=DAYS)
    events = world.take_events()
    assert [f"{event.noun}.{event.verb}" for event in events] == [
        "damage.found",
        "damage.repaired",
        "replica.verified",
    ]
    found, repaired = events[0].data, events[1].data
    assert isinstance(found, DamageFound)
    assert (found.chunk, found.points) == (0, [1])
    assert repaired == DamageRepaired(chunk=0, by="index", points=[1])
    aside = Path(world.replica.folder) / "damaged" / os.path.basename(path)
    assert aside.read_bytes() == bad
    assert manifest.check(path).head.number == 1
    assert content(Path(world.replica.folder), 1) == made_up_content(1)
    world.work(days=DAYS)
    assert world.told() == ["replica.verified"]


def test_between_two_steps_no_lease_keeps_what_is_retired(world: World) -> None:
    """A round takes days: what was moved at its beginning must not wait for its end."""
    leases = Leases(lambda: world.now_ns)
    world.store.leases = leases
    world.now_ns += 10**12
    world.work()
    world.work(days=DAYS)
    assert world.verified().at_ns
    assert leases.oldest_taken_at(SOURCE) is None


def test_a_chunk_that_was_read_wrongly_once_is_relied_on_again(world: World) -> None:
    chunk = world.flip_chunk(0)
    world.work()
    world.work(days=DAYS)
    assert world.verified().damaged_chunks == 1
    world.take_events()
    assert world.flip_chunk(0) == chunk, "the bit is as it was"
    world.work(days=DAYS)
    repaired, whole = (event.data for event in world.take_events())
    assert isinstance(repaired, DamageRepaired)
    assert (repaired.chunk, repaired.by) == (chunk, "store")
    assert isinstance(whole, ReplicaVerified)
    assert whole.damaged == 0
    assert world.verified().damaged_chunks == 0


def test_a_bad_segment_header_is_told_and_written_anew(world: World) -> None:
    path = segment.path_of(world.replica.segments_folder, 1)
    sound = Path(path).read_bytes()
    flip(path, 20)
    world.work()
    world.work(days=DAYS)
    events = world.take_events()
    found, repaired, whole = (event.data for event in events)
    assert isinstance(found, DamageFound)
    assert (found.chunk, found.segment, found.points) == (0, 1, [])
    assert found.reason == "segment 1: a header does not match its digest"
    assert repaired == DamageRepaired(chunk=0, by="name")
    assert isinstance(whole, ReplicaVerified)
    assert whole.damaged == 0, "no recovery point is harmed"
    assert Path(path).read_bytes() == sound
    world.work(days=DAYS)
    assert world.told() == ["replica.verified"]


def test_pace_lets_so_much_through(world: World) -> None:
    now = [100.0]
    pace = Pace(1000, now_s=lambda: now[0])
    waited: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0)
            now[0] += timeout or 0
            return False

    for _ in range(100):
        pace.take(100, Stop())
    assert 9.5 < sum(waited) < 10.1
