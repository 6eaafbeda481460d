"""The layers that reading needs, put together without a mount: catalog, cache, blocks, readahead.

Threads: those of the layers, from the constructor to `close`. All methods may be called from any; the
lock guards the followers and the number of readers, and is never held across I/O.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from bffs import catalog, refresh
from bffs.blocks import BlockReader
from bffs.cache import DiskCache
from bffs.content import Content, ObjectContent
from bffs.errors import BffsError
from bffs.late import LateStore
from bffs.pixels import Pixels
from bffs.readahead import Readahead, SpecimenReadahead
from bffs.schedule import Priority
from bffs.settings import Settings
from bffs.shapes import Shape, Shapes
from bffs.store import ObjectInfo
from bffs.tiff import SliceLayout

Wanted = list[tuple[ObjectInfo, int, int]]
"""Bytes of objects, from where to where."""


class Engine:
    """The layers that reading needs, connected and started. Raises StoreError where the dataset has to be
    listed and can't be."""

    def __init__(self, settings: Settings, *, anew: bool) -> None:
        self.settings = settings
        self._store = LateStore(settings)
        try:
            self.catalog = refresh.obtain(
                settings, self._store, lambda: nullcontext(None), anew=anew, or_kept=True
            )
        except BaseException:
            self._store.close()
            raise
        self._cache = DiskCache(settings.cache_dir, settings.dataset, settings.cache_size)
        self._blocks = BlockReader(
            self._store,
            self._cache,
            memory=settings.memory,
            connections=settings.max_connections,
            deadline=settings.deadline,
        )
        self._readahead = Readahead(self._blocks, memory=settings.memory, most=settings.readahead)
        self._shapes = Shapes(settings, self._blocks, self._cache)
        self._followers: dict[str, SpecimenReadahead] = {}
        self._lock = threading.Lock()
        self._readers = 0
        self._numbers = itertools.count()
        self._is_closed = False
        self._blocks.start()
        self._cache.start()

    def close(self) -> None:
        """End all threads."""
        self._is_closed = True
        self._blocks.abort()
        self._store.stop()
        self._blocks.close()
        self._cache.close()
        self._store.close()

    def shape(self, listed: catalog.Specimen) -> Shape:
        """What the first slice looks like. Raises BffsError."""
        self._must_be_open()
        return self._shapes.learn(listed)

    def pixels(self, listed: catalog.Specimen, layout: SliceLayout) -> Pixels:
        """Where the pixels of the slices lie."""

        def plain(index: int, limit: int, entered: bool) -> Content:
            return ObjectContent(self._blocks, listed.slices[index])

        return Pixels(self._blocks, listed.slices, layout, plain)

    def content(self, listed: catalog.Specimen, index: int, *, followed: bool) -> Content:
        """A slice; `followed` by readahead, as in a mount."""
        self._must_be_open()
        if not followed:
            return ObjectContent(self._blocks, listed.slices[index])
        name = f"/{listed.split}/{listed.id}"
        with self._lock:
            if name not in self._followers:
                self._followers[name] = self._readahead.specimen(name, listed.slices)
        return self._followers[name].content(index)

    def read(self, obj: ObjectInfo) -> bytes:
        """All of an object. Raises BffsError."""
        self._must_be_open()
        data = bytearray(obj.size)
        self._blocks.read_into(obj, 0, memoryview(data))
        return bytes(data)

    @contextmanager
    def ahead(self, wants: Sequence[Wanted]) -> Iterator[Callable[[int], None]]:
        """Have fetched what a read consists of, in this order and no further ahead than there is memory
        for; to be told with which of `wants` the reader goes on."""
        stream = ("dataset", next(self._numbers))
        due = 0

        def reach(place: int) -> None:
            nonlocal due
            if place < due or len(wants) < 2:
                return
            room = self.settings.memory // 2 // max(1, self._readers)
            ranges: Wanted = []
            stop = place
            while stop < len(wants) and (room > 0 or stop < place + 2):
                ranges += wants[stop]
                room -= sum(end - start for _, start, end in wants[stop])
                stop += 1
            due = len(wants) if stop == len(wants) else (place + stop + 1) // 2
            self._blocks.prefetch(stream, Priority.FILE, ranges, place)

        self._count(1)
        try:
            yield reach
        finally:
            self._count(-1)
            self._blocks.cancel(stream)

    def _count(self, change: int) -> None:
        with self._lock:
            self._readers += change

    def _must_be_open(self) -> None:
        if self._is_closed:
            raise BffsError("the dataset is closed")
