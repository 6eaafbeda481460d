"""Whether a mount has the scratch folder to itself.

While it does, the kernel may remember what is in there. With two mounts on one folder each must ask every time, and
from the very moment when the second comes. So a mount that is alone holds a lease (fcntl(2)) on a small file: opening
that file, as every mount does first of all, waits until whoever holds the lease has let it go - which it does when its
kernel has forgotten everything. The file stays open as long as the mount lives, so nobody else gets a lease; who has
company tries for it now and then. The system's own file descriptors do all this, so a crash leaves nothing behind.

Where there are no leases (NFS), a mount never takes itself to be alone.

Threads: one, which waits for SIGIO. Call `block_signal` before any other thread starts.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

PATIENCE = 5.0
"""Seconds between two attempts to be alone."""


def block_signal() -> None:
    """Keep SIGIO, by which the kernel asks for the lease, from ending the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})


class Company:
    """Presence on a scratch folder. `alone` is called with whether this mount is, at first from the
    constructor, then from a thread of its own whenever that changes; True only while no other mount
    is there, False before another gets in."""

    def __init__(self, file: Path, alone: Callable[[bool], None]) -> None:
        self._alone = alone
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._is_closing = threading.Event()
        self.is_alone = self._take()
        alone(self.is_alone)
        self._thread = threading.Thread(target=self._watch, name="bffs-company", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave."""
        self._is_closing.set()
        assert self._thread.ident is not None
        signal.pthread_kill(self._thread.ident, signal.SIGIO)
        self._thread.join()
        os.close(self._fd)

    def _take(self) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return False
        return True

    def _watch(self) -> None:
        while True:
            # What it returns says nothing: after a SIGSTOP for longer, Python takes the end of its time for a signal.
            signal.sigtimedwait({signal.SIGIO}, PATIENCE)
            if self._is_closing.is_set():
                return
            if not self.is_alone:
                self.is_alone = self._take()
                if self.is_alone:
                    self._alone(True)
            elif fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK:
                self.is_alone = False
                self._alone(False)
                fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
