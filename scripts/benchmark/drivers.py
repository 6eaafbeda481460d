"""bffs and its peers: how each is started, which process it is, what it costs; and how it is
ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60
STOP_SECONDS = 15


class Site(NamedTuple):
    """What a driver has to know: where the store is, and its own fresh folders. `memory` in bytes,
    for bffs."""

    endpoint_url: str
    bucket: str
    cache: Path
    mountpoint: Path
    memory: int


class Driver(NamedTuple):
    """One way to mount the bucket. `command` stays in the foreground; `folder` is where the keys
    begin."""

    name: str
    program: str
    command: Callable[[Site], list[str]]
    folder: str = ""


def _bffs(site: Site) -> list[str]:
    return [
        *(sys.executable, "-m", "bffs", "mount", "-f"),
        *("--endpoint-url", site.endpoint_url, "--bucket", site.bucket, "--no-sign-request"),
        *("--cache-dir", str(site.cache), "--memory", str(site.memory), str(site.mountpoint)),
    ]


def _rclone(*more: str) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        return [
            *(_find("rclone") or "rclone", "mount", f":s3:{site.bucket}", str(site.mountpoint)),
            *("--config", "", "--s3-provider", "Other", "--s3-endpoint", site.endpoint_url),
            *("--read-only", "--vfs-cache-mode", "full", "--cache-dir", str(site.cache)),
            *more,
        ]

    return command


def _s3fs(site: Site) -> list[str]:
    options = f"url={site.endpoint_url},use_path_request_style,public_bucket=1,ro"
    cache = f"use_cache={site.cache},parallel_count=16,max_stat_cache_size=100000"
    return ["s3fs", site.bucket, str(site.mountpoint), "-f", "-o", f"{options},{cache}"]


def _mountpoint(site: Site) -> list[str]:
    return [
        *("mount-s3", site.bucket, str(site.mountpoint), "--foreground", "--read-only"),
        *("--endpoint-url", site.endpoint_url, "--force-path-style", "--no-sign-request"),
        *("--region", "us-east-1", "--cache", str(site.cache)),
    ]


def _geesefs(site: Site) -> list[str]:
    return [
        *("geesefs", "-f", "--endpoint", site.endpoint_url, "--cache", str(site.cache)),
        *("-o", "ro", site.bucket, str(site.mountpoint)),
    ]


def _goofys(site: Site) -> list[str]:
    return [
        *("goofys", "-f", "--endpoint", site.endpoint_url, "-o", "ro"),
        *(site.bucket, str(site.mountpoint)),
    ]


BFFS = "bffs"
CEILING = "ceiling"
DRIVERS = (
    Driver(BFFS, sys.executable, _bffs, folder="train"),
    Driver("rclone", "rclone", _rclone()),
    Driver(
        "rclone-tuned",
        "rclone",
        _rclone(
            *("--vfs-read-chunk-streams", "16", "--vfs-read-chunk-size", "4M"),
            *("--vfs-read-ahead", "128M", "--use-server-modtime"),
        ),
    ),
    Driver("s3fs", "s3fs", _s3fs),
    Driver("mount-s3", "mount-s3", _mountpoint),
    Driver("geesefs", "geesefs", _geesefs),
    Driver("goofys", "goofys", _goofys),
)


def _find(program: str) -> str | None:
    """The program's path: beside this Python (a wheel can bring it), or on the PATH."""
    beside = Path(sys.executable).parent
    return shutil.which(program, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")


def installed() -> list[Driver]:
    """The drivers that can be run here."""
    return [driver for driver in DRIVERS if _find(driver.program)]


class DriverError(Exception):
    """A driver that did not mount; the message has the end of what it said."""


class Mounted:
    """A driver at work. Its processes are those of the session that it was started in."""

    def __init__(self, session: int, mountpoint: Path, root: Path) -> None:
        self._session, self.mountpoint, self.root = session, mountpoint, root

    def cpu_seconds(self) -> float:
        """CPU time of all its processes and their threads so far."""
        return sum(cpu_seconds(pid) for pid in self._pids())

    def peak_memory(self) -> int:
        """Most memory that its processes have had resident, in bytes."""
        return sum(_peak_resident(pid) for pid in self._pids())

    def _pids(self) -> Iterator[int]:
        for entry in Path("/proc").iterdir():
            fields = _stat(int(entry.name)) if entry.name.isdecimal() else []
            if fields and int(fields[3]) == self._session:
                yield int(entry.name)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its threads, also of those that have ended; 0 if it has gone.

    By clock_getcpuclockid(3), which Python lacks: /proc counts in steps of 10 ms.
    """
    with suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)
    return 0.0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, the state first; none when the process has
    gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _peak_resident(pid: int) -> int:
    with suppress(OSError):
        if match := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return int(match[1]) * 1024
    return 0


@contextmanager
def mounted(driver: Driver, site: Site, probe: str, log: Path) -> Iterator[Mounted]:
    """The driver, mounted: the key `probe` can be seen. Ends the driver and its mount whatever
    happens.

    Raises DriverError.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(site.cache.parent)}
    for name in [*environment]:
        if name.startswith(("AWS_", "BFFS_", "XDG_", "RCLONE_")):
            del environment[name]
    if driver.name in ("geesefs", "goofys"):
        environment |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    root = site.mountpoint / driver.folder
    with log.open("wb") as output:
        process = subprocess.Popen(
            driver.command(site),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        _wait_until_seen(process, site.mountpoint, root / probe, driver.name, log)
        yield Mounted(process.pid, site.mountpoint, root)
    finally:
        _unmount(site.mountpoint)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _unmount(site.mountpoint)


def _wait_until_seen(
    process: subprocess.Popen[bytes], mountpoint: Path, file: Path, name: str, log: Path
) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        # `ls` is a process of its own, so that a mount that hangs can't hang the benchmark.
        if _is_mounted(mountpoint) and not _run("ls", str(file)):
            return
        time.sleep(0.05)
    said = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise DriverError(f"{name} did not mount: {' | '.join(said) or 'it said nothing'}")


def _is_mounted(mountpoint: Path) -> bool:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(mountpoint) for line in lines)


def _unmount(mountpoint: Path) -> None:
    """Unmount, gently and then not."""
    for command in (
        ["fusermount3", "-u"],
        ["fusermount", "-u"],
        ["fusermount3", "-uz"],
        ["umount", "-l"],
    ):
        if not _is_mounted(mountpoint):
            return
        _run(*command, str(mountpoint))


def _run(*command: str) -> int:
    """Exit status of a short command; -1 if it is missing or takes more than 10 seconds."""
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return -1
