"""Keeping what was fetched: written to the disk cache on threads of its own, left out when the disk can't keep up.

What waits to be written stays in the memory of its part, so there is a limit to it. It waits a moment even for an idle
disk: who is reading a slice has the processors for himself, and neighbours are written in one go, with one reservation.

Threads: two, from `start` to `close`; `offer` may be called from any thread. The lock guards the queue and the number
of bytes in it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bffs.cache import DiskCache
from bffs.parts import BLOCKS_IN_PART, Part
from bffs.schedule import Piece

log = logging.getLogger(__name__)

WRITERS = 2

DWELL = 0.05
"""Seconds for which what has been fetched waits for its neighbours, unless that takes much memory."""


class _Waiting(NamedTuple):
    """Pieces of one part, to be written at the time `due`."""

    due: float
    pieces: list[Piece]


class Keeper:
    """Writes pieces to `cache`, of which `limit` bytes may wait; calls `written` with the part of each
    piece afterwards, whether that went well or not."""

    def __init__(self, cache: DiskCache, limit: int, written: Callable[[Part], None]) -> None:
        self._cache = cache
        self._limit = limit
        self._written = written
        self._work = threading.Condition()
        self._queue: OrderedDict[Part, _Waiting] = OrderedDict()
        self._is_closing = False
        self._threads: list[threading.Thread] = []
        self.unwritten = 0
        """Bytes that wait."""

    def start(self) -> None:
        """Write from now on; after any fork."""
        for number in range(WRITERS):
            self._threads.append(started(self._run, f"bffs-write-{number}"))

    def close(self, timeout: float) -> None:
        """Write what waits, within `timeout` seconds."""
        end = time.monotonic() + timeout
        with self._work:
            self._is_closing = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def offer(self, piece: Piece) -> bool:
        """Take a piece whose fetch has ended, to write what arrived of it; False if there is nothing,
        or no room."""
        size = _size(piece)
        with self._work:
            if not 0 < size <= self._limit - self.unwritten:
                return False
            self.unwritten += size
            waiting = self._queue.setdefault(piece.part, _Waiting(time.monotonic() + DWELL, []))
            waiting.pieces.append(piece)
            if len(self._queue) == 1 or self._is_filling:
                self._work.notify()
        return True

    def _run(self) -> None:
        while (pieces := self._next()) is not None:
            for run in _runs(pieces):
                self._write(run)
            with self._work:
                self.unwritten -= sum(map(_size, pieces))
            for piece in pieces:
                self._written(piece.part)

    def _next(self) -> list[Piece] | None:
        """Wait for what is due; None at the end."""
        with self._work:
            while True:
                if not self._queue:
                    if self._is_closing:
                        return None
                    self._work.wait()
                    continue
                part, waiting = next(iter(self._queue.items()))
                early = waiting.due - time.monotonic()
                if early <= 0 or self._is_filling or self._is_closing:
                    del self._queue[part]
                    if self._queue:
                        self._work.notify()
                    return waiting.pieces
                self._work.wait(early)

    @property
    def _is_filling(self) -> bool:
        """Whether there is no time to wait."""
        return 2 * self.unwritten > self._limit

    def _write(self, run: list[Piece]) -> None:
        """Write pieces that follow each other."""
        first, last = run[0], run[-1]
        part = first.part
        try:
            self._cache.add(
                part.obj,
                part.index * BLOCKS_IN_PART + first.first,
                part.buffer.view[first.arrived.start : last.arrived.stop],
                part.sums[first.first : last.first + last.done],
            )
        except Exception:
            log.exception("caching %s went wrong inside bffs", part.obj.key)


def _size(piece: Piece) -> int:
    return piece.arrived.stop - piece.arrived.start


def _runs(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """The pieces of one part, sorted into those that follow each other without a gap."""
    run: list[Piece] = []
    for piece in sorted(pieces, key=lambda each: each.first):
        if run and run[-1].first + run[-1].done != piece.first:
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def started(target: Callable[[], None], name: str) -> threading.Thread:
    """A thread that runs `target` now, and ends with the process."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
