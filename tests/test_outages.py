"""A store that goes away while it is read from: who waits, for how long, and what goes on without it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from bffs.deadlines import AGAIN
from tests.conftest import ROOT, Mounter, clean, drivers, until
from tests.s3server import S3Server, pattern
from tests.test_mount_life import nothing_left

SIZE = 3_000_000
OBJECTS = {f"1/a-{number:04}.tif": SIZE for number in range(1, 121)}
LARGE = "2/a-0001.tif"
OBJECTS[LARGE] = 40_000_000
FIRST = "1/a-0001.tif"
DEADLINE = 4.0


@contextmanager
def away(server: S3Server) -> Iterator[None]:
    """The store accepts connections, and that is all."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def failure(path: Path) -> tuple[int | None, float]:
    """The errno that reading a file ends with, and after how many seconds."""
    begun = time.monotonic()
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno, time.monotonic() - begun
    return None, time.monotonic() - begun


def test_a_read_waits_for_a_store_that_comes_back(mounter: Mounter, server: S3Server) -> None:
    mountpoint = mounter()
    server.shape(total=10e6)
    with (mountpoint / "train" / LARGE).open("rb", buffering=0) as file:
        begun = file.read(100_000)
        with away(server), ThreadPoolExecutor(1) as pool:
            rest = pool.submit(file.readall)
            time.sleep(3)
            assert not rest.done()
            os.kill(server.pid, signal.SIGCONT)
            server.shape()
            assert begun + rest.result(60) == pattern(LARGE, 0, OBJECTS[LARGE])


def test_a_read_waits_for_a_store_that_refuses_connections(
    mounter: Mounter, server: S3Server
) -> None:
    server.fault("reset", kind="get")
    mountpoint = mounter()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit((mountpoint / "train" / FIRST).read_bytes)
        time.sleep(2)
        assert not reading.done()
        server.reset()
        assert reading.result(60) == pattern(FIRST, 0, SIZE)


@pytest.mark.parametrize("how", ["silent", "busy", "resets"])
def test_a_store_that_is_gone_is_an_error_at_the_deadline(
    mounter: Mounter, server: S3Server, how: str
) -> None:
    mountpoint = mounter(f"--deadline={DEADLINE}s")
    cached = mountpoint / "train" / FIRST
    assert cached.read_bytes() == pattern(FIRST, 0, SIZE)
    if how == "silent":
        os.kill(server.pid, signal.SIGSTOP)
    else:
        server.fault("status" if how == "busy" else "reset", value=503, kind="get")
    try:
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(failure, mountpoint / "train/1/a-0050.tif")
            assert len(list((mountpoint / "train/1").iterdir())) == len(OBJECTS)
            assert cached.read_bytes() == pattern(FIRST, 0, SIZE)
            assert json.loads((mountpoint / "train/1/manifest.json").read_text())["id"] == "1"
            code, seconds = reading.result(60)
        assert code == errno.EIO
        assert 0.9 * DEADLINE <= seconds <= 1.1 * DEADLINE + 2  # this machine may be busy
    finally:
        os.kill(server.pid, signal.SIGCONT)
    server.reset()
    time.sleep(2 * AGAIN)
    assert (mountpoint / "train/1/a-0050.tif").read_bytes() == pattern("1/a-0050.tif", 0, SIZE)


def test_what_is_cached_needs_no_store_after_a_remount(mounter: Mounter, server: S3Server) -> None:
    mountpoint = mounter()
    assert (mountpoint / "train" / FIRST).read_bytes() == pattern(FIRST, 0, SIZE)
    assert mounter.run("umount", str(mountpoint)).returncode == 0
    with away(server):
        mountpoint = mounter()
        assert (mountpoint / "train" / FIRST).read_bytes() == pattern(FIRST, 0, SIZE)
        assert mounter.run("umount", str(mountpoint)).returncode == 0


