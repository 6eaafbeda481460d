"""The body of one answer on its way to a buffer.

http.client's reader is used below urllib3's and botocore's, which copy once more. Without TLS even
that is left out, and what doesn't come along with the headers is left to the `Receiver`.
"""

from __future__ import annotations

import http.client
import math
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bffs.receiver import STEP, Receiver


class Body:
    """What urllib3's response `raw` has for `buffer`; `advance(n)` is called when more of it, now
    its first `n` bytes, has come.

    `filled` is how many have, `longest` the seconds that the slowest step has taken.
    """

    def __init__(self, raw: Any, buffer: memoryview, advance: Callable[[int], None]) -> None:
        self._buffer = buffer
        self._advance = advance
        stream = getattr(raw, "_fp", None)
        self._bare = isinstance(stream, http.client.HTTPResponse) and not stream.chunked
        self._stream: Any = stream if self._bare else raw
        self._sock: Any = getattr(getattr(raw, "connection", None), "sock", None)
        self.filled = 0
        self.longest = 0.0

    def begin(self) -> None:
        """Take what has come along with the headers, or wait for the first of it."""
        if self._bare:
            n = min(len(self._stream.fp.peek(1)), len(self._buffer))
            while self.filled < n:
                self.filled += self._stream.readinto(self._buffer[self.filled : n])
        else:
            self.filled = self._stream.readinto(self._buffer[:STEP])
        self._advance(self.filled)

    def finish(self, receiver: Receiver | None, patience: float, *, hurry: bool) -> None:
        """Receive the rest, as much as comes. Raises TimeoutError when nothing comes for `patience`
        seconds, or in a `hurry` less than a step."""
        slowest = patience if hurry else math.inf
        sock = self._sock
        if self.filled == len(self._buffer):
            return
        if receiver is not None and self._bare and type(sock) is socket.socket:
            before = sock.gettimeout()
            self.filled, self.longest = receiver.receive(
                sock, self._buffer, self.filled, self._advance, patience, slowest
            )
            sock.settimeout(before)
            if self.filled == len(self._buffer):
                self._stream.length = 0
                self._stream.close()
        else:
            if sock is not None:
                sock.settimeout(patience)
            self._read(slowest)

    def break_off(self) -> None:
        """Let the connection end here, from another thread."""
        if self._sock is not None:
            with suppress(OSError):  # it has ended already
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def _read(self, slowest: float) -> None:
        buffer = self._buffer
        at = time.monotonic()
        while self.filled < len(buffer):
            n = self._stream.readinto(buffer[self.filled : self.filled + STEP])
            if not n:
                return
            self.filled += n
            self._advance(self.filled)
            now = time.monotonic()
            took, at = now - at, now
            self.longest = max(self.longest, took)
            if took > slowest and self.filled < len(buffer):
                raise TimeoutError
