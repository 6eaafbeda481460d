"""The disk cache: what has been read once stays on the local disk, verified, shared and bounded.

Layout below the cache folder (0700, files 0600)::

    v1/index.sqlite3                          how much is stored and when it was last used
    v1/<dataset>/<hh>/<name>                  the bytes: a sparse file, each block at its own offset
    v1/<dataset>/<hh>/<name>.sums             which blocks are there, and their checksums
    v1/<dataset>/pins/<hash of a prefix>      a specimen that stays

`<dataset>` is a hash of endpoint and bucket, `<name>` of key and ETag, `<hh>` its first two digits.
So a file belongs to one version of one object, and a complete one is byte for byte the object. What
the two files of an object hold, and why a crash leaves a miss and never wrong bytes, is described in
`cachefile`.

Sharing: any number of processes use one folder. Adding a block is two writes that need no lock,
since two processes would write the same bytes. Nothing is ever rewritten or truncated in place:
evicting a file unlinks it, so whoever has it open reads on undisturbed, and lets go of it within
`_HOUSEKEEPING` seconds. Room is reserved in the index, whose transactions SQLite isolates across
processes, before bytes are written; a killed process leaves no lock behind.

The disk is optional. A fault of it (full, read-only, gone, broken) is a miss; writing pauses for
`_RETRY_DISK` seconds and says so once. Nothing here raises to a reader.

Threads: everything may be called from any thread. The lock guards the table of open objects and is
never held across I/O. `start` starts a thread (after any fork) that keeps house until `close`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash
from cachetools import LRUCache

from bffs import pins
from bffs.cachefile import BLOCK, CachedObject, Seal, block_count, checksum, remove_cached
from bffs.errors import BffsError
from bffs.index import Account, Index
from bffs.private import CACHE_VERSION, dataset_folder, own_dataset_folder
from bffs.settings import Dataset
from bffs.store import ObjectInfo

__all__ = ["BLOCK", "CachedObject", "DiskCache", "block_count", "checksum", "remove_cached"]

log = logging.getLogger(__name__)

_RETRY_DISK = 30.0
_KNOWN_OBJECTS = 256
"""Objects whose files are kept open; two descriptors each."""

_HOUSEKEEPING = 1.0
"""Seconds between two looks for files that other processes have evicted: until it is closed here,
such a file keeps its room on the disk."""

_NOTE_USE = 30.0
"""Seconds after which other processes know what was read here from the cache alone."""

Identity = tuple[str, str]
"""Key and ETag."""

_NOWHERE = Path(os.devnull) / "nowhere"
"""A path that can't be, for objects that have no local part: below a device there is nothing."""


