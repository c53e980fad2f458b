"""One example of every message, each field different from its default, for the golden bytes."""

from __future__ import annotations

from strandline_contracts import commands, events, jobs, points, policy, queries, reading, shipping
from strandline_contracts.codec import Message
from strandline_contracts.signing import Signed

SOURCE = "00112233445566aa"
JOB = "0123456789abcdef0123456789abcdef"
T = 1_790_000_000_123_456_789

INODE = points.Inode(
    7,
    "f",
    0o4755,
    1000,
    100,
    5000,
    T,
    T + 1,
    T + 2,
    T - 5,
    66,
    1234,
    0,
    b"",
    [(b"user.a", b"\xff")],
)
LINK = points.Inode(8, "l", 0o777, 0, 0, 4, T, T, T, 0, 66, 99, 3, b"\xffto", [], True)
EXTENT = points.Extent(7, 0, 2, points.EXTENT_DATA, 1, 3)
NAME = points.Name(1, b"caf\xe9\n", 7)
ISSUE = points.Issue(b"/srv/\xff", "unreadable", "Permission denied")
TOTALS = points.Totals(
    files=5,
    bytes=1 << 40,
    scanned_bytes=9,
    dirty_bytes=8,
    shipped_bytes=7,
    sent_bytes=6,
    issues=1,
)
POINT = points.RecoveryPoint(
    source=SOURCE,
    number=2,
    kind="express_full",
    job=JOB,
    attempt=3,
    parent=1,
    parent_digest=b"\x01" * 32,
    digest=b"\x02" * 32,
    taken_at_ns=T,
    received_at_ns=T + 9,
    consistency="fuzzy",
    provider="none",
    tracker="scan",
    server="web-1",
    partial=True,
    totals=TOTALS,
    stored_bytes=4096,
)
THE_JOB = jobs.Job(
    job=JOB,
    source=SOURCE,
    verb="sync",
    role="agent",
    instance="web-1",
    state="failed",
    attempt=3,
    scheduled_at_ns=T,
    not_after_ns=T + 60,
    accepted_at_ns=T + 1,
    updated_at_ns=T + 2,
    issued_by="scheduler-1",
    point=2,
    partial=True,
    totals=TOTALS,
    issues=[ISSUE],
    failure=jobs.Failure(code="bus.full", message="full", hint="wait", retryable=True),
    detail="5 files",
)
THE_SOURCE = policy.Source(
    id=SOURCE,
    name="Büro",
    type="files",
    server="web-1",
    store="store-1",
    group="gold",
    paths=[b"/srv", b"/\xff"],
    excludes=["*.tmp"],
    protected=False,
)
RETENTION = policy.Retention(
    last=8, days=14, hourly=24, daily=7, weekly=4, monthly=12, yearly=10, log_window_s=86400
)
REPLICA = reading.ReplicaState(
    SOURCE, "Büro", "files", 2, 3, 8192, 4096, 1, "a check is due", T, [1, 0], T + 60
)


def command(args: commands.Args) -> commands.Command:
    return commands.Command(
        site="hq",
        role="agent",
        instance="web-1",
        source=SOURCE,
        job=JOB,
        scheduled_at_ns=T,
        not_after_ns=T + 60,
        issued_by="operator-1",
        args=args,
    )


def event(noun: str, verb: str, data: events.Data) -> events.Event:
    return events.Event(
        id="e1",
        site="hq",
        origin="store-store-1",
        noun=noun,
        verb=verb,
        source=SOURCE,
        number=4,
        time_ns=T,
        data=data,
    )


RESTORE = commands.Restore(
    point=2,
    to=b"/back/\xff",
    grant=b"\x00g",
    store="store-1",
    paths=[b"a"],
    overwrite=True,
    devices=True,
)

