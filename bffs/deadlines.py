"""Until when a read waits: each has one deadline, also one that is made of several, and none waits twice for the same.

Threads: any, without locks: what a thread reads is its own, and the list of failures is only added to and copied.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bffs.store import ByteRange, ObjectInfo

AGAIN = 1.0
"""Seconds for which a read that has waited in vain is not begun anew: the kernel asks once more for
each page that it could not get, on a busy machine not at once, and nobody should wait twice."""


class _Reading(threading.local):
    """The read of a thread that is made of several: until when it waits, 0 before it has to."""

    until: float | None = None


_reading = _Reading()


@contextmanager
def as_one_read() -> Iterator[None]:
    """What this thread reads meanwhile is one read, with one deadline."""
    _reading.until = 0.0
    try:
        yield
    finally:
        _reading.until = None


class _Failure(NamedTuple):
    """A read that has waited in vain; the same read fails like it until `again`."""

    obj: ObjectInfo
    span: ByteRange
    error: BaseException
    again: float


class Deadlines:
    """The deadlines of reads that wait for `seconds` at most."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._failed: deque[_Failure] = deque(maxlen=256)

    def begin(self, obj: ObjectInfo, offset: int, size: int) -> float:
        """Until when (`time.monotonic`) a read may wait that begins to do so now. Raises the error of
        one that has just waited for the same in vain."""
        now = time.monotonic()
        for failed in tuple(self._failed):
            if (
                now < failed.again
                and (failed.obj.key, failed.obj.etag) == (obj.key, obj.etag)
                and failed.span.start <= offset
                and offset + size <= failed.span.stop
            ):
                raise failed.error
        if _reading.until is None:
            return now + self.seconds
        _reading.until = _reading.until or now + self.seconds
        return _reading.until

    def missed(self, obj: ObjectInfo, span: ByteRange, error: BaseException) -> None:
        """A read of these bytes has waited in vain."""
        self._failed.append(_Failure(obj, span, error, time.monotonic() + AGAIN))
