"""How the command line shows names, sizes, times and tables."""

from __future__ import annotations

import ast
import stat
from datetime import UTC

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_console.text import ago_text, mode_text, path_text, size_text, table, time_text


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"docs/letter.odt", "docs/letter.odt"),
        ("Übung".encode(), "Übung"),
        (b"new\nline", r"new\x0aline"),
        (b"back\\slash", r"back\\slash"),
        (b"latin\xe9", r"latin\xe9"),
        (b"bell\x07 esc\x1b[31m", r"bell\x07 esc\x1b[31m"),
    ],
)
def test_paths(path: bytes, shown: str) -> None:
    assert path_text(path) == shown


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_a_shown_path_is_printable_and_tells_the_bytes(path: bytes) -> None:
    shown = path_text(path)
    assert shown.isprintable()
    # Python's own reading of such escapes is the oracle: escapes are bytes, the rest is UTF-8.
    escaped = "".join(
        one if one.isascii() else "".join(f"\\x{byte:02x}" for byte in one.encode())
        for one in shown.replace('"', '\\"')
    )
    assert ast.literal_eval(f'b"{escaped}"') == path


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1536, "1.5 KiB"), (300 * 1024, "300 KiB"),
     (1 << 30, "1.0 GiB"), (1 << 40, "1.0 TiB"), (5000 << 50, "5000 PiB")],
)  # fmt: skip
def test_sizes(size_bytes: int, shown: str) -> None:
    assert size_text(size_bytes) == shown


def test_times() -> None:
    assert time_text(0) == "-"
    assert time_text(1_769_880_600_999_999_999, UTC) == "2026-01-31 17:30:00"
    assert [ago_text(s) for s in (-1, 59.9, 60, 7199, 86400 * 3)] == [
        "0 s", "59 s", "1 min", "1 h", "3 d",
    ]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from("fdlpsbc"), st.integers(0, 0o7777))
def test_modes_are_those_of_ls(kind: str, mode: int) -> None:
    formats = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "p": stat.S_IFIFO,
               "s": stat.S_IFSOCK, "b": stat.S_IFBLK, "c": stat.S_IFCHR}  # fmt: skip
    assert mode_text(kind, mode) == stat.filemode(formats[kind] | mode)


def test_tables_are_aligned_without_trailing_spaces() -> None:
    shown = table(["NAME", "SIZE", "X"], [["a", "10 B", ""], ["longer", "1 B", "y"]], right="SIZE")
    assert shown.splitlines() == [
        "NAME    SIZE  X",
        "a       10 B",
        "longer   1 B  y",
    ]
