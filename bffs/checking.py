"""Cached objects that are whole: found, and checked to the last block, before anyone else reads their files.

A block that was read through the cache since this process began has been checked then. What is still missing is read
and checked at once, or ahead by a thread, which also brings it into the page cache for who reads it next.

Threads: everything may be called from any thread. The lock guards the queue and is held across no I/O.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from bffs.cache import DiskCache
from bffs.cachefile import CachedObject
from bffs.store import ObjectInfo

_STALE = 0.1
"""Seconds after which it is looked anew what others have added."""


class Checker:
    """Checks what `cache` has, on a thread from `start` to `close`."""

    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache
        self._queue: deque[ObjectInfo] = deque()
        self._work = threading.Condition()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Check ahead from now on; after any fork."""
        self._thread = threading.Thread(target=self._run, name="bffs-check", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop checking."""
        with self._work:
            self._is_closing = True
            self._queue.clear()
            self._work.notify()
        if self._thread is not None:
            self._thread.join(1.0)

    def whole(self, obj: ObjectInfo, *, check: bool) -> CachedObject | None:
        """What is cached of `obj`, if that is all of it and checked; with `check`, what was not is
        checked now."""
        cached = self._cache.open(obj)
        if not cached.is_checked:
            if not cached.is_whole:
                cached.refresh(_STALE)
            if not (check and cached.is_whole and cached.check()):
                return None
        self._cache.touch(cached)
        return cached

    def ahead(self, objects: Iterable[ObjectInfo]) -> None:
        """Check these next, in this order, as far as they are here, instead of what was asked before."""
        wanted = [obj for obj in objects if self._is_worth_it(self._cache.open(obj))]
        with self._work:
            self._queue.clear()
            self._queue.extend(wanted)
            if wanted:
                self._work.notify()

    def _is_worth_it(self, cached: CachedObject) -> bool:
        return not cached.is_checked and cached.is_whole

    def _run(self) -> None:
        while True:
            with self._work:
                while not (self._queue or self._is_closing):
                    self._work.wait()
                if self._is_closing:
                    return
                obj = self._queue.popleft()
            self._cache.open(obj).check()
