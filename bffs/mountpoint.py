"""Mountpoints: what is mounted where, whether a folder may become one, and unmounting, also after a
crash.

Only `/proc/self/mountinfo` is asked about mounts, never the mounts themselves: a dead one answers
nothing but ENOTCONN, a busy one perhaps nothing at all.

A driver holds a lock on a small file named after its mountpoint in the user's runtime folder, with
its process id in it, so that `unmount` can wait until the driver has gone. The kernel drops the
lock with the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from bffs.asking import PATIENCE, ask
from bffs.errors import MountError
from bffs.private import own_folder

FILE_SYSTEM = "fuse.bffs"
FUSE_CONF = Path("/etc/fuse.conf")

READ_AHEAD_KB = 1024
"""Kernel readahead of a mount; requests are 1 MiB with it, 128 KiB without, at twice the CPU
time."""

PLANE_READ_AHEAD_KB = 384
"""That of files of which planes are looked at, see `kernelahead`: the kernel reads no more than 0.75 MiB past one.
Reading all of such a file in order is as quick as with 1024 while it is fetched, and takes 20 % more CPU time from
the disk cache."""

UNMOUNT_WAIT = 5.0
"""Seconds that an unmounted driver has to end once told to; before, a fifth to do so by itself."""


_GONE = tuple(map(os.strerror, (errno.ENOTCONN, errno.ECONNABORTED)))


class Mount(NamedTuple):
    """A line of mountinfo: where, of which type, and its device number (`major:minor`)."""

    mountpoint: Path
    file_system: str
    device: str

    @property
    def readahead(self) -> Path:
        """The file with the kernel readahead of all that is read there, in KiB."""
        return Path(f"/sys/class/bdi/{self.device}/read_ahead_kb")


def mounts() -> Iterator[Mount]:
    """All mounts, the topmost last (proc_pid_mountinfo(5))."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        device, _, mountpoint = fields.split(" ")[2:5]
        unescaped = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mountpoint)
        yield Mount(Path(unescaped), rest.split(" ")[0], device)


