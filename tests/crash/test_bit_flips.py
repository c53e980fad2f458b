"""One bit is flipped at every structure of every file: found and named, or harmless.

The store with the flipped bit is opened, all of it restored and verified: with its index and
without. Never may a recovery point restore as something else, or be missing unsaid.

STRANDLINE_SEED repeats what another run has printed.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from strandline_replica_store.errors import Damaged
from strandline_replica_store.files import checked_json
from strandline_replica_store.forgetting.clock_guard import Mark
from strandline_replica_store.store.store import Store
from support.replicas import IDENTITY, SOURCE
from support.source_model import Shipment
from support.store_files import Place, as_text, examine, places
from support.workload import Workload

SEED = os.environ.get("STRANDLINE_SEED", "1")
SCRIPT = "commit commit small failed commit drop commit full small rewrite commit"
REPLICA = f"replicas/{SOURCE}"


class Sample(NamedTuple):
    """A store's folder, and what it must restore."""

    root: Path
    states: dict[int, str]
    going_on: Shipment | None


@pytest.fixture(scope="module")
def closed(shared_memory: Path) -> Sample:
    """A store that was stopped."""
    root = shared_memory / "closed"
    workload = begun(root)
    workload.run("many")
    workload.run(SCRIPT)
    workload.replica.close()
    return Sample(root, states(workload), None)


@pytest.fixture(scope="module")
def receiving(shared_memory: Path) -> Sample:
    """A store whose power failed while it received a job: there is a log and a part file."""
    root = shared_memory / "running"
    workload = begun(root)
    workload.run("commit small reopen commit small")
    made, _ = workload.begin()
    workload.ship(made, len(made.messages) - 1)
    copy = shared_memory / "receiving"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("*-shm"))
    number = max(workload.kept) + 1
    workload.replica.close()
    return Sample(copy, states(workload) | {number: made.state}, made)


def begun(root: Path) -> Workload:
    Store(str(root), name=IDENTITY.store, site=IDENTITY.site).close()
    workload = Workload(root / REPLICA, SEED, lambda _: None)
    # Rows that are no more, so that some pages are free.
    workload.replica.on_database(
        lambda conn: conn.execute(
            "WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 12)"
            " INSERT INTO meta SELECT 'k' || n, hex(randomblob(900)) FROM n"
        ).fetchall()
    )
    workload.replica.on_database(lambda conn: conn.execute("DELETE FROM meta").fetchall())
    return workload


def states(workload: Workload) -> dict[int, str]:
    return {number: workload.states[number] for number in workload.kept}


class Flip(NamedTuple):
    place: Place
    offset: int
    bit: int


