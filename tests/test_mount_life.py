"""The life of a mount: how it begins, ends, is interrupted and crashes, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from bffs import passthrough
from bffs.mountpoint import is_dead, mount_at
from tests.conftest import Mounter, drivers, kill, until
from tests.s3server import S3Server, pattern

OBJECTS = {f"1/a-{number:04}.tif": 2_000_000 for number in range(1, 41)}
FIRST = "1/a-0001.tif"
SECRET = "a-secret-that-nobody-may-see"


def is_mounted(mountpoint: Path) -> bool:
    return mount_at(mountpoint) is not None


def nothing_left(mounter: Mounter, mountpoint: Path) -> bool:
    """Whether there is no mount, no driver and no lock file of a driver."""
    locks = (mounter.folder / "bffs").glob("*")
    return not is_mounted(mountpoint) and not drivers(mountpoint) and not any(locks)


@pytest.fixture
def readers() -> Iterator[Callable[[Path], list[subprocess.Popen[bytes]]]]:
    """Starts four processes that read slices one after the other, on and on."""
    with ExitStack() as stack:

        def start(mountpoint: Path) -> list[subprocess.Popen[bytes]]:
            started = [
                subprocess.Popen(
                    ["sh", "-c", f"cat {mountpoint}/train/1/a-00{group}?.tif"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    process_group=0,
                )
                for group in range(4)
            ]
            for reader in started:
                stack.callback(reader.communicate)
                stack.callback(reader.kill)
            return started

        yield start


# -- unmounting -------------------------------------------------------------------------------------------------


def test_unmount_and_nothing_is_left(mounter: Mounter) -> None:
    mountpoint = mounter()
    assert (mountpoint / "train" / FIRST).read_bytes() == pattern(FIRST, 0, OBJECTS[FIRST])
    assert len(drivers(mountpoint)) == 1
    done = mounter.run("umount", str(mountpoint))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not is_mounted(mountpoint)
    until(lambda: nothing_left(mounter, mountpoint))
    assert list(mountpoint.iterdir()) == []


@pytest.mark.parametrize("store", ["slow", "stalled"])
@pytest.mark.parametrize("how", ["umount", "SIGTERM"])
def test_ending_under_load(
    mounter: Mounter, server: S3Server, how: str, store: str,
    readers: Callable[[Path], list[subprocess.Popen[bytes]]],
) -> None:  # fmt: skip
    mountpoint = mounter()
    server.reset()
    if store == "slow":
        server.shape(latency=0.2, per_connection=3e5, total=1e6)  # 80 s for all that is wanted
    else:
        server.fault("stall", value=100, at=100_000, kind="get")
    reading = readers(mountpoint)
    until(lambda: server.stats()["requests"].get("get", 0) >= 4)
    if how == "umount":
        done = mounter.run("umount", str(mountpoint))
        assert (done.returncode, done.stderr) == (0, "")
    else:
        (driver,) = drivers(mountpoint)
        os.kill(driver, signal.SIGTERM)
    until(lambda: nothing_left(mounter, mountpoint))  # 5 s on a machine that has time
    for reader in reading:
        _, said = reader.communicate(timeout=15)
        assert reader.returncode != 0 and said  # an error, never a short file


def test_unmount_while_somebody_stands_in_it(mounter: Mounter) -> None:
    mountpoint = mounter.folder / "mnt"
    with mounter.start(mountpoint, "-f") as driver:
        until(lambda: is_mounted(mountpoint))
        with subprocess.Popen(["sleep", "60"], cwd=mountpoint / "train") as sleeper:
            done = mounter.run("umount", str(mountpoint))
            assert (done.returncode, done.stderr) == (0, "")
            assert nothing_left(mounter, mountpoint)
            sleeper.kill()
        assert (driver.communicate(timeout=15)[1], driver.returncode) == ("", 0)


def test_unmount_while_somebody_stands_in_it_and_the_driver_hangs(mounter: Mounter) -> None:
    mountpoint = mounter()
    (driver,) = drivers(mountpoint)
    with subprocess.Popen(["sleep", "60"], cwd=mountpoint / "train") as sleeper:
        os.kill(driver, signal.SIGSTOP)
        try:
            assert not is_dead(mountpoint, patience=0.2)
            done = mounter.run("umount", str(mountpoint))
        finally:
            os.kill(driver, signal.SIGCONT)
        assert done.returncode == 6 and f"runs on: kill -9 {driver}" in done.stderr
        assert not is_mounted(mountpoint)
        # It was told to end, and does so when it can.
        until(lambda: nothing_left(mounter, mountpoint))
        sleeper.kill()


def test_a_link_and_a_relative_path_name_the_same_mount(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mounter.folder / "a place, for ü"
    folder.mkdir()
    (mounter.folder / "link").symlink_to(folder.name)
    monkeypatch.chdir(mounter.folder)
    flags = [*mounter.flags, "--cache-dir", "cache"]
    for first, second in (("link", folder.name), (f"{folder.name}/", "link/")):
        assert mounter.run("mount", *flags, first).returncode == 0
        assert is_mounted(folder) and (folder / "train").is_dir()
        again = mounter.run("mount", *flags, second)
        assert again.returncode == 6 and "mounted already" in again.stderr
        done = mounter.run("umount", second)
        assert (done.returncode, done.stderr) == (0, "")
        assert not is_mounted(folder)


@pytest.mark.parametrize("how", ["signal", "umount"])
def test_it_may_end_while_the_kernel_is_told_to_forget(
    mounter: Mounter, tmp_path: Path, how: str
) -> None:
    """libfuse frees what it keeps of a mount when that ends, whoever still uses it."""
    scratch = tmp_path / "scratch"
    for number in range(400):
        (scratch / f"train/1/{number}").mkdir(parents=True)
        (scratch / f"train/1/{number}/file").touch()
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08):
        mountpoint = mounter(f"--scratch={scratch}")
        (driver,) = drivers(mountpoint)
        # As another mount would: all that is saved must be forgotten.
        with suppress(BlockingIOError):
            os.close(os.open(scratch / ".bffs/mounts", os.O_RDWR | os.O_NONBLOCK))
        time.sleep(delay)
        if how == "signal":
            os.kill(driver, signal.SIGTERM)
        else:
            subprocess.run(["fusermount3", "-u", mountpoint], check=True)
        until(partial(nothing_left, mounter, mountpoint))


# -- signals ----------------------------------------------------------------------------------------------------


SAID = 1 if passthrough.why_not() else 2
"""Lines that a mount says: where scratch is, and that the kernel reads by itself."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_foreground_mount(mounter: Mounter, number: signal.Signals) -> None:
    mountpoint = mounter.folder / "mnt"
    with mounter.start(mountpoint, "-f") as driver:
        until(lambda: is_mounted(mountpoint))
        assert (mountpoint / "train" / FIRST).stat().st_size == OBJECTS[FIRST]
        assert driver.poll() is None
        driver.send_signal(number)
        said, complaints = driver.communicate(timeout=15)
        assert (len(said.splitlines()), complaints) == (SAID, "")
        assert driver.returncode == 0
    assert nothing_left(mounter, mountpoint)


