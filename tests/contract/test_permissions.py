"""The permission table on a real nats-server: every pair that it does not allow is denied."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import get_args

import nats
import nats.errors
import pytest
import pytest_asyncio

from strandline_contracts.names import Role, caller
from strandline_contracts.permissions import Permissions, permissions
from strandline_contracts.subjects import inbox_prefix
from strandline_runtime.permission_table import markdown
from support.nats import SiteBus
from support.rawclient import RawClient

# Two of some roles: an instance must be kept out of its sister's subjects as well.
INSTANCES: dict[Role, list[str]] = {
    "provisioner": ["1"],
    "operator": ["1", "2"],
    "scheduler": ["1"],
    "store": ["store-1", "store-2"],
    "agent": ["web-1", "db-1"],
    "catalog": ["1"],
    "monitor": ["1"],
}
CREDENTIALS = [(role, name) for role, names in INSTANCES.items() for name in names]
OUTSIDE_EVERY_ROW = [
    "$JS.API.STREAM.DELETE.EVENTS",
    "$JS.API.STREAM.PURGE.EVENTS",
    "$JS.API.STREAM.MSG.GET.COMMANDS",
    "$JS.API.STREAM.MSG.DELETE.EVENTS",
    "$JS.API.CONSUMER.CREATE.EVENTS",
    "$JS.FC.EVENTS.catalog.x",
    "$SYS.REQ.SERVER.PING",
    "$G.x",
    "strandline.v1.dr.evt.store-store-1.point.committed.s1",
    "strandline.v1.hq.svc.store.store-1.status.operator-9",
    "strandline.v2.hq.cmd.agent.web-1.s1.express_full",
    "_INBOX.x.y",
    "plain",
]
WIDE = [
    ">",
    "*.>",
    "strandline.>",
    "strandline.v1.hq.>",
    "$JS.>",
    "$KV.>",
    "_INBOX.>",
    "_INBOX.*.>",
]


def covers(pattern: str, subject: str) -> bool:
    """Tell whether all that `subject` (which may have wildcards) stands for is in `pattern`."""
    mine, theirs = pattern.split("."), subject.split(".")
    for position, token in enumerate(mine):
        if token == ">":
            return len(theirs) > position
        if position >= len(theirs) or theirs[position] == ">":
            return False
        if token != "*" and token != theirs[position]:
            return False
    return len(mine) == len(theirs)


def row(role: Role, instance: str) -> Permissions:
    return permissions("hq", role, instance)


def patterns() -> list[str]:
    """Return every pattern of the table, whether for publishing or for subscribing."""
    return sorted(
        {
            pattern
            for role, name in CREDENTIALS
            for pattern in (*row(role, name).publish, *row(role, name).subscribe)
        }
    )


def concrete(pattern: str) -> Iterator[str]:
    """Give subjects of a pattern, as a publisher must name them."""
    for filling in ("x1", "web-1"):
        tokens = [filling if token == "*" else token for token in pattern.split(".")]
        if tokens[-1] == ">":
            tokens[-1:] = [filling, "x2"]
        yield ".".join(tokens)


PUBLISHED = sorted({s for p in patterns() for s in concrete(p)} | set(OUTSIDE_EVERY_ROW))
SUBSCRIBED = sorted({*patterns(), *PUBLISHED, *WIDE})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def table(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SiteBus]:
    site = SiteBus(
        tmp_path_factory.mktemp("table"), instances=INSTANCES, stores=["store-1", "store-2"]
    )
    await site.start()
    yield site
    site.server.stop()


def test_every_role_is_tried() -> None:
    assert set(INSTANCES) == set(get_args(Role))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("role", "instance"), CREDENTIALS)
async def test_invariant_12_no_credential_publishes_beyond_its_row(
    table: SiteBus, role: Role, instance: str
) -> None:
    """Invariant 12, publishing: allowed is exactly what the row lists."""
    raw = await RawClient.connect(table, role, instance)
    for subject in PUBLISHED:
        await raw.nc.publish(subject, b"")
    await raw.flush()
    denied = {subject for kind, subject in raw.denied if kind == "publish"}
    await raw.close()
    mine = row(role, instance).publish
    assert denied == {s.lower() for s in PUBLISHED if not any(covers(p, s) for p in mine)}
    assert len(denied) >= len(PUBLISHED) // 4


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("role", "instance"), CREDENTIALS)
async def test_invariant_12_no_credential_subscribes_beyond_its_row(
    table: SiteBus, role: Role, instance: str
) -> None:
    """Invariant 12, reading: allowed is exactly what the row lists."""
    raw = await RawClient.connect(table, role, instance)
    for subject in SUBSCRIBED:
        await raw.nc.subscribe(subject)
    await raw.flush()
    denied = {subject for kind, subject in raw.denied if kind == "subscription"}
    await raw.close()
    mine = row(role, instance).subscribe
    assert denied == {s.lower() for s in SUBSCRIBED if not any(covers(p, s) for p in mine)}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("role", "instance"), CREDENTIALS)
async def test_the_domains_name_is_no_way_around(table: SiteBus, role: Role, instance: str) -> None:
    """The server maps $JS.<domain>.API to $JS.API before it looks at permissions."""
    raw = await RawClient.connect(table, role, instance)
    tried = [s for s in PUBLISHED if s.startswith("$JS.API.")]
    for subject in tried:
        await raw.nc.publish(subject.replace("$JS.API.", "$JS.hq.API.", 1), b"")
    await raw.flush()
    denied = {subject for kind, subject in raw.denied if kind == "publish"}
    await raw.close()
    mine = row(role, instance).publish
    assert denied == {s.lower() for s in tried if not any(covers(p, s) for p in mine)}


@pytest.mark.asyncio(loop_scope="module")
async def test_queue_groups_are_no_way_around(table: SiteBus) -> None:
    raw = await RawClient.connect(table, "agent", "web-1")
    await raw.nc.subscribe("strandline.v1.hq.svc.store.store-1.>", queue="store-store-1")
    await raw.flush()
    denied = {subject for _, subject in raw.denied}
    await raw.close()
    assert any(subject.startswith("strandline.v1.hq.svc.store.store-1") for subject in denied)


@pytest.mark.asyncio(loop_scope="module")
async def test_without_a_credential_there_is_no_connection(table: SiteBus, tmp_path: Path) -> None:
    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await nats.connect(table.server.url, allow_reconnect=False, error_cb=_ignore)


async def _ignore(_: Exception) -> None:
    return


def test_inboxes_are_everybodys_own() -> None:
    for role, name in CREDENTIALS:
        own = inbox_prefix(caller(role, name))
        for other_role, other_name in CREDENTIALS:
            allowed = row(other_role, other_name).subscribe
            if (role, name) != (other_role, other_name):
                assert not any(covers(pattern, f"{own}.x") for pattern in allowed)


def test_the_page_for_people_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "permissions.md"
    assert page.read_text("utf-8") == markdown(), (
        "run: python -m strandline_runtime.permission_table docs/permissions.md"
    )