def flips(root: Path, rng: random.Random, most_places: int, bits_each: int) -> Iterator[Flip]:
    """Yield flips at each kind of structure: in some of its places, at some of its bits."""
    kinds: dict[str, list[Place]] = defaultdict(list)
    for place in places(root):
        if place.size_bytes:
            kinds[place.structure].append(place)
    for _, found in sorted(kinds.items()):
        chosen = found if len(found) <= most_places else rng.sample(found, most_places)
        for place in chosen:
            total = place.size_bytes * 8
            for bit in sorted(rng.sample(range(total), min(total, bits_each))):
                yield Flip(place, place.offset + bit // 8, bit % 8)


def outcome(sample: Sample, flip: Flip, folder: Path, *, with_index: bool) -> str:
    """Flip a bit in a copy of a store; return how that ends, beginning with WRONG if wrongly."""
    shutil.copytree(sample.root, folder)
    path = folder / flip.place.path
    data = bytearray(path.read_bytes())
    data[flip.offset] ^= 1 << flip.bit
    path.write_bytes(data)
    if not with_index:
        for found in (folder / REPLICA).glob("index.db*"):
            found.unlink()
    try:
        told = examine(folder, sample.going_on)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        return f"WRONG: raised {error!r}"
    finally:
        shutil.rmtree(folder)
    # A chunk whose header cannot be read is named by what it was part of.
    names = [path.name, f"segment {path.stem.lstrip('0')} at", "chunk "]
    other = [n for n, found in told.points.items() if found not in (None, sample.states.get(n))]
    due = sample.states.keys() - ({max(sample.states)} if sample.going_on else set())
    lost = {n for n in due if told.points.get(n) is None}
    if other:
        return f"WRONG: points {other} are other states: {as_text(told)}"
    if lost and not told.complaints:
        return f"WRONG: points {lost} are missing and nothing is said"
    if lost and told.points and not lost <= told.named:
        return f"WRONG: points {lost - told.named} are missing and not named: {as_text(told)}"
    if lost and not any(name in text for name in names for text in told.complaints):
        return f"WRONG: the file is not named: {as_text(told)}"
    if not told.complaints:
        return "harmless"
    if not lost:
        return "all restored, damage told"
    return "refused, file named" if not told.points else "points named, others restored"


def run(
    sample: Sample, folder: Path, most_places: int, bits_each: int, *, with_index: bool
) -> dict[str, Counter[str]]:
    """Flip many bits, one at a time; print and return how often each structure ended how."""
    matrix: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: dict[str, str] = {}
    rng = random.Random(SEED)
    for flip in flips(sample.root, rng, most_places, bits_each):
        if not with_index and "index.db" in flip.place.path:
            continue
        end = outcome(sample, flip, folder / "flipped", with_index=with_index)
        matrix[flip.place.structure][end.split(":")[0]] += 1
        if end.startswith("WRONG"):
            at = f"{flip.place.structure}, {flip.place.path} byte {flip.offset} bit {flip.bit}"
            wrong.setdefault(flip.place.structure, f"{at}: {end}")
    total = sum(sum(ends.values()) for ends in matrix.values())
    print(f"\nseed {SEED}: {total} flips, {'with' if with_index else 'without'} index")
    for structure, ends in sorted(matrix.items()):
        print(f"  {structure}: " + ", ".join(f"{n} {end}" for end, n in sorted(ends.items())))
    assert not wrong, "\n".join(wrong.values())
    # Harms nothing, but a disk that flips bits there does so elsewhere.
    headers = [ends for structure, ends in matrix.items() if "segment header" in structure]
    assert headers
    assert not any(ends["harmless"] for ends in headers)
    return matrix


@pytest.mark.parametrize("with_index", [True, False], ids=["with-index", "without-index"])
@pytest.mark.parametrize("sample", ["closed", "receiving"])
def test_a_flipped_bit_is_never_restored(
    sample: str, memory: Path, request: pytest.FixtureRequest, with_index: bool
) -> None:
    run(request.getfixturevalue(sample), memory, 2, 2, with_index=with_index)


def test_every_flipped_bit_of_a_file_about_lives_is_found(tmp_path: Path) -> None:
    """deleted.json, clock.json, policies.json and others are of one kind: each bit of one."""
    path = tmp_path / "clock.json"
    mark = Mark(wall_ns=1_795_320_498_000_000_000, boottime_ns=10**12, boot_id="b", highest_ns=7)
    checked_json.write(str(path), mark)
    sound = path.read_bytes()
    for bit in range(len(sound) * 8):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(Damaged, match=r"clock\.json"):
            checked_json.read(str(path), Mark)
    print(f"\n{len(sound) * 8} flips, each found and named")


@pytest.mark.soak
@pytest.mark.parametrize("with_index", [True, False], ids=["with-index", "without-index"])
@pytest.mark.parametrize("sample", ["closed", "receiving"])
def test_a_flipped_bit_is_never_restored_for_long(
    sample: str, memory: Path, request: pytest.FixtureRequest, with_index: bool
) -> None:
    run(request.getfixturevalue(sample), memory, 4, 16, with_index=with_index)
