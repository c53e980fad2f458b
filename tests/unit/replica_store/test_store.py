"""The store's root: replicas are opened, readers lent, damaged indexes made anew."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from strandline_contracts.events import DamageFound
from strandline_replica_store.checking.verify import verify
from strandline_replica_store.errors import Busy, IndexDamaged
from strandline_replica_store.replica import index
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.replica.rules import OpenVerdict
from strandline_replica_store.store.store import Store
from strandline_runtime import outbox
from support.replicas import (
    SERVER,
    SOURCE,
    content,
    end_of,
    made_up,
    made_up_content,
    open_of,
    ship,
)

OTHER = "ffeeddccbbaa9988"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"), name="store-1", site="hq", reserve_bytes=0)
    for source in (SOURCE, OTHER):
        store.create(source, "data", "files")
    for number in range(1, 4):
        ship(store.replica(SOURCE), f"j{number}", made_up(f"j{number}", number, 1))
    return store


def flip_index(folder: str) -> None:
    """Flip a bit in every page but the first, the log carried over before."""
    path = Path(folder) / "index.db"
    data = bytearray(path.read_bytes())
    for at in range(4096 + 700, len(data), 4096):
        data[at] ^= 1
    path.write_bytes(data)


def test_verify_reads_every_page_of_the_index(store: Store) -> None:
    """A damaged one is told once and made anew; tried again, verify finds all sound."""
    replica, folder = store.replica(SOURCE), store.folder_of(SOURCE)
    index.carry_over(replica._conn)
    flip_index(folder)
    with pytest.raises(IndexDamaged) as caught, store.reader(SOURCE) as reader:
        verify(reader, replica.newest)
    assert caught.value.retryable
    events = replica.on_database(lambda conn: outbox.pending(conn, 100))
    with store.reader(SOURCE) as reader:
        assert verify(reader, replica.newest).damaged == 0
    (told,) = [event.data for _, event in events if isinstance(event.data, DamageFound)]
    assert told.reason.startswith("index.db: ")
    assert content(Path(folder), 2) == made_up_content(2)
    store.close()


def test_reindex_gives_readers_the_new_index(store: Store) -> None:
    with store.reader(SOURCE) as before:
        store.reindex(SOURCE)
        with store.reader(SOURCE) as after:
            assert after is not before
        assert before.chunks([1], 0)
    with store.reader(SOURCE) as again:
        assert again is after
    store.close()


def test_while_a_replica_is_opened_others_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, real = threading.Event(), threading.Event(), Replica.open

    def slow(folder: str, *values: object, **named: object) -> Replica:
        if folder.endswith(SOURCE):
            began.set()
            assert go_on.wait(30)
        return real(folder, *values, **named)  # type: ignore[arg-type]

    store.close()
    store = Store(store.root, name="store-1", site="hq", reserve_bytes=0)
    monkeypatch.setattr(Replica, "open", slow)
    monkeypatch.setattr("strandline_replica_store.store.store.OPENING_PATIENCE_S", 0.05)
    found: list[Replica] = []
    opener = threading.Thread(target=lambda: found.append(store.replica(SOURCE)))
    opener.start()
    assert began.wait(30)
    assert store.replica(OTHER).newest is None
    with pytest.raises(Busy):
        store.replica(SOURCE)
    go_on.set()
    opener.join(30)
    assert store.replica(SOURCE) is found[0]
    store.close()


def test_readers_are_lent_while_the_index_is_made_anew(store: Store) -> None:
    done = threading.Event()

    def make_anew() -> None:
        for _ in range(5):
            store.reindex(SOURCE)
        done.set()

    thread = threading.Thread(target=make_anew)
    thread.start()
    lent = 0
    while not done.is_set():
        with store.reader(SOURCE) as one, store.reader(SOURCE) as two, store.reader(SOURCE) as last:
            for reader in (one, two, last):
                assert reader.chunks([1], 0)[0].plain_bytes == 4 * 4096
                lent += 1
    thread.join()
    assert lent
    store.close()


def test_a_reader_of_an_index_that_was_is_not_lent_again(store: Store) -> None:
    lent = store.reader(SOURCE)
    old = lent.__enter__()
    store.reindex(SOURCE)
    # As after an eviction: it is opened again, by another object.
    store._replicas.pop(SOURCE).close()
    store.forget_readers(SOURCE)
    with store.reader(SOURCE):
        pass
    lent.__exit__(None, None, None)
    with store.reader(SOURCE) as reader:
        assert reader is not old
    store.close()


def test_a_replica_that_is_read_stays_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strandline_replica_store.store.store.MAX_OPEN_REPLICAS", 1)
    with store.reader(SOURCE):
        with pytest.raises(Busy):
            store.replica(OTHER)
        assert store.is_open(SOURCE)
    assert store.replica(OTHER).newest is None
    assert not store.is_open(SOURCE)
    store.close()


def test_open_jobs_shut_the_store_for_nobody_and_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strandline_replica_store.store.store.MAX_OPEN_REPLICAS", 2)
    sources = [OTHER, *(f"{number:016x}" for number in range(1, 4))]
    sent = {source: made_up(f"j-{source}", int(source[:2], 16), 1) for source in sources}
    for source in sources:
        store.create(source, "data", "files")
        replica, job = store.replica(source), f"j-{source}"
        request = msgspec.structs.replace(open_of(replica, job), source=source)
        assert replica.open_job(SERVER, request) is OpenVerdict.FRESH
        replica.take(job, 1, sent[source][:1])
    # All of these servers have vanished; others restore, and ship.
    with store.reader(SOURCE) as reader:
        assert reader.chunks([1], 0)
    ship(store.replica(SOURCE), "j4", made_up("j4", 4, 1))
    for source in sources:
        replica, job = store.replica(source), f"j-{source}"
        assert replica.open_attempt is not None
        assert (replica.open_attempt.job, replica.open_attempt.durable) == (job, 1)
        replica.take(job, 1, sent[source][1:])
        replica.finish(end_of(job, sent[source]))
        assert content(Path(replica.folder), 1) == made_up_content(int(source[:2], 16))
    store.close()


def test_a_replica_at_work_is_neither_closed_nor_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strandline_replica_store.store.store.MAX_OPEN_REPLICAS", 1)
    replica = store.replica(SOURCE)
    began, go_on = threading.Event(), threading.Event()

    def work(_: object) -> None:
        began.set()
        assert go_on.wait(30)

    worker = threading.Thread(target=replica.on_database, args=(work,))
    worker.start()
    assert began.wait(30)
    with pytest.raises(Busy):
        store.replica(OTHER)
    go_on.set()
    worker.join(30)
    assert store.replica(OTHER).newest is None
    store.close()