def test_many_readers_that_wait_keep_nobody_from_looking_around(
    mounter: Mounter, server: S3Server
) -> None:
    """More than the kernel has reads under way; and they die when they are killed."""
    mountpoint = mounter()
    cached = mountpoint / "train" / FIRST
    assert cached.read_bytes() == pattern(FIRST, 0, SIZE)
    with away(server):
        readers = [
            subprocess.Popen(
                ["cat", f"{mountpoint}/train/1/a-{number:04}.tif"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(20, 120)
        ]
        try:
            time.sleep(1)
            looking = ["ls", "-l", f"{mountpoint}/train/1", f"{mountpoint}/test"]
            subprocess.run(looking, stdout=subprocess.DEVNULL, timeout=20, check=False)
            subprocess.run(["cmp", cached, cached], timeout=20, check=True)
        finally:
            for reader in readers:
                reader.kill()
            for reader in readers:
                reader.wait(20)


# -- killed -----------------------------------------------------------------------------------------------------

READ = {
    "read": "import sys; open(sys.argv[1], 'rb').read()",
    "pread": "import os, sys; os.pread(os.open(sys.argv[1], os.O_RDONLY), 5, 1234567)",
    "mmap": "import mmap, sys; f = open(sys.argv[1], 'rb'); "
    "print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[2000000])",
    "direct": "import mmap, os, sys; b = mmap.mmap(-1, 1 << 20); "
    "os.readv(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), [b])",
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("how", READ)
def test_a_reader_that_is_killed_while_it_waits_dies_at_once(
    mounter: Mounter, server: S3Server, how: str, number: signal.Signals
) -> None:
    mountpoint = mounter()
    server.fault("stall", value=100, at=0, kind="get")
    command = [sys.executable, "-c", READ[how], f"{mountpoint}/train/1/a-0002.tif"]
    with subprocess.Popen(command, env=clean(os.environ), cwd=ROOT) as reader:
        until(lambda: server.stats()["requests"].get("get", 0) > 0)
        time.sleep(0.5)
        assert reader.poll() is None
        reader.send_signal(number)
        assert reader.wait(10) == -number
    assert mounter.run("umount", str(mountpoint)).returncode == 0
    until(lambda: nothing_left(mounter, mountpoint))


def test_another_signal_ends_no_read(mounter: Mounter, server: S3Server) -> None:
    """As those that runtimes send to their own threads."""
    mountpoint = mounter()
    server.fault("stall", value=2, at=0, kind="get", times=1)
    program = "import signal; signal.signal(signal.SIGURG, lambda *_: None)\n" + READ["direct"]
    command = [sys.executable, "-c", program, f"{mountpoint}/train/1/a-0002.tif"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as reader:
        until(lambda: server.stats()["requests"].get("get", 0) > 0)
        reader.send_signal(signal.SIGURG)
        _, said = reader.communicate(timeout=30)
        assert (reader.returncode, said) == (0, "")


def test_an_unmount_ends_what_tries_again_and_again(mounter: Mounter, server: S3Server) -> None:
    mountpoint = mounter()
    server.fault("status", value=503, kind="get")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(failure, mountpoint / "train" / FIRST)
        time.sleep(3)  # the pauses have grown by then
        (driver,) = drivers(mountpoint)
        threads = Path(f"/proc/{driver}/task")
        assert len(list(threads.iterdir())) > 1
        assert mounter.run("umount", str(mountpoint)).returncode == 0
        until(lambda: nothing_left(mounter, mountpoint))
        assert reading.result(10)[0] is not None
    assert threading.active_count() < 20


def test_a_driver_that_is_told_to_end_keeps_what_it_has_fetched(
    mounter: Mounter, server: S3Server
) -> None:
    mountpoint = mounter()
    assert (mountpoint / "train" / FIRST).read_bytes() == pattern(FIRST, 0, SIZE)
    (driver,) = drivers(mountpoint)
    os.kill(driver, signal.SIGTERM)
    until(lambda: nothing_left(mounter, mountpoint))
    server.reset()
    mountpoint = mounter()
    assert (mountpoint / "train" / FIRST).read_bytes() == pattern(FIRST, 0, SIZE)
    assert [get for get in server.log() if get.key == FIRST] == []
    assert (
        "cached"
        in mounter.run("cache", *mounter.flags, f"--cache-dir={mounter.folder / 'cache'}").stdout
    )
