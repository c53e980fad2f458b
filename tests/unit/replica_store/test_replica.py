"""One replica without a bus: commits, fences, repetition, full disks, damage, rebuilding."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from strandline_contracts.errors import BadMessage
from strandline_contracts.events import DamageFound, PointCommitted
from strandline_contracts.points import CODEC_RAW, Extent, Name
from strandline_replica_store.checking.verify import verify
from strandline_replica_store.errors import (
    BadChunk,
    BadDelta,
    Behind,
    Busy,
    Fenced,
    Full,
    Inconsistent,
    IndexDamaged,
    MissingChunk,
    ParentMoved,
    StoreError,
    UnknownJob,
)
from strandline_replica_store.files import durable, manifest, segment
from strandline_replica_store.reading.reader import UNREADABLE_DIGEST, DamagedChunk, Reader
from strandline_replica_store.replica import index, tree
from strandline_replica_store.replica.replica import Replica
from strandline_replica_store.replica.rules import OpenVerdict
from strandline_runtime import outbox
from support.replicas import (
    SERVER,
    batch,
    chunk,
    content,
    end_of,
    inode,
    made_up,
    made_up_content,
    new_replica,
    one_file,
    open_of,
    open_replica,
    ship,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "replica"


def events(replica: Replica) -> list[Any]:
    found = replica.on_database(lambda conn: outbox.pending(conn, 100))
    return [event for _, event in found]


def missing(replica: Replica, digests: list[bytes]) -> Any:
    return replica.on_database(lambda conn: index.missing(conn, digests))


def files_below(folder: Path) -> dict[str, bytes]:
    """All truth of a replica: its segments and manifests."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in ("segments", "manifests")
        for path in sorted((folder / kind).iterdir())
    }


def test_points_are_numbered_chained_and_told(folder: Path) -> None:
    replica = new_replica(folder)
    first = ship(replica, "j1", one_file("j1", b"one"))
    second = ship(replica, "j2", one_file("j2", b"two"))
    assert (first.number, first.parent, first.parent_digest) == (1, 0, b"")
    assert (second.number, second.parent, second.parent_digest) == (2, 1, first.digest)
    assert [event.number for event in events(replica)] == [1, 2]
    assert events(replica)[1].data == PointCommitted(point=second)
    assert second.stored_bytes > 0
    replica.close()
    assert (content(folder, 1), content(folder, 2)) == (b"one", b"two")


def test_invariant_2_a_point_is_fully_restorable_or_not_visible(folder: Path) -> None:
    """Until its End is committed a job shows in no question; then all of it does."""
    replica = new_replica(folder)
    messages = one_file("j1", b"one")
    replica.open_job(SERVER, open_of(replica, "j1"))
    replica.take("j1", 1, messages)
    reader = Reader(str(folder))
    assert replica.newest is None
    assert tree.inode_record(reader.conn, 1, 2) is None
    assert tree.extents(reader.conn, 1, [], (-1, 0, 0), 10) == []
    assert list((folder / "manifests").iterdir()) == []
    replica.finish(end_of("j1", messages))
    assert content(folder, 1) == b"one"
    reader.close()
    replica.close()


def test_invariant_3_every_chunk_is_checked_before_it_leaves(folder: Path) -> None:
    replica = new_replica(folder)
    ship(replica, "j1", one_file("j1", os.urandom(4096)))
    reader = Reader(str(folder))
    (stored,) = reader.chunks([1], 0)
    path = segment.path_of(str(folder / "segments"), 1)
    size = os.path.getsize(path)
    for at in range(64, size, 97):
        flip(path, at)
        with pytest.raises(DamagedChunk):
            reader.chunks([1], 0)
        flip(path, at)
    assert reader.chunks([1], 0) == [stored]
    reader.close()
    replica.close()


