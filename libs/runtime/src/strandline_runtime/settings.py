"""Settings of a service: one TOML file, the environment over it, every value typed and checked."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import msgspec

from strandline_runtime.errors import SettingsError

CONFIG_VARIABLE = "STRANDLINE_CONFIG"
PREFIX = "STRANDLINE_"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every service needs to know; services subclass it with fields of their own.

    `credential` is a file with the nkey seed of this role and instance, mode 0600. `trusted_keys`
    is a JSON file: public signing key (hexadecimal) to "operator" or "scheduler". `http_port` 0
    takes any free loopback port and writes it to `<state_dir>/http.port`. `watch_fd` is an
    inherited pipe: when it reaches its end, the supervisor is dead and the process exits.
    """

    site: str = "hq"
    instance: str
    nats_urls: list[str] = msgspec.field(default_factory=lambda: ["nats://127.0.0.1:4222"])
    credential: Path
    trusted_keys: Path
    state_dir: Path
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    http_port: int = 0
    watch_fd: int = -1


T = TypeVar("T", bound=Settings)


def load(kind: type[T], environ: Mapping[str, str] | None = None) -> T:
    """Read the file named by STRANDLINE_CONFIG, then STRANDLINE_<FIELD> over it.

    In the environment lists are separated by commas. Raises SettingsError, which names the key.
    """
    env = os.environ if environ is None else environ
    values = _from_file(Path(env[CONFIG_VARIABLE])) if env.get(CONFIG_VARIABLE) else {}
    hints = get_type_hints(kind)
    for name in kind.__struct_fields__:
        text = env.get(PREFIX + name.upper())
        if text is not None:
            values[name] = _from_text(name, text, hints[name])
    try:
        return msgspec.convert(values, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"settings: {error}") from error


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path}: {error}") from error


def _from_text(name: str, text: str, kind: object) -> object:
    value: object = text
    if getattr(kind, "__origin__", None) is list:
        value = [part.strip() for part in text.split(",") if part.strip()]
    try:
        # A converted value is checked again with all the others: give it back as plain data.
        converted = msgspec.convert(value, kind, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{PREFIX}{name.upper()}: {error}") from error
    return msgspec.to_builtins(converted, enc_hook=str)


def _path(kind: type, value: object) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise msgspec.ValidationError(f"Expected a path, got {value!r}")
