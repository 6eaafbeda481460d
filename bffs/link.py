"""What the link to the store can carry: how much to have in flight, and in which portions.

The window for prefetching grows while there is more to fetch than it allows, and shrinks when first
blocks take notably longer than they do at best: then requests queue somewhere - on the link, at the
store, or for this machine's processors - and a demanded block would queue behind them. This needs
no idea of the link's bandwidth, follows it when it changes, and on a slow link leaves few enough
requests in flight that a jump is answered quickly.

Requests are as large as a connection carries in `PIECE_LATENCIES` latencies, so that waiting for
first bytes costs little.

Pure: times are passed in. Not thread-safe: `blocks` calls it under its own lock.
"""

from __future__ import annotations

from bffs.units import MIB

PATIENCE = 1.5
SLACK = 0.015
"""A first block may take `PATIENCE` times as long as at best, and `SLACK` seconds more, before the
window shrinks."""

SHRINK = 0.7
SMOOTHING = 1 / 8

PIECE_LATENCIES = 4.0

MEMORY = 30.0
"""Seconds after which a best latency is forgotten, once another has been seen."""

MIN_WINDOW = 4 * MIB
FIRST_WINDOW = 32 * MIB
"""Bytes in flight before anything is known: one slice of usual size, so that a first slice comes at
full speed."""

MIN_PIECE = 1 * MIB
"""Bytes in a request for bulk data at least: boto3 costs 1.2 ms of CPU a request."""


class Link:
    """A running estimate; sizes in bytes, times in seconds. `most` bounds the window, `max_piece` a
    request."""

    def __init__(self, most: int, max_piece: int) -> None:
        self._most = most
        self._max_piece = max_piece
        self._best = 0.0
        self._next_best = 0.0
        self._rotated = 0.0
        self._recent = 0.0
        self._rate = 0.0
        self._hold_until = 0.0
        self.window = min(FIRST_WINDOW, most)

    @property
    def latency(self) -> float:
        """Seconds to a first block at best, 0 while unknown."""
        return self._best

    @property
    def piece(self) -> int:
        """Bytes that one request for bulk data should have."""
        wanted = int(PIECE_LATENCIES * self._best * self._rate)
        return min(max(wanted, MIN_PIECE), self._max_piece)

    def answered(self, seconds: float, now: float, *, saturated: bool) -> None:
        """A request's first block took this long; `saturated` if more could be fetched but for the
        window."""
        self._remember(seconds, now)
        self._recent += (seconds - self._recent) * (SMOOTHING if self._recent else 1.0)
        if self._recent > PATIENCE * self._best + SLACK:
            if now >= self._hold_until:
                self.window = max(int(self.window * SHRINK), MIN_WINDOW)
                self._hold_until = now + self._recent  # its effect shows after one round
        elif saturated:
            self.window = min(self.window + MIN_PIECE, self._most)

    def transferred(self, size: int, seconds: float) -> None:
        """After its first block, a request's remaining `size` bytes took this long."""
        if size and seconds > 0:
            self._rate += (size / seconds - self._rate) * (SMOOTHING if self._rate else 1.0)

    def _remember(self, seconds: float, now: float) -> None:
        if now - self._rotated > MEMORY:
            self._best = min(seconds, self._next_best or seconds)
            self._next_best = seconds
            self._rotated = now
        else:
            self._best = min(self._best, seconds)
            self._next_best = min(self._next_best, seconds)