def flip(path: str, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def test_invariant_4_stale_attempts_and_repetition_change_nothing(folder: Path) -> None:
    replica = new_replica(folder)
    messages = one_file("j1", b"one")
    replica.open_job(SERVER, open_of(replica, "j1", 1))
    replica.take("j1", 1, messages[:1])
    # A higher attempt fences the first one.
    assert replica.open_job(SERVER, open_of(replica, "j1", 2)) is OpenVerdict.FRESH
    with pytest.raises(Fenced):
        replica.take("j1", 1, messages[1:])
    with pytest.raises(Fenced):
        replica.finish(end_of("j1", messages))
    with pytest.raises(Fenced):
        replica.open_job(SERVER, open_of(replica, "j1", 1))
    again = [msg.replace(b"\xa7attempt\x01", b"\xa7attempt\x02") for msg in messages]
    replica.take("j1", 2, again)
    point = replica.finish(end_of("j1", again, 2))
    truth = files_below(folder)
    # Everything once more, and late.
    for attempt in (1, 2):
        with pytest.raises(UnknownJob):
            replica.take("j1", attempt, messages)
    assert replica.finish(end_of("j1", again, 2)) == point
    assert replica.finish(end_of("j1", messages)) == point
    assert replica.open_job(SERVER, open_of(replica, "j1", 3)) == point
    replica.fail("j1", 2, StoreError("late"))
    replica.abort("j1", 2, SERVER, "late")
    assert files_below(folder) == truth
    assert replica.waited("j1", 2).state == "committed"
    assert len(events(replica)) == 1
    replica.close()


def test_the_same_attempt_opens_again_for_its_own_server_alone(folder: Path) -> None:
    replica = new_replica(folder)
    replica.open_job(SERVER, open_of(replica, "j1"))
    replica.take("j1", 1, one_file("j1", b"one")[:1])
    assert replica.open_job(SERVER, open_of(replica, "j1")) is OpenVerdict.SAME
    with pytest.raises(Fenced):
        replica.open_job("web-2", open_of(replica, "j1"))
    assert replica.waited("j1", 1).durable == 1
    assert replica.waited("j1", 2).state == "unknown"
    replica.open_job(SERVER, open_of(replica, "j2"))
    assert replica.waited("j1", 1).state == "fenced"
    replica.close()


def test_invariant_8_an_inconsistent_replica_takes_only_a_check(folder: Path) -> None:
    replica = new_replica(folder)
    ship(replica, "j1", one_file("j1", b"one"))
    replica.mark_inconsistent("a chunk is missing")
    with pytest.raises(Inconsistent):
        replica.open_job(SERVER, open_of(replica, "j2"))
    assert content(folder, 1) == b"one"
    replica.close()
    replica = open_replica(folder)
    with pytest.raises(Inconsistent):
        replica.open_job(SERVER, open_of(replica, "j2"))
    messages = one_file("j3", b"repaired")
    replica.open_job(SERVER, open_of(replica, "j3", kind="check"))
    replica.take("j3", 1, messages)
    replica.finish(end_of("j3", messages))
    assert replica.inconsistent() == ""
    ship(replica, "j4", one_file("j4", b"four"))
    replica.close()
    assert [content(folder, n) for n in (1, 2, 3)] == [b"one", b"repaired", b"four"]


def test_invariant_11_a_delta_lands_only_on_the_state_it_was_made_against(folder: Path) -> None:
    replica = new_replica(folder)
    stale = open_of(replica, "j0")
    first = ship(replica, "j1", one_file("j1", b"one"))
    assert replica.open_job(SERVER, stale) is OpenVerdict.MISMATCH
    wrong = msgspec.structs.replace(open_of(replica, "j2"), parent_digest=b"\0" * 32)
    assert replica.open_job(SERVER, wrong) is OpenVerdict.MISMATCH
    # And at the commit again, should the newest point have moved meanwhile.
    messages = one_file("j2", b"two")
    replica.open_job(SERVER, open_of(replica, "j2"))
    replica.take("j2", 1, messages)
    replica._newest = msgspec.structs.replace(first, digest=b"\1" * 32)
    with pytest.raises(ParentMoved):
        replica.finish(end_of("j2", messages))
    replica.close()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda end: {"seq": 3}, BadDelta),
        (lambda end: {"digest": b"\0" * 32}, BadDelta),
    ],
)
def test_an_end_that_does_not_fit_is_refused(
    folder: Path, change: Callable[[Any], dict[str, Any]], error: type[Exception]
) -> None:
    replica = new_replica(folder)
    messages = one_file("j1", b"one")
    replica.open_job(SERVER, open_of(replica, "j1"))
    replica.take("j1", 1, messages)
    end = end_of("j1", messages)
    with pytest.raises(error):
        replica.finish(msgspec.structs.replace(end, **change(end)))
    assert list((folder / "manifests").iterdir()) == []
    replica.close()


