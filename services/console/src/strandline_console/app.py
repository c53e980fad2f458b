"""The command line `strandline`: finds the command that was asked for, and loads only that."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from strandline_console.errors import WRONG_USE
from strandline_console.nearest import nearest
from strandline_console.outcome import exit_on_error, say
from strandline_console.state import VARIABLE, state_folder

GROUP = "strandline.commands"
"""Entry points of this group add commands: functions with annotations as typer reads them. In a
typer.Context's `obj` they find the state folder; the StrandlineErrors they raise are told here."""
_MAIN = "strandline_console.commands"
_KEEPING = "strandline_console.keeping_commands"
COMMANDS = {
    "status": _MAIN,
    "protect": _MAIN,
    "unprotect": _KEEPING,
    "express-full": _MAIN,
    "sync": _MAIN,
    "check": _MAIN,
    "verify": _MAIN,
    "points": _MAIN,
    "browse": _MAIN,
    "restore": _MAIN,
    "retention": _KEEPING,
    "hold": _KEEPING,
    "release": _KEEPING,
    "delete": _KEEPING,
    "undelete": _KEEPING,
    "store": "strandline_console.store_commands",
    "jobs": _MAIN,
    "events": _MAIN,
}
"""Where each command is: a function, or a typer.Typer that has commands of its own."""
_FROM_STANDALONE = ("up", "down")


class LazyGroup(TyperGroup):
    """Commands by name; the bus's client library is loaded only for those that need it."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS:
            module = importlib.import_module(COMMANDS[cmd_name])
            found = getattr(module, cmd_name.replace("-", "_"))
            if isinstance(found, typer.Typer):
                return typer.main.get_command(found)
            return _as_command(cmd_name, found)
        for entry in entry_points(group=GROUP, name=cmd_name):
            return _as_command(cmd_name, entry.load())
        if cmd_name in _FROM_STANDALONE:
            return _as_command(cmd_name, _missing)
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        others = {entry.name for entry in entry_points(group=GROUP)} - set(_FROM_STANDALONE)
        return [*_FROM_STANDALONE, *COMMANDS, *sorted(others), *super().list_commands(ctx)]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            close = nearest(args[0], self.list_commands(ctx))
            meant = f" Did you mean {', '.join(close)}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Near-continuous data protection. Exit codes: 0 done, 1 failed, 2 wrong use, "
    "3 no such thing, 4 done in part.",
)


def main() -> None:
    """The console script `strandline`."""
    with exit_on_error(as_json="--json" in sys.argv):
        app(prog_name="strandline")


@app.callback()
def common(
    ctx: typer.Context,
    state: Annotated[
        str, typer.Option("--state", metavar="DIR", help="State folder of the stack.")
    ] = "",
) -> None:
    """Keep what stands before the command; commands of others find the state folder in `obj`."""
    if state:
        os.environ[VARIABLE] = os.path.abspath(state)
    ctx.obj = state_folder("")


def _as_command(name: str, function: Any) -> Any:
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name)(function)
    return typer.main.get_command(single)


def _missing() -> None:
    """Bring this machine's stack up or down (needs strandline-standalone)."""
    say("strandline: this needs the package strandline-standalone, which is not installed")
    say("  pip install strandline-standalone, or use a stack elsewhere with STRANDLINE_CONFIG")
    raise typer.Exit(WRONG_USE)
