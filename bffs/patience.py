"""Patience with a store: how long to pause before trying again, and when silence counts as a stall.

What is usual is learnt: an answer's first byte and each step of its body may take a few times as
long as most have taken of late. What takes longer is asked for again, on another connection, from
the byte where it stopped; so a connection that hangs costs about a second instead of a time-out.
That is never done for more than a small share of all requests: where everything has become slow,
asking again makes it worse.

Threads: a `Pauses` belongs to one thread, `Stalls` may be used from any; its lock is a leaf.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between tries: doubled each time, up to this; how soon a read goes on once the store is
back."""

LONGEST_ASKED = 30.0
"""Seconds that a store's Retry-After is heeded for at most."""

PATIENCE = 4.0
"""Times the usual that something may take before it counts as stalled."""

SHORTEST = 0.5
"""Seconds that anything may take: a busy computer or a lost packet costs as much."""

UNKNOWN = 5.0
"""Seconds that it may take while too little is known."""

USUAL = 0.95
"""Share of all times that are usual: robust against as many stalls as may be asked for again."""

SHARE = 0.05
"""Requests asked for again, of all; `CREDIT` of them beforehand."""

CREDIT = 4.0

_REMEMBERED = 256
_ENOUGH = 16


class Pauses:
    """The pauses before the tries of one request: they grow, and differ among requests. A reader who
    waits for `deadline` seconds waits for several."""

    def __init__(self, deadline: float = math.inf) -> None:
        self._next = FIRST_PAUSE
        self._longest = min(LONGEST_PAUSE, deadline / 5)

    def after(self, asked: float = 0.0) -> float:
        """Seconds until the next try; the store may have `asked` for more."""
        pause = self._next * random.uniform(0.5, 1.0)
        self._next = min(2 * self._next, self._longest)
        return max(pause, min(asked, LONGEST_ASKED))

    def progressed(self) -> None:
        """Begin anew: something has come."""
        self._next = FIRST_PAUSE


class History:
    """How long something has taken of late, in seconds, and how long it may therefore take."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_REMEMBERED)
        self._new = 0
        self.limit = UNKNOWN

    def add(self, seconds: float) -> None:
        """It has taken this long."""
        self._times.append(seconds)
        self._new += 1
        if self._new >= _ENOUGH:
            self._new = 0
            usual = sorted(self._times)[int(USUAL * len(self._times))]
            self.limit = max(SHORTEST, PATIENCE * usual)


class Stalls:
    """Tells stalls of any request of one store; `longest` is the seconds of silence that are too
    long in any case."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._credit = CREDIT
        self._lock = threading.Lock()
        self.first_byte = History()
        self.step = History()

    def limit(self, history: History) -> float:
        """Seconds after which to ask again."""
        return min(history.limit, self._longest) if self._credit >= 1 else self._longest

    def went_well(self, first_byte: float, longest_step: float) -> None:
        """A request has been answered in full."""
        with self._lock:
            self._credit = min(self._credit + SHARE, CREDIT)
            self.first_byte.add(first_byte)
            self.step.add(longest_step)

    def stalled(self, history: History, seconds: float) -> None:
        """A request was given up after so many seconds, to be asked again."""
        with self._lock:
            if seconds < self._longest:
                self._credit -= 1
            history.add(seconds)
