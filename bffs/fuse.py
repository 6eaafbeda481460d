"""A mount: mounting, serving, telling the kernel what to forget, and ending.

What is asked in between is answered by `Adapter`, or by `WritableAdapter` where the file system takes new files.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import struct
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bffs.adapter import MAX_BACKGROUND, Adapter, Open
from bffs.binding import LIBFUSE, asking_process, binding, keep_freed_memory
from bffs.errors import MountError
from bffs.kernelahead import KernelReadahead
from bffs.loop import in_steps
from bffs.passthrough import Passthrough, negotiate, why_not
from bffs.tree import FileSystem, inode
from bffs.unlisted import outside
from bffs.writing import WritableAdapter

TIMEOUT = 24 * 3600.0
"""Seconds for which the kernel may remember names and attributes: the dataset never changes."""

NEGATIVE_TIMEOUT = 60.0
"""Seconds for which it may remember that a name is absent: before Linux 6.16 nothing but their end
makes it ask again. Asking costs no request to the store."""

IDLE_THREADS = 64
MAX_THREADS = 512
"""Threads that are kept to serve all requests, and how many there may be: reads that wait for a store
that is away must not keep an `ls` waiting, nor the news that a reader was killed."""

_PATIENCE = 1.0
"""Seconds that the end waits for the kernel to forget something. It may itself wait for what the end brings."""

_NOTIFY_INC_EPOCH = 8
_POSES = 4
"""Looks at a file that take the kernel's former inode of it away, whatever it remembered of the name."""


