"""Keeping what was fetched: written to the disk cache on threads of its own, left out when the disk can't keep up.

What waits to be written stays in the memory of its part, so there is a limit to it.

Threads: two, from `start` to `close`; `offer` may be called from any thread. The lock guards one number.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from bffs.cache import DiskCache
from bffs.parts import BLOCKS_IN_PART, Part
from bffs.schedule import Piece

log = logging.getLogger(__name__)

WRITERS = 2


class Keeper:
    """Writes pieces to `cache`, of which `limit` bytes may wait; calls `written` with the part of each
    piece afterwards, whether that went well or not."""

    def __init__(self, cache: DiskCache, limit: int, written: Callable[[Part], None]) -> None:
        self._cache = cache
        self._limit = limit
        self._written = written
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
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
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def offer(self, piece: Piece) -> bool:
        """Take a piece whose fetch has ended, to write what arrived of it; False if there is nothing,
        or no room."""
        size = piece.arrived.stop - piece.arrived.start
        with self._lock:
            if not 0 < size <= self._limit - self.unwritten:
                return False
            self.unwritten += size
        self._queue.put(piece)
        return True

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            part, arrived = piece.part, piece.arrived
            try:
                self._cache.add(
                    part.obj,
                    part.index * BLOCKS_IN_PART + piece.first,
                    part.buffer.view[arrived.start : arrived.stop],
                    part.sums[piece.first : piece.first + piece.done],
                )
            except Exception:
                log.exception("caching %s went wrong inside bffs", part.obj.key)
            with self._lock:
                self.unwritten -= arrived.stop - arrived.start
            self._written(part)


def started(target: Callable[[], None], name: str) -> threading.Thread:
    """A thread that runs `target` now, and ends with the process."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
