"""A mount of bffs: its life, and what its process holds."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
QUIET = 30.0
"""Seconds within which everything that was begun for readers must have ended after them."""


class Holdings(NamedTuple):
    """What a driver holds: resident MiB, threads, descriptors, MiB reserved for what is under way."""

    resident: float
    threads: int
    descriptors: int
    reserved: float


class Driver:
    """`bffs mount` with these options in a process of its own; see `start`."""

    def __init__(self, mountpoint: Path, *options: str) -> None:
        self.mountpoint = mountpoint
        mountpoint.mkdir()
        self._options = options
        self.pid = 0
        self._process = -1

    def bffs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of bffs."""
        return subprocess.run(
            [sys.executable, "-m", "bffs", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self) -> None:
        """Mount. Raises RuntimeError."""
        done = self.bffs("mount", *self._options, str(self.mountpoint))
        if done.returncode:
            raise RuntimeError(f"it can't be mounted: {done.stderr}")
        self.pid = self.status()["pid"]
        self._process = os.pidfd_open(self.pid)

    def refresh(self) -> None:
        """List anew, in the background."""
        os.kill(self.pid, signal.SIGHUP)

    def ask(self) -> None:
        """Have it write to its log where its threads are."""
        os.kill(self.pid, signal.SIGUSR1)

    def stop(self) -> str | None:
        """Unmount; what was wrong, if anything."""
        began = time.monotonic()
        done = self.bffs("umount", str(self.mountpoint))
        seconds = time.monotonic() - began
        if done.returncode or seconds > 15:
            return f"umount took {seconds:.0f} s: {done.stderr}"
        return self._gone()

    def kill(self) -> None:
        """End the process without any warning, and leave its mount."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._gone()

    def _gone(self) -> str | None:
        ended, _, _ = select.select([self._process], [], [], 15)
        if not ended:
            return f"process {self.pid} did not end"
        os.close(self._process)
        return None

    def status(self) -> Any:
        """Its status file."""
        return json.loads((self.mountpoint / ".bffs/status.json").read_bytes())

    def holdings(self) -> Holdings:
        """What it holds now."""
        process = Path(f"/proc/{self.pid}")
        pages = int((process / "statm").read_text().split()[1])
        status = self.status()
        reserved = status["memory"]["pinned"] + status["queue"]["prefetching"]
        return Holdings(
            pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            sum(1 for _ in (process / "task").iterdir()),
            sum(1 for _ in (process / "fd").iterdir()),
            reserved / 2**20,
        )

    def at_rest(self) -> Holdings:
        """What it holds once nothing is reserved any more, or after `QUIET` seconds."""
        end = time.monotonic() + QUIET
        while (held := self.holdings()).reserved and time.monotonic() < end:
            time.sleep(0.2)
        return held