def mount_at(mountpoint: Path) -> Mount | None:
    """The topmost mount at an absolute path."""
    found = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def normalize(mountpoint: Path) -> Path:
    """An absolute path without links, without touching what is mounted at its end."""
    absolute = os.path.abspath(mountpoint)
    path = Path(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    return path if mount_at(path) is not None else Path(os.path.realpath(path))


def check(mountpoint: Path, *, allow_other: bool) -> None:
    """Make sure that a mount at `mountpoint` can work; a dead mount of ours there is removed first.

    Raises MountError saying what to do.
    """
    if not os.path.exists("/dev/fuse"):
        raise MountError("/dev/fuse is missing: modprobe fuse, or start the container with it")
    if os.geteuid() != 0:
        if shutil.which("fusermount3") is None and shutil.which("fusermount") is None:
            raise MountError(
                "fusermount3 is missing: apt install fuse3 (or your system's equivalent)"
            )
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise MountError("/dev/fuse may not be used by this user: as root, chmod 666 /dev/fuse")
        if allow_other and not are_others_allowed():
            raise MountError("--allow-other needs the line user_allow_other in /etc/fuse.conf")
    existing = mount_at(mountpoint)
    if existing is not None and existing.file_system == FILE_SYSTEM:
        if not is_dead(mountpoint):
            raise MountError(f"{mountpoint} is mounted already; `bffs umount {mountpoint}` first")
        unmount(mountpoint)
    check_folder(mountpoint)


def check_folder(mountpoint: Path) -> None:
    """Make sure that `mountpoint`, where nothing is mounted, is a folder to mount on. Raises MountError."""
    try:
        if not mountpoint.is_dir():
            what = (
                "is not a folder"
                if mountpoint.exists()
                else f"does not exist; mkdir -p {mountpoint}"
            )
            raise MountError(f"{mountpoint} {what}")
        if any(mountpoint.iterdir()):
            raise MountError(
                f"{mountpoint} is not empty; its files would be hidden: use an empty folder"
            )
        if os.geteuid() != 0 and not os.access(mountpoint, os.W_OK):
            raise MountError(f"{mountpoint} can't be mounted on: this user may not write to it")
    except OSError as error:
        raise MountError(f"{mountpoint} can't be used: {error.strerror}") from error


def is_dead(mountpoint: Path, patience: float = PATIENCE) -> bool:
    """Whether the driver of the mount there has gone without unmounting; not if it only doesn't answer within
    `patience` seconds."""
    # Without -f it would be answered from what the kernel remembers.
    said = ask(["stat", "-f", "--", str(mountpoint)], patience)
    return said is not None and said.stderr.decode().rstrip().endswith(_GONE)


def unmount(mountpoint: Path) -> None:
    """Unmount a mount of ours, dead or alive, and wait for its driver to end. Raises MountError.

    One that is in use is detached all the same, and its driver told to end: reads in progress fail,
    nothing is lost.
    """
    existing = mount_at(mountpoint)
    if existing is None:
        raise MountError(f"nothing is mounted at {mountpoint}")
    if existing.file_system != FILE_SYSTEM:
        raise MountError(
            f"{mountpoint} is a mount of {existing.file_system}, not of bffs; umount {mountpoint}"
        )
    lock = _open_lock(mountpoint, os.O_RDWR)  # before the driver removes it
    try:
        in_use = not _run_unmount(mountpoint, lazy=False)
        # A driver that is told to end detaches what is in use by itself; after somebody else has, libfuse complains.
        has_ended = lock is None or _await_end(lock, 0.0 if in_use else UNMOUNT_WAIT / 5)
        if (
            in_use
            and mount_at(mountpoint) == existing
            and not _run_unmount(mountpoint, lazy=True)
            and mount_at(mountpoint) == existing
        ):
            raise MountError(f"{mountpoint} can't be unmounted: is it another user's?")
        if lock is not None:
            if not has_ended:
                pid = _written_in(lock)
                raise MountError(
                    f"{mountpoint} is unmounted, but its driver runs on: kill -9 {pid}"
                )
            _remove_lock(mountpoint, lock)
    finally:
        if lock is not None:
            os.close(lock)


def driver_at(mountpoint: Path) -> int | None:
    """The process id of the driver of a mount of this user, as it has written it down."""
    lock = _open_lock(mountpoint, os.O_RDONLY)
    if lock is None:
        return None
    try:
        return _written_in(lock)
    finally:
        os.close(lock)


def _written_in(lock: int) -> int | None:
    return int(os.pread(lock, 20, 0) or 0) or None


def _await_end(lock: int, patience: float) -> bool:
    """Wait for the driver that holds `lock` to end, and tell it to after `patience` seconds; whether it has."""
    if _take(lock, patience):
        return True
    pid = _written_in(lock)
    if pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
    return _take(lock, UNMOUNT_WAIT)


@contextmanager
def driver_of(mountpoint: Path) -> Iterator[None]:
    """Be the driver of `mountpoint`, as `unmount` wants to know it. Raises MountError if another
    process is.

    The lock outlives the context: it is dropped when the process ends.
    """
    lock = _open_lock(mountpoint, os.O_RDWR | os.O_CREAT)
    if lock is None:
        yield
        return
    if not _take(lock, UNMOUNT_WAIT / 5):
        raise MountError(
            f"{mountpoint} is being mounted or unmounted by another process; try again later"
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    try:
        yield
    finally:
        _remove_lock(mountpoint, lock)


def _lock_file(mountpoint: Path) -> Path:
    return _runtime_folder() / f"{xxhash.xxh3_64_hexdigest(os.fsencode(mountpoint))}.pid"


def _open_lock(mountpoint: Path, flags: int) -> int | None:
    """The lock file of a mountpoint's driver, opened; None where there is none or can't be."""
    path = _lock_file(mountpoint)
    with suppress(OSError):
        if flags & os.O_CREAT:
            own_folder(path.parent)
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return None


def _remove_lock(mountpoint: Path, lock: int) -> None:
    """Delete the lock file while its lock is held, unless another has taken its place."""
    path = _lock_file(mountpoint)
    with suppress(OSError):
        if os.path.samestat(path.lstat(), os.fstat(lock)):
            path.unlink()


def _take(lock: int, seconds: float) -> bool:
    """Lock an open file as soon as nobody else does; whether that was within `seconds`."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > end:
                return False
        time.sleep(0.02)


def _runtime_folder() -> Path:
    if "XDG_RUNTIME_DIR" in os.environ:
        return Path(os.environ["XDG_RUNTIME_DIR"]) / "bffs"
    return Path(tempfile.gettempdir()) / f"bffs-{os.getuid()}"


def _run_unmount(mountpoint: Path, *, lazy: bool) -> bool:
    """Run the system's unmount command; whether it succeeded."""
    if os.geteuid() == 0:
        # -c: it would ask the driver about the path, which may not answer.
        command = ["umount", "-c", *(["-l"] if lazy else []), str(mountpoint)]
    else:
        program = shutil.which("fusermount3") or "fusermount"
        command = [program, "-u", *(["-z"] if lazy else []), str(mountpoint)]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def are_others_allowed() -> bool:
    """Whether ordinary users may let others into their mounts."""
    with suppress(OSError):
        lines = FUSE_CONF.read_text().splitlines()
        return any(line.strip() == "user_allow_other" for line in lines)
    return False
