"""Warming: fetch what is missing of some objects straight into the disk cache.

Threads take piece after piece, and fetch and store it, so that what is fetched is stored, and the disk sets the pace
where it is the slower one. Each piece is looked up again before it is fetched: what is here, and what others have
stored meanwhile, is never fetched. Whoever starts again resumes. A piece is what one connection fetches in a short
time: a reader may fetch what is on its way here, too, so it should not be much.

Readers go first. What some other process reads is seen in the cache's ledger; while there is any, one connection in
`YIELD` is used, and the objects that are read are taken before the others.

Threads: `run` is called once, from any thread, and starts those that fetch; they are gone, or at their last request,
when it returns. One lock guards the pieces and figures and is never held across I/O.
"""

from __future__ import annotations

import logging
import mmap
import sqlite3
import threading
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bffs.cache import BLOCK, DiskCache, block_count, checksum
from bffs.errors import BffsError, Closing, ObjectChanged, StoreError
from bffs.store import Interrupt, ObjectInfo, ObjectStore
from bffs.units import MIB

log = logging.getLogger(__name__)

PIECE = 8 * MIB
LEAST_PIECE = MIB // 2
"""Bytes in a request, at most as in `blocks`; each connection has a buffer of that size."""

AHEAD = 1.0
AHEAD_OF_READERS = 0.25
"""Seconds that a connection may take for a piece: alone, and while others read."""

YIELD = 8

READER_SEEN = 2.0
"""Seconds after which a reader counts as gone."""

_LOOK = 0.25
"""Seconds between two reports, and two looks for readers."""

_LAST_WAIT = 3.0
"""Seconds that an interrupted warming waits for what is being stored."""


class Figures(NamedTuple):
    """How far it is: bytes wanted in all, here already, and fetched by this run; objects that are
    no longer those that were listed."""

    wanted: int
    here: int
    fetched: int
    changed: int


class _Run(NamedTuple):
    """Blocks `first` to `stop` of an object."""

    obj: ObjectInfo
    first: int
    stop: int


def fitting(objects: Sequence[ObjectInfo], cache: DiskCache) -> int:
    """How many of the objects, from the first on, fit into the cache at once, without what is
    pinned beside them. Raises BffsError."""
    files = cache.files()
    account = cache.account()
    # What is pinned of these objects takes no other room than their own.
    pinned = account.pinned - sum(
        files.get(cache.path(obj), 0)
        for obj in objects
        if cache.is_pinned(obj.key[: obj.key.rfind("/") + 1])
    )
    room = min(cache.limit, account.stored + account.spare) - max(0, pinned)
    for count, obj in enumerate(objects):
        room -= obj.size
        if room < 0:
            return count
    return len(objects)


