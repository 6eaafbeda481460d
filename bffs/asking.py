"""Asking a mount, without ever waiting for long.

A program that reads from a mount whose driver is stuck can't be killed, not even by SIGKILL, once the driver has taken
its request. So a child asks, and is left behind if it comes to that.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

PATIENCE = 10.0
"""Seconds after which a driver does not answer. It does within milliseconds, but on a busy machine."""


def ask(
    command: Sequence[str], patience: float = PATIENCE
) -> subprocess.CompletedProcess[bytes] | None:
    """What a program says that asks a mount something, in English; None if it gets no answer."""
    child = subprocess.Popen(
        command,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        answer, complaint = child.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        _leave(child)
        return None
    return subprocess.CompletedProcess(command, child.returncode, answer, complaint)


def _leave(child: subprocess.Popen[bytes]) -> None:
    """Go on without a child that may not be able to die."""
    child.kill()
    for pipe in (child.stdout, child.stderr):
        assert pipe is not None
        pipe.close()
    child.returncode = child.returncode or -9  # else Python waits for it, or complains, at the end
