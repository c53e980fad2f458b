"""Nothing is deleted unless a person typed the name, or said --yes."""

from __future__ import annotations

import io

import pytest

from strandline_console.confirming import NotConfirmed, check_askable, confirm


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_the_name_typed_is_a_yes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("my data\n"))
    check_askable(yes=False)
    await confirm("my data", "This deletes all.", yes=False)
    shown = capsys.readouterr()
    assert "This deletes all." in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("typed", ["", "\n", "y\n", "yes\n", "My data\n", "my data 2\n"])
async def test_anything_else_is_a_no(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    with pytest.raises(NotConfirmed):
        await confirm("my data", "This deletes all.", yes=False)


async def test_yes_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    check_askable(yes=True)
    await confirm("my data", "This deletes all.", yes=True)


def test_without_a_terminal_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("my data\n"))
    with pytest.raises(NotConfirmed):
        check_askable(yes=False)
