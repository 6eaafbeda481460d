"""Keeping a catalog current: from the snapshot at once, from the store when it is asked for or time.

`obtain` is what a command starts with. `Refresher` keeps a mount's catalog current: it lists the
bucket anew when the snapshot has become old, or when `now` is called, and takes over a snapshot
that another process (another mount, `bffs refresh`) has written meanwhile.

A listing that fails changes nothing: what was known stays, and the next try is `RETRY` seconds off.

Threads: `Refresher` has one of its own, which calls `on_change`; `now` and `close` may be called
from any other. No locks but those of its events.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

from bffs import snapshot
from bffs.catalog import Catalog, base_name, list_catalog
from bffs.errors import BffsError, StoreUnreachable
from bffs.settings import Settings
from bffs.store import ObjectInfo, ObjectStore
from bffs.units import format_time

log = logging.getLogger(__name__)

Progress = Callable[[int, int, int], None]
ShowProgress = Callable[[], AbstractContextManager[Progress | None]]

LOOK = 2.0
"""Seconds between two looks at the snapshot's file; a stat, no more."""

RETRY = 600.0
"""Seconds after a listing that failed before it is tried again unasked."""

LISTERS = 16
"""Requests at a time; more than this a listing gains nothing, as its answers are parsed here."""


def obtain(
    settings: Settings,
    store: ObjectStore,
    show_progress: ShowProgress,
    *,
    anew: bool,
    or_kept: bool = False,
) -> Catalog:
    """The catalog of the dataset: the one that was kept, or a new listing, which is then kept.

    `anew` lists in any case; where the store can't be reached, `or_kept` contents itself with what
    was kept. Raises StoreError.
    """
    kept = None
    if not anew or or_kept:
        kept = snapshot.load(settings.cache_dir, settings.dataset)
    if kept is not None and not anew:
        return kept
    try:
        with show_progress() as progress:
            return _list(settings, store, progress)
    except StoreUnreachable as error:
        if kept is None:
            if settings.offline:
                raise StoreUnreachable(
                    "no listing of this dataset was kept, which --offline needs: mount or list it once without"
                ) from error
            raise
        when = format_time(int(kept.listed_at))
        log.warning("%s; what is shown was listed at %s", error, when)
        return kept


class Change(NamedTuple):
    """What two catalogs differ in.

    `paths` are those of files that are new, gone or changed, below the split folders; `gone` and
    `new` the object versions that are no more, and that were not before.
    """

    paths: list[str]
    gone: list[ObjectInfo]
    new: list[ObjectInfo]


def compare(before: Catalog, after: Catalog) -> Change:
    """What has changed from one catalog to the next."""
    old, new = _files(before), _files(after)
    paths = [path for path in old.keys() | new.keys() if old.get(path) != new.get(path)]
    return Change(sorted(paths), _without(old, new), _without(new, old))


class Refresher:
    """Keeps one mount's catalog current. `on_change` gets the catalog before and the one after;
    `catalog` is the one whose change is complete."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        catalog: Catalog,
        on_change: Callable[[Catalog, Catalog], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self.catalog = catalog
        self._on_change = on_change
        self._wake = threading.Event()
        self._asked = False
        self._closing = False
        self._next_try = 0.0
        self._seen = self._snapshot_mark()
        self._thread = threading.Thread(target=self._run, name="bffs-refresh", daemon=True)

    def start(self) -> None:
        """Start the thread; after any fork."""
        self._thread.start()

    def now(self) -> None:
        """List the bucket anew, soon."""
        self._asked = True
        self._wake.set()

    def close(self) -> None:
        """End the thread, unless a listing keeps it; then it ends with the process."""
        self._closing = True
        self._wake.set()
        self._thread.join(0.2)

    def _run(self) -> None:
        while not self._closing:
            try:
                self._look()
            except BffsError as error:
                log.warning("the listing stays as it is: %s", error)
                self._next_try = time.time() + RETRY
            except Exception:
                log.exception("refreshing the listing went wrong inside bffs")
                self._next_try = time.time() + RETRY
            self._wake.wait(LOOK)
            self._wake.clear()

    def _look(self) -> None:
        """Take over a newer snapshot, or list anew if that was asked for or is due."""
        mark = self._snapshot_mark()
        if mark != self._seen:
            self._seen = mark
            kept = snapshot.load(self._settings.cache_dir, self._settings.dataset)
            if kept is not None and kept.listed_at > self.catalog.listed_at:
                self._take(kept)
        due = self.catalog.listed_at + self._settings.refresh_after
        is_due = not self._settings.offline and max(due, self._next_try) < time.time()
        if self._asked or is_due:
            self._asked = False
            listed = _list(self._settings, self._store, None)
            self._seen = self._snapshot_mark()
            self._take(listed)

    def _take(self, catalog: Catalog) -> None:
        before = self.catalog
        if before.specimens != catalog.specimens:
            self._on_change(before, catalog)
        self.catalog = catalog

    def _snapshot_mark(self) -> tuple[int, int] | None:
        return snapshot.mark(self._settings.cache_dir, self._settings.dataset)


def _list(settings: Settings, store: ObjectStore, progress: Progress | None) -> Catalog:
    connections = min(LISTERS, settings.max_connections)
    catalog = list_catalog(store, settings.dataset, connections=connections, progress=progress)
    snapshot.save(catalog, settings.cache_dir, settings.dataset)
    return catalog


def _files(catalog: Catalog) -> dict[str, ObjectInfo]:
    """Every object by its path in a mount."""
    return {
        f"/{specimen.split}/{specimen.id}/{base_name(obj.key)}": obj
        for specimen in catalog.specimens
        for obj in specimen.objects()
    }


def _without(some: Mapping[str, ObjectInfo], others: Mapping[str, ObjectInfo]) -> list[ObjectInfo]:
    """The object versions of `some` that are none of `others`."""
    known = {(obj.key, obj.etag) for obj in others.values()}
    return [obj for obj in some.values() if (obj.key, obj.etag) not in known]


def around(paths: Iterable[str]) -> list[str]:
    """What else changes with these paths: the folders above them and the manifests in those."""
    changed = {"/", "/specimens_manifest.json"}
    for path in paths:
        specimen = path.rpartition("/")[0]
        changed |= {specimen.rpartition("/")[0], specimen, f"{specimen}/manifest.json"}
    return sorted(changed)
