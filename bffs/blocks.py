"""Blocks of objects: from memory, from the disk cache, or fetched once, in order of urgency.

An object is cut into parts of `PART` bytes, each with a page-aligned buffer while it is in use, and
those into blocks of `cache.BLOCK` bytes, the unit in which bytes become readable. What is wanted
waits in queues: demanded ranges first, then the prefetch of each stream in turn, nearest priority
first. A fetching thread takes the next *piece* - consecutive blocks of one part that are neither
here nor on their way - only when it is free to fetch it, so nothing is decided early: a demand
never waits for a prefetch that has not started, a cancelled prefetch costs nothing, and the size of
a request follows from the load (small while connections idle, large in bulk).

Bytes land in the part's buffer. Each block is checksummed while it is hot, marked, and its readers
are woken; writing to the disk cache happens on threads of its own and is left out when the disk
can't keep up.

Memory is what blocks take, `memory` bytes and never more: a buffer is address space, and only
blocks that have been filled count. A part is *pinned* while it is fetched, copied or written;
others are given up when memory is needed: first those read to their end, then the least recently
used.

Threads: `read_into`, `prefetch` and `cancel` may be called from any thread. One lock guards all
tables and is never held across I/O, a copy or a wait. Fetching and writing threads start in `start`
(after any fork) and end in `close`.
"""

from __future__ import annotations

import logging
import math
import mmap
import queue
import threading
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from cachetools import LRUCache

from bffs.cache import BLOCK, CachedObject, DiskCache, checksum
from bffs.errors import (
    BffsError,
    Closing,
    ObjectChanged,
    StoreBusy,
    StoreError,
    StoreUnreachable,
)
from bffs.link import MIN_PIECE, Link
from bffs.store import ByteRange, ObjectInfo, ObjectStore
from bffs.units import MIB

log = logging.getLogger(__name__)

BLOCKS_IN_PART = 64
PART = BLOCKS_IN_PART * BLOCK
"""Bytes in a part: a buffer, and the most that one request fetches. 8 MiB costs boto3 0.5 s of CPU
a GB, 1 MiB 1.5."""

RESERVED = 4
"""Connections that prefetching leaves free for demands, but no more than a quarter of them."""

SPLIT = 4
MIN_DEMAND = 2 * BLOCK
"""A demand is split among so many connections, in requests of at least so many bytes: on a link that
is full of prefetch a connection gets its share and no more."""

NEAR = 16 * MIB
"""Bytes ahead of a reader within which it is served as quickly as possible."""

WRITERS = 2

LOOK_AGAIN = 0.5
"""Seconds after which prefetching looks anew for blocks that other processes have stored."""

HUGE_BLOCKS = 2 * MIB // BLOCK
"""Blocks in a huge page. Parts that will hold as many are made of such: filling them takes 0.4 s of
CPU a GB less, since pages are neither made nor looked up 4 KiB at a time."""

_HUGE_PAGES = tuple(
    ((1 << HUGE_BLOCKS) - 1) << first for first in range(0, BLOCKS_IN_PART, HUGE_BLOCKS)
)
_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)

KEPT_SPENT = 4
"""Parts read to their end that stay in memory all the same: requests of one reader arrive out of
order."""


class Priority(IntEnum):
    """Why a prefetched range is wanted; lower goes first."""

    FILE = 0
    SLICES = 1
    WARM = 2


class Counters:
    """What a reader has done so far; bytes and numbers, only ever growing."""

    def __init__(self) -> None:
        self.from_memory = 0
        self.from_disk = 0
        self.fetched = 0
        self.waits = 0
        self.not_written = 0


class _Waiter:
    """A reader that waits for some blocks of a part, `until` then (`time.monotonic`).

    `error` is why they have not come yet, or never will.
    """

    __slots__ = ("error", "gate", "need", "until")

    def __init__(self, need: int, until: float) -> None:
        self.need = need
        self.until = until
        self.error: BaseException | None = None
        self.gate = threading.Lock()
        self.gate.acquire()