class Warmer:
    """Fetches what is missing of `objects`, the first ones first; `deadline` is how many seconds a
    store that is away is waited for.

    The cache must have a stamp, by which it tells what others use.
    """

    def __init__(
        self,
        store: ObjectStore,
        cache: DiskCache,
        objects: Sequence[ObjectInfo],
        *,
        connections: int,
        deadline: float,
    ) -> None:
        self._store = store
        self._cache = cache
        self._deadline = deadline
        self._away = False
        self._connections = self._allowed = connections
        self._most = LEAST_PIECE // BLOCK
        self._rate = 0.0
        self._measured = 0.0
        self._turn = threading.Condition()
        self._waiting: OrderedDict[Path, deque[_Run]] = OrderedDict()
        self._busy = 0
        self._stopping = False
        self._error: BaseException | None = None
        self._wanted = sum(obj.size for obj in objects)
        self._fetched = self._changed = 0
        self._here = self._wanted
        for obj in objects:
            self._plan(obj)

    def figures(self) -> Figures:
        """How far it is."""
        with self._turn:
            return Figures(self._wanted, self._here, self._fetched, self._changed)

    def run(self, report: Callable[[Figures], None]) -> None:
        """Fetch; `report` is called several times a second. Raises BffsError, and what `report`
        raises."""
        threads = [
            threading.Thread(target=self._work, name=f"bffs-warm-{number}", daemon=True)
            for number in range(self._connections if self._waiting else 0)
        ]
        self._heed_readers()
        self._measured = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            alive = threads
            while alive:
                before = self.figures().fetched
                alive[0].join(_LOOK)
                alive = [thread for thread in threads if thread.is_alive()]
                self._heed_readers()
                self._measure(before)
                report(self.figures())
        finally:
            with self._turn:
                self._stopping = True
                self._turn.notify_all()
            end = time.monotonic() + _LAST_WAIT
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
        report(self.figures())
        if self._error is not None:
            raise self._error

    def _plan(self, obj: ObjectInfo) -> None:
        """Queue what is missing of an object."""
        missing = self._cache.open(obj).missing(0, block_count(obj.size))
        runs = deque(_Run(obj, first, stop) for first, stop in missing)
        if runs:
            self._waiting[self._cache.path(obj)] = runs
            self._here -= sum(map(_size, runs))

    def _heed_readers(self) -> None:
        """Make room for readers, and take first what they read."""
        read = self._cache.used_since(time.time() - READER_SEEN)
        with self._turn:
            self._allowed = max(1, self._connections // YIELD) if read else self._connections
            for path in reversed(read):
                if path in self._waiting:
                    self._waiting.move_to_end(path, last=False)
            self._turn.notify_all()

    def _measure(self, before: int) -> None:
        """Let pieces be as large as the connections are quick; `before` is what had been fetched
        when it was last measured."""
        now = time.monotonic()
        with self._turn:
            rate = (self._fetched - before) / max(1e-3, now - self._measured)
            self._measured = now
            self._rate += 0.3 * (rate - self._rate)
            alone = self._allowed == self._connections
            ahead = AHEAD if alone else AHEAD_OF_READERS
            piece = int(self._rate * ahead / self._allowed)
            self._most = max(LEAST_PIECE, min(piece, PIECE)) // BLOCK

    def _work(self) -> None:
        buffer = memoryview(mmap.mmap(-1, PIECE))  # page-aligned, for writing past the page cache
        while (piece := self._next()) is not None:
            try:
                self._fill(piece, buffer)
            except ObjectChanged as error:
                log.warning("%s", error)
                with self._turn:
                    self._changed += 1
                    self._waiting.pop(self._cache.path(piece.obj), None)
            except BaseException as error:
                with self._turn:
                    self._error = self._error or error
                    self._stopping = True
            finally:
                with self._turn:
                    self._busy -= 1
                    self._turn.notify_all()

    def _next(self) -> _Run | None:
        """The next piece to fetch, once it is this thread's turn; None at the end."""
        with self._turn:
            while self._waiting and not self._stopping and self._busy >= self._allowed:
                self._turn.wait()
            if self._stopping or not self._waiting:
                return None
            path, runs = next(iter(self._waiting.items()))
            run = runs.popleft()
            piece = run._replace(stop=min(run.stop, run.first + self._most))
            if piece.stop < run.stop:
                runs.appendleft(run._replace(first=piece.stop))
            if not runs:
                del self._waiting[path]
            self._busy += 1
            return piece

    def _fill(self, piece: _Run, buffer: memoryview) -> None:
        """Fetch and store what is still missing of a piece."""
        cached = self._cache.open(piece.obj)
        cached.refresh()
        missing = [_Run(piece.obj, *run) for run in cached.missing(piece.first, piece.stop)]
        with self._turn:
            self._here += _size(piece) - sum(map(_size, missing))
        for run in missing:
            self._fetch(run, buffer[: _size(run)])

    def _fetch(self, piece: _Run, view: memoryview) -> None:
        filled = 0
        moved = time.monotonic()

        def advance(n: int) -> None:
            nonlocal filled, moved
            moved = time.monotonic()
            with self._turn:
                self._away = False
                self._here += n - filled
                self._fetched += n - filled
                filled = n
                if self._stopping:
                    raise Closing("warming was stopped")

        def persist(error: StoreError) -> bool:
            with self._turn:
                first, self._away = not self._away, True
            if first:
                log.warning("%s; waiting up to %.0f s for it", error, self._deadline)
            return not self._stopping and time.monotonic() - moved < self._deadline

        try:
            self._store.read_into(
                piece.obj, piece.first * BLOCK, view, advance, persist, Interrupt()
            )
        finally:
            # Also what was fetched before it broke off.
            size = filled if filled == len(view) else filled - filled % BLOCK
            if size:
                self._keep(piece, view[:size])

    def _keep(self, piece: _Run, data: memoryview) -> None:
        sums = array("Q", (checksum(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)))
        try:
            stored = self._cache.store(piece.obj, piece.first, data, sums)
        except (OSError, sqlite3.Error) as error:
            raise BffsError(f"the cache can't be written to: {error}") from error
        if not stored:
            raise BffsError(
                "the cache is full: raise --cache-size, make room on its disk, or unpin a specimen"
            )


def _size(piece: _Run) -> int:
    """Bytes in a piece."""
    return min(piece.stop * BLOCK, piece.obj.size) - piece.first * BLOCK
