"""Stand-ins that are simpler than the real thing and behave like it: an object store in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

from bffs.errors import ObjectChanged, StoreError
from bffs.store import Interrupt, Listing, ObjectInfo

PAGE = 3
"""Entries on a page of a listing; few, so that nothing works with the first page alone."""

MTIME = 1_565_816_733
"""When every object was uploaded: 2019-08-14T21:05:33Z."""


class FakeStore:
    """An `ObjectStore` over a mapping of keys to bytes, which a test may change at any time."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = dict(objects)

    def info(self, key: str) -> ObjectInfo:
        """The present version of the object at `key`."""
        content = self.objects[key]
        return ObjectInfo(key, hashlib.md5(content).hexdigest(), len(content), MTIME)

    def list(self, prefix: str, *, folders: bool = False) -> Iterator[Listing]:
        """See `ObjectStore.list`."""
        below = sorted(key for key in self.objects if key.startswith(prefix))
        cut = [prefix + key[len(prefix) :].partition("/")[0] for key in below]
        inner = [folders and key != short for key, short in zip(below, cut, strict=True)]
        names = dict.fromkeys(
            (short + "/" if deeper else key, deeper)
            for key, short, deeper in zip(below, cut, inner, strict=True)
        )
        entries = list(names)
        for start in range(0, max(1, len(entries)), PAGE):
            page = entries[start : start + PAGE]
            yield Listing(
                [self.info(name) for name, deeper in page if not deeper],
                [name for name, deeper in page if deeper],
            )

    def read_into(
        self,
        obj: ObjectInfo,
        start: int,
        buffer: memoryview,
        advance: Callable[[int], None],
        persist: Callable[[StoreError], bool],
        interrupt: Interrupt,
    ) -> None:
        """See `ObjectStore.read_into`."""
        if obj.key not in self.objects or self.info(obj.key) != obj:
            raise ObjectChanged(f"{obj.key} has changed since it was listed")
        buffer[:] = self.objects[obj.key][start : start + len(buffer)]
        advance(len(buffer))
