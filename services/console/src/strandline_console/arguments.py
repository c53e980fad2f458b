"""The arguments and options that several commands share, and how a command is run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from strandline_console.site import Site, with_site

State = Annotated[str, typer.Option("--state", metavar="DIR", help="State folder of the stack.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when the job has ended.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A data source.")]
Points = Annotated[
    list[int] | None,
    typer.Option("--point", metavar="POINT", min=1, help="A number from `points`; repeatable."),
]


def run(state: str, work: Callable[[Site], Awaitable[int]]) -> None:
    """Do `work` with a connected site, and end with the exit code that it returns."""
    raise typer.Exit(with_site(state, work))
