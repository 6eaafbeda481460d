"""Blocks of objects: from memory, from the disk cache, or fetched once.

Who reads what is neither in memory nor on disk demands it of `fetching`, and waits.

Threads: all but `start` and `close` may be called from any thread. Reading takes no lock of its own.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from bffs.cache import DiskCache
from bffs.cachefile import BLOCK, CachedObject
from bffs.deadlines import Deadlines
from bffs.errors import ObjectChanged, StoreUnreachable
from bffs.fetching import Fetcher, Waiting
from bffs.parts import PART, Part, Waiter
from bffs.schedule import Priority, Want
from bffs.store import ByteRange, ObjectInfo, ObjectStore

LOOK = 0.25
"""Seconds between two looks at whether a waiting reader has been killed: the kernel lets it die only
when its request is answered."""

LOOK_AGAIN = 0.5
"""Seconds after which prefetching looks anew for blocks that other processes have stored."""


class BlockReader:
    """Reads objects of one store through one disk cache; see the module.

    A read waits for `deadline` seconds, or until `abandoned`, called from its thread now and then,
    is true.
    """

    def __init__(
        self,
        store: ObjectStore,
        cache: DiskCache,
        *,
        memory: int,
        connections: int,
        deadline: float = 300.0,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> None:
        self._deadlines = Deadlines(deadline)
        self._abandoned = abandoned
        self._cache = cache
        self._fetcher = Fetcher(
            store, cache, memory=memory, connections=connections, deadline=deadline
        )
        self.link = self._fetcher.link
        self.counters = self._fetcher.counters
        self._retired: frozenset[tuple[str, str]] = frozenset()

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads that fetch and those that write; after any fork."""
        self._fetcher.start()

    def make_ready(self) -> None:
        """Take the memory for a first slice, while nobody waits for it; for a thread of its own."""
        self._fetcher.make_ready()

    def abort(self) -> None:
        """Fail every waiting read, now and from now on, with Closing."""
        self._fetcher.abort()

    def close(self, timeout: float = 3.0) -> None:
        """Abort, write what is waiting to be written, and end the threads within `timeout`
        seconds; those that hang in a request end with the process."""
        self._fetcher.close(timeout)

    def retire(self, gone: Iterable[ObjectInfo], new: Iterable[ObjectInfo]) -> None:
        """From now on, fail reads of the object versions that are `gone` with ObjectChanged, cached
        or not, until they are `new` again.

        The kernel keeps pages by file, not by version: a late read of the old version through an
        old handle would leave its bytes there for readers of the new one.
        """
        retired = self._retired | {(obj.key, obj.etag) for obj in gone}
        self._retired = retired - {(obj.key, obj.etag) for obj in new}

    def is_retired(self, obj: ObjectInfo) -> bool:
        """Whether that version has been retired."""
        return (obj.key, obj.etag) in self._retired

    def figures(self) -> dict[str, Any]:
        """What has been done, and what takes memory or waits now; bytes, seconds, numbers."""
        return {
            **vars(self.counters),
            "damaged": self._cache.damaged,
            **self._fetcher.figures(),
        }

    def waiting(self) -> list[Waiting]:
        """The reads that wait for the store now."""
        return self._fetcher.waiting()

    # -- reading -----------------------------------------------------------------------------------------------

    def read_into(self, obj: ObjectInfo, offset: int, into: memoryview) -> int:
        """Fill `into` with the bytes of `obj` from `offset` on; returns how many there were before
        the end.

        Waits until they are here, at most until the deadline. Raises StoreError when they can't be
        had, Closing at the end of the mount, InterruptedError for a reader that is gone.
        """
        size = min(len(into), obj.size - offset)
        if size <= 0:
            return 0
        if self._retired and self.is_retired(obj):
            raise ObjectChanged(f"{obj.key} has changed since it was opened")
        cached: CachedObject | None = None
        refreshed = False
        until = 0.0
        done = 0
        while done < size:
            at, rest = offset + done, into[done:size]
            n = self._copy(obj, at, rest)
            if not n:
                cached = cached or self._cache.open(obj)
                n = self._copy_from_disk(cached, at, rest)
                if not n and refreshed:
                    until = until or self._deadlines.begin(obj, offset, size)
                    n = self._wait(obj, cached, at, rest, until)
                elif not n:
                    cached.refresh()
                    refreshed = True
            done += n
        return size

    def _copy(self, obj: ObjectInfo, offset: int, into: memoryview) -> int:
        """Copy what memory holds from `offset` on, up to the end of its part; how many bytes that
        was.

        Takes no lock and keeps the interpreter's: among dozens of fetching threads each time that
        either is asked for costs more than copying 1 MiB. Instead of being pinned, the part is
        looked at again after the copy: if its memory was given up meanwhile, nothing was copied.
        """
        index, start = divmod(offset, PART)
        key = (obj.key, obj.etag, index)
        part = self._fetcher.find(key)
        if part is None:
            return 0
        buffer = part.buffer
        n = self._copy_part(part, start, into)
        if self._fetcher.find(key) is not part or part.buffer is not buffer:
            return 0
        self.counters.from_memory += n
        return n

    def _copy_part(self, part: Part, start: int, into: memoryview) -> int:
        """Copy what the part has from `start` on without a gap; how many bytes that was."""
        n = min(part.readable(start), len(into))
        into[:n] = part.buffer.view[start : start + n]
        if n and start + n == part.size and not part.spent:
            self._fetcher.spend(part)
        return n

    def _copy_from_disk(self, cached: CachedObject, offset: int, into: memoryview) -> int:
        """Copy what the disk holds from `offset` on without a gap; how many bytes that was."""
        n = cached.read_into(offset, into)
        if n:
            self._cache.touch(cached)
            self.counters.from_disk += n
        return n

    def _wait(
        self, obj: ObjectInfo, cached: CachedObject, offset: int, into: memoryview, until: float
    ) -> int:
        """Demand what is missing, wait for the first run of it in one part, and copy that; how many
        bytes that was, 0 to look again."""
        runs = list(cached.missing(offset // BLOCK, -(-(offset + len(into)) // BLOCK)))
        if not runs or runs[0][0] != offset // BLOCK:
            return 0
        wanted = self._fetcher.demand(obj, runs, until)
        if wanted is None:
            return 0
        part, waiter = wanted
        try:
            if not self._is_served(waiter, part):
                error = waiter.error or StoreUnreachable(f"{obj.key} did not come in time")
                if time.monotonic() >= until:
                    span = ByteRange(offset, offset + len(into))
                    self._deadlines.missed(obj, span, error)
                raise error
            n = self._copy_part(part, offset % PART, into)
            self.counters.from_memory += n
            self.counters.waited_for += n
            return n
        finally:
            self._fetcher.release(part)

    def _is_served(self, waiter: Waiter, part: Part) -> bool:
        """Wait until `waiter` is woken, or its time is up; whether its blocks are here."""
        while not waiter.gate.acquire(timeout=max(0.0, min(LOOK, waiter.until - time.monotonic()))):
            killed = self._abandoned()
            if killed or time.monotonic() >= waiter.until:
                self._fetcher.give_up(part, waiter)
                if killed:
                    raise InterruptedError(errno.EINTR, "the reader was killed")
                break
        return part.have & waiter.need == waiter.need

    # -- prefetching -------------------------------------------------------------------------------------------

    def prefetch(
        self,
        stream: Hashable,
        priority: Priority,
        ranges: Iterable[tuple[ObjectInfo, int, int]],
        order: int = 0,
    ) -> None:
        """Want these byte ranges (object, start, stop), nearest first, instead of what `stream`
        wanted before; of two calls at once the one with the higher `order` stays."""
        wants: deque[Want] = deque()
        for obj, start, stop in ranges:
            cached = self._cache.open(obj)
            if cached.is_checked:  # and so all of it is here
                continue
            cached.refresh(LOOK_AGAIN)
            for first, end in cached.missing(start // BLOCK, -(-stop // BLOCK)):
                wants.append(Want(obj, first, end, cached))
        self._fetcher.prefetch(stream, priority, wants, order)

    def cancel(self, stream: Hashable) -> None:
        """Forget what `stream` wants and is not yet being fetched."""
        self._fetcher.cancel(stream)