MESSAGES: dict[str, Message] = {
    "command-express_full": command(commands.ExpressFull()),
    "command-sync": command(commands.Sync()),
    "command-check": command(commands.Check()),
    "command-verify": command(commands.Verify()),
    "command-delete": command(commands.Delete(points=[1, 3])),
    "command-undelete": command(commands.Undelete(points=[3])),
    "command-reindex": command(commands.Reindex()),
    "command-compact": command(commands.Compact()),
    "command-cancel": command(commands.Cancel(target=JOB)),
    "command-assign": command(commands.Assign()),
    "command-restore": command(RESTORE),
    "grant": commands.Grant(
        site="hq",
        store="store-1",
        source=SOURCE,
        point=2,
        grantee="agent-web-1",
        job=JOB,
        not_after_ns=T,
        paths=[b"a/\xff"],
    ),
    "signed": Signed(body=b"\x81\xa1a\x01", purpose="command", key=b"k" * 32, signature=b"s" * 64),
    "event-point_committed": event("point", "committed", events.PointCommitted(point=POINT)),
    "event-job_changed": event("job", "failed", events.JobChanged(job=THE_JOB)),
    "event-source_changed": event("source", "protected", events.SourceChanged(source=THE_SOURCE)),
    "event-damage_found": event(
        "damage",
        "found",
        events.DamageFound(
            chunk=9, segment=2, offset=4096, reason="digest", points=[1, 2], files=[b"a\xff"]
        ),
    ),
    "event-damage_repaired": event(
        "damage", "repaired", events.DamageRepaired(chunk=9, by="agent-web-1", points=[1, 2])
    ),
    "event-points_dropped": event(
        "point", "dropped", events.PointsDropped(points=[1, 3], reason="retention")
    ),
    "event-replica_deleted": event(
        "replica",
        "deleted",
        events.ReplicaDeleted(points=[1, 3], due_at_ns=T + 60, by="operator-1"),
    ),
    "event-replica_verified": event(
        "replica",
        "verified",
        events.ReplicaVerified(chunks=9, read_bytes=1 << 20, damaged=1, began_at_ns=T),
    ),
    "event-clock_doubted": event(
        "clock", "doubted", events.ClockDoubted(reason="it stands an hour back")
    ),
    "get_job": jobs.GetJob(job=JOB),
    "got_job": jobs.GotJob(job=THE_JOB),
    "progress": jobs.Progress(
        job=JOB, phase="ship", files=1, done_bytes=2, total_bytes=3, sent_bytes=4
    ),
    "assignment": policy.Assignment(server="web-1", revision=3, sources=[THE_SOURCE]),
    "group": policy.Group(
        name="gold",
        sync_every_s=900,
        express_full=["0 20 * * *"],
        timezone="Europe/Berlin",
        retention=RETENTION,
    ),
    "hold": policy.Hold(
        source=SOURCE, points=[2, 5], reason="audit", held_at_ns=T, by="operator-1"
    ),
    "name": policy.NameEntry(name="Büro", source=SOURCE, server="web-1", store="store-1"),
    "refused": queries.Refused(code="a.b", message="no", hint="do", retryable=True),
    "sources": queries.Sources(name="Büro"),
    "source_list": queries.SourceList(
        sources=[
            queries.SourceState(
                source=THE_SOURCE,
                points=2,
                newest=POINT,
                last_job=THE_JOB,
                bytes=5,
                stored_bytes=4,
                deleted=[1, 0],
                due_at_ns=T + 60,
                damaged_chunks=3,
                verified_at_ns=T - 60,
            )
        ],
        nearest=["Buero"],
    ),
    "points_of": queries.PointsOf(source=SOURCE, before=9, limit=5),
    "point_list": queries.PointList(points=[POINT], more=True),
    "point_at": queries.PointAt(source=SOURCE, at_ns=T),
    "jobs": queries.Jobs(source=SOURCE, limit=3, open_only=True),
    "job_list": queries.JobList(jobs=[THE_JOB]),
    "status": queries.Status(),
    "status_is": queries.StatusIs(
        role="agent",
        instance="web-1",
        version="0.1.0",
        ready=True,
        started_at_ns=T,
        detail={"jobs": "1"},
    ),
    "points": reading.Points(source=SOURCE, after=1, limit=9, grant=b"g"),
    "point_page": reading.PointPage(points=[POINT], more=True),
    "replicas": reading.Replicas(after=SOURCE),
    "replica_page": reading.ReplicaPage(replicas=[REPLICA], more=True),
    "resolve": reading.Resolve(source=SOURCE, point=2, paths=[b"a/b"], grant=b"g"),
    "resolved": reading.Resolved(inodes=[INODE, None, LINK]),
    "list": reading.List(source=SOURCE, point=2, folders=[1, 5], after=b"m", grant=b"g"),
    "listing": reading.Listing(names=[NAME], inodes=[INODE], done=1),
    "extents": reading.Extents(
        source=SOURCE, point=2, files=[7], after=(3, 7, 0), limit=10, grant=b"g"
    ),
    "extent_page": reading.ExtentPage(extents=[EXTENT], more=True),
    "chunks": reading.Chunks(source=SOURCE, point=2, chunks=[1, 2], grant=b"g"),
    "chunk_page": reading.ChunkPage(
        chunks=[reading.StoredChunk(1, b"d" * 32, 4096, points.CODEC_ZSTD, memoryview(b"\x28\xb5"))]
    ),
    "block_digests": reading.BlockDigests(
        source=SOURCE, point=2, file=7, start=1, blocks=2, grant=b"g"
    ),
    "block_digest_page": reading.BlockDigestPage(digests=b"x" * 32, holes=[(4, 2)]),
    "open": shipping.Open(
        source=SOURCE,
        job=JOB,
        attempt=2,
        kind="check",
        parent=1,
        parent_digest=b"\x01" * 32,
    ),
    "opened": shipping.Opened(
        credit_bytes=1 << 25, credit_batches=32, holds=True, point=POINT, damaged=True
    ),
    "mismatch": shipping.Mismatch(newest=POINT),
    "want": shipping.Want(source=SOURCE, job=JOB, attempt=2, digests=[b"d" * 32]),
    "wanted": shipping.Wanted(missing=[0, 3]),
    "batch": shipping.Batch(
        job=JOB,
        attempt=2,
        seq=5,
        chunks=[
            shipping.Chunk(b"d" * 32, 4096, points.CODEC_RAW, memoryview(b"\x00\x01")),
            shipping.Chunk(b"e" * 32, 8192, points.CODEC_ZSTD, None),
        ],
        extents=[EXTENT],
        inodes=[INODE, LINK],
        names=[NAME],
        gone_inodes=[3],
        gone_names=[(1, b"old\xff")],
        issues=[ISSUE],
    ),
    "end": shipping.End(
        job=JOB,
        attempt=2,
        seq=6,
        digest=b"\x03" * 32,
        taken_at_ns=T,
        consistency="crash",
        provider="btrfs",
        tracker="scan",
        partial=True,
        totals=TOTALS,
    ),
    "wait": shipping.Wait(source=SOURCE, job=JOB, attempt=2, seq=6, timeout_ms=500),
    "waited": shipping.Waited(
        state="failed", durable=3, point=POINT, code="c", error="e", hint="h", retryable=True
    ),
    "lost_chunks": shipping.LostChunks(source=SOURCE, after=8),
    "lost_page": shipping.LostPage(
        chunks=[shipping.LostChunk(9, b"d" * 32, 8192, [(7, 0, 1, 0), (8, 4, 1, 1)])], more=True
    ),
    "mend": shipping.Mend(
        source=SOURCE,
        chunks=[shipping.Chunk(b"d" * 32, 4096, points.CODEC_RAW, memoryview(b"\x00\x01"))],
    ),
    "mended": shipping.Mended(chunks=[9]),
    "abort": shipping.Abort(source=SOURCE, job=JOB, attempt=2, reason="cancelled"),
}
