"""Bodies of many answers, received by one thread.

Dozens of threads that each wait at their own socket spend a third of all CPU time on handing the
interpreter's lock around: every step of every body takes two changes of thread. Here they leave the
socket to one thread and sleep until the body is complete (1.55 s of CPU a GB instead of 1.9, and
more of it at once). `SO_RCVLOWAT` has the kernel wake that thread for whole steps only.

For plain sockets on Linux: with TLS a record of 16 KiB is the unit, and the kernel can't tell what
is in it.

Threads: `receive` may be called from any thread, and blocks it; its `advance` is called from the
receiving thread, which the first call starts and `close` ends. Transfers are kept in a dict whose
single operations are atomic; the one lock is for starting and closing.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from bffs.units import KIB, MIB

IS_POSSIBLE = hasattr(select, "epoll") and hasattr(os, "eventfd")

STEP = 128 * KIB
"""Bytes between two reports of progress at least: one block, so that a waiting reader is woken at
each."""

LONGEST_STEP = 512 * KIB
QUICK = 0.006
SLOW = 2 * QUICK
"""A step that took less than `QUICK` seconds is followed by one of twice as many bytes, one that took
more than `SLOW` by one of half: a reader is not kept waiting notably, and bulk costs less."""

MOST = MIB
"""Bytes that one socket may deliver before it is the next one's turn."""

SWEEP = 0.25
"""Seconds between two looks at sockets that have less than a step to deliver, or nothing."""


class _Transfer:
    """One body on its way."""

    __slots__ = (
        "advance",
        "awaited",
        "buffer",
        "error",
        "filled",
        "gate",
        "longest",
        "moved",
        "patience",
        "slowest",
        "sock",
        "step",
        "stepped",
    )

    def __init__(
        self,
        sock: socket.socket,
        buffer: memoryview,
        filled: int,
        advance: Callable[[int], None],
        patience: float,
        slowest: float,
    ) -> None:
        self.sock = sock
        self.buffer = buffer
        self.filled = filled
        self.advance = advance
        self.patience = patience
        self.slowest = slowest
        self.awaited = 0
        self.step = STEP
        self.moved = self.stepped = time.monotonic()
        self.longest = 0.0
        self.error: BaseException | None = None
        self.gate = threading.Lock()
        self.gate.acquire()

    def await_step(self) -> None:
        """Have the kernel report the socket when the rest of a step is there."""
        awaited = min(self.step - self.filled % STEP, len(self.buffer) - self.filled)
        if awaited != self.awaited:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, awaited)
            self.awaited = awaited

    def take(self) -> bool:
        """Receive what is there; whether the body has ended, complete or not. Raises OSError."""
        end = min(len(self.buffer), self.filled + MOST)
        try:
            n = self.sock.recv_into(self.buffer[self.filled : end])
        except BlockingIOError:
            return False
        if not n:
            return True
        self.filled += n
        self.moved = time.monotonic()
        if n >= self.awaited:
            took = self.moved - self.stepped
            self.longest = max(self.longest, took)
            self.stepped = self.moved
            if took < QUICK:
                self.step = min(2 * self.step, LONGEST_STEP)
            elif took > SLOW:
                self.step = max(self.step // 2, STEP)
        self.advance(self.filled)
        if self.filled == len(self.buffer):
            return True
        self.await_step()
        return False


class Receiver:
    """The thread, and the sockets it receives from."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._transfers: dict[int, _Transfer] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_resting = False
        self._closing = False

    def receive(
        self,
        sock: socket.socket,
        buffer: memoryview,
        filled: int,
        advance: Callable[[int], None],
        patience: float,
        slowest: float = math.inf,
    ) -> tuple[int, float]:
        """Fill `buffer` from `filled` on; returns how far it got before the peer closed, and the
        seconds that its slowest step took.

        `advance(n)` is called whenever more of the buffer, now its first `n` bytes, has come. The
        socket is left non-blocking. Raises TimeoutError when nothing comes for `patience` seconds
        or a step takes more than `slowest`, another OSError for a broken connection or after
        `close`, and whatever `advance` raises.
        """
        self._start()
        transfer = _Transfer(sock, buffer, filled, advance, patience, slowest)
        sock.setblocking(False)
        transfer.await_step()
        fd = sock.fileno()
        self._epoll.register(fd, select.EPOLLIN)  # first: who ends a transfer takes it out again
        self._transfers[fd] = transfer
        if self._is_resting:
            os.eventfd_write(self._wake, 1)
        if self._closing:  # the thread may have looked through the transfers already
            self._end(fd, _aborted())
        transfer.gate.acquire()
        if transfer.error is not None:
            raise transfer.error
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        return transfer.filled, transfer.longest

    def close(self) -> None:
        """End all transfers with an error, and the thread. Not from `advance`."""
        with self._lock:
            self._closing = True
            thread = self._thread
        os.eventfd_write(self._wake, 1)
        if thread is not None:
            thread.join()

    def __del__(self) -> None:
        self._epoll.close()
        os.close(self._wake)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(
                    target=self._serve, name="bffs-receive", daemon=True
                )
                self._thread.start()

    def _serve(self) -> None:
        swept = time.monotonic()
        while not self._closing:
            self._is_resting = True  # first: who adds a transfer that is not seen here wakes us
            if self._transfers:
                self._is_resting = False
            for fd, _ in self._epoll.poll(None if self._is_resting else SWEEP):
                if fd == self._wake:
                    os.eventfd_read(fd)
                else:
                    self._serve_one(fd)
            now = time.monotonic()
            if now - swept >= SWEEP:
                swept = now
                self._sweep(now)
        for fd in tuple(self._transfers):
            self._end(fd, _aborted())

    def _sweep(self, now: float) -> None:
        for fd, transfer in tuple(self._transfers.items()):
            if now - transfer.stepped >= SWEEP:
                self._serve_one(fd)
                silent, slow = now - transfer.moved, now - transfer.stepped
                if silent > transfer.patience or slow > transfer.slowest:
                    self._end(fd, TimeoutError())

    def _serve_one(self, fd: int) -> None:
        transfer = self._transfers.get(fd)
        if transfer is None:
            return
        try:
            if transfer.take():
                self._end(fd)
        except BaseException as error:
            self._end(fd, error)

    def _end(self, fd: int, error: BaseException | None = None) -> None:
        transfer = self._transfers.pop(fd, None)
        if transfer is not None:
            self._epoll.unregister(fd)
            transfer.error = error
            transfer.gate.release()


def _aborted() -> ConnectionAbortedError:
    return ConnectionAbortedError("closing")
