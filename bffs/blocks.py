"""Blocks of objects: from memory, from the disk cache, or fetched once.

Who reads what is not here demands it and waits; fetching threads take what is most urgent from the
`Schedule`, piece by piece. Bytes land in the buffer of their part (`parts`). Each block is
checksummed while it is hot, marked, and its readers are woken; `keeping` writes it to the disk cache.

Threads: `read_into`, `prefetch` and `cancel` may be called from any thread. One lock guards
schedule, parts and counters, and is never held across I/O, a copy or a wait. Fetching threads start
in `start` (after any fork) and end in `close`.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from bffs.cache import DiskCache
from bffs.cachefile import BLOCK, CachedObject, checksum
from bffs.errors import (
    BffsError,
    Closing,
    ObjectChanged,
    StoreBusy,
    StoreError,
    StoreUnreachable,
)
from bffs.keeping import Keeper, started
from bffs.link import Link
from bffs.parts import BLOCKS_IN_PART, PART, Part, Parts, Waiter
from bffs.schedule import Piece, Priority, Schedule, Want
from bffs.store import ByteRange, ObjectInfo, ObjectStore

log = logging.getLogger(__name__)

AGAIN = 0.3
"""Seconds for which a read that has waited in vain is not begun anew: the kernel asks once more for
each page that it could not get, and nobody should wait twice."""

LOOK = 0.25
"""Seconds between two looks at whether a waiting reader has been killed: the kernel lets it die only
when its request is answered."""

LOOK_AGAIN = 0.5
"""Seconds after which prefetching looks anew for blocks that other processes have stored."""


class Counters:
    """What a reader has done so far; bytes and numbers, only ever growing."""

    def __init__(self) -> None:
        self.from_memory = 0
        self.from_disk = 0
        self.fetched = 0
        self.prefetched = 0
        self.waits = 0
        self.waited_for = 0
        self.not_written = 0


class _Reading(threading.local):
    """The read of a thread that is made of several: until when it waits, 0 before it has to."""

    until: float | None = None


_reading = _Reading()


@contextmanager
def as_one_read() -> Iterator[None]:
    """What this thread reads meanwhile is one read, with one deadline."""
    _reading.until = 0.0
    try:
        yield
    finally:
        _reading.until = None


class Waiting(NamedTuple):
    """A read that waits for the store: of what, for how many seconds, and what went wrong so far."""

    obj: ObjectInfo
    seconds: float
    error: BaseException | None


class _Failure(NamedTuple):
    """A read that has waited in vain; the same read fails like it until `again`."""

    obj: ObjectInfo
    span: ByteRange
    error: BaseException
    again: float


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
        self._store = store
        self._deadline = deadline
        self._abandoned = abandoned
        self._cache = cache
        self._connections = connections
        self._parts = Parts(memory)
        self.link = Link(self._parts.limit // 2, PART)
        self.counters = Counters()
        self._schedule = Schedule(self._parts, self.link, connections)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._idle_threads = 0
        self._failed: deque[_Failure] = deque(maxlen=256)
        self._keeper = Keeper(cache, self._parts.limit // 4, self._written)
        self._closing = False
        self._retired: frozenset[tuple[str, str]] = frozenset()
        self._fetchers: list[threading.Thread] = []

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads that fetch and those that write."""
        for number in range(self._connections):
            self._fetchers.append(started(self._fetch_pieces, f"bffs-fetch-{number}"))
        self._keeper.start()

    def abort(self) -> None:
        """Fail every waiting read, now and from now on, with Closing."""
        with self._lock:
            self._closing = True
            self._schedule.clear()
            for part in self._parts:
                part.fail(-1, Closing("the mount is closing"))
            self._work.notify_all()
            self._room.notify_all()

    def close(self, timeout: float = 3.0) -> None:
        """Abort, write what is waiting to be written, and join the threads within `timeout`
        seconds; those that hang in a request end with the process."""
        self.abort()
        begun = time.monotonic()
        for thread in self._fetchers:
            thread.join(max(0.0, begun + timeout / 2 - time.monotonic()))
        self._keeper.close(max(0.0, begun + timeout - time.monotonic()))

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
        """What has been done, and what takes memory or waits now; bytes, seconds, numbers.

        `pinned` is what is being fetched, copied or written; the rest of `used` is kept for who
        reads it again.
        """
        with self._lock:
            pinned = [part.buffer.touched for part in self._parts if part.pins]
            return {
                "from_memory": self.counters.from_memory,
                "from_disk": self.counters.from_disk,
                "fetched": self.counters.fetched,
                "prefetched": self.counters.prefetched,
                "waits": self.counters.waits,
                "waited_for": self.counters.waited_for,
                "not_written": self.counters.not_written,
                "damaged": self._cache.damaged,
                "memory": {
                    "limit": self._parts.limit,
                    "used": self._parts.used,
                    "pinned": sum(touched.bit_count() for touched in pinned) * BLOCK,
                    "unwritten": self._keeper.unwritten,
                },
                "queue": {
                    **self._schedule.figures(),
                    "connections": len(self._fetchers) - self._idle_threads,
                },
                "link": {
                    "latency": self.link.latency,
                    "bandwidth": self.link.bandwidth,
                    "window": self.link.window,
                },
            }

    def waiting(self) -> list[Waiting]:
        """The reads that wait for the store now."""
        now = time.monotonic()
        with self._lock:
            return [
                Waiting(part.obj, now - waiter.until + self._deadline, waiter.error)
                for part in self._parts
                for waiter in part.waiters
            ]

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
                    until = until or self._begin_waiting(obj, offset, size)
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
        part = self._parts.find(key)
        if part is None:
            return 0
        buffer = part.buffer
        n = self._copy_part(part, start, into)
        if self._parts.find(key) is not part or part.buffer is not buffer:
            return 0
        self.counters.from_memory += n
        return n

    def _copy_part(self, part: Part, start: int, into: memoryview) -> int:
        """Copy what the part has from `start` on without a gap; how many bytes that was."""
        n = min(part.readable(start), len(into))
        into[:n] = part.buffer.view[start : start + n]
        if n and start + n == part.size and not part.spent:
            with self._lock:
                self._parts.spend(part)
        return n

    def _copy_from_disk(self, cached: CachedObject, offset: int, into: memoryview) -> int:
        """Copy what the disk holds from `offset` on without a gap; how many bytes that was."""
        n = cached.read_into(offset, into)
        if n:
            self._cache.touch(cached.obj)
            with self._lock:
                self.counters.from_disk += n
        return n

    def _wait(
        self, obj: ObjectInfo, cached: CachedObject, offset: int, into: memoryview, until: float
    ) -> int:
        """Demand what is missing, wait for the first run of it in one part, and copy that; how many
        bytes that was, 0 to look again.

        Whoever waits with a part pinned has all the memory that it waits for, so its fetch needs
        nothing from others who wait; without memory, nothing is held.
        """
        runs = list(cached.missing(offset // BLOCK, -(-(offset + len(into)) // BLOCK)))
        if not runs or runs[0][0] != offset // BLOCK:
            return 0
        index, start = divmod(offset, PART)
        first = start // BLOCK
        count = min(runs[0][1] - runs[0][0], BLOCKS_IN_PART - first)
        need = ((1 << count) - 1) << first
        with self._lock:
            if self._closing:
                raise Closing("the mount is closing")
            part = self._parts.find((obj.key, obj.etag, index))
            if part is None:
                part = self._parts.add(obj, index, need, count)
            elif not self._parts.make_room(part, need):
                part = None
            if part is None:
                if not self._room.wait(until - time.monotonic()):
                    raise StoreUnreachable(f"{obj.key}: no memory became free in time")
                return 0
            in_the_way = self._schedule.in_the_way(obj, runs[0][0], time.monotonic())
            self._schedule.demand(obj, runs)
            self._work.notify()
            if part.have & need == need:
                return 0
            waiter = Waiter(need, until)
            part.waiters.append(waiter)
            self._parts.pin(part)
            self.counters.waits += 1
        if in_the_way:
            log.info("%d prefetches give way to a read of %s", len(in_the_way), obj.key)
        for piece in in_the_way:
            piece.interrupt()
        try:
            if not self._is_served(waiter, part):
                error = waiter.error or StoreUnreachable(f"{obj.key} did not come in time")
                if time.monotonic() >= until:
                    span = ByteRange(offset, offset + len(into))
                    self._failed.append(_Failure(obj, span, error, time.monotonic() + AGAIN))
                raise error
            n = self._copy_part(part, start, into)
            self.counters.from_memory += n
            self.counters.waited_for += n
            return n
        finally:
            with self._lock:
                self._unpin(part)

    def _begin_waiting(self, obj: ObjectInfo, offset: int, size: int) -> float:
        """Until when a read may wait that begins to do so now. Raises the error of one that has
        just waited for the same in vain."""
        now = time.monotonic()
        for failed in tuple(self._failed):
            if (
                now < failed.again
                and (failed.obj.key, failed.obj.etag) == (obj.key, obj.etag)
                and failed.span.start <= offset
                and offset + size <= failed.span.stop
            ):
                raise failed.error
        if _reading.until is None:
            return now + self._deadline
        _reading.until = _reading.until or now + self._deadline
        return _reading.until

    def _is_served(self, waiter: Waiter, part: Part) -> bool:
        """Wait until `waiter` is woken, or its time is up; whether its blocks are here."""
        while not waiter.gate.acquire(timeout=max(0.0, min(LOOK, waiter.until - time.monotonic()))):
            killed = self._abandoned()
            if killed or time.monotonic() >= waiter.until:
                with self._lock:
                    if waiter in part.waiters:
                        part.waiters.remove(waiter)
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
        with self._lock:
            if not self._closing:
                self._schedule.prefetch(stream, priority, wants, order)
                if wants:
                    self._work.notify()

    def cancel(self, stream: Hashable) -> None:
        """Forget what `stream` wants and is not yet being fetched."""
        with self._lock:
            self._schedule.cancel(stream)

    # -- fetching ----------------------------------------------------------------------------------------------

    def _fetch_pieces(self) -> None:
        while (piece := self._next_piece()) is not None:
            try:
                self._fetch(piece)
            except Exception:
                log.exception("fetching %s went wrong inside bffs", piece.part.obj.key)

    def _next_piece(self) -> Piece | None:
        """Wait for something to fetch; None at the end."""
        with self._lock:
            self._idle_threads += 1
            piece = None
            while not self._closing:
                piece = self._schedule.next(self._idle_threads)
                if piece is not None:
                    if not self._schedule.is_empty:
                        self._work.notify()  # the next thread, which may wake another
                    break
                self._work.wait()
            self._idle_threads -= 1
            return piece

    def _fetch(self, piece: Piece) -> None:
        part, span = piece.part, piece.span
        view = part.buffer.view[span.start : span.stop]
        begun = time.monotonic()
        end = begun + self._deadline
        first = 0
        smooth = persisting = True

        def advance(filled: int) -> None:
            nonlocal begun, first
            done, stop = piece.done, piece.blocks if filled == len(view) else filled // BLOCK
            if stop == done:
                return
            for n in range(done, stop):
                part.sums[piece.first + n] = checksum(view[n * BLOCK : (n + 1) * BLOCK])
            now = time.monotonic()
            with self._lock:
                if not done and smooth:
                    self.link.answered(now - begun, now, saturated=self._schedule.saturated)
                    begun, first = now, stop
                size = min(stop * BLOCK, len(view)) - done * BLOCK
                self.link.arrived(size, now)
                self.counters.fetched += size
                self.counters.prefetched += size if piece.stream is not None else 0
                part.arrived(((1 << (stop - done)) - 1) << (piece.first + done))
                piece.done = stop

        def persist(error: StoreError) -> bool:
            """Go on while somebody waits, and until the deadline in case somebody comes."""
            nonlocal persisting, smooth
            smooth = False
            now = time.monotonic()
            with self._lock:
                if isinstance(error, StoreBusy):
                    self.link.refused()
                waiting = part.waiting(piece.mask & ~part.have)
                for waiter in waiting:
                    waiter.error = error
                limits = [w.until for w in waiting] + ([] if piece.abandoned else [end])
                persisting = not self._closing and now < max(limits, default=0.0)
                if not persisting:
                    self._give_up_fetching(piece, error)
            piece.interrupt.reset()
            return persisting

        try:
            start = part.index * PART + span.start
            self._store.read_into(part.obj, start, view, advance, persist, piece.interrupt)
            with self._lock:
                if smooth:
                    size = (piece.done - first) * BLOCK
                    self.link.transferred(size, time.monotonic() - begun)
        except BaseException as error:
            if persisting:
                with self._lock:
                    self._give_up_fetching(piece, error)
            if not isinstance(error, BffsError):
                raise
            if not (self._closing or piece.abandoned):
                log.log(logging.INFO if piece.stream else logging.WARNING, "%s", error)
        finally:
            with self._lock:
                self._schedule.ended(piece)
            if not self._keeper.offer(piece):
                with self._lock:
                    self.counters.not_written += piece.arrived.stop - piece.arrived.start
                    self._unpin(part)

    def _give_up_fetching(self, piece: Piece, error: BaseException) -> None:
        """Fail who waits for what is missing of `piece`; lock held.

        At once: a demand made in between would take these blocks for being on their way.
        """
        piece.part.busy &= ~piece.mask
        piece.part.fail(piece.mask & ~piece.part.have, error)

    def _written(self, part: Part) -> None:
        """What was kept of a part to be written has been, or can't be."""
        with self._lock:
            self._unpin(part)

    def _unpin(self, part: Part) -> None:
        """Keep a part no longer, and wake who waits for memory; lock held."""
        self._parts.unpin(part)
        if self._parts.starved and not part.pins:
            self._parts.starved = False
            self._work.notify()
            self._room.notify_all()