class _Known(LRUCache[Identity, CachedObject]):
    """Objects whose files are open. Of those that had to be closed for others, `seals` has what is
    known to be sound: a stack has more slices than may be open, and is read again and again."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.seals: dict[Identity, Seal] = {}

    def popitem(self) -> tuple[Identity, CachedObject]:
        """Drop the least recently used."""
        identity, cached = super().popitem()
        seal = cached.seal()
        if seal is not None:
            self.seals[identity] = seal
        return identity, cached


class DiskCache:
    """All that is cached of one dataset, within limits that all processes keep together.

    `limit` is the most bytes that may be stored in the cache folder; `stamp` the time at which what
    is added here counts as used, instead of now. `damaged` is how many blocks, or whole files, did
    not fit their checksums here.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        limit: int,
        stamp: float | None = None,
    ) -> None:
        self.limit = limit
        self.folder = folder
        self.damaged = 0
        self._dataset = dataset
        self._objects = dataset_folder(folder, dataset)
        self._index = Index(folder / CACHE_VERSION, limit, stamp)
        self._known = _Known(_KNOWN_OBJECTS)
        self._lock = threading.Lock()
        self._paused_until = 0.0
        self._forgot_at = 0.0
        self._ours = False
        self._closing = threading.Event()
        self._housekeeper: threading.Thread | None = None
        try:
            self._claim()
        except OSError as error:
            self._pause(error)

    def start(self) -> None:
        """Keep house from now on, on a thread; after any fork."""
        self._housekeeper = threading.Thread(
            target=self._keep_house, name="bffs-cache", daemon=True
        )
        self._housekeeper.start()

    def close(self) -> None:
        """Write down what was used, and forget the open files."""
        self._closing.set()
        if self._housekeeper is not None:
            self._housekeeper.join(1.0)
        with suppress(OSError, sqlite3.Error):
            self._index.close()
        with self._lock:
            self._known.clear()

    # -- reading and adding ------------------------------------------------------------------------------------

    def open(self, obj: ObjectInfo) -> CachedObject:
        """The local part of `obj`, perhaps empty. Never raises."""
        identity = (obj.key, obj.etag)
        with self._lock:
            cached = self._known.get(identity)
        if cached is None or cached.is_evicted():
            path = self.path(obj) if self._ours else _NOWHERE
            cached = CachedObject(obj, path, self._count_damage, self._known.seals.get(identity))
            with self._lock:
                self._known[identity] = cached
        return cached

    def touch(self, cached: CachedObject) -> None:
        """Note that it is in use now; written down later, for other processes."""
        if self._ours:
            self._index.touch(cached.path)

    def add(self, obj: ObjectInfo, block: int, data: memoryview, sums: array[int]) -> None:
        """Store consecutive blocks if there is room; see `CachedObject.add`. Never raises."""
        if time.monotonic() < self._paused_until:
            return
        try:
            if self._paused_until:
                self._claim()
                self._paused_until = 0.0
            self.store(obj, block, data, sums)
        except (OSError, sqlite3.Error) as error:
            self._pause(error)

    def store(self, obj: ObjectInfo, block: int, data: memoryview, sums: array[int]) -> bool:
        """Store consecutive blocks; False if there is no room. Raises OSError or sqlite3.Error."""
        path = self.path(obj)
        before = self._index.evicted
        if not self._index.reserve(path, obj, len(data)):
            return False
        self._forget_evicted(0.1 if self._index.evicted == before else 0.0)
        cached = self.open(obj)
        was_there = cached.is_there
        cached.add(block, data, sums, direct=True)
        if not was_there and not self._index.knows(path):
            remove_cached(path)  # evicted between the reservation and the making of the file
        return True

    def path(self, obj: ObjectInfo) -> Path:
        """Where the bytes of `obj` are, if any of them are here."""
        name = xxhash.xxh3_128_hexdigest(f"{obj.key}\n{obj.etag}".encode())
        return self._objects / name[:2] / name

    # -- what people ask for; all raise BffsError --------------------------------------------------------------

    def files(self) -> dict[Path, int]:
        """The data files of this dataset that are here, and the bytes that each takes on the disk."""
        self._must_be_ours()
        found = {}
        for path in self._objects.glob("??/*"):
            if path.suffix != ".sums" and not path.name.startswith("draft-"):
                with suppress(FileNotFoundError):
                    found[path] = path.stat().st_blocks * 512
        return found

    def taken(self, objects: Iterable[ObjectInfo]) -> int:
        """Bytes that these objects take on the disk, which is what is here of them unless the file
        system compresses; 0 where nothing can be said. Opens nothing. Never raises."""
        total = 0
        for obj in objects if self._ours else ():
            with suppress(OSError):
                total += min(os.stat(self.path(obj)).st_blocks * 512, obj.size)
        return total

    def is_pinned(self, prefix: str) -> bool:
        """Whether the specimen of that prefix is never evicted."""
        return pins.is_pinned(self._objects, prefix)

    def pin(self, prefix: str, objects: Iterable[ObjectInfo]) -> None:
        """Never evict what is cached of the specimen of that prefix, now or later."""
        with self._explained():
            self._index.pin(prefix, map(self.path, objects))

    def unpin(self, prefix: str, objects: Iterable[ObjectInfo]) -> None:
        """Let what is cached of the specimen be evicted again."""
        with self._explained():
            self._index.unpin(prefix, map(self.path, objects))

    def evict(self, objects: Iterable[ObjectInfo]) -> None:
        """Remove what is cached of these objects."""
        with self._explained():
            self._index.evict(map(self.path, objects))

    def keep(self, objects: Iterable[ObjectInfo]) -> None:
        """Count what is here of these objects as used."""
        with self._explained():
            for obj in objects:
                self._index.touch(self.path(obj))
            self._index.flush()

    def account(self) -> Account:
        """What is stored, by all datasets, and what more there is room for."""
        with self._explained():
            return self._index.account()

    def recount(self, sizes: dict[Path, int]) -> None:
        """Correct what these files, which nobody is writing, are counted for."""
        with self._explained():
            self._index.recount(sizes)

    def sweep(self, before: float) -> None:
        """Remove halves of cached files, and drafts, that are older than that; a file is two."""
        self._must_be_ours()
        for path in self._objects.glob("??/*"):
            if path.suffix == ".sums":
                whole = path.with_suffix("").exists()
            else:
                whole = path.with_name(path.name + ".sums").exists()
            with suppress(FileNotFoundError):
                if not whole and path.stat().st_mtime < before:
                    path.unlink()

    def used_since(self, when: float) -> list[Path]:
        """Files that others used since then, the latest first; see `Index.used_since`."""
        with self._explained():
            return self._index.used_since(when)

    def _count_damage(self) -> None:
        with self._lock:
            self.damaged += 1

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Make sure that the cache is there, and put its faults into one line."""
        self._must_be_ours()
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise BffsError(f"the cache in {self.folder} can't be used: {error}") from error

    def _must_be_ours(self) -> None:
        if not self._ours:
            raise BffsError(f"the cache in {self.folder} can't be used; choose another --cache-dir")

    # -- the disk ----------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Make the folders, or make sure that nobody else did, who could plant bytes. Raises OSError."""
        own_dataset_folder(self.folder, self._dataset)
        self._ours = True
        with self._lock:
            self._known.clear()  # what was opened nowhere, or is gone

    def _pause(self, error: Exception) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._paused_until:
                return  # another thread has said so
            self._paused_until = now + _RETRY_DISK
        log.warning("nothing is cached on disk for %.0f s: %s", _RETRY_DISK, error)

    def _keep_house(self) -> None:
        noted = time.monotonic()
        while not self._closing.wait(_HOUSEKEEPING):
            self._forget_evicted(_HOUSEKEEPING / 2)
            if time.monotonic() - noted > _NOTE_USE:
                noted = time.monotonic()
                with suppress(OSError, sqlite3.Error):  # whoever adds something will say so
                    self._index.flush()

    def _forget_evicted(self, interval: float) -> None:
        """Close the files that are evicted, unless that was seen to less than `interval` seconds
        ago."""
        if time.monotonic() - self._forgot_at < interval:
            return
        self._forgot_at = time.monotonic()
        with self._lock:
            known = list(self._known.items())
        evicted = [(identity, cached) for identity, cached in known if cached.is_evicted()]
        with self._lock:
            for identity, cached in evicted:
                if self._known.get(identity) is cached:
                    del self._known[identity]