PAGE = bytes(4096)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (batch("j1", 2, chunks=[chunk(PAGE)]), BadDelta),
        (batch("j2", 0), BadDelta),
        (b"\xc1", BadMessage),
        (batch("j1", 0, chunks=[chunk(PAGE, data=False)]), MissingChunk),
        (batch("j1", 0, chunks=[msgspec.structs.replace(chunk(PAGE), digest=b"x" * 32)]), BadChunk),
        (batch("j1", 0, extents=[Extent(2, 0, 1, 0, 0, 0)]), BadDelta),
        (batch("j1", 0, chunks=[chunk(PAGE)], extents=[Extent(2, 0, 2, 0, 0, 0)]), BadDelta),
        (batch("j1", 0, chunks=[chunk(PAGE)], extents=[Extent(2, 0, 1, 0, 0, -1)]), BadDelta),
        (batch("j1", 0, extents=[Extent(2, -1, 1, 1)]), BadDelta),
        (batch("j1", 0, extents=[Extent(2, 0, 1, 7)]), BadDelta),
        (batch("j1", 0, inodes=[inode(0)]), BadDelta),
        (batch("j1", 0, inodes=[inode(2, -1)]), BadDelta),
        (batch("j1", 0, gone_inodes=[-4]), BadDelta),
        *((batch("j1", 0, names=[(1, name, 2)]), BadDelta) for name in (b"", b"..", b"a/b")),
        (batch("j1", 0, attempt=2), BadDelta),
    ],
    ids=lambda value: getattr(value, "__name__", "message"),
)
def test_a_batch_that_cannot_be_leaves_nothing_behind(
    folder: Path, message: bytes, error: type[Exception]
) -> None:
    replica = new_replica(folder)
    replica.open_job(SERVER, open_of(replica, "j1"))
    good = batch("j1", 0, chunks=[chunk(os.urandom(4096))])
    with pytest.raises(error):
        replica.take("j1", 1, [message])
    with pytest.raises((BadDelta, BadMessage, MissingChunk, BadChunk)):
        replica.take("j1", 1, [good, message])
    assert replica.holds_chunks() is False
    replica.fail("j1", 1, StoreError("bad", code="store.bad_chunk"))
    waited = replica.waited("j1", 1)
    assert (waited.state, waited.code) == ("failed", "store.bad_chunk")
    assert list((folder / "staging").iterdir()) == []
    ship(replica, "j9", one_file("j9", b"nine"))
    replica.close()
    assert content(folder, 1) == b"nine"


def test_a_held_chunk_is_not_stored_again(folder: Path) -> None:
    replica = new_replica(folder)
    ship(replica, "j1", one_file("j1", b"same" * 1000))
    before = os.path.getsize(folder / "segments" / "00000001.sls")
    known = chunk(b"same" * 1000 + bytes(96))
    assert missing(replica, [known.digest, b"\0" * 32]) == [1]
    both = [known, msgspec.structs.replace(known, data=None)]
    extents = [Extent(2, 0, 1, 0, 0, 0), Extent(2, 1, 1, 0, 1, 0)]
    ship(replica, "j2", [batch("j2", 0, chunks=both, extents=extents, inodes=[inode(2, 8192)])])
    assert os.path.getsize(folder / "segments" / "00000001.sls") == before
    replica.close()
    assert content(folder, 2) == (b"same" * 1000 + bytes(96)) * 2


