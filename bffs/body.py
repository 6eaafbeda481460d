"""The body of one answer on its way to a buffer.

http.client's reader is used below urllib3's and botocore's, which copy once more. Without TLS even
that is left out: it wakes up for every few segments that arrive, and each time queues for the
interpreter's lock; a blocking receive that waits for a whole step costs a third of the CPU time.
"""

from __future__ import annotations

import http.client
import math
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from bffs.units import KIB

STEP = 128 * KIB
"""Bytes between two reports of progress; one block, so that a waiting reader is woken at each."""


class Body:
    """What urllib3's response `raw` has for `buffer`; `landed(n)` is called when `n` more bytes of
    it are there.

    `filled` is how many there are, `longest` the seconds that the slowest step has taken.
    """

    def __init__(self, raw: Any, buffer: memoryview, landed: Callable[[int], None]) -> None:
        self._buffer = buffer
        self._landed = landed
        stream = getattr(raw, "_fp", None)
        self._bare = isinstance(stream, http.client.HTTPResponse)
        self._stream: Any = stream if self._bare else raw
        self._sock: Any = getattr(getattr(raw, "connection", None), "sock", None)
        self.filled = 0
        self.longest = 0.0

    def begin(self) -> None:
        """Take what has come along with the headers, or wait for the first of it."""
        if self._bare and not self._stream.chunked:
            n = min(len(self._stream.fp.peek(1)), len(self._buffer))
            while self.filled < n:
                self.filled += self._stream.readinto(self._buffer[self.filled : n])
        else:
            self.filled = self._stream.readinto(self._buffer[:STEP])
        self._landed(self.filled)

    def finish(self, patience: float, *, hurry: bool) -> None:
        """Receive the rest, as much as comes. Raises TimeoutError when nothing comes for `patience`
        seconds, or in a `hurry` less than a step."""
        if self.filled == len(self._buffer):
            return
        sock = self._sock
        if type(sock) is socket.socket and self._bare and not self._stream.chunked:
            before = sock.gettimeout()
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(patience))
            self._receive(
                lambda step: sock.recv_into(step, len(step), socket.MSG_WAITALL),
                patience if hurry else math.inf,
            )
            if self.filled == len(self._buffer):
                sock.settimeout(before)
                self._stream.length = 0
                self._stream.close()
        else:
            if sock is not None:
                sock.settimeout(patience)
            self._receive(self._stream.readinto, patience if hurry else math.inf)

    def _receive(self, receive: Callable[[memoryview], int], most: float) -> None:
        buffer, filled, landed = self._buffer, self.filled, self._landed
        at = time.monotonic()
        while filled < len(buffer):
            try:
                n = receive(buffer[filled : filled + STEP - filled % STEP])
            except BlockingIOError as error:
                raise TimeoutError from error
            if not n:
                return
            filled += n
            self.filled = filled
            landed(n)
            now = time.monotonic()
            took, at = now - at, now
            if took > self.longest:
                self.longest = took
                if took > 0.99 * most and filled < len(buffer):
                    raise TimeoutError


def _timeval(seconds: float) -> bytes:
    """A `struct timeval`, for SO_RCVTIMEO."""
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
