"""Whether slices are read whole by those who open them: a guess, from how soon they were closed again.

What the kernel reads by itself, nobody else sees. But a slice that was closed sooner than its bytes could have been
copied was not read whole, only looked at, and checking the next one for that would read it from the disk in vain.

Pure, without locks: mistakes of two threads at once cost one check more or less.
"""

from __future__ import annotations

_FASTEST = 30e9
"""Bytes a second that nobody reads faster than: the page cache gives 9 to 16 GB/s, on one machine from hour to hour.
With 10e9 who read so was taken for one who only looks, and two thirds of the slices were not passed through. head
and tifffile, looking at a slice of 22 MB, are through with it in 0.2 to 0.7 ms, which is 30 to 100 GB/s."""

_LONGEST = 256


class Expectation:
    """What is expected of one specimen's readers."""

    def __init__(self) -> None:
        self.is_asked = False
        """Whether the kernel is reading slices by itself at all."""

        self._wrong = 0
        self._skip = 0

    def is_worth_checking(self) -> bool:
        """Whether a slice that is being opened is expected to be read whole. After each that was not,
        twice as many are let go before the next is tried."""
        self.is_asked = True
        if self._skip:
            self._skip -= 1
            return False
        return True

    def note(self, size: int, seconds: float) -> None:
        """A slice of `size` bytes was open for so long."""
        if seconds >= size / _FASTEST:
            self._wrong = 0
            self._skip = 0
        elif not self._skip:
            self._wrong += 1
            self._skip = min(2**self._wrong, _LONGEST)
