"""Work in the background that the shell waits for until it is ready.

The parent waits for one line on a pipe - the exit code, once the child is ready or has failed - and forwards Ctrl-C;
the child keeps the terminal until then, so its errors and its progress are seen, and leaves it after.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO

from bffs.errors import BffsError

log = logging.getLogger(__name__)


def run(drive: Callable[[Callable[[], None]], None]) -> int:
    """Run `drive` in a daemon; returns 0 once it calls what it is given, or its exit code where it fails
    before.

    A BffsError is told in one line on standard error. No thread may have been started yet.
    """
    reader, writer = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until both are prepared
    pid = os.fork()
    if pid:
        os.close(writer)
        return _await(reader, pid, mask)
    os.close(reader)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, and says so
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with os.fdopen(writer, "wb", buffering=0) as pipe:
        os._exit(_report(drive, pipe))


def _report(drive: Callable[[Callable[[], None]], None], pipe: BinaryIO) -> int:
    """Run `drive` and tell its exit code through `pipe`, which is closed once the tree is
    usable."""

    def ready() -> None:
        # Not before: autofs lets those who mount pass by their process group, others wait for them.
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        os.close(nothing)
        pipe.write(b"0")
        pipe.close()

    code = 1
    try:
        drive(ready)
        return 0
    except BffsError as error:
        code = error.exit_code
        log.info("the driver failed", exc_info=True)
        print(f"bffs: {error}", file=sys.stderr)
    except BaseException as error:
        kind = type(error).__name__
        tell_all = pipe.closed or log.isEnabledFor(logging.INFO)  # a log file is told in any case
        log.error("internal error: %s: %s (-v shows more)", kind, error, exc_info=tell_all)
    finally:
        sys.stderr.flush()
        if not pipe.closed:
            pipe.write(str(code).encode())
    return code


def _await(reader: int, pid: int, mask: set[int]) -> int:
    """The exit code of the child; `mask` is the signal mask to wait with."""
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        return 130
    if said:
        return int(said)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    how = signal.strsignal(-ended) if ended < 0 else f"exit code {ended}"
    print(f"bffs: the driver ended before it was ready: {how}", file=sys.stderr)
    return 1
