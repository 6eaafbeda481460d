"""A mount as others see it: its figures, asked for from outside, without ever waiting for long.

A program that reads from a mount whose driver is stuck can't be killed, not even by SIGKILL, once the
driver has taken its request. So a child asks, and is left behind if it comes to that.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from bffs import mountpoint as mountpoints
from bffs.errors import MountError

STATUS = ".bffs/status.json"

PATIENCE = 10.0
"""Seconds after which a driver does not answer. It does within milliseconds, but on a busy machine."""


def figures(mountpoint: Path, patience: float = PATIENCE) -> dict[str, Any]:
    """What the mount there tells of itself (docs/status.md). Raises MountError saying what to do."""
    mountpoint = mountpoints.normalize(mountpoint)
    mounted = mountpoints.mount_at(mountpoint)
    if mounted is None:
        raise MountError(f"nothing is mounted at {mountpoint}")
    if mounted.file_system != mountpoints.FILE_SYSTEM:
        raise MountError(f"{mountpoint} is a mount of {mounted.file_system}, not of bffs")
    child = subprocess.Popen(
        ["cat", "--", str(mountpoint / STATUS)],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        answer, complaint = child.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        _leave(child)
        raise MountError(
            f"the driver of {mountpoint} does not answer; `bffs umount {mountpoint}` ends it"
            f"{_and_stacks(mountpoint)}"
        ) from None
    if child.returncode == 0:
        with suppress(ValueError):
            found: dict[str, Any] = json.loads(answer)
            return found
    if mountpoints.mount_at(mountpoint) is None:
        raise MountError(f"nothing is mounted at {mountpoint} any more")
    if mountpoints.is_dead(mountpoint):
        raise MountError(
            f"the driver of {mountpoint} has gone: `bffs umount {mountpoint}`, and mount again"
        )
    reason = complaint.decode(errors="replace").strip().rpartition(": ")[2] or "no figures"
    raise MountError(f"{mountpoint} can't be asked: {reason}; is it another user's?")


def _leave(child: subprocess.Popen[bytes]) -> None:
    """Go on without a child that may not be able to die."""
    child.kill()
    for pipe in (child.stdout, child.stderr):
        assert pipe is not None
        pipe.close()
    child.returncode = child.returncode or -9  # else Python waits for it, or complains, at the end


def _and_stacks(mountpoint: Path) -> str:
    pid = mountpoints.driver_at(mountpoint)
    return f", and before that `kill -USR1 {pid}` writes to its log what it does" if pid else ""