def test_unmounting_ends_a_foreground_mount(mounter: Mounter) -> None:
    mountpoint = mounter.folder / "mnt"
    with mounter.start(mountpoint, "-f") as driver:
        until(lambda: is_mounted(mountpoint))
        assert mounter.run("umount", str(mountpoint)).returncode == 0
        said, complaints = driver.communicate(timeout=15)
        assert said.startswith(f"what is saved in {mountpoint} is kept in {mounter.folder}/")
        assert len(said.splitlines()) == SAID and complaints == ""
        assert driver.returncode == 0


def test_a_driver_that_is_killed_before_it_is_ready_is_not_kept_secret(
    mounter: Mounter, server: S3Server
) -> None:
    server.reset()
    server.fault("stall", value=20, kind="list", key="1/")
    mountpoint = mounter.folder / "mnt"
    with mounter.start(mountpoint) as command:
        until(lambda: server.stats()["requests"].get("list", 0) == 3)  # both roots, and 1/
        (driver,) = set(drivers(mountpoint)) - {command.pid}
        os.kill(driver, signal.SIGKILL)
        complaint = "bffs: the driver ended before it was ready: Killed\n"
        assert command.communicate(timeout=15) == ("", complaint)
        assert command.returncode == 1


@pytest.mark.parametrize("where", [("-f",), ()], ids=["foreground", "background"])
def test_ctrl_c_during_the_listing(
    mounter: Mounter, server: S3Server, where: tuple[str, ...]
) -> None:
    server.reset()
    server.fault("stall", value=20, kind="list", key="1/")
    mountpoint = mounter.folder / "mnt"
    with mounter.start(mountpoint, *where) as command:
        until(lambda: server.stats()["requests"].get("list", 0) == 3)  # both roots, and 1/
        os.killpg(command.pid, signal.SIGINT)  # as the terminal does
        assert command.communicate(timeout=15) == ("", "")
        assert command.returncode == 130
    until(lambda: nothing_left(mounter, mountpoint))


def test_signals_at_any_moment_of_the_start_end_it(mounter: Mounter, server: S3Server) -> None:
    """Before, while and after it is mounted: whether it ends and leaves nothing, not with which code."""
    server.shape(latency=0.01)
    commands = []
    for number in range(8):
        mountpoint = mounter.folder / f"mnt{number}"
        command = mounter.start(mountpoint, "-f")
        threading.Timer(0.5 + 0.12 * number, command.send_signal, [signal.SIGTERM]).start()
        commands.append((mountpoint, command))
    for mountpoint, command in commands:
        with command:
            _, said = command.communicate(timeout=15)
            assert "Traceback" not in said
        assert not is_mounted(mountpoint)


