"""Writes the golden bytes of every message, and what an independent reader must find in them.

    PYTHONPATH=tests python tests/contract/make_golden.py

Run it only when messages have been added or have got new fields. A change of a file that was there
before means that older and newer services no longer understand each other.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from strandline_contracts.codec import encode
from support.examples import MESSAGES

GOLDEN = Path(__file__).parent / "golden"


def plain(value: object) -> object:
    """Return a value as JSON can hold it: bytes become {"hex": ...}."""
    if isinstance(value, (bytes, memoryview)):
        return {"hex": value.hex()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, message in MESSAGES.items():
        fields = plain(msgspec.to_builtins(message, builtin_types=(bytes, memoryview)))
        (GOLDEN / f"{name}.bin").write_bytes(encode(message))
        text = json.dumps(fields, indent=1, ensure_ascii=False, sort_keys=True)
        (GOLDEN / f"{name}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
