"""How things are shown to a person: names, sizes, times, tables. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def path_text(path: bytes) -> str:
    r"""Return `path` as one printable line: other bytes as \xNN, a backslash doubled."""
    shown = []
    for character in path.decode("utf-8", "surrogateescape"):
        code = ord(character)
        if character == "\\":
            shown.append("\\\\")
        elif 0xDC80 <= code <= 0xDCFF:
            shown.append(f"\\x{code - 0xDC00:02x}")
        elif character.isprintable():
            shown.append(character)
        else:
            shown.append("".join(f"\\x{byte:02x}" for byte in character.encode()))
    return "".join(shown)


def size_text(size_bytes: int) -> str:
    """Return a size with three significant digits and its unit."""
    value = float(size_bytes)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1024
    if unit == "B":
        return f"{size_bytes} B"
    return f"{value:.{0 if value >= 100 else 1}f} {unit}"


def time_text(time_ns: int, zone: tzinfo | None = None) -> str:
    """Return a time to the second in `zone` (None: the machine's own), "-" for none."""
    if not time_ns:
        return "-"
    return datetime.fromtimestamp(time_ns // 1_000_000_000, zone).strftime("%Y-%m-%d %H:%M:%S")


def ago_text(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def mode_text(kind: str, mode: int) -> str:
    """Return type and permissions as `ls -l` does; `kind` is a letter of find -type."""
    letters = ["-" if kind == "f" else kind]
    for shift, special, letter in ((6, 0o4000, "s"), (3, 0o2000, "s"), (0, 0o1000, "t")):
        bits = mode >> shift
        letters.append("r" if bits & 4 else "-")
        letters.append("w" if bits & 2 else "-")
        runs = bool(bits & 1)
        if mode & special:
            letters.append(letter if runs else letter.upper())
        else:
            letters.append("x" if runs else "-")
    return "".join(letters)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "") -> str:
    """Return aligned columns; those named in `right` (column heads, by spaces) to the right."""
    to_right = set(right.split())
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    shown = []
    for line in lines:
        cells = [
            cell.rjust(width) if name in to_right else cell.ljust(width)
            for cell, width, name in zip(line, widths, head, strict=True)
        ]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)
