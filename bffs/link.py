"""What the link to the store can carry: how much to have in flight, and in which portions.

The window for prefetching grows while there is more to fetch than it allows - at first by each
request's whole size, so that a far and wide link is full within a few round trips - and shrinks
when first blocks take notably longer than they do at best: then requests queue somewhere, and a
demanded block would queue behind them. It never shrinks below a few times the most bandwidth seen lately times the
best latency, which is what the link holds: slow answers may just as well come from a busy machine,
and a small window would only make it slower.

So a link of 1 GB/s and 30 ms has some 100 MiB in flight, one of 12 MB/s and 100 ms 4 MiB, and a
jump is answered quickly on both.

Requests are as large as a connection carries in `PIECE_LATENCIES` latencies, so that waiting for
first bytes costs little.

Pure: times are passed in. Not thread-safe: `blocks` calls it under its own lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from bffs.units import MIB

PATIENCE = 2.0
SLACK = 0.05
"""A first block may take `PATIENCE` times as long as at best, and `SLACK` seconds more, before the
window shrinks."""

YIELD = 0.9
"""What is left of the window when the store refuses a request. Against the `MIN_PIECE` that each
good answer adds, one refusal in twenty is nothing, and every second leaves the least."""

SHRINK = 0.5
SMOOTHING = 1 / 8

HELD = 4.0
"""Times bandwidth x latency that the window never shrinks below."""

PIECE_LATENCIES = 4.0
PARALLEL = 12
"""Requests that the window is shared among at least: a connection alone may be slower than the
link, and a window of a few large requests would never show what the link can carry."""

QUICK = 0.25

SLOT = 0.5
"""Seconds over which bandwidth is measured."""

MEMORY = 30.0
"""Seconds after which a best latency or bandwidth is forgotten, once another has been seen."""

MIN_WINDOW = 2 * MIB
FIRST_WINDOW = 24 * MIB
"""Bytes in flight before anything is known: one slice of usual size, so that a first slice comes at
full speed."""

MIN_PIECE = 1 * MIB
"""Bytes in a request for bulk data at least: boto3 costs 1.2 ms of CPU a request."""


class Link:
    """A running estimate; sizes in bytes, times in seconds.

    `most` bounds the window, `max_piece` a request.
    """

    def __init__(self, most: int, max_piece: int) -> None:
        self._most = most
        self._max_piece = max_piece
        self._latencies = _Best(min)
        self._bandwidths = _Best(max)
        self._capacities = _Best(max)
        self._is_slot_busy = False
        self._slot_start = 0.0
        self._slot_bytes = 0
        self._recent = 0.0
        self._rate = 0.0
        self._hold_until = 0.0
        self._starting = True
        self.window = min(FIRST_WINDOW, most)

    @property
    def latency(self) -> float:
        """Seconds to a first byte at best, 0 while unknown."""
        return self._latencies.value

    @property
    def bandwidth(self) -> float:
        """Bytes a second of all connections at best, 0 while unknown."""
        return self._bandwidths.value

    @property
    def capacity(self) -> float:
        """The bandwidth at best while prefetch was on its way all the time, 0 while unknown. At other times it may
        be small just because nobody has asked for more."""
        return self._capacities.value

    @property
    def quickly(self) -> int:
        """Bytes that come within `QUICK` seconds: what may be fetched on a hunch."""
        return int(self.bandwidth * QUICK) or FIRST_WINDOW

    @property
    def piece(self) -> int:
        """Bytes that one request for bulk data should have."""
        wanted = int(PIECE_LATENCIES * self.latency * self._rate)
        return max(min(wanted, self._max_piece, self.window // PARALLEL), MIN_PIECE)

    @property
    def _held(self) -> int:
        return int(HELD * self.bandwidth * self.latency)

    def heard(self, seconds: float, now: float) -> None:
        """A request's first byte took this long. The first block won't do: on a slow link that is
        full it comes late, and the link would be taken for one that holds more."""
        self._latencies.add(seconds, now)

    def answered(self, seconds: float, now: float, *, saturated: bool) -> None:
        """A request's first block took this long; `saturated` if only the window keeps back more."""
        self._latencies.add(seconds, now)
        self._recent += (seconds - self._recent) * (SMOOTHING if self._recent else 1.0)
        if self._recent > PATIENCE * self.latency + SLACK:
            # Before anything is known of the bandwidth, slow answers are those of new connections.
            if self.bandwidth and now >= self._hold_until:
                shrunk = max(int(self.window * SHRINK), self._held, MIN_WINDOW)
                self.window = min(self.window, shrunk)
                self._starting = False
                self._hold_until = now + self._recent  # its effect shows after one round
        elif saturated:
            grown = self.piece if self._starting else MIN_PIECE
            self.window = min(self.window + grown, self._most)

    def refused(self) -> None:
        """The store wants fewer requests."""
        self.window = max(int(self.window * YIELD), MIN_WINDOW)
        self._starting = False

    def overfilled(self) -> None:
        """What was in flight has stood in a reader's way, who will want more: begin anew."""
        self.window = min(self.window, MIN_PIECE)
        self._starting = False

    def arrived(self, size: int, now: float, *, busy: bool) -> None:
        """`size` more bytes are here, of whichever request; `busy` while prefetch is on its way."""
        elapsed = now - self._slot_start
        if elapsed >= SLOT:
            if elapsed < 2 * SLOT:
                rate = self._slot_bytes / elapsed
                self._bandwidths.add(rate, now)
                if self._is_slot_busy:
                    self._capacities.add(rate, now)
            self._slot_start, self._slot_bytes, self._is_slot_busy = now, 0, True
        self._slot_bytes += size
        self._is_slot_busy &= busy

    def transferred(self, size: int, seconds: float) -> None:
        """After its first block, a request's remaining `size` bytes took this long."""
        if size and seconds > 0:
            self._rate += (size / seconds - self._rate) * (SMOOTHING if self._rate else 1.0)


class _Best:
    """The best of the values added in the last `MEMORY` to twice `MEMORY` seconds, 0 before any."""

    def __init__(self, better: Callable[[float, float], float]) -> None:
        self._better = better
        self._next = 0.0
        self._rotated = -math.inf
        self.value = 0.0

    def add(self, value: float, now: float) -> None:
        if now - self._rotated > MEMORY:
            self.value = self._better(self._next, value) if self._next else value
            self._next = value
            self._rotated = now
        else:
            self.value = self._better(self.value, value)
            self._next = self._better(self._next, value)
