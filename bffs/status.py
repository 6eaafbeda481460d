"""The status file of a mount: its live figures as JSON, made anew for each handle.

Like the files of /proc it has no size of its own: `stat` shows 0 bytes, reading gives them all. The
kernel is told to keep nothing of it, and the figures are taken at `open` alone, so that `ls -lR`
costs nothing.

Threads: any number may open it at once; the figures come from values that are replaced whole, or
from under their owners' locks.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bffs import __version__
from bffs.blocks import BlockReader
from bffs.catalog import Catalog
from bffs.content import BytesContent, Content
from bffs.tree import LIVE, Attributes, Folder, Weight, file_attributes

FOLDER = ".bffs"
FILE = "status.json"

Figures = dict[str, Any]


class Status:
    """Collects the figures of a mount. `errors` counts failed reads by the errno's name; `catalog`
    is asked for what is shown now, `passthrough` for `Session.passthrough_figures`."""

    def __init__(
        self,
        mountpoint: Path,
        blocks: BlockReader,
        errors: Mapping[str, int],
        catalog: Callable[[], Catalog],
        passthrough: Callable[[], Figures] = dict,
    ) -> None:
        self._mountpoint = mountpoint
        self._blocks = blocks
        self._errors = errors
        self._catalog = catalog
        self._passthrough = passthrough
        self._started = time.time()

    @property
    def folder(self) -> Folder:
        """The folder that holds the file."""
        started, path = int(self._started), f"/{FOLDER}"
        file = _LiveFile(f"{path}/{FILE}", started, self.figures)
        return Folder(path, lambda: Weight(0, started, 0), lambda: {FILE: file})

    def figures(self) -> Figures:
        """Everything there is to tell; bytes, seconds, numbers.

        What is counted only grows; `memory`, `queue`, `threads` and `descriptors` are of this moment.
        """
        return {
            "version": __version__,
            "mountpoint": str(self._mountpoint),
            "pid": os.getpid(),
            "started": self._started,
            "now": time.time(),
            **self._blocks.figures(),
            "errors": dict(self._errors),
            "passthrough": self._passthrough(),
            "threads": threading.active_count(),
            "descriptors": sum(1 for _ in os.scandir("/proc/self/fd")) - 1,
            "listing": self._listing(),
        }

    def _listing(self) -> Figures:
        catalog = self._catalog()
        return {
            "listed_at": catalog.listed_at,
            "specimens": len(catalog.specimens),
            "left_out": dict(catalog.left_out),
        }


class _LiveFile:
    """A file whose bytes are made at each `open`."""

    def __init__(self, path: str, mtime: int, figures: Callable[[], Figures]) -> None:
        self._path = path
        self._mtime = mtime
        self._figures = figures

    @property
    def attributes(self) -> Attributes:
        return file_attributes(self._path, 0, self._mtime)

    @property
    def version(self) -> str:
        return LIVE

    def open(self) -> Content:
        return BytesContent(f"{json.dumps(self._figures(), indent=1)}\n".encode())

    def xattrs(self) -> dict[str, bytes]:
        return {}
