"""What the link to the store can carry: how much to have in flight, in which portions, how far ahead.

Bandwidth is the most that arrived in a recent slot of time while there was more to fetch than was allowed in flight;
latency is the shortest recent time to a first block. Their product times `GAIN` is the window for prefetching: enough
to fill the link, little enough that a demanded block does not queue behind seconds of prefetch on a slow one.

Pure apart from the clock that is passed in. Not thread-safe: `blocks` calls it under its own lock.
"""

from __future__ import annotations

from collections import deque

from bffs.units import MIB

GAIN = 4.0
"""Windows of bandwidth x latency in flight: a transfer lasts longer than its latency, and 4 lets the window grow
fast enough to fill 1 GB/s at 30 ms within half a second."""

SLOT = 0.25
"""Seconds over which arriving bytes are summed up."""

SLOTS = 12
"""Slots that the bandwidth is the maximum of."""

MIN_WINDOW = 4 * MIB
FIRST_WINDOW = 32 * MIB
"""Bytes in flight before anything is known: one slice of usual size, so that a first slice comes at full speed."""

MIN_PIECE = 1 * MIB
"""Bytes in a request for bulk data at least: boto3 costs 1.2 ms of CPU a request."""


class Link:
    """A running estimate; all sizes in bytes, times in seconds."""

    def __init__(self, connections: int, most: int) -> None:
        self._connections = connections
        self._most = most
        self._latency = 0.0
        self._slots: deque[float] = deque(maxlen=SLOTS)
        self._slot_start = 0.0
        self._slot_bytes = 0
        self._slot_full = False
        self.window = min(FIRST_WINDOW, most)

    @property
    def latency(self) -> float:
        """Seconds to a first block, 0 while unknown."""
        return self._latency

    @property
    def bandwidth(self) -> float:
        """Bytes a second, 0 while unknown."""
        return max(self._slots, default=0.0)

    @property
    def piece(self) -> int:
        """Bytes that one request for bulk data should have at most."""
        return max(MIN_PIECE, self.window // self._connections)

    def answered(self, seconds: float) -> None:
        """A request's first block took this long. A longer latency is believed only slowly."""
        self._latency = min(seconds, self._latency * 1.01) if self._latency else seconds

    def arrived(self, size: int, now: float, saturated: bool) -> None:
        """`size` bytes came in; `saturated` if more could have been asked for but for the window."""
        if now - self._slot_start > SLOT:
            self._finish_slot(now)
        self._slot_bytes += size
        self._slot_full = self._slot_full and saturated

    def _finish_slot(self, now: float) -> None:
        elapsed = now - self._slot_start
        if self._slot_full and elapsed < 4 * SLOT:
            self._slots.append(self._slot_bytes / elapsed)
            wanted = int(GAIN * self.bandwidth * self._latency)
            self.window = min(max(wanted, MIN_WINDOW), self._most)
        self._slot_start, self._slot_bytes, self._slot_full = now, 0, True
