"""A detached supervisor: `python -m strandline_standalone STATE REPORT_FD [SERVER]...`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from strandline_contracts.errors import StrandlineError
from strandline_standalone.layout import Layout
from strandline_standalone.report import Failure, Report, encode_report
from strandline_standalone.supervisor import supervise


def main(state: str, report_fd: int, servers: list[str]) -> int:
    """Supervise a stack; tell `report_fd` once that it is up or why not, and close it."""
    os.set_inheritable(report_fd, False)  # noqa: FBT003 (it takes no keyword)

    def ready(summary: dict[str, object]) -> None:
        # From here on nobody listens at the terminal: what Python itself says goes to the log.
        log = os.open(Layout(Path(state)).log("supervisor"), os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 2)
        os.close(log)
        os.write(report_fd, encode_report(Report(summary=summary)))
        os.close(report_fd)

    try:
        supervise(Path(state), servers, ready, lambda _line: None)
    except StrandlineError as error:
        failure = Failure(code=error.code, message=error.message, hint=error.hint)
        os.write(report_fd, encode_report(Report(failure=failure)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
