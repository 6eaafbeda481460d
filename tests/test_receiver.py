"""`receiver`: bodies from real sockets."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bffs.receiver import STEP, SWEEP, Receiver
from tests.conftest import until

PATIENCE = 30.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with closing(Receiver()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The store's end, and ours."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    with ours, theirs:
        yield theirs, ours


def test_a_body_arrives_in_growing_steps(
    receiver: Receiver, pair: tuple[socket.socket, socket.socket]
) -> None:
    theirs, ours = pair
    body = os.urandom(10 * STEP + 4321)
    buffer = memoryview(bytearray(len(body)))
    buffer[:100] = body[:100]
    seen: list[int] = []

    def advance(n: int) -> None:
        assert buffer[:n] == body[:n]
        seen.append(n)

    sender = threading.Thread(target=theirs.sendall, args=(body[100:],))
    sender.start()
    assert receiver.receive(ours, buffer, 100, advance, PATIENCE)[0] == len(body)
    sender.join()
    assert buffer == body
    assert seen == sorted(set(seen))
    assert seen[-1] == len(body)


def test_an_idle_thread_rests_and_still_sees_that_nothing_comes(
    receiver: Receiver, pair: tuple[socket.socket, socket.socket]
) -> None:
    theirs, ours = pair
    buffer = memoryview(bytearray(STEP))
    theirs.sendall(bytes(STEP))
    receiver.receive(ours, buffer, 0, lambda n: None, PATIENCE)
    until(lambda: receiver._is_resting)
    [thread] = [each for each in threading.enumerate() if each.name == "bffs-receive"]
    times = Path(f"/proc/self/task/{thread.native_id}/schedstat")
    time.sleep(SWEEP)  # until it sleeps
    before = times.read_text()
    time.sleep(4 * SWEEP)
    assert times.read_text() == before
    with pytest.raises(TimeoutError):
        receiver.receive(ours, buffer, 0, lambda n: None, SWEEP / 2)


def test_less_than_a_step_is_reported_before_the_rest_comes(
    receiver: Receiver, pair: tuple[socket.socket, socket.socket]
) -> None:
    theirs, ours = pair
    buffer = memoryview(bytearray(STEP))
    some = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receiver.receive, ours, buffer, 0, lambda _: some.set(), PATIENCE)
        theirs.sendall(b"a" * 1000)
        assert some.wait(10)
        theirs.sendall(b"b" * (STEP - 1000))
        assert received.result(10)[0] == STEP


def test_what_came_before_the_end_counts(
    receiver: Receiver, pair: tuple[socket.socket, socket.socket]
) -> None:
    theirs, ours = pair
    buffer = memoryview(bytearray(STEP))
    theirs.sendall(b"a" * 5000)
    theirs.close()
    assert receiver.receive(ours, buffer, 0, lambda _: None, PATIENCE)[0] == 5000
    assert bytes(buffer[:5000]) == b"a" * 5000


def test_silence_is_a_time_out_for_that_socket_alone(receiver: Receiver) -> None:
    one, silent = socket.socketpair()
    other, busy = socket.socketpair()
    buffer = memoryview(bytearray(64 << 10))
    with one, silent, other, busy, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receiver.receive, busy, buffer, 0, lambda _: None, PATIENCE)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            receiver.receive(silent, memoryview(bytearray(8)), 0, lambda _: None, 2 * SWEEP)
        assert time.monotonic() - begun >= 2 * SWEEP
        other.sendall(bytes(len(buffer)))
        assert received.result(10)[0] == len(buffer)


def test_a_reset_is_an_error(receiver: Receiver, pair: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    theirs.close()
    with pytest.raises(ConnectionResetError):
        receiver.receive(ours, memoryview(bytearray(8)), 0, lambda _: None, PATIENCE)


def test_an_error_of_the_caller_comes_back_to_it(
    receiver: Receiver, pair: tuple[socket.socket, socket.socket]
) -> None:
    theirs, ours = pair
    theirs.sendall(b"abc")

    def advance(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        receiver.receive(ours, memoryview(bytearray(8)), 0, advance, PATIENCE)


def test_a_socket_can_be_used_again(
    receiver: Receiver, pair: tuple[socket.socket, socket.socket]
) -> None:
    theirs, ours = pair
    for body in (b"abc" * 5, os.urandom(STEP + 1), b"x"):
        buffer = memoryview(bytearray(len(body)))
        theirs.sendall(body)
        assert receiver.receive(ours, buffer, 0, lambda _: None, PATIENCE)[0] == len(body)
        assert buffer == body
        ours.settimeout(10)
        theirs.sendall(b"!")
        assert ours.recv(10) == b"!"


def test_many_bodies_at_once(receiver: Receiver) -> None:
    bodies = [os.urandom(3 * STEP + n) for n in range(24)]
    buffers = [memoryview(bytearray(len(body))) for body in bodies]
    pairs = [socket.socketpair() for _ in bodies]
    with ThreadPoolExecutor(2 * len(bodies)) as pool:
        received = [
            pool.submit(receiver.receive, ours, buffer, 0, lambda _: None, PATIENCE)
            for (_, ours), buffer in zip(pairs, buffers, strict=True)
        ]
        for (theirs, _), body in zip(pairs, bodies, strict=True):
            pool.submit(theirs.sendall, body)
        assert [each.result(30)[0] for each in received] == [len(body) for body in bodies]
    for end in (end for pair in pairs for end in pair):
        end.close()
    assert buffers == bodies


def test_closing_ends_what_is_on_its_way_and_what_comes_later() -> None:
    receiver = Receiver()
    theirs, ours = socket.socketpair()
    buffer = memoryview(bytearray(8))
    with theirs, ours, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receiver.receive, ours, buffer, 0, lambda _: None, PATIENCE)
        while not receiver._transfers:
            time.sleep(0.001)
        receiver.close()
        with pytest.raises(ConnectionAbortedError):
            received.result(10)
        with pytest.raises(ConnectionAbortedError):
            receiver.receive(ours, buffer, 0, lambda _: None, PATIENCE)
    assert "bffs-receive" not in [thread.name for thread in threading.enumerate()]


def test_closing_at_the_moment_at_which_a_transfer_begins() -> None:
    receiver = Receiver()
    begun: list[Any] = []

    class Ending(dict[int, Any]):
        def __setitem__(self, fd: int, transfer: Any) -> None:
            super().__setitem__(fd, transfer)
            begun.append(transfer)
            receiver.close()

    receiver._transfers = Ending()
    theirs, ours = socket.socketpair()
    buffer = memoryview(bytearray(8))
    with theirs, ours, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receiver.receive, ours, buffer, 0, lambda _: None, PATIENCE)
        try:
            error = received.exception(10)
        except TimeoutError as hangs:
            error = hangs
            begun[0].gate.release()
        assert isinstance(error, ConnectionAbortedError)


def test_a_step_that_trickles_in_is_told_and_ends_where_it_must_be_quick(
    pair: tuple[socket.socket, socket.socket], receiver: Receiver
) -> None:
    theirs, ours = pair
    buffer = memoryview(bytearray(2 * STEP))
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.02):
            theirs.sendall(bytes(1000))

    with ThreadPoolExecutor(1) as pool:
        trickling = pool.submit(trickle)
        try:
            with pytest.raises(TimeoutError):
                receiver.receive(ours, buffer, 0, lambda _: None, PATIENCE, 2 * SWEEP)
        finally:
            stop.set()
        trickling.result(10)
    theirs.sendall(bytes(2 * STEP))
    _, quick = receiver.receive(ours, buffer, 0, lambda _: None, PATIENCE, PATIENCE)
    assert 0 < quick < PATIENCE
