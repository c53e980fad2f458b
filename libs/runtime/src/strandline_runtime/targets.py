"""What makes a service a target of commands: it receives them and runs their jobs."""

from strandline_runtime.receiver import CommandReceiver
from strandline_runtime.runner import (
    JobCancelled,
    JobContext,
    JobFailed,
    JobRunner,
    Outcome,
    Run,
)

__all__ = [
    "CommandReceiver",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "JobRunner",
    "Outcome",
    "Run",
]