class Session:
    """One mount of a file system: `serve` mounts and answers until it is unmounted or `stop` is
    called.

    `changed` is set before the first file of the mount changes; `errors` counts failed reads by the
    errno's name.
    `on_ready` is called from a thread of libfuse as soon as the mount answers. With
    `pass_through` the kernel reads by itself what it can, see `passthrough`.
    """

    def __init__(
        self,
        files: FileSystem,
        errors: Counter[str],
        on_ready: Callable[[], None],
        *,
        writable: bool = False,
        pass_through: bool = False,
    ) -> None:
        self.files = files
        self.passthrough: Passthrough | None = None
        self.kernel_readahead: KernelReadahead | None = None
        self.posing: Collection[bytes] = ()
        self.why_no_passthrough = why_not() if pass_through else "it was not wished for"
        """What is missing for the kernel to read by itself, if anything is; final once the mount
        answers."""

        self.writable = writable
        self.handles: dict[int, Open] = {}
        self.is_trusted = True
        self._config: Any = None
        self.is_ready = False
        self.changed = False
        self.errors = errors
        self._on_ready = on_ready
        self._thread: int | None = None
        self._is_stopped = False
        self._fuse: int | None = None
        self._device = -1
        self._users = 0
        self._use = threading.Condition()

    def serve(self, mountpoint: str, options: dict[str, Any]) -> None:
        """Mount and answer; returns after the unmount. Raises MountError if libfuse can't mount."""
        self._thread = threading.get_ident()
        keep_freed_memory()
        if LIBFUSE[0] == 2:
            options = options | {"use_ino": True, "max_background": MAX_BACKGROUND}
            if self.writable:
                options = options | {"big_writes": True, "atomic_o_trunc": True}
            for name, seconds in self._timeouts().items():
                options[name] = seconds
        elif LIBFUSE >= (3, 12):
            # libfuse complains on stderr where only one of the two is given.
            options = options | {"max_threads": MAX_THREADS, "max_idle_threads": IDLE_THREADS}
        if (main := in_steps(self._ended)) is not None:
            binding.fuse_main_real = main
        try:
            (WritableAdapter if self.writable else Adapter)(self, mountpoint, options)
        except RuntimeError as error:
            raise MountError(f"FUSE could not mount at {mountpoint}") from error
        finally:
            self._ended()

    def connecting(self, connection: Any) -> None:
        """See `Host.connecting`."""
        if self.why_no_passthrough is None:
            self.why_no_passthrough = negotiate(connection)

    def started(self, library: Any, config: Any) -> None:
        """See `Host.started`."""
        library.fuse_get_context.restype = ctypes.POINTER(binding.fuse_context)
        fuse = library.fuse_get_context().contents.fuse
        if config:
            library.fuse_get_session.restype = ctypes.c_void_p
            session = library.fuse_get_session(ctypes.c_void_p(fuse))
            self._device = library.fuse_session_fd(ctypes.c_void_p(session))
            if self.why_no_passthrough is None:
                self.passthrough = Passthrough(self._device)
        with self._use:
            self._fuse, self._config = fuse, config
            if self._is_stopped:
                self._exit()
        self._tell_timeouts()
        self.is_ready = True
        self._on_ready()

    def invalidate(self, paths: Iterable[str]) -> None:
        """Make the kernel forget attributes, entries and pages of these files and folders, and
        that names were absent. Never from a thread that answers a request.

        Needs libfuse 3; with libfuse 2 what the kernel knows ends with its time-outs.
        """
        forget = getattr(binding._libfuse, "fuse_invalidate_path", None)
        if forget is None:
            return
        for path in paths:
            with self._lasting() as fuse:
                if fuse is None:
                    return
                forget(ctypes.c_void_p(fuse), os.fsencode(outside(path)))
        with self._lasting() as fuse:
            if fuse is not None:
                _increment_epoch(self._device)

    def revoke(self, mountpoint: Path, paths: Iterable[str]) -> None:
        """Make handles useless, with EIO, by which the kernel itself reads former versions of these
        files. Never from a thread that answers a request.

        There is no message that says so to the kernel, but it gives an inode up that turns out to be
        of another kind, and makes a new one when the name is next looked up. So these files pose as
        sockets for a moment; who opens one right then gets ENXIO.
        """
        if self.passthrough is None:
            return
        for path in paths:
            if not self.passthrough.disown(inode(path)):
                continue
            self.posing = (os.fsencode(path),)
            for _ in range(_POSES):
                self.invalidate([path])
                with suppress(OSError):
                    found = os.lstat(f"{mountpoint}{path}")
                    if not self.posing and not stat.S_ISSOCK(found.st_mode):
                        break
                self.posing = ()

    def trust(self, trusted: bool) -> None:
        """Let the kernel remember what it is told from now on, or not. What it has been told before is
        another matter: see `invalidate`."""
        self.is_trusted = trusted
        self._tell_timeouts()

    def passthrough_figures(self) -> dict[str, Any]:
        """Whether there is passthrough, and how much it is used; see `Passthrough.figures`."""
        if self.passthrough is None:
            return {"on": False, "why_not": self.why_no_passthrough}
        return self.passthrough.figures()

    def _tell_timeouts(self) -> None:
        """libfuse 3 looks these up for each reply; libfuse 2 is told once, when it mounts."""
        with self._lasting() as fuse:
            if fuse is not None and self._config:
                for name, seconds in self._timeouts().items():
                    setattr(self._config.contents, name, seconds)

    def _timeouts(self) -> dict[str, float]:
        trusted = self.is_trusted and not (self.writable and LIBFUSE[0] == 2)
        return {
            "entry_timeout": TIMEOUT if trusted else 0.0,
            "attr_timeout": TIMEOUT if trusted else 0.0,
            "negative_timeout": NEGATIVE_TIMEOUT if trusted else 0.0,
        }

    def stop(self) -> None:
        """Make `serve` return, as soon as it has mounted if it is about to. From another thread
        only."""
        with self._use:
            self._is_stopped = True
            self._use.wait_for(lambda: not self._users, _PATIENCE)
            self._exit()

    def _exit(self) -> None:
        """End libfuse's loop; `_use` is held."""
        if self._fuse is not None and self._thread is not None:
            binding._libfuse.fuse_exit(ctypes.c_void_p(self._fuse))
            signal.pthread_kill(self._thread, signal.SIGTERM)  # interrupts its wait

    def _ended(self) -> None:
        """libfuse's loop has ended."""
        with self._use:
            self._fuse = self._config = None
            self._use.wait_for(lambda: not self._users, _PATIENCE)

    @contextmanager
    def _lasting(self) -> Iterator[int | None]:
        """What libfuse keeps of the mount, which may be used meanwhile; None before the beginning and from the end
        on."""
        with self._use:
            fuse = None if self._is_stopped else self._fuse
            self._users += 1
        try:
            yield fuse
        finally:
            with self._use:
                self._users -= 1
                self._use.notify_all()


def is_reader_killed() -> bool:
    """Whether who waits for the answer to this thread's request has been killed; no other signal
    ends a read."""
    if not binding._libfuse.fuse_interrupted():
        return False
    pid = asking_process()
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("SigPnd", "ShdPnd") and int(value, 16) >> (signal.SIGKILL - 1) & 1:
                return True
    return False


def _increment_epoch(device: int) -> None:
    """Make the kernel look up every name again (FUSE_NOTIFY_INC_EPOCH, since Linux 6.16).

    Older kernels refuse the message, and remember absent names until their time is up.
    """
    with suppress(OSError):
        os.write(device, struct.pack("=IiQ", 16, _NOTIFY_INC_EPOCH, 0))
