"""Blocks that are not here, fetched once, those that somebody waits for before those that will be read next.

Fetching threads take what is most urgent from the `Schedule`, piece by piece. Bytes land in the buffer of their part
(`parts`). Each block is checksummed while it is hot, marked, and its readers are woken; `keeping` writes it to the
disk cache.

Threads: all but `start` and `close` may be called from any thread. One lock guards schedule, parts and counters, and is
never held across I/O, a copy or a wait. Fetching threads start in `start` (after any fork) and end in `close`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from bffs.cache import DiskCache
from bffs.cachefile import BLOCK, checksum
from bffs.errors import BffsError, Closing, StoreBusy, StoreError, StoreUnreachable
from bffs.keeping import Keeper, started
from bffs.link import Link
from bffs.parts import BLOCKS_IN_PART, PART, Buffer, Part, PartKey, Parts, Waiter
from bffs.schedule import Piece, Priority, Schedule, Want
from bffs.store import ObjectInfo, ObjectStore

log = logging.getLogger(__name__)


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


class Waiting(NamedTuple):
    """A read that waits for the store: of what, for how many seconds, and what went wrong so far."""

    obj: ObjectInfo
    seconds: float
    error: BaseException | None


class Fetcher:
    """Fetches blocks of one store into `memory` bytes, over `connections`, and offers them to the disk cache.

    What fails is asked for again while somebody waits for it, and for `deadline` seconds, which a read waits, in case
    somebody comes.
    """

    def __init__(
        self,
        store: ObjectStore,
        cache: DiskCache,
        *,
        memory: int,
        connections: int,
        deadline: float,
    ) -> None:
        self._store = store
        self._deadline = deadline
        self._connections = connections
        self._parts = Parts(memory)
        self.link = Link(self._parts.limit // 2, PART)
        self.counters = Counters()
        self._schedule = Schedule(self._parts, self.link, connections)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._idle_threads = 0
        self._keeper = Keeper(cache, self._parts.limit // 4, self.release)
        self._closing = False
        self._threads: list[threading.Thread] = []

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads that fetch and those that write."""
        for number in range(self._connections):
            self._threads.append(started(self._fetch_pieces, f"bffs-fetch-{number}"))
        self._keeper.start()

    def make_ready(self) -> None:
        """Take the memory for a first slice, while nobody waits for it; for a thread of its own."""
        for _ in range(self._parts.first):
            if self._closing:
                return
            buffer = Buffer()
            buffer.touch()
            with self._lock:
                self._parts.keep_ready(buffer)

    def abort(self) -> None:
        """Fail all who wait, now and from now on, with Closing."""
        with self._lock:
            self._closing = True
            self._schedule.clear()
            for part in self._parts:
                part.fail(-1, Closing("the mount is closing"))
            self._work.notify_all()
            self._room.notify_all()

    def close(self, timeout: float) -> None:
        """Abort, write what is waiting to be written, and join the threads within `timeout`
        seconds; those that hang in a request end with the process."""
        self.abort()
        begun = time.monotonic()
        for thread in self._threads:
            thread.join(max(0.0, begun + timeout / 2 - time.monotonic()))
        self._keeper.close(max(0.0, begun + timeout - time.monotonic()))

    def figures(self) -> dict[str, Any]:
        """What takes memory or waits now; bytes, seconds, numbers.

        `pinned` is what is being fetched, copied or written; the rest of `used` is kept for who
        reads it again.
        """
        with self._lock:
            pinned = [part.buffer.touched for part in self._parts if part.pins]
            return {
                "memory": {
                    "limit": self._parts.limit,
                    "used": self._parts.used,
                    "pinned": sum(touched.bit_count() for touched in pinned) * BLOCK,
                    "unwritten": self._keeper.unwritten,
                },
                "queue": {
                    **self._schedule.figures(),
                    "connections": len(self._threads) - self._idle_threads,
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

    # -- what is here ------------------------------------------------------------------------------------------

    def find(self, key: PartKey) -> Part | None:
        """That part, if it is here. Takes no lock."""
        return self._parts.find(key)

    def spend(self, part: Part) -> None:
        """It was read to its end, and won't be wanted again soon."""
        with self._lock:
            self._parts.spend(part)

    # -- wanting -----------------------------------------------------------------------------------------------

    def demand(
        self, obj: ObjectInfo, runs: Sequence[tuple[int, int]], until: float
    ) -> tuple[Part, Waiter] | None:
        """Want these runs of blocks (first, stop) now, for one who will wait for the first of them, as far as it is in
        one part: that part, kept until `release`, and a waiter for those blocks.

        None to look again, for there was no memory, or they are here by now. Raises StoreUnreachable if no memory
        became free `until` then, and Closing.

        Whoever waits with a part pinned has all the memory that it waits for, so its fetch needs
        nothing from others who wait; without memory, nothing is held.
        """
        index, first = divmod(runs[0][0], BLOCKS_IN_PART)
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
                return None
            in_the_way = self._schedule.in_the_way(obj, runs[0][0], time.monotonic())
            self._schedule.demand(obj, runs)
            self._work.notify()
            if part.have & need == need:
                return None
            waiter = Waiter(need, until)
            part.waiters.append(waiter)
            self._parts.pin(part)
            self.counters.waits += 1
        if in_the_way:
            log.info("%d prefetches give way to a read of %s", len(in_the_way), obj.key)
        for piece in in_the_way:
            piece.interrupt()
        return part, waiter

    def give_up(self, part: Part, waiter: Waiter) -> None:
        """Wait no longer."""
        with self._lock:
            if waiter in part.waiters:
                part.waiters.remove(waiter)

    def release(self, part: Part) -> None:
        """Keep a part no longer, for one who had it kept."""
        with self._lock:
            self._unpin(part)

    def prefetch(
        self, stream: Hashable, priority: Priority, wants: deque[Want], order: int
    ) -> None:
        """Want this, nearest first, instead of what `stream` wanted before; of two calls at once the one with the
        higher `order` stays."""
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
        silent = True

        def advance(filled: int) -> None:
            nonlocal begun, first, silent
            if silent:
                silent = False
                now = time.monotonic()
                with self._lock:
                    self.link.heard(now - begun, now)
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
                self.link.arrived(size, now, busy=self._schedule.is_prefetching)
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

    def _unpin(self, part: Part) -> None:
        """Keep a part no longer, and wake who waits for memory; lock held."""
        self._parts.unpin(part)
        if self._parts.starved and not part.pins:
            self._parts.starved = False
            self._work.notify()
            self._room.notify_all()
