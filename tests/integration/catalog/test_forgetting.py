"""Points that go, deleted replicas, and replicas that no policy knows."""

from __future__ import annotations

from strandline_contracts.events import DamageFound, ReplicaDeleted, ReplicaVerified
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.queries import (
    PointAt,
    PointList,
    PointsOf,
    SourceList,
    Sources,
    SourceState,
)
from support.waiting import until

from .conftest import A, B, World, a_job, a_point, a_replica, a_source

HERE = "c" * 16


async def points(world: World, source: str = A) -> list[RecoveryPoint]:
    page = await world.ask("points", PointsOf(source=source), PointList)
    return list(page.points)


async def state(world: World, name: str = "web") -> SourceState:
    found = await world.ask("sources", Sources(name=name), SourceList)
    return found.sources[0] if found.sources else SourceState(source=a_source())


async def until_points(world: World, *numbers: int, source: str = A) -> None:
    async def so() -> bool:
        return await world.numbers(source) == list(numbers)

    await until(so, f"points {numbers}")


async def until_seen(world: World, mark: str) -> None:
    """Wait until the catalog has taken an event that is told now."""
    await world.move(a_job(mark, "running", source=B))

    async def so() -> bool:
        return bool(await world.rows("SELECT FROM job WHERE job = $1", mark))

    await until(so, "the next event came")


async def until_closed(world: World) -> None:
    async def so() -> bool:
        return not await world.rows("SELECT FROM event_gap WHERE closed_at_ns IS NULL")

    await until(so, "every gap is closed")


async def commit(world: World, *numbers: int) -> None:
    for number in numbers:
        await world.commit(a_point(number))


async def test_dropped_points_go_and_no_old_event_brings_them_back(world: World) -> None:
    await world.assign(a_source())
    await world.start()
    await commit(world, 1, 2, 3, 4)
    await until_points(world, 1, 2, 3, 4)
    await world.drop(1, 3)
    await until_points(world, 2, 4)
    await world.commit_again(a_point(3), 3)
    await world.commit_again(a_point(2), 2)
    await until_seen(world, "after")
    assert await points(world) == [a_point(4), a_point(2)]
    assert (await state(world)).points == 2
    at = await world.ask("point_at", PointAt(source=A, at_ns=a_point(3).taken_at_ns), PointList)
    assert at.points == [a_point(2)]


async def test_a_drop_that_is_heard_before_the_commit_counts(world: World) -> None:
    await world.start()
    await world.drop(2)
    await commit(world, 1, 2, 3)
    await until_seen(world, "after")
    await until_points(world, 1, 3)


async def test_the_stores_list_is_enough_to_know_an_old_event(world: World) -> None:
    """Where the events of the drop are gone, and with them what they told."""
    await world.assign(a_source())
    await commit(world, 1, 2, 3)
    world.store.points = [each for each in world.store.points if each.number != 2]
    await world.start()
    await until_points(world, 1, 3)
    assert await world.rows("SELECT FROM point_gone") == []
    await world.commit_again(a_point(2), 2)
    await until_seen(world, "after")
    assert await world.numbers() == [1, 3]


async def test_drops_are_remembered_until_the_store_has_listed(world: World) -> None:
    await world.assign(a_source())
    await world.start()
    await until(lambda: world.store.asked, "the store was asked")
    await commit(world, 1, 2)
    await world.drop(1)
    await until_points(world, 2)
    assert len(await world.rows("SELECT FROM point_gone")) == 1
    await world.stop()
    await world.start()

    async def pruned() -> bool:
        return await world.rows("SELECT FROM point_gone") == []

    await until(pruned, "a list says as much")
    await world.commit_again(a_point(1), 1)
    await until_seen(world, "after")
    assert await world.numbers() == [2]


async def test_a_list_from_before_a_drop_does_not_undo_it(world: World) -> None:
    await world.assign(a_source())
    await commit(world, 1, 2)

    async def drop_meanwhile() -> None:
        # The answer is made already; the event reaches the catalog before it does.
        await world.drop(1)
        await until(lambda: world.rows("SELECT FROM point_gone"), "the drop is known")

    world.store.before_answer = drop_meanwhile
    await world.start()
    await until(lambda: world.rows("SELECT FROM point_listed"), "the list was taken")
    assert await world.numbers() == [2]


