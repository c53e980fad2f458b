"""The services of a stack: their names, credentials and settings files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from strandline_contracts.names import Role
from strandline_runtime.keys import make_credential, make_signing_seed
from strandline_runtime.nats_conf import User, server_config
from strandline_standalone.layout import Layout, make_private, write_private
from strandline_standalone.options import Options

STORE = "store-1"
CATALOG = "catalog-1"
SCHEDULER = "scheduler-1"
PROVISIONER = "standalone"
OPERATOR = "local"

Value = str | int | float | Sequence[str]


class ServiceUnit(NamedTuple):
    """A service process: `module` is started with `python -m`, `name` is also its state folder."""

    name: str
    role: Role
    instance: str
    module: str


def service_units(servers: Sequence[str]) -> list[ServiceUnit]:
    """Return the services in the order in which they are stopped."""
    return [
        *(ServiceUnit(f"agent-{name}", "agent", name, "strandline_agent") for name in servers),
        ServiceUnit(SCHEDULER, "scheduler", SCHEDULER, "strandline_scheduler"),
        ServiceUnit(STORE, "store", STORE, "strandline_replica_store"),
        ServiceUnit(CATALOG, "catalog", CATALOG, "strandline_catalog"),
    ]


def credential_path(layout: Layout, role: str, instance: str) -> Path:
    return layout.keys / f"{role}-{instance}.nkey"


def signing_path(layout: Layout, authority: str) -> Path:
    return layout.keys / f"{authority}.signing"


def config_path(layout: Layout, unit: str) -> Path:
    return layout.config / f"{unit}.toml"


def trusted_path(layout: Layout) -> Path:
    return layout.config / "trusted-keys.json"


def make_keys(layout: Layout, servers: Sequence[str]) -> list[User]:
    """Make the credentials and signing seeds that are missing; return the bus's users."""
    who: list[tuple[Role, str]] = [("provisioner", PROVISIONER), ("operator", OPERATOR)]
    who += [(unit.role, unit.instance) for unit in service_units(servers)]
    users = []
    for role, instance in who:
        path = credential_path(layout, role, instance)
        users.append(User(role, instance, make_credential(path)))
    trusted = {
        make_signing_seed(signing_path(layout, authority)).hex(): authority
        for authority in ("operator", "scheduler")
    }
    write_private(trusted_path(layout), json.dumps(trusted, indent=2) + "\n")
    return users


def write_bus_config(layout: Layout, options: Options, users: Sequence[User], port: int) -> Path:
    """Write the configuration of nats-server and return its path."""
    path = layout.config / "nats-server.conf"
    text = server_config(
        site=options.site,
        users=users,
        port=port,
        store_dir=layout.nats,
        max_store_bytes=options.nats.store_bytes,
    )
    write_private(path, text)
    return path


def write_configs(layout: Layout, options: Options, servers: Sequence[str], nats_url: str) -> None:
    """Write the settings of every service but the catalog, of the provisioner and the operator."""
    for unit in service_units(servers):
        make_private(layout.of(unit.name))
        own: dict[str, Value] = {}
        if unit.role == "scheduler":
            own["signing_seed"] = str(signing_path(layout, "scheduler"))
        if unit.role == "agent":
            # Whatever is protected around it: a replica must not hold the replicas.
            own["own_state"] = [str(layout.root)]
        if unit.role == "store":
            asked = msgspec.structs.asdict(options.store)
            own |= {key: value for key, value in asked.items() if value is not None}
        if unit.role != "catalog":
            _write(
                layout,
                options,
                nats_url,
                role=unit.role,
                instance=unit.instance,
                name=unit.name,
                own=own,
            )
    own = {"stores": [STORE]}
    _write(
        layout,
        options,
        nats_url,
        role="provisioner",
        instance=PROVISIONER,
        name="provisioner",
        own=own,
    )
    own = {
        "state_dir": str(layout.root),
        "signing_seed": str(signing_path(layout, "operator")),
        "servers": list(servers),
        "stores": [STORE],
        "catalog": CATALOG,
        "scheduler": SCHEDULER,
    }
    _write(layout, options, nats_url, role="operator", instance=OPERATOR, name="operator", own=own)


def write_catalog_config(layout: Layout, options: Options, nats_url: str, dsn: str) -> None:
    """Write the catalog's settings, once its database is known."""
    dsn_file = layout.keys / "catalog.dsn"
    write_private(dsn_file, dsn + "\n")
    own: dict[str, Value] = {"dsn_file": str(dsn_file)}
    _write(layout, options, nats_url, role="catalog", instance=CATALOG, name=CATALOG, own=own)


def _write(
    layout: Layout,
    options: Options,
    nats_url: str,
    *,
    role: str,
    instance: str,
    name: str,
    own: Mapping[str, Value],
) -> None:
    common: dict[str, Value] = {
        "site": options.site,
        "instance": instance,
        "nats_urls": [nats_url],
        "credential": str(credential_path(layout, role, instance)),
        "trusted_keys": str(trusted_path(layout)),
        "state_dir": str(layout.of(name)),
    }
    write_private(config_path(layout, name), to_toml({**common, **own}))


def to_toml(values: Mapping[str, Value]) -> str:
    """Return flat TOML. JSON's strings, numbers and lists of strings are TOML's too, but for DEL
    and for characters beyond 16 bits, which JSON would escape as two halves.
    """
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return "".join(lines).replace("\x7f", "\\u007f")