# -- crashes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def crashed(mounter: Mounter) -> Path:
    """A mountpoint whose driver was killed."""
    mountpoint = mounter()
    (mountpoint / "train").stat()  # which the kernel remembers
    kill(mountpoint)
    with pytest.raises(OSError, match="not connected"):
        next(mountpoint.iterdir())
    return mountpoint


def test_umount_after_a_crash(mounter: Mounter, crashed: Path) -> None:
    done = mounter.run("umount", str(crashed))
    assert (done.returncode, done.stderr) == (0, "")
    assert nothing_left(mounter, crashed)


def test_mount_after_a_crash(mounter: Mounter, crashed: Path) -> None:
    cache = f"--cache-dir={mounter.folder / 'cache'}"
    done = mounter.run("mount", *mounter.flags, cache, str(crashed))
    assert (done.returncode, done.stderr) == (0, "")
    path = crashed / "train" / FIRST
    assert path.read_bytes() == pattern(FIRST, 0, OBJECTS[FIRST])


def test_what_was_cached_before_a_crash_is_right(mounter: Mounter, server: S3Server) -> None:
    mountpoint = mounter()
    server.reset()
    server.shape(total=20e6)
    reader = subprocess.Popen(
        ["sh", "-c", f"cat {mountpoint}/train/1/*"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with reader:
        until(lambda: server.stats()["sent"].get("get", 0) > 10_000_000)
        kill(mountpoint)
    server.shape()
    mountpoint = mounter()
    for key, size in OBJECTS.items():
        assert (mountpoint / "train" / key).read_bytes() == pattern(key, 0, size)


# -- two at once ------------------------------------------------------------------------------------------------


def test_of_two_mounts_at_one_place_one_is_refused(mounter: Mounter, server: S3Server) -> None:
    server.shape(latency=0.3)
    mountpoint = mounter.folder / "mnt"
    commands = [mounter.start(mountpoint) for _ in range(2)]
    said = [command.communicate(timeout=20)[1] for command in commands]
    assert sorted(command.returncode for command in commands) == [0, 6], said
    assert len("".join(said).splitlines()) == 1
    mounts = Path("/proc/self/mountinfo").read_text().count(f" {mountpoint} ")
    assert mounts == 1 and len(drivers(mountpoint)) == 1


def test_two_mounts_share_a_cache(mounter: Mounter, server: S3Server) -> None:
    first, second = mounter(), mounter()
    (first / "train" / FIRST).read_bytes()
    (first / "train/1/a-0002.tif").read_bytes()
    assert mounter.run("umount", str(first)).returncode == 0  # which writes what is pending
    server.reset()
    assert (second / "train" / FIRST).read_bytes() == pattern(FIRST, 0, OBJECTS[FIRST])
    assert [get for get in server.log() if get.key == FIRST] == []


# -- logs and secrets -------------------------------------------------------------------------------------------


def test_the_log_is_private_and_holds_no_secret(mounter: Mounter, server: S3Server) -> None:
    mountpoint = mounter("-vv", env={"AWS_SECRET_ACCESS_KEY": SECRET})
    server.fault("status", value=503, kind="get", times=2)
    assert (mountpoint / "train" / FIRST).read_bytes() == pattern(FIRST, 0, OBJECTS[FIRST])
    log = mounter.folder / ".local/state/bffs/log/bffs.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "trying again" in (text := log.read_text())
    (driver,) = drivers(mountpoint)
    assert SECRET not in text
    assert SECRET.encode() not in Path(f"/proc/{driver}/cmdline").read_bytes()


def test_a_log_file_of_ones_own(mounter: Mounter) -> None:
    log = mounter.folder / "own.log"
    mountpoint = mounter("--log-file", str(log))
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert not (mounter.folder / ".local/state").exists()
    assert (mountpoint / "train").is_dir()


def test_a_daemon_keeps_nothing_of_its_terminal(mounter: Mounter) -> None:
    """`run` has read its output to the end: the driver has closed it. Nor does it keep the folder it began in."""
    mountpoint = mounter()
    (driver,) = drivers(mountpoint)
    assert {os.readlink(f"/proc/{driver}/fd/{fd}") for fd in range(3)} == {os.devnull}
    assert os.getsid(driver) != os.getsid(0)
    assert os.readlink(f"/proc/{driver}/cwd") == "/"


def test_a_terminal_sees_the_listing(mounter: Mounter, server: S3Server) -> None:
    server.shape(latency=0.3)
    terminal, end = os.openpty()
    mountpoint = mounter.folder / "mnt"
    with mounter.start(mountpoint, stderr=end) as command:
        os.close(end)
        said = b""
        while b"keys" not in said:
            said += os.read(terminal, 1000)
        assert command.wait(20) == 0
    os.close(terminal)
    assert re.search(rb"listing.* keys", said)
    assert is_mounted(mountpoint)
