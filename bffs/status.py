"""The status file of a mount: its live figures as JSON, made anew for each handle.

Like the files of /proc it has no size of its own: `stat` shows 0 bytes, reading gives them all. The
kernel is told to keep nothing of it, and the figures are taken at `open` alone, so that `ls -lR`
costs nothing. What the keys mean is said in docs/status.md; `SCHEMA` grows when one of them changes
its meaning or goes.

Threads: any number may open it at once; the figures come from values that are replaced whole, or
from under their owners' locks.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bffs import __version__
from bffs.adapter import Open
from bffs.blocks import BlockReader, Waiting
from bffs.cache import DiskCache
from bffs.catalog import Catalog
from bffs.content import BytesContent, Content, ObjectContent
from bffs.errors import BffsError
from bffs.readahead import Readahead, SliceContent
from bffs.saved import saved_files
from bffs.settings import Settings
from bffs.store import Traffic
from bffs.tree import LIVE, Attributes, Folder, Weight, file_attributes
from bffs.unlisted import inside

FOLDER = ".bffs"
FILE = "status.json"
SCHEMA = 1

LATELY = 600.0
"""Seconds after its last demand for which a specimen is shown."""

MOST_SPECIMENS = 10
MOST_FILES = 100
MOST_PLACES = 100
"""How many are told at most: of specimens, open files, and folders with saved files."""

PAUSE = 20
"""A walk of the scratch folder is repeated after so many times what it took: 5 % of a core at most."""

Figures = dict[str, Any]


class Asked(Protocol):
    """A store that counts what it is asked."""

    def traffic(self) -> Traffic:
        """What has been asked so far."""
        ...


class Sources(NamedTuple):
    """Where the figures of a mount come from. `errors` counts failed reads by the errno's name,
    `passthrough` is `Session.passthrough_figures`, `catalog` is asked for what is shown now, and
    `scratch` is where what is saved is kept."""

    blocks: BlockReader
    store: Asked
    cache: DiskCache
    readahead: Readahead
    handles: Callable[[], Mapping[int, Open]]
    errors: Mapping[str, int]
    passthrough: Callable[[], Figures]
    catalog: Callable[[], Catalog]
    scratch: Path | None


class Status:
    """Collects the figures of a mount. `metrics_port` is told as it is."""

    def __init__(self, mountpoint: Path, settings: Settings, sources: Sources) -> None:
        self._mountpoint = mountpoint
        self._dataset = settings.dataset
        self._sources = sources
        self._started = time.time()
        self._saved = _Saved(sources.scratch)
        self.metrics_port: int | None = None

    @property
    def folder(self) -> Folder:
        """The folder that holds the file."""
        started, path = int(self._started), f"/{FOLDER}"
        file = _LiveFile(f"{path}/{FILE}", started, self.figures)
        return Folder(path, lambda: Weight(0, started, 0), lambda: {FILE: file})

    def figures(self) -> Figures:
        """Everything there is to tell; see docs/status.md."""
        of = self._sources
        waiting = of.blocks.waiting()
        return {
            **self.counts(),
            "mountpoint": str(self._mountpoint),
            "dataset": {
                "name": self._dataset.name,
                "endpoint_url": self._dataset.endpoint_url,
                "bucket": self._dataset.bucket,
            },
            "failure": _failure(of.store.traffic()),
            "waiting": [_waiting(each) for each in waiting],
            "specimens": list(self._specimens()),
            "files": list(_files(of.handles(), waiting)),
            "passthrough": of.passthrough(),
            "saved": self._saved.figures(),
            "metrics_port": self.metrics_port,
        }

    def counts(self) -> Figures:
        """Those of the figures that are numbers, and no names of anything."""
        of = self._sources
        traffic = of.store.traffic()
        return {
            "schema": SCHEMA,
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started,
            "now": time.time(),
            **of.blocks.figures(),
            "requests": {"get": 0, "list": 0, **traffic.requests},
            "retries": dict(traffic.retries),
            "errors": dict(of.errors),
            "open": sum(1 for each in tuple(of.handles().values()) if each.path),
            "threads": threading.active_count(),
            "descriptors": sum(1 for _ in os.scandir("/proc/self/fd")) - 1,
            "listing": self._listing(),
            "cache": self._cache(),
        }

    def _listing(self) -> Figures:
        catalog = self._sources.catalog()
        return {
            "listed_at": catalog.listed_at,
            "specimens": len(catalog.specimens),
            "left_out": dict(catalog.left_out),
        }

    def _cache(self) -> Figures:
        cache = self._sources.cache
        figures: Figures = {"folder": str(cache.folder), "limit": cache.limit}
        with suppress(BffsError):
            stored, pinned, spare = cache.account()
            free = max(0, min(spare, cache.limit - stored))
            figures |= {"stored": stored, "pinned": pinned, "spare": free}
        return figures

    def _specimens(self) -> Iterator[Figures]:
        for each in self._sources.readahead.lately(LATELY)[:MOST_SPECIMENS]:
            yield {
                "path": each.name.lstrip("/"),
                "slices": len(each.slices),
                "latest": each.latest,
                "idle": each.age,
                "bytes": sum(obj.size for obj in each.slices),
                "cached": self._sources.cache.taken(each.slices),
            }


def _failure(traffic: Traffic) -> Figures | None:
    return None if traffic.failure is None else traffic.failure._asdict()


def _waiting(each: Waiting) -> Figures:
    reason = None if each.error is None else str(each.error)
    return {"key": each.obj.key, "seconds": each.seconds, "reason": reason}


def _files(handles: Mapping[int, Open], waiting: list[Waiting]) -> Iterator[Figures]:
    """The open files, those opened last first, one entry for each path and process."""
    counts: Counter[tuple[bytes, int]] = Counter()
    latest: dict[tuple[bytes, int], Open] = {}
    for each in reversed(tuple(handles.values())):
        if each.path:
            counts[each.path, each.pid] += 1
            latest.setdefault((each.path, each.pid), each)
    waits = {each.obj: each.seconds for each in waiting}
    for each in islice(latest.values(), MOST_FILES):
        content = each.content
        obj = content.obj if isinstance(content, SliceContent | ObjectContent) else None
        yield {
            "path": inside(os.fsdecode(each.path)).lstrip("/"),
            "handles": counts[each.path, each.pid],
            "pid": each.pid,
            "program": _program(each.pid),
            "size": content.size if content is not None else 0,
            "at": content.reached() if isinstance(content, SliceContent) else None,
            "waiting": waits.get(obj) if obj is not None else None,
        }


def _program(pid: int) -> str | None:
    """The name of a process, if it is still there."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return None


class _Saved:
    """What is in the scratch folder, walked anew when that is some time ago."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._figures: Figures | None = None
        self._until = 0.0

    def figures(self) -> Figures | None:
        """The files and bytes, in all and by folder; None in a mount that takes none."""
        if self._folder is None:
            return None
        with self._lock:
            begun = time.monotonic()
            if begun >= self._until:
                self._figures = _walk(self._folder)
                self._until = begun + PAUSE * (time.monotonic() - begun)
            return self._figures


def _walk(folder: Path) -> Figures:
    sizes: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path, size in saved_files(folder):
        place = _place(path)
        sizes[place] += size
        files[place] += 1
    places = {
        place: {"files": files[place], "bytes": size}
        for place, size in sizes.most_common(MOST_PLACES)
    }
    return {
        "folder": str(folder),
        "files": files.total(),
        "bytes": sizes.total(),
        "places": places,
    }


def _place(path: str) -> str:
    """The folder of the tree that a saved file is counted with: a specimen's, or its own at the
    root."""
    parts = path.split("/")
    return "/".join(parts[: 3 if parts[0] == "stacks" else 2][: len(parts) - 1])


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
