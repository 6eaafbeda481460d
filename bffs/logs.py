"""Where messages go: standard error in the foreground, a file of the user's own for a daemon.

The file is `--log-file`, or `bffs.log` in the user's log folder; it is private (0600), refused when
somebody else planted it, and begun anew at `LARGEST` bytes, the one before being kept.

Where the process dies of a fault (SIGSEGV, SIGBUS, SIGABRT...), where its threads were is written there, too.
"""

from __future__ import annotations

import faulthandler
import logging
import logging.handlers
import os
from io import TextIOWrapper
from pathlib import Path

import platformdirs

from bffs.errors import BffsError
from bffs.private import open_own_file
from bffs.units import MIB

LARGEST = 10 * MIB


def to_terminal(verbosity: int) -> None:
    """Log to standard error, in the words of an error message."""
    _configure(logging.StreamHandler(), "bffs: %(message)s", verbosity)
    faulthandler.enable(2)


def made_private(path: Path | None) -> Path:
    """`path`, or the user's log file, made if it isn't there. Raises BffsError."""
    chosen = path or platformdirs.user_log_path("bffs") / "bffs.log"
    try:
        if path is None:
            chosen.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(open_own_file(chosen, os.O_WRONLY | os.O_APPEND))
    except OSError as error:
        raise BffsError(
            f"no log can be written to {chosen}: {error.strerror}; choose another --log-file"
        ) from error
    return chosen


def to_file(path: Path, verbosity: int) -> None:
    """Log to `path`, adding to what is there."""
    handler = _PrivateFile(path, maxBytes=LARGEST, backupCount=1, delay=True, encoding="utf-8")
    _configure(
        handler, "%(asctime)s %(levelname)s %(process)d %(threadName)s: %(message)s", verbosity
    )
    handler.write_faults()


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """Makes sure of each file that it begins."""

    _faults = -1
    """A descriptor of its own: faulthandler writes to a number, whatever that is by then."""

    def write_faults(self) -> None:
        """From now on have the file as it is now told of faults."""
        before = self._faults
        self._faults = open_own_file(self.baseFilename, os.O_WRONLY | os.O_APPEND)
        faulthandler.enable(self._faults)
        if before >= 0:
            os.close(before)

    def doRollover(self) -> None:
        super().doRollover()
        self.write_faults()

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=open_own_file)


def _configure(handler: logging.Handler, form: str, verbosity: int) -> None:
    handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("bffs").setLevel(logging.WARNING - 10 * verbosity)