def test_a_job_goes_on_after_a_restart(folder: Path) -> None:
    replica = new_replica(folder)
    messages = one_file("j1", b"one")
    replica.open_job(SERVER, open_of(replica, "j1"))
    replica.take("j1", 1, messages[:1])
    replica.close()
    part = next((folder / "staging").iterdir())
    part.write_bytes(part.read_bytes() + b"SLFR torn")
    (folder / "staging" / "old.1.part").write_bytes(b"x")
    segment_path = folder / "segments" / "00000001.sls"
    if segment_path.exists():
        segment_path.write_bytes(segment_path.read_bytes() + b"SLCK torn")
    replica = open_replica(folder)
    assert [path.name for path in (folder / "staging").iterdir()] == ["j1.1.part"]
    assert replica.waited("j1", 1).durable == 1
    replica.take("j1", 1, messages[1:])
    replica.finish(end_of("j1", messages))
    replica.close()
    assert content(folder, 1) == b"one"


def test_a_commit_that_the_index_missed_is_applied_at_opening(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = new_replica(folder)
    messages = one_file("j1", b"one")
    replica.open_job(SERVER, open_of(replica, "j1"))
    replica.take("j1", 1, messages)
    with monkeypatch.context() as patch:
        patch.setattr(index, "apply_manifest", fails(OSError(errno.EIO, "io")))
        with pytest.raises(Behind):
            replica.finish(end_of("j1", messages))
        with pytest.raises(Behind):
            replica.open_job(SERVER, open_of(replica, "j2"))
    # Tried again at the next request, and after a restart.
    replica.close()
    replica = open_replica(folder)
    assert replica.newest is not None
    assert replica.newest.number == 1
    assert len(events(replica)) == 1
    assert replica.finish(end_of("j1", messages)) == replica.newest
    replica.close()
    assert content(folder, 1) == b"one"


def fails(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def test_the_index_is_a_projection(folder: Path) -> None:
    """Deleted, or no database any more, it is made anew and answers the same."""
    replica = new_replica(folder, segment_limit_bytes=5000)
    for number in range(1, 6):
        ship(replica, f"j{number}", one_file(f"j{number}", os.urandom(3000 + number)))
    replica.close()
    before = dump(folder)
    texts = [content(folder, number) for number in range(1, 6)]
    assert len(list((folder / "segments").iterdir())) > 1
    spoils: list[Callable[[Path], object]] = [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"rubbish" * 999),
    ]
    for spoil in spoils:
        spoil(folder / "index.db")
        open_replica(folder).close()
        assert dump(folder) == before
        assert [content(folder, number) for number in range(1, 6)] == texts


def dump(folder: Path) -> dict[str, list[Any]]:
    conn = index.connect_to_read(str(folder / "index.db"))
    tables = ("point", "chunk", "extent", "extent_past", "inode", "name")
    rows = {table: conn.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
    conn.close()
    return rows


# A full disk

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "site", ["write_all", "sync", "sync_folder", "create", "rename", "open_for_append"]
)
@pytest.mark.parametrize("step", ["open", "take", "finish"])
def test_a_full_disk_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, site: str, step: str
) -> None:
    replica = new_replica(folder, segment_limit_bytes=5000)
    ship(replica, "j1", one_file("j1", b"one" * 1000))
    messages = one_file("j2", os.urandom(4000))
    steps: dict[str, Callable[[], Any]] = {
        "open": lambda: replica.open_job(SERVER, open_of(replica, "j2")),
        "take": lambda: replica.take("j2", 1, messages),
        "finish": lambda: replica.finish(end_of("j2", messages)),
    }
    committed = False
    for name, action in steps.items():
        with monkeypatch.context() as patch:
            if name == step:
                patch.setattr(durable, site, fails(FULL))
            try:
                action()
                committed = name == "finish"
            except Behind:
                committed = True
            except Full as error:
                replica.fail("j2", 1, error)
                break
    if not committed:
        assert replica.waited("j2", 1).state in ("failed", "unknown")
        assert not list((folder / "staging").iterdir())
        ship(replica, "j3", one_file("j3", b"three"))
    replica.close()
    replica = open_replica(folder)
    assert replica.newest is not None
    assert replica.newest.number == 2
    replica.close()
    assert content(folder, 1) == b"one" * 1000
    assert len(content(folder, 2)) == (4000 if committed else 5)


