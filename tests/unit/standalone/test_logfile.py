"""The bounded log file."""

from __future__ import annotations

from pathlib import Path

from strandline_standalone.logfile import TAIL_LINES, LogFile


def test_its_size_is_bounded_and_the_end_is_kept(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "unit.log", max_bytes=1000)
    for number in range(300):
        log.write(f"line {number}\n".encode())
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["unit.log", "unit.log.1"]
    assert all(file.stat().st_size <= 1000 for file in files)
    lines = (files[1].read_text() + files[0].read_text()).splitlines()
    assert lines == [f"line {number}" for number in range(300 - len(lines), 300)]


def test_the_last_lines_are_remembered(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "unit.log")
    log.write(b"".join(b"%d\n" % number for number in range(100)) + b"\n\xff\n")
    assert log.tail(2) == ["99", "\ufffd"]
    assert len(log.tail()) == TAIL_LINES
    assert log.line("said").endswith("Z said")
    log.close()


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    for word in (b"one\n", b"two\n"):
        log = LogFile(tmp_path / "unit.log")
        log.write(word)
        log.close()
    assert (tmp_path / "unit.log").read_bytes() == b"one\ntwo\n"
