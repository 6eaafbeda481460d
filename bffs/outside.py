"""A mount as others see it: its figures, asked for from outside."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from bffs import mountpoint as mountpoints
from bffs.asking import PATIENCE, ask
from bffs.errors import MountError

STATUS = ".bffs/status.json"


def figures(mountpoint: Path, patience: float = PATIENCE) -> dict[str, Any]:
    """What the mount there tells of itself (docs/status.md). Raises MountError saying what to do."""
    mountpoint = mountpoints.normalize(mountpoint)
    mounted = mountpoints.mount_at(mountpoint)
    if mounted is None:
        raise MountError(f"nothing is mounted at {mountpoint}")
    if mounted.file_system != mountpoints.FILE_SYSTEM:
        raise MountError(f"{mountpoint} is a mount of {mounted.file_system}, not of bffs")
    said = ask(["cat", "--", str(mountpoint / STATUS)], patience)
    if said is None:
        raise MountError(
            f"the driver of {mountpoint} does not answer; `bffs umount {mountpoint}` ends it"
            f"{_and_stacks(mountpoint)}"
        )
    if said.returncode == 0:
        with suppress(ValueError):
            found: dict[str, Any] = json.loads(said.stdout)
            return found
    if mountpoints.mount_at(mountpoint) is None:
        raise MountError(f"nothing is mounted at {mountpoint} any more")
    if mountpoints.is_dead(mountpoint):
        raise MountError(
            f"the driver of {mountpoint} has gone: `bffs umount {mountpoint}`, and mount again"
        )
    reason = said.stderr.decode(errors="replace").strip().rpartition(": ")[2] or "no figures"
    raise MountError(f"{mountpoint} can't be asked: {reason}; is it another user's?")


def _and_stacks(mountpoint: Path) -> str:
    pid = mountpoints.driver_at(mountpoint)
    return f", and before that `kill -USR1 {pid}` writes to its log what it does" if pid else ""
