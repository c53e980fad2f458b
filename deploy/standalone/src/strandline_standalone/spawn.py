"""Starts processes that the kernel ends when we die."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


async def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    death_signal: signal.Signals,
    stdin: int = asyncio.subprocess.DEVNULL,
    inherited: Sequence[int] = (),
    options: Mapping[str, Any],
) -> asyncio.subprocess.Process:
    """Start `argv` with stdout and stderr in one pipe, in a session of its own.

    To be called from the main thread: the kernel takes the death of the thread that forked for
    that of the parent. `options` may set the user. Raises OSError.
    """
    parent = os.getpid()
    number = int(death_signal)

    def before_exec() -> None:  # runs after the change of user, which would undo it
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(env),
        cwd="/",
        pass_fds=tuple(inherited),
        start_new_session=True,  # a Ctrl-C at the terminal is ours alone
        preexec_fn=before_exec,
        **options,
    )


async def run_to_end(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: bytes = b"",
    timeout_s: float,
    inherited: Sequence[int],
    options: Mapping[str, Any],
) -> tuple[int, bytes]:
    """Run `argv` and return its exit code and what it said; leave nothing of it running.

    Raises OSError, TimeoutError.
    """
    process = await spawn(
        argv,
        env=env,
        death_signal=signal.SIGKILL,
        stdin=asyncio.subprocess.PIPE,
        inherited=inherited,
        options=options,
    )
    try:
        async with asyncio.timeout(timeout_s):
            said, _ = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said
