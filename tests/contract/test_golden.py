"""Messages on the wire: golden bytes, which the independent `msgpack` reads and writes too."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import msgpack
import pytest

import strandline_contracts
from strandline_contracts.codec import Message, decode, encode
from support.examples import MESSAGES

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(MESSAGES)


def from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: from_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [from_json(each) for each in value]
    return value


def golden(name: str) -> tuple[bytes, Any]:
    data = (GOLDEN / f"{name}.bin").read_bytes()
    return data, from_json(json.loads((GOLDEN / f"{name}.json").read_text("utf-8")))


def every_message() -> set[type[Message]]:
    for module in pkgutil.iter_modules(strandline_contracts.__path__):
        importlib.import_module(f"strandline_contracts.{module.name}")
    # Services may have partial views of a message, with its tag.
    named = "strandline_contracts."
    return {kind for kind in Message.__subclasses__() if kind.__module__.startswith(named)}


@pytest.mark.parametrize("name", NAMES)
def test_golden_bytes_are_what_we_write_and_read(name: str) -> None:
    data, _ = golden(name)
    assert encode(MESSAGES[name]) == data
    assert decode(data, type(MESSAGES[name])) == MESSAGES[name]


@pytest.mark.parametrize("name", NAMES)
def test_independent_reader_finds_the_fields(name: str) -> None:
    data, fields = golden(name)
    assert msgpack.unpackb(data, raw=False, strict_map_key=True) == fields


@pytest.mark.parametrize("name", NAMES)
def test_independent_writer_is_understood(name: str) -> None:
    _, fields = golden(name)
    assert decode(msgpack.packb(fields, use_bin_type=True), type(MESSAGES[name])) == MESSAGES[name]


@pytest.mark.parametrize("name", NAMES)
def test_fields_of_a_newer_sender_are_passed_over(name: str) -> None:
    _, fields = golden(name)
    newer = msgpack.packb(fields | {"added_in_a_later_version": [1]}, use_bin_type=True)
    assert decode(newer, type(MESSAGES[name])) == MESSAGES[name]


def test_every_message_has_golden_bytes_and_nothing_else_has() -> None:
    assert {type(message) for message in MESSAGES.values()} == every_message()
    files = {path.name for path in GOLDEN.iterdir()}
    assert files == {f"{name}.{kind}" for name in NAMES for kind in ("bin", "json")}


def test_no_two_messages_share_a_tag() -> None:
    tags = [str(kind.__struct_config__.tag) for kind in every_message()]
    assert len(set(tags)) == len(tags)
