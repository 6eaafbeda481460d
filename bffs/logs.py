"""Where messages go: standard error in the foreground, a file of the user's own for a daemon.

The file is `--log-file`, or `bffs.log` in the user's log folder; it is private (0600) and begun
anew at `LARGEST` bytes, the one before being kept.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
from pathlib import Path

import platformdirs

from bffs.units import MIB

LARGEST = 10 * MIB


def to_terminal(verbosity: int) -> None:
    """Log to standard error, in the words of an error message."""
    _configure(logging.StreamHandler(), "bffs: %(message)s", verbosity)


def to_file(path: Path | None, verbosity: int) -> None:
    """Log to `path`, or to the user's log file, adding to what is there. Raises OSError."""
    if path is None:
        path = platformdirs.user_log_path("bffs") / "bffs.log"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=LARGEST, backupCount=1, delay=True, encoding="utf-8"
    )
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    _configure(
        handler, "%(asctime)s %(levelname)s %(process)d %(threadName)s: %(message)s", verbosity
    )


def _configure(handler: logging.Handler, form: str, verbosity: int) -> None:
    handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("bffs").setLevel(logging.WARNING - 10 * verbosity)
