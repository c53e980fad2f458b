"""Journal and outbox after SIGKILL: what returned is there, and is told exactly as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from strandline_contracts.codec import decode, encode
from strandline_contracts.commands import Command
from strandline_contracts.events import JobChanged
from strandline_contracts.jobs import ENDED, Job
from strandline_runtime import outbox
from strandline_runtime.job_rules import Known
from strandline_runtime.journal import Journal
from support.commands import make_command

T = 1_790_000_000_000_000_000

CHILD = """
import sys, time
from pathlib import Path
from strandline_contracts.codec import decode
from strandline_contracts.commands import Command
from strandline_runtime.journal import Journal

journal = Journal(Path(sys.argv[1]), site="hq", origin="agent-web-1")
for line in sys.stdin:
    what, _, rest = line.strip().partition(" ")
    if what == "accept":
        command = decode(bytes.fromhex(rest), Command)
        journal.accept(command, command.scheduled_at_ns)
    else:
        job, state = rest.split()
        journal.move(job, state)
    print(line.strip(), flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def run_and_kill(path: Path, orders: list[str], kill_after: int) -> list[str]:
    """Give a child process orders; SIGKILL it when so many are confirmed; return these."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write("".join(f"{order}\n" for order in orders))
        child.stdin.flush()
        return [child.stdout.readline().strip() for _ in range(kill_after)]
    finally:
        child.kill()
        child.wait(10)
        child.stdin.close()
        child.stdout.close()


def told(journal: Journal) -> list[tuple[int, str, Job]]:
    """Return (number, verb, job) of the events in the outbox."""
    found = []
    for _, event in journal.on_database(lambda conn: outbox.pending(conn, 1000)):
        assert isinstance(event.data, JobChanged)
        found.append((event.number, event.verb, event.data.job))
    return found


def accept(command: Command) -> str:
    return f"accept {encode(command).hex()}"


def test_killed_between_accepting_and_starting(path: Path) -> None:
    command = make_command("j1", at_ns=T)
    run_and_kill(path, [accept(command)], kill_after=1)
    journal = Journal(path, site="hq", origin="agent-web-1")
    (job,) = journal.unfinished()
    assert (job.job, job.state) == ("j1", "accepted")
    assert journal.command("j1") == command
    with pytest.raises(Known):
        journal.accept(command, T)
    assert told(journal) == [(1, "accepted", job)]
    journal.close()


@pytest.mark.parametrize("kill_after", [2, 7, 16, 29])
def test_killed_at_any_moment(path: Path, kill_after: int) -> None:
    """Nothing confirmed is lost, and each record is what its last event says."""
    orders: list[str] = []
    for number in range(20):
        command = make_command(f"j{number}", at_ns=T + number)
        orders += [accept(command), f"move j{number} running", f"move j{number} durable"]
    confirmed = run_and_kill(path, orders, kill_after)
    assert confirmed == orders[:kill_after]

    journal = Journal(path, site="hq", origin="agent-web-1")
    events = told(journal)
    assert len(events) >= kill_after
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    last_told = {job.job: job for _, _, job in events}
    assert {job.job: job for job in journal.recent(100)} == last_told
    for order in confirmed:
        what, _, rest = order.partition(" ")
        job_id = decode(bytes.fromhex(rest), Command).job if what == "accept" else rest.split()[0]
        state = "accepted" if what == "accept" else rest.split()[1]
        job = journal.get(job_id)
        assert job is not None
        rank = ["accepted", "running", "durable"].index
        assert rank(job.state) >= rank(state)
    assert all(job.state not in ENDED for job in journal.unfinished())
    journal.close()