def test_a_write_that_stops_half_way_is_cut_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = new_replica(folder)
    ship(replica, "j1", one_file("j1", b"one"))
    path = folder / "segments" / "00000001.sls"
    before = path.read_bytes()

    real = os.writev

    def half(fd: int, parts: list[bytes]) -> int:
        whole = b"".join(parts)
        real(fd, [whole[: len(whole) // 2]])
        raise FULL

    replica.open_job(SERVER, open_of(replica, "j2"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", half)
        with pytest.raises(Full):
            replica.take("j2", 1, [batch("j2", 0, chunks=[chunk(os.urandom(4096))])])
    assert path.read_bytes() == before
    replica.fail("j2", 1, StoreError("any"))
    ship(replica, "j3", one_file("j3", b"three"))
    replica.close()
    assert content(folder, 2) == b"three"


def test_a_failed_job_gives_its_room_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = new_replica(folder)
    ship(replica, "j1", one_file("j1", b"one"))
    size = os.path.getsize(folder / "segments" / "00000001.sls")
    replica.open_job(SERVER, open_of(replica, "j2"))
    replica.take("j2", 1, [batch("j2", 0, chunks=[chunk(os.urandom(4096))])])
    assert os.path.getsize(folder / "segments" / "00000001.sls") > size
    monkeypatch.setattr(durable, "free_bytes", lambda _: -1)
    with pytest.raises(Full) as caught:
        replica.take("j2", 1, [batch("j2", 1)])
    replica.fail("j2", 1, caught.value)
    assert os.path.getsize(folder / "segments" / "00000001.sls") == size
    with pytest.raises(Full):
        replica.open_job(SERVER, open_of(replica, "j3"))
    monkeypatch.undo()
    ship(replica, "j3", one_file("j3", b"three"))
    replica.close()
    assert content(folder, 2) == b"three"


def test_no_file_may_grow(folder: Path) -> None:
    """The real thing without root: the kernel refuses to let any file grow beyond a limit."""
    replica = new_replica(folder)
    ship(replica, "j1", one_file("j1", b"one"))
    replica.close()
    script = Path(__file__).parent / "grow_child.py"
    tests = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)),
    )
    assert done.stdout.strip() == "store.full", done.stderr
    replica = open_replica(folder)
    ship(replica, "j3", one_file("j3", b"three"))
    replica.close()
    assert (content(folder, 1), content(folder, 2)) == (b"one", b"three")


# Damage


def test_damage_is_found_told_once_and_repaired_by_the_same_bytes(folder: Path) -> None:
    replica = new_replica(folder)
    bad, good = os.urandom(4096), os.urandom(4096)
    extents = [Extent(2, 0, 1, 0, 0, 0), Extent(3, 0, 1, 0, 1, 0)]
    both = batch(
        "j1",
        0,
        chunks=[chunk(bad), chunk(good)],
        extents=extents,
        inodes=[inode(1, kind="d"), inode(2, 4096), inode(3, 4096)],
        names=[(1, b"two", 2), (1, b"three", 3)],
    )
    ship(replica, "j1", [both])
    reader = Reader(str(folder))
    assert verify(reader, replica.newest).damaged == 0
    flip(segment.path_of(str(folder / "segments"), 1), 64 + 144 + 5)
    for _ in range(2):
        report = verify(reader, replica.newest, on_damage=replica.record_damage)
        assert (report.damaged, report.chunks, report.manifests) == (1, 2, 1)
    (damage,) = [e.data for e in events(replica) if isinstance(e.data, DamageFound)]
    assert (damage.chunk, damage.points, damage.files) == (1, [1], [b"two"])
    with pytest.raises(DamagedChunk):
        reader.chunks([1, 2], 1 << 20)
    assert content(folder, 1, 3) == good
    assert reader.block_digests(1, 2, 0, 1).digests == UNREADABLE_DIGEST
    assert missing(replica, [blake3(bad).digest(), blake3(good).digest()]) == [0]
    # A check that ships the bytes again makes every point whole that needs them.
    messages = [batch("j2", 0, chunks=[chunk(bad)], extents=[extents[0]])]
    replica.open_job(SERVER, open_of(replica, "j2", kind="check"))
    replica.take("j2", 1, messages)
    replica.finish(end_of("j2", messages))
    assert content(folder, 1, 2) == content(folder, 2, 2) == bad
    assert verify(reader, replica.newest).damaged == 0
    reader.close()
    replica.close()


def test_a_missing_chunk_is_found(folder: Path) -> None:
    replica = new_replica(folder)
    ship(replica, "j1", one_file("j1", b"one"))
    ship(replica, "j2", one_file("j2", b"two"))
    replica.on_database(lambda conn: conn.execute("DELETE FROM chunk"))
    reader = Reader(str(folder))
    report = verify(reader, replica.newest)
    assert report.missing_chunks == 2
    assert [damage.points for damage in report.damages] == [[1], [2]]
    reader.close()
    replica.close()


def test_a_damaged_or_missing_manifest_is_found(folder: Path) -> None:
    replica = new_replica(folder)
    for number in (1, 2, 3):
        ship(replica, f"j{number}", one_file(f"j{number}", b"text"))
    flip(manifest.path_of(str(folder / "manifests"), 2), 100)
    os.unlink(manifest.path_of(str(folder / "manifests"), 3))
    reader = Reader(str(folder))
    report = verify(reader, replica.newest)
    assert [damage.points for damage in report.damages] == [[2], [3]]
    reader.close()
    replica.close()


def test_block_digests_tell_holes_from_zeros(folder: Path) -> None:
    replica = new_replica(folder)
    data = os.urandom(8192)
    extents = [Extent(2, 1, 2, 0, 0, 0), Extent(2, 3, 1, 2)]
    ship(replica, "j1", [batch("j1", 0, chunks=[chunk(data)], extents=extents)])
    reader = Reader(str(folder))
    page = reader.block_digests(1, 2, 0, 6)
    zero = blake3(bytes(4096)).digest()[:16]
    first, second = (blake3(data[i : i + 4096]).digest()[:16] for i in (0, 4096))
    assert page.digests == zero + first + second + zero * 3
    assert page.holes == [(0, 1), (4, 2)]
    assert reader.block_digests(1, 2, 2, 1).digests == second
    reader.close()
    replica.close()


def test_a_damaged_index_is_made_anew_and_told_once(folder: Path) -> None:
    """At opening, and in the midst of work: never a wrong answer, one event."""
    replica = new_replica(folder)
    texts = {number: os.urandom(3000) for number in range(1, 40)}
    for number, text in texts.items():
        ship(replica, f"j{number}", one_file(f"j{number}", text))
    replica.close()
    path = folder / "index.db"
    for permille in (0, 30, 500, 990):
        page = path.stat().st_size // 4096 * permille // 1000
        flip(str(path), page * 4096 + 1000)
        replica = open_replica(folder)
        with suppress(IndexDamaged):
            replica.on_database(index.check_pages)
        if replica.on_database(index.check_pages):
            # Found by no statement so far: whoever reads the page says so.
            replica.index_is_damaged(0, "a page")
        assert replica.on_database(index.check_pages) == ""
        told = [e.data for e in events(replica) if isinstance(e.data, DamageFound)]
        assert len(told) == 1
        assert "index.db" in told[0].reason
        replica.on_database(lambda conn: conn.execute("DELETE FROM outbox"))
        replica.close()
        assert {number: content(folder, number) for number in texts} == texts


@pytest.mark.parametrize("job", ["../../00/staging/j", "/tmp/j", "a/b", "a\0b", "..", "", "x" * 65])
def test_a_job_names_no_file_elsewhere(folder: Path, job: str) -> None:
    """Its name is part of a file's: an agent must not reach another replica by it."""
    replica = new_replica(folder)
    with pytest.raises(BadDelta):
        replica.open_job(SERVER, open_of(replica, job))
    assert os.listdir(folder / "staging") == []
    replica.close()


def test_an_id_that_a_torn_write_had_is_not_given_again(folder: Path) -> None:
    """A compaction writes two segments: power may tear the lower, the higher stays whole."""
    replica = new_replica(folder)
    ship(replica, "j1", one_file("j1", b"x" * 5000))
    where = (replica.segments_folder, replica.identity.source)
    limits = (replica.segment_limit_bytes, replica.segment_numbers)
    lower, higher = (segment.SegmentWriter(*where, *limits) for _ in range(2))
    torn, plain = replica.take_chunk_ids(1), bytes(4096)
    digest = blake3(plain).digest()
    for writer, number in ((lower, torn), (higher, 1)):
        writer.append(segment.pack_chunk_header(number, 0, len(plain), digest, plain), plain)
        writer.flush()
    replica.close()
    path = Path(segment.path_of(replica.segments_folder, lower.number))
    path.write_bytes(path.read_bytes()[:-1000] + b"?" * 1000)
    replica = open_replica(folder)
    ship(replica, "j2", one_file("j2", b"y" * 9000, file=3, name=b"b"))
    known = replica.on_database(lambda conn: list(conn.execute("SELECT id FROM chunk")))
    assert (torn,) not in known
    replica.reindex()
    assert content(folder, 2, 3) == b"y" * 9000
    replica.close()


# What a user's file holds may look like a chunk


def looks_like(number: int) -> bytes:
    """Return whole blocks of a file in which a chunk with this id lies."""
    plain = b"EVIL" * 1024
    header = segment.pack_chunk_header(number, 0, len(plain), blake3(plain).digest(), plain)
    return (bytes(8192) + header + plain).ljust(16 * 4096, b"x")


def stored_as_it_is(job: str, plain: bytes) -> list[bytes]:
    """Return the batches of a file whose bytes lie in the segment as they are."""
    extents = [Extent(3, 0, len(plain) // 4096, 0, 0, 0)]
    chunks = [chunk(plain, CODEC_RAW)]
    return [
        batch(job, 0, inodes=[inode(1, kind="d"), inode(3, len(plain))]),
        batch(job, 1, chunks=chunks, extents=extents, names=[Name(1, b"b", 3)]),
    ]


def ship_torn(replica: Replica, plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receive a file, killed when 20,000 bytes of its chunk are written."""
    made = stored_as_it_is("torn", plain)

    def torn(fd: int, parts: Any) -> int:
        os.write(fd, b"".join(map(bytes, parts))[:20_000])
        raise KeyboardInterrupt

    replica.open_job(SERVER, open_of(replica, "torn"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", torn)
        # Nothing is undone by a process that is dead.
        patch.setattr(replica._segments, "undo", lambda: None)
        with pytest.raises(KeyboardInterrupt):
            replica.take("torn", 1, made)
    replica.close()


@pytest.mark.parametrize("number", [1, 77, (1 << 63) - 1, (1 << 64) - 1])
@pytest.mark.parametrize("index_too", [False, True])
def test_invariant_5_a_file_that_looks_like_a_chunk_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, index_too: bool
) -> None:
    """Torn, it is what is found first behind the damage: it must not take a chunk's place."""
    replica = new_replica(folder)
    ship(replica, "j1", one_file("j1", b"GOOD" * 1024))
    ship_torn(replica, looks_like(number), monkeypatch)
    if index_too:
        for path in folder.glob("index.db*"):
            path.unlink()
    replica = open_replica(folder)
    assert content(folder, 1) == b"GOOD" * 1024
    ship(replica, "j2", made_up("j2", 7, 1))
    assert content(folder, 2) == made_up_content(7)
    replica.reindex()
    assert content(folder, 1) == b"GOOD" * 1024
    assert content(folder, 2) == made_up_content(7)
    replica.close()


def test_a_chunk_is_what_the_manifest_says_whatever_lies_under_its_id(folder: Path) -> None:
    """A header has rotted, and the index is made anew: what lies inside is no copy of chunk 1."""
    replica = new_replica(folder)
    ship(replica, "j1", stored_as_it_is("j1", looks_like(2)))
    ship(replica, "j2", one_file("j2", b"GOOD" * 1024))
    replica.close()
    path = Path(segment.path_of(str(folder / "segments"), 1))
    data = bytearray(path.read_bytes())
    data[64 + 20] ^= 1
    path.write_bytes(data)
    for found in folder.glob("index.db*"):
        found.unlink()
    replica = open_replica(folder)
    with pytest.raises(DamagedChunk, match="chunk 1 "):
        content(folder, 1, 3)
    # What lies inside has the id of the good one, and comes first.
    assert content(folder, 2) == b"GOOD" * 1024
    replica.close()


def test_what_a_killed_process_wrote_is_synced_before_it_is_relied_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = new_replica(folder)
    made = one_file("j1", made_up_content(1))
    replica.open_job(SERVER, open_of(replica, "j1"))
    with monkeypatch.context() as patch:

        def killed(_fd: int) -> None:
            raise KeyboardInterrupt

        patch.setattr(durable, "sync", killed)
        patch.setattr(replica._segments, "undo", lambda: None)
        with pytest.raises(KeyboardInterrupt):
            replica.take("j1", 1, made)
    replica.close()
    synced: list[str] = []
    monkeypatch.setattr(durable, "sync_path", synced.append)
    open_replica(folder).close()
    assert segment.path_of(str(folder / "segments"), 1) in synced


def test_a_commit_whose_folder_was_not_synced_at_first_ends_the_job(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = new_replica(folder)
    made = one_file("j1", made_up_content(1))
    replica.open_job(SERVER, open_of(replica, "j1"))
    replica.take("j1", 1, made)
    with monkeypatch.context() as patch:

        def fails(_path: str) -> None:
            raise OSError(errno.EIO, "I/O error")

        patch.setattr(durable, "sync_folder", fails)
        with pytest.raises(Behind):
            replica.finish(end_of("j1", made))
    assert replica.open_attempt is None
    assert replica.waited("j1", 1).state == "committed"
    assert replica.finish(end_of("j1", made)).number == 1
    replica.close()


def test_a_replica_that_was_closed_changes_nothing_any_more(folder: Path) -> None:
    former = new_replica(folder)
    ship(former, "j1", one_file("j1", made_up_content(1)))
    former.close()
    replica = open_replica(folder)
    ship(replica, "j2", one_file("j2", made_up_content(2)))
    with pytest.raises(Busy):
        former.mend([], "agent-web-1")
    assert content(folder, 2) == made_up_content(2)
    replica.close()


def test_labels_of_an_end_are_bounded(folder: Path) -> None:
    """They are in every answer that lists the recovery point."""
    replica = new_replica(folder)
    made = one_file("j1", made_up_content(1))
    replica.open_job(SERVER, open_of(replica, "j1"))
    replica.take("j1", 1, made)
    end = msgspec.structs.replace(end_of("j1", made), provider="x" * 1000)
    with pytest.raises(BadDelta):
        replica.finish(end)
    replica.close()