async def test_a_purged_replica_takes_its_points_along_and_may_begin_anew(world: World) -> None:
    await world.assign(a_source())
    await world.start()
    await commit(world, 1, 2)
    await until_points(world, 1, 2)
    world.store.points, world.store.gone = [], {A}
    await world.tell("store", "replica", "purged", ReplicaDeleted())
    await until_points(world)
    await world.commit_again(a_point(2), 2)
    await until_seen(world, "purged")
    assert await world.numbers() == []
    world.store.gone = set()
    again = a_point(1, received_at_ns=2**62)
    await world.commit(again)
    await until_points(world, 1)
    assert await points(world) == [again]


async def test_a_store_without_the_replica_has_no_points_of_it(world: World) -> None:
    await world.assign(a_source())
    await commit(world, 1)
    world.store.gone = {A}
    await world.start()
    await until(lambda: world.store.asked, "the store was asked")
    await until_points(world)
    assert world.catalog.detail()["failing_stores"] == "none"


async def test_what_an_event_says_of_a_replica_is_asked_from_its_store(world: World) -> None:
    await world.assign(a_source())
    world.store.replicas = [a_replica()]
    await world.start()
    await until(lambda: world.rows("SELECT FROM replica"), "the replica came")

    async def so(**expected: object) -> None:
        async def is_so() -> bool:
            found = await state(world)
            return all(getattr(found, name) == value for name, value in expected.items())

        await until(is_so, str(expected))

    world.store.replicas = [a_replica(deleted=[0], due_at_ns=77)]
    await world.tell("store", "replica", "deleted", ReplicaDeleted(due_at_ns=77, by="operator-1"))
    await so(deleted=[0], due_at_ns=77)
    world.store.replicas = [a_replica()]
    await world.tell("store", "replica", "undeleted", ReplicaDeleted(by="operator-1"))
    await so(deleted=[], due_at_ns=0)
    world.store.replicas = [a_replica(damaged_chunks=3)]
    damage = DamageFound(chunk=1, segment=1, offset=0, reason="digest")
    await world.tell("store", "damage", "found", damage)
    await so(damaged_chunks=3)
    world.store.replicas = [a_replica(verified_at_ns=5)]
    verified = ReplicaVerified(chunks=1, read_bytes=1, damaged=0, began_at_ns=5)
    await world.tell("store", "replica", "verified", verified)
    await so(damaged_chunks=0, verified_at_ns=5)


async def test_replicas_that_no_policy_knows_are_listed_with_their_points(world: World) -> None:
    await world.assign(a_source(), a_source(B, "mail"))
    world.store.replicas = [a_replica(), a_replica(HERE, "attached", verified_at_ns=9)]
    for source in (A, HERE):
        world.store.points.append(a_point(1, source))
    await world.start()

    async def listed() -> bool:
        found = await world.ask("sources", Sources(), SourceList)
        return [(each.source.name, each.points) for each in found.sources] == [
            ("attached", 1),
            ("mail", 0),
            ("web", 1),
        ]

    await until(listed, "all three")
    found = await state(world, "attached")
    assert (found.source.id, found.source.server, found.source.store) == (HERE, "", "store-1")
    assert (found.source.protected, found.verified_at_ns) == (False, 9)
    nearest = await world.ask("sources", Sources(name="atached"), SourceList)
    assert nearest.nearest == ["attached"]
    # Its name in a policy is another thing; once a policy has the source itself, that counts.
    await world.assign(a_source(HERE, "taken-over"))

    async def taken_over() -> bool:
        return (await state(world, "taken-over")).points == 1

    await until(taken_over, "the policy names it")
    assert (await world.ask("sources", Sources(name="attached"), SourceList)).sources == []


async def test_a_lost_event_about_a_replica_is_made_good_by_asking(world: World) -> None:
    await world.assign(a_source())
    await world.start()
    await world.tell(
        "store",
        "replica",
        "verified",
        ReplicaVerified(chunks=1, read_bytes=1, damaged=0, began_at_ns=5),
    )
    await until_seen(world, "first")
    world._numbers["store-store-1", "replica", A] += 1
    world.store.replicas = [a_replica(deleted=[4], due_at_ns=8)]
    await world.tell(
        "store",
        "replica",
        "verified",
        ReplicaVerified(chunks=1, read_bytes=1, damaged=0, began_at_ns=6),
    )

    async def known() -> bool:
        return (await state(world)).deleted == [4]

    await until(known, "the state is known")
    await until_closed(world)
