"""Checks of the local disks: room and speed for the cache, a place for what is saved, memory.

What is written to measure is at most `PROBE` bytes, for `PROBE_TIME` seconds, in a file without a name.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from bffs import mountpoint as mountpoints
from bffs.advice import SPARE
from bffs.cache import DiskCache
from bffs.errors import BffsError
from bffs.findings import Finding, as_root, green, red, yellow
from bffs.index import spare
from bffs.private import is_own, is_own_dataset_folder, scratch_folder
from bffs.settings import Settings
from bffs.units import GIB, MIB, format_size, format_size_below

PROBE = 32 * MIB
PROBE_TIME = 0.5
_STEP = 4 * MIB

SLOW = 30 * MIB
"""Bytes a second below which a disk cache is slower than most links."""

LITTLE = GIB
"""Room below which a cache is of little use: some fifty slices."""

_KEPT_FREE = "a tenth of the disk, or 10G, is left free"
_ON_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "9p"})


def check(settings: Settings) -> Iterator[Finding]:
    """The cache, what is saved, and memory."""
    yield from _cache(settings)
    yield _scratch(settings)
    yield _memory(settings)


def _cache(settings: Settings) -> Iterator[Finding]:
    folder = settings.cache_dir
    if (fault := _unusable(folder)) is not None:
        yield red("cache folder", fault, _elsewhere(settings))
        return
    try:
        room = _room(settings)
    except (OSError, BffsError) as error:
        yield red("cache folder", f"{folder}: {error}", _elsewhere(settings))
        return
    kind = _file_system(folder)
    free = f"{format_size(max(0, room))} of room in {folder} ({kind})"
    figures = {"cache_room_bytes": float(max(0, room))}
    if room < LITTLE:
        yield red("cache room", f"{free}; {_KEPT_FREE}", _elsewhere(settings))._replace(
            figures=figures
        )
    elif room < settings.cache_size:
        fewer = f"--cache-size {format_size_below(room)}"
        seen = (
            f"{free}, less than the --cache-size {format_size(settings.cache_size)}; {_KEPT_FREE}"
        )
        yield yellow("cache room", seen, f"make room, or mount with {fewer}", **figures)
    else:
        yield green("cache room", free, **figures)
    if room >= LITTLE:
        yield _speed(folder, kind, settings)


def _speed(folder: Path, kind: str, settings: Settings) -> Finding:
    try:
        speed = _write_speed(_existing(folder))
    except OSError as error:
        return red("cache speed", f"{folder}: {error.strerror}", _elsewhere(settings))
    seen = f"{format_size(int(speed))}/s written"
    if speed < SLOW:
        return yellow(
            "cache speed", f"{seen}, which is slow", _elsewhere(settings), cache_write=speed
        )
    if kind in _ON_NETWORK:
        seen = f"{seen}; a disk of this machine is better than {kind}"
        return yellow("cache speed", seen, _elsewhere(settings), cache_write=speed)
    return green("cache speed", seen, cache_write=speed)


def _scratch(settings: Settings) -> Finding:
    name, folder = "saved files", scratch_folder(settings)
    fix = "bffs mount --read-only, or with --scratch and a folder of yours"
    if (fault := _unusable(folder)) is not None:
        return red(name, fault, fix)
    disk = os.statvfs(_existing(folder))
    free = disk.f_bavail * disk.f_frsize
    seen = f"{format_size(free)} free for {folder}"
    return green(name, seen) if free >= MIB else red(name, seen, fix)


def _memory(settings: Settings) -> Finding:
    name, free = "memory", _available()
    seen = f"{format_size(free)} available, --memory is {format_size(settings.memory)}"
    if free < SPARE * settings.memory:
        less = format_size_below(max(64 * MIB, free // 4))
        return yellow(name, seen, f"mount with --memory {less}", memory=free)
    return green(name, seen, memory=free)


def _available() -> int:
    """Bytes that programs can have, by the machine and by the control group."""
    free = 1 << 62
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    for group in _control_groups():
        for most, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with suppress(OSError, ValueError):  # not there, or "max"
                left = int((group / most).read_text()) - int((group / used).read_text())
                free = min(free, left + _reclaimable(group))
    return max(0, free)


def _control_groups() -> Iterator[Path]:
    """The groups whose memory limits hold for this process, as a batch system or a container sets
    them (cgroups(7))."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = Path("/sys/fs/cgroup") / controllers
            group = root / path.lstrip("/")
            yield from (group, *(parent for parent in group.parents if parent.is_relative_to(root)))


def _reclaimable(group: Path) -> int:
    """Bytes of a group that are but cached files."""
    for line in (group / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _unusable(folder: Path) -> str | None:
    """Why nothing can be kept in `folder`, or None."""
    try:
        if os.path.lexists(folder) and not is_own(folder, link=True):
            return f"{folder} is not a folder of this user"
        place = _existing(folder)
        if not os.path.isdir(place):
            return f"{place} is not a folder"
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            return f"{place} is on a read-only disk"
        if not os.access(place, os.W_OK | os.X_OK):
            return f"{place} may not be written to by this user"
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None


def _existing(folder: Path) -> Path:
    """`folder`, or the folder above that is there."""
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def _room(settings: Settings) -> int:
    """Bytes that the cache may hold, with what it holds. Raises OSError, BffsError."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if is_own_dataset_folder(settings.cache_dir, settings.dataset):
            cache = DiskCache(settings.cache_dir, settings.dataset, settings.cache_size)
            with closing(cache):
                account = cache.account()
                return account.stored + account.spare
    return spare(_existing(settings.cache_dir))


def _write_speed(folder: Path) -> float:
    """Bytes a second that reach the disk. Raises OSError."""
    data = os.urandom(_STEP)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        begin, done = time.monotonic(), 0
        while done < PROBE and time.monotonic() < begin + PROBE_TIME:
            done += file.write(data)
            os.fdatasync(file.fileno())
        return done / (time.monotonic() - begin)


def _file_system(path: Path) -> str:
    """The type of the file system that `path` is, or would be, on."""
    real = Path(os.path.realpath(_existing(path)))
    found = {each.mountpoint: each.file_system for each in mountpoints.mounts()}
    return next((found[place] for place in (real, *real.parents) if place in found), "?")


def _elsewhere(settings: Settings) -> str:
    """The command that puts the cache where there is most room."""
    best, room = None, LITTLE
    for place in _places():
        with suppress(OSError):
            usable = os.access(place, os.W_OK | os.X_OK) and _file_system(place) != "tmpfs"
            if usable and spare(place) > room:
                best, room = place, spare(place)
    if best is None:
        where = settings.cache_dir
        return f"make room: {as_root(f'du -xhd1 {_existing(where).anchor} | sort -h | tail')}"
    return f"export BFFS_CACHE_DIR={best / f'bffs-{os.geteuid()}'}"


def _places() -> Iterable[Path]:
    """Folders where a cache may be put, of disks of this machine."""
    yield from map(Path, ("/scratch", "/local", "/data", "/var/tmp", tempfile.gettempdir()))
    yield Path.home()