class _Buffer:
    """`PART` bytes of page-aligned address space; `touched` says which of its blocks take
    memory."""

    __slots__ = ("_huge", "memory", "touched", "view")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, PART, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.memory)
        self.touched = 0
        self._huge: bool | None = None

    def prepare(self, expected: int) -> None:
        """Choose the size of its pages, for a part that will hold `expected` blocks of it."""
        huge = expected >= HUGE_BLOCKS
        if huge is not self._huge and _MADV_HUGEPAGE is not None:
            with suppress(OSError):  # a kernel without huge pages
                self.memory.madvise(_MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        self._huge = huge

    def untouched(self, mask: int) -> int:
        """The blocks that will take memory when those of `mask` are filled."""
        if self._huge:
            mask = sum(page for page in _HUGE_PAGES if mask & page)
        return mask & ~self.touched

    def empty(self) -> int:
        """Give its memory back; how many bytes that was. Taking it again costs page faults, about
        0.2 s a GB."""
        freed = self.touched.bit_count() * BLOCK
        self.memory.madvise(mmap.MADV_DONTNEED)
        self.touched = 0
        return freed


class _Part:
    """`PART` bytes of an object (fewer at its end). Bit masks: bit n is the part's n-th block."""

    __slots__ = (
        "buffer",
        "busy",
        "have",
        "index",
        "obj",
        "pins",
        "size",
        "spent",
        "sums",
        "waiters",
    )

    def __init__(self, obj: ObjectInfo, index: int, buffer: _Buffer) -> None:
        self.obj = obj
        self.index = index
        self.size = min(PART, obj.size - index * PART)
        self.buffer = buffer
        self.have = 0
        self.busy = 0
        self.pins = 0
        self.spent = False
        self.sums = array("Q", bytes(8 * BLOCKS_IN_PART))
        self.waiters: list[_Waiter] = []

    @property
    def key(self) -> _PartKey:
        return self.obj.key, self.obj.etag, self.index


_PartKey = tuple[str, str, int]


@dataclass(slots=True)
class _Want:
    """Blocks `first` to `stop` of an object, those not yet dealt with; `first` moves on."""

    obj: ObjectInfo
    first: int
    stop: int
    cached: CachedObject | None = None
    """To look once more whether a block is on disk; not for a demand, whose reader waits for
    memory."""


@dataclass(slots=True)
class _Stream:
    """What one reader's prefetch still wants, nearest first."""

    priority: Priority
    wants: deque[_Want]
    order: int
    ahead: int = 0
    """Blocks between the reader and what is wanted next: here already, or on their way."""


class _Piece(NamedTuple):
    """Consecutive blocks of one part, to be fetched by one request."""

    part: _Part
    first: int
    blocks: int
    demanded: bool

    @property
    def mask(self) -> int:
        return ((1 << self.blocks) - 1) << self.first

    @property
    def span(self) -> ByteRange:
        """Its bytes within the part."""
        return ByteRange(
            self.first * BLOCK, min((self.first + self.blocks) * BLOCK, self.part.size)
        )


class BlockReader:
    """Reads objects of one store through one disk cache; see the module."""

    def __init__(
        self,
        store: ObjectStore,
        cache: DiskCache,
        *,
        memory: int,
        connections: int,
        deadline: float = 300.0,
    ) -> None:
        self._store = store
        self._deadline = deadline
        self._cache = cache
        self._connections = connections
        self._prefetchers = connections - min(RESERVED, connections // 4)
        self._memory = max(memory, 4 * PART)
        self.link = Link(self._memory // 2, PART)
        self.counters = Counters()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._parts: dict[_PartKey, _Part] = {}
        self._idle: LRUCache[_PartKey, _Part] = LRUCache(math.inf)
        self._spent: OrderedDict[_PartKey, _Part] = OrderedDict()
        self._free: list[_Buffer] = []
        self._used = 0
        self._demands: deque[_Want] = deque()
        self._streams: OrderedDict[Hashable, _Stream] = OrderedDict()
        self._prefetching = 0
        self._prefetching_bytes = 0
        self._idle_threads = 0
        self._saturated = False
        self._starved = False
        self._unwritten = 0
        self._to_write: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._closing = False
        self._retired: frozenset[tuple[str, str]] = frozenset()
        self._fetchers: list[threading.Thread] = []
        self._writers: list[threading.Thread] = []

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the fetching and writing threads."""
        for number in range(self._connections):
            self._fetchers.append(_started(self._fetch_pieces, f"bffs-fetch-{number}"))
        for number in range(WRITERS):
            self._writers.append(_started(self._write_pieces, f"bffs-write-{number}"))

    def abort(self) -> None:
        """Fail every waiting read, now and from now on, with Closing."""
        with self._lock:
            self._closing = True
            self._demands.clear()
            self._streams.clear()
            for part in self._parts.values():
                self._fail(part, -1, Closing("the mount is closing"))
            self._work.notify_all()
            self._room.notify_all()

    def close(self, timeout: float = 3.0) -> None:
        """Abort, write what is waiting to be written, and join the threads within `timeout`
        seconds; those that hang in a request end with the process."""
        self.abort()
        begun = time.monotonic()
        for thread in self._fetchers:
            thread.join(max(0.0, begun + timeout / 2 - time.monotonic()))
        for _ in self._writers:
            self._to_write.put(None)
        for thread in self._writers:
            thread.join(max(0.0, begun + timeout - time.monotonic()))

    def retire(self, versions: Iterable[ObjectInfo]) -> None:
        """From now on, fail reads of these object versions with ObjectChanged, cached or not.

        The kernel keeps pages by file, not by version: a late read of the old version through an
        old handle would leave its bytes there for readers of the new one. Replaces what was retired
        before.
        """
        self._retired = frozenset((obj.key, obj.etag) for obj in versions)

    def figures(self) -> dict[str, Any]:
        """What has been done, and what takes memory or waits now; bytes, seconds, numbers.

        `pinned` is what is being fetched, copied or written; the rest of `used` is kept for who
        reads it again.
        """
        with self._lock:
            pinned = [part.buffer.touched for part in self._parts.values() if part.pins]
            return {
                "from_memory": self.counters.from_memory,
                "from_disk": self.counters.from_disk,
                "fetched": self.counters.fetched,
                "waits": self.counters.waits,
                "not_written": self.counters.not_written,
                "memory": {
                    "limit": self._memory,
                    "used": self._used,
                    "pinned": sum(touched.bit_count() for touched in pinned) * BLOCK,
                    "unwritten": self._unwritten,
                },
                "queue": {
                    "demands": len(self._demands),
                    "streams": len(self._streams),
                    "prefetching": self._prefetching_bytes,
                    "connections": len(self._fetchers) - self._idle_threads,
                },
                "link": {
                    "latency": self.link.latency,
                    "bandwidth": self.link.bandwidth,
                    "window": self.link.window,
                },
            }

    # -- reading -----------------------------------------------------------------------------------------------

    def read_into(self, obj: ObjectInfo, offset: int, into: memoryview) -> int:
        """Fill `into` with the bytes of `obj` from `offset` on; returns how many there were before
        the end.

        Waits until they are here, or until the deadline: `deadline` seconds from now. Raises
        StoreError when they can't be had, Closing at the end of the mount.
        """
        size = min(len(into), obj.size - offset)
        if size <= 0:
            return 0
        if self._retired and (obj.key, obj.etag) in self._retired:
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
                    until = until or time.monotonic() + self._deadline
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
        part = self._parts.get(key)
        if part is None:
            return 0
        buffer = part.buffer
        n = self._copy_part(part, start, into)
        if self._parts.get(key) is not part or part.buffer is not buffer:
            return 0
        self.counters.from_memory += n
        return n

    def _copy_part(self, part: _Part, start: int, into: memoryview) -> int:
        """Copy what the part has from `start` on without a gap; how many bytes that was."""
        n = min(_readable(part, start), len(into))
        into[:n] = part.buffer.view[start : start + n]
        if n and start + n == part.size and not part.spent:
            with self._lock:
                part.spent = True
                if self._idle.get(part.key) is part:  # not another that has taken its place
                    del self._idle[part.key]
                    self._spent[part.key] = part
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
            part = self._parts.get((obj.key, obj.etag, index))
            if part is None:
                part = self._add_part(obj, index, need, count)
            elif not self._make_room(part, need, 0):
                part = None
            if part is None:
                if not self._room.wait(until - time.monotonic()):
                    raise StoreUnreachable(f"{obj.key}: no memory became free in time")
                return 0
            self._demands.extend(_Want(obj, *run) for run in runs)
            self._work.notify()
            if part.have & need == need:
                return 0
            waiter = _Waiter(need, until)
            part.waiters.append(waiter)
            self._pin(part)
            self.counters.waits += 1
        try:
            if not self._is_served(waiter, part):
                raise waiter.error or StoreUnreachable(f"{obj.key} did not come in time")
            n = self._copy_part(part, start, into)
            self.counters.from_memory += n
            return n
        finally:
            with self._lock:
                self._unpin(part)

    def _is_served(self, waiter: _Waiter, part: _Part) -> bool:
        """Wait until `waiter` is woken, or its time is up; whether its blocks are here."""
        if not waiter.gate.acquire(timeout=max(0.0, waiter.until - time.monotonic())):
            with self._lock:
                if waiter in part.waiters:
                    part.waiters.remove(waiter)
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
        wants: deque[_Want] = deque()
        for obj, start, stop in ranges:
            cached = self._cache.open(obj)
            cached.refresh(LOOK_AGAIN)
            for first, end in cached.missing(start // BLOCK, -(-stop // BLOCK)):
                wants.append(_Want(obj, first, end, cached))
        with self._lock:
            before = self._streams.get(stream)
            if self._closing or (before is not None and before.order > order):
                return
            if wants:
                self._streams[stream] = _Stream(priority, wants, order)
                self._work.notify()
            else:
                self._streams.pop(stream, None)

    def cancel(self, stream: Hashable) -> None:
        """Forget what `stream` wants and is not yet being fetched."""
        with self._lock:
            self._streams.pop(stream, None)

    # -- fetching ----------------------------------------------------------------------------------------------

    def _fetch_pieces(self) -> None:
        while True:
            with self._lock:
                self._idle_threads += 1
                while not self._closing and (piece := self._next_piece()) is None:
                    self._work.wait()
                self._idle_threads -= 1
                if self._closing:
                    return
                assert piece is not None
                if self._demands or self._streams:
                    self._work.notify()  # the next thread, which may wake another
            try:
                self._fetch(piece)
            except Exception:
                log.exception("fetching %s went wrong inside bffs", piece.part.obj.key)

    def _next_piece(self) -> _Piece | None:
        """The most urgent piece that may be fetched now, its blocks marked busy; lock held."""
        for _ in range(len(self._demands)):
            want = self._demands[0]
            size = (want.stop - want.first) * BLOCK
            most = max(MIN_DEMAND, size // max(1, min(SPLIT, self._idle_threads)))
            piece = self._take(want, most, demanded=True)
            if want.first == want.stop:
                self._demands.popleft()
            elif piece is None:
                self._demands.rotate(-1)  # no memory; those behind it may have theirs
            if piece is not None:
                return piece
        if self._demands:
            return None
        return self._next_prefetch()

    def _next_prefetch(self) -> _Piece | None:
        free = self._prefetchers - self._prefetching
        backlog = sum(w.stop - w.first for s in self._streams.values() for w in s.wants) * BLOCK
        if not backlog:
            self._streams.clear()
            self._saturated = False
            return None
        room = self.link.window - self._prefetching_bytes
        if free <= 0 or room < min(MIN_PIECE, self.link.window // 2):
            self._saturated = True
            return None
        # What a reader waits for next is split among the idle connections; what is still far from
        # it comes in requests of full size, which cost less.
        split = max(MIN_PIECE, backlog // max(1, min(free, self._idle_threads)))
        for name in sorted(self._streams, key=lambda name: self._streams[name].priority):
            stream = self._streams[name]
            while stream.wants:
                want = stream.wants[0]
                before = want.first
                far = stream.ahead * BLOCK >= NEAR
                most = self.link.piece if far else min(self.link.piece, split)
                piece = self._take(want, most, demanded=False)
                stream.ahead += want.first - before
                if piece is not None:
                    self._streams.move_to_end(name)  # each stream in turn
                    return piece
                if want.first < want.stop:
                    return None
                stream.wants.popleft()
            del self._streams[name]
        return None

    def _take(self, want: _Want, most: int, *, demanded: bool) -> _Piece | None:
        """The first piece of at most `most` bytes of `want` that has to be fetched; lock held.

        None with `want` used up if nothing of it is missing, None with some left if there is no
        memory.
        """
        while want.first < want.stop:
            index, first = divmod(want.first, BLOCKS_IN_PART)
            part = self._parts.get((want.obj.key, want.obj.etag, index))
            taken = part.have | part.busy if part is not None else 0
            on_disk = want.cached.has if want.cached is not None else _nowhere
            if taken >> first & 1 or on_disk(want.first):
                want.first += 1
                continue
            limit = min(BLOCKS_IN_PART - first, want.stop - want.first)
            if limit * BLOCK > most * 3 // 2:  # else what is left would be a request of its own
                limit = max(1, most // BLOCK)
            count = 1
            while (
                count < limit
                and not taken >> (first + count) & 1
                and not on_disk(want.first + count)
            ):
                count += 1
            mask = ((1 << count) - 1) << first
            spare = 0 if demanded else 2 * PART
            if part is None:
                expected = min(BLOCKS_IN_PART - first, want.stop - want.first)
                part = self._add_part(want.obj, index, mask, expected, spare)
                if part is None:
                    return None
            elif not self._make_room(part, mask, spare):
                return None
            part.busy |= mask
            self._pin(part)
            want.first += count
            if not demanded:
                self._prefetching += 1
                self._prefetching_bytes += count * BLOCK
            return _Piece(part, first, count, demanded)
        return None

    def _fetch(self, piece: _Piece) -> None:
        part, span = piece.part, piece.span
        view = part.buffer.view[span.start : span.stop]
        begun = time.monotonic()
        end = begun + self._deadline
        done = first = 0
        smooth = persisting = True

        def advance(filled: int) -> None:
            nonlocal begun, done, first
            stop = piece.blocks if filled == len(view) else filled // BLOCK
            if stop == done:
                return
            for n in range(done, stop):
                part.sums[piece.first + n] = checksum(view[n * BLOCK : (n + 1) * BLOCK])
            now = time.monotonic()
            with self._lock:
                if not done and smooth:
                    self.link.answered(now - begun, now, saturated=self._saturated)
                    begun, first = now, stop
                size = min(stop * BLOCK, len(view)) - done * BLOCK
                self.link.arrived(size, now)
                self.counters.fetched += size
                self._arrived(part, ((1 << (stop - done)) - 1) << (piece.first + done))
            done = stop

        def persist(error: StoreError) -> bool:
            """Go on while somebody waits, and until the deadline in case somebody comes."""
            nonlocal persisting, smooth
            smooth = False
            now = time.monotonic()
            with self._lock:
                if isinstance(error, StoreBusy):
                    self.link.refused()
                missing = piece.mask & ~part.have
                waiting = [w for w in part.waiters if w.need & missing]
                for waiter in waiting:
                    waiter.error = error
                persisting = not self._closing and now < max([end, *(w.until for w in waiting)])
                if not persisting:
                    self._give_up_fetching(piece, error)
            return persisting

        try:
            start = part.index * PART + span.start
            self._store.read_into(part.obj, start, view, advance, persist)
            with self._lock:
                if smooth:
                    self.link.transferred((done - first) * BLOCK, time.monotonic() - begun)
        except BaseException as error:
            if persisting:
                with self._lock:
                    self._give_up_fetching(piece, error)
            if not isinstance(error, BffsError):
                raise
            if not self._closing:
                log.log(logging.WARNING if piece.demanded else logging.INFO, "%s", error)
        finally:
            with self._lock:
                if not piece.demanded:
                    self._prefetching -= 1
                    self._prefetching_bytes -= piece.blocks * BLOCK
                written = piece._replace(blocks=done)
                size = written.span.stop - written.span.start if done else 0
                keep = 0 < size <= self._memory // 4 - self._unwritten
                if keep:
                    self._unwritten += size
                else:
                    self.counters.not_written += size
                    self._unpin(part)
            if keep:
                self._to_write.put(written)

    def _arrived(self, part: _Part, mask: int) -> None:
        """Mark blocks as readable and wake who waits for them; lock held."""
        part.have |= mask
        part.busy &= ~mask
        if part.waiters:
            for waiter in [w for w in part.waiters if part.have & w.need == w.need]:
                part.waiters.remove(waiter)
                waiter.gate.release()

    def _give_up_fetching(self, piece: _Piece, error: BaseException) -> None:
        """Fail who waits for what is missing of `piece`; lock held.

        At once: a demand made in between would take these blocks for being on their way.
        """
        piece.part.busy &= ~piece.mask
        self._fail(piece.part, piece.mask & ~piece.part.have, error)

    def _fail(self, part: _Part, mask: int, error: BaseException) -> None:
        """Wake who waits for any of these blocks, with `error`; lock held."""
        for waiter in [w for w in part.waiters if w.need & mask]:
            part.waiters.remove(waiter)
            waiter.error = error
            waiter.gate.release()

    # -- writing to the disk cache -----------------------------------------------------------------------------

    def _write_pieces(self) -> None:
        while (piece := self._to_write.get()) is not None:
            part, span = piece.part, piece.span
            try:
                self._cache.add(
                    part.obj,
                    part.index * BLOCKS_IN_PART + piece.first,
                    part.buffer.view[span.start : span.stop],
                    part.sums[piece.first : piece.first + piece.blocks],
                )
            except Exception:
                log.exception("caching %s went wrong inside bffs", part.obj.key)
            with self._lock:
                self._unwritten -= span.stop - span.start
                self._unpin(part)

    # -- memory; the lock is held in all of these --------------------------------------------------------------

    def _add_part(
        self, obj: ObjectInfo, index: int, mask: int, expected: int, spare: int = 0
    ) -> _Part | None:
        """A new part with room for the blocks of `mask`, of which `expected` will follow; None
        without memory."""
        part = _Part(obj, index, self._free.pop() if self._free else _Buffer())
        part.buffer.prepare(expected)
        if not self._make_room(part, mask, spare, expected):
            self._used -= part.buffer.empty()  # it may have got another's memory, but too little
            self._free.append(part.buffer)
            return None
        self._parts[part.key] = part
        self._idle[part.key] = part
        return part

    def _make_room(self, part: _Part, mask: int, spare: int, expected: int = 0) -> bool:
        """Let the blocks of `mask` take memory, giving up idle parts; False if `spare` bytes would
        not remain.

        The memory of a given up part is reused as it is where the part is new and expects to fill
        most of it, and that of one read to its end even while there is other memory: fresh pages
        cost 0.2 s of CPU a GB.
        """
        self._pin(part)
        try:
            if not part.buffer.touched and len(self._spent) > KEPT_SPENT:
                self._give_up(part, expected)
            while True:
                missing = part.buffer.untouched(mask)
                size = missing.bit_count() * BLOCK
                if self._used + size + spare <= self._memory:
                    break
                if not self._spent and not self._idle:
                    self._starved = True
                    return False
                self._give_up(part, expected)
            part.buffer.touched |= missing
            self._used += size
            return True
        finally:
            part.pins -= 1
            if part.pins == 0 and part.key in self._parts:
                self._idle[part.key] = part

    def _give_up(self, part: _Part, expected: int) -> None:
        """Forget an idle part, and leave its memory to `part` or to nobody."""
        key, idle = self._spent.popitem(last=False) if self._spent else self._idle.popitem()
        del self._parts[key]
        if not part.buffer.touched and idle.buffer.touched.bit_count() <= 2 * expected:
            part.buffer, idle.buffer = idle.buffer, part.buffer
        else:
            self._used -= idle.buffer.empty()
        self._free.append(idle.buffer)

    def _pin(self, part: _Part) -> None:
        part.pins += 1
        if part.pins == 1:
            self._idle.pop(part.key, None)
            self._spent.pop(part.key, None)

    def _unpin(self, part: _Part) -> None:
        part.pins -= 1
        if part.pins == 0:
            if part.spent:
                self._spent[part.key] = part
            else:
                self._idle[part.key] = part
            if self._starved:
                self._starved = False
                self._work.notify()
                self._room.notify_all()


def _started(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def _nowhere(block: int) -> bool:
    return False


def _readable(part: _Part, start: int) -> int:
    """Bytes from `start` on that are in memory without a gap."""
    ahead = part.have >> (start // BLOCK)
    blocks = (~ahead & (ahead + 1)).bit_length() - 1
    return min((start // BLOCK + blocks) * BLOCK, part.size) - start if blocks else 0
