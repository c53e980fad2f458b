"""`strandline up` and `strandline down`, added to the command line by entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from strandline_standalone.errors import StandaloneError, UnitFailed
from strandline_standalone.locks import stop_supervisor
from strandline_standalone.report import decode_report
from strandline_standalone.supervisor import supervise

DOWN_WITHIN_S = 90.0

State = Annotated[
    str, typer.Option("--state", metavar="DIR", help="The state folder of the stack.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def up(
    ctx: typer.Context,
    state: State = "",
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when everything is ready; go on running.")
    ] = False,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A server whose agent runs here (default: this host)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring up the bus, the database and every service on this machine.

    \b
    Examples:
      strandline up --detach
      strandline up --state /srv/strandline --server web-1 --server web-2
    """
    root = _root(ctx, state)
    if detach:
        _show(_detach(root, server or []), as_json=as_json)
        return
    supervise(root, server or [], lambda summary: _show(summary, as_json=as_json), _tell)


def down(ctx: typer.Context, state: State = "", as_json: Json = False) -> None:
    """Stop the stack in order; nothing of it is left running.

    \b
    Examples:
      strandline down
      strandline down --state /srv/strandline
    """
    root = _root(ctx, state)
    stopped = stop_supervisor(root / "run", DOWN_WITHIN_S)
    if as_json:
        print(json.dumps({"state": str(root), "stopped": stopped}))
    else:
        print(f"stopped: {root}" if stopped else f"no stack was up on {root}")


def _root(ctx: typer.Context, state: str) -> Path:
    """Return the state folder: the one named here, else the one that the command line found."""
    found: Path = ctx.obj
    return Path(state).absolute() if state else found


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _detach(root: Path, servers: list[str]) -> dict[str, Any]:
    """Start a supervisor in a session of its own; return its summary when all is ready."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as report_file:
        subprocess.Popen(
            [sys.executable, "-m", "strandline_standalone", str(root), str(writing), *servers],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(writing,),
            start_new_session=True,
            cwd="/",
        )
        os.close(writing)
        report = decode_report(report_file.read())
    if report is None:
        raise UnitFailed(f"the supervisor died while it started; see {root / 'logs'}")
    if report.failure is not None:
        raise StandaloneError(
            report.failure.message, code=report.failure.code, hint=report.failure.hint
        )
    return report.summary


def _show(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=2), flush=True)
        return
    print(f"Strandline is up in {summary['seconds']} s.")
    print(f"  state    {summary['state']}")
    print(f"  bus      {summary['nats_url']}")
    print(f"  servers  {', '.join(summary['servers'])}")
    print("Next: strandline protect PATH --name NAME", flush=True)
