"""What the operator sets for a stack, and what the stack has chosen for itself and keeps."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from strandline_contracts.names import server_from_hostname, token
from strandline_standalone.errors import BadStateFolder
from strandline_standalone.layout import Layout, write_private


class NatsOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str = ""
    binary: str = ""
    store_bytes: int = 8 * 1024**3


class PostgresOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    dsn: str = ""
    bindir: str = ""


_Count = Annotated[int, msgspec.Meta(ge=0)]
_Length = Annotated[float, msgspec.Meta(ge=0)]


class StoreOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the store, by its own names. None: the store's own default."""

    reserve_bytes: _Count | None = None
    delete_delay_days: _Length | None = None
    scrub_days: _Length | None = None
    background_bytes_per_second: Annotated[int, msgspec.Meta(gt=0)] | None = None
    housekeeping_every_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    lease_s: _Length | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of strandline.toml."""

    site: str = "hq"
    nats: NatsOptions = NatsOptions()
    postgres: PostgresOptions = PostgresOptions()
    store: StoreOptions = StoreOptions()


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept from one `up` to the next: whose agents run here, and the ports."""

    servers: list[str] = []
    nats_port: int = 0
    postgres_port: int = 0


def read_options(path: Path) -> Options:
    """Return the options in `path`, else raise BadStateFolder that names the key."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), Options)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BadStateFolder(f"{path}: {error}", hint="See docs/standalone.md.") from error


def read_choice(path: Path) -> Choice:
    """Return what was kept, or an empty choice at the first time."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Choice)
    except FileNotFoundError:
        return Choice()
    except (OSError, msgspec.DecodeError) as error:
        raise BadStateFolder(f"{path}: {error}", hint="Remove it: it is made again.") from error


def choose(layout: Layout, asked_servers: list[str]) -> Choice:
    """Return the choice for this run: servers as asked, else as kept, else this host. Keeps it."""
    kept = read_choice(layout.choice)
    servers = (
        list(dict.fromkeys(token(server) for server in asked_servers))
        or kept.servers
        or [server_from_hostname(socket.gethostname())]
    )
    choice = Choice(
        servers=servers,
        nats_port=free_port(kept.nats_port),
        postgres_port=free_port(kept.postgres_port),
    )
    keep(layout, choice)
    return choice


def keep(layout: Layout, choice: Choice) -> None:
    write_private(layout.choice, msgspec.json.encode(choice).decode())


def free_port(preferred: int) -> int:
    """Return `preferred` if it is free on loopback, else some port that is."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise BadStateFolder("no free port on 127.0.0.1", hint="Too many programs listen there.")
