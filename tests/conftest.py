"""Fixtures for all tests: a clean environment without a network, an S3 server with neurons, real mounts of it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import boto3
import hypothesis
import pytest

from bffs import demo
from bffs.mountpoint import mount_at
from bffs.settings import Dataset
from tests.s3server import S3Server

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

ROOT = Path(__file__).parents[1]

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "local", deadline=None
)  # others may be using this machine, too
hypothesis.settings.load_profile("ci" if "CI" in os.environ else "local")

DATASET = Dataset(name="d", endpoint_url="http://s3.test", region="r", bucket="b")
"""Where it doesn't matter."""

Binding = Literal["libfuse3", "libfuse2", "fusepy"]

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
"""The server accepts any, for objects that may not be read without."""

DRIVER_WAIT = 10.0
"""Seconds that a driver may take to be gone after `bffs umount` has returned."""

_FOREIGN = ("AWS_", "BFFS_", "FUSE_", "MOTO_", "XDG_")
_LOOPBACK = ("localhost", "::1", "")


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without what would change how bffs behaves, and with this checkout to import from."""
    kept = {name: value for name, value in environ.items() if not _is_foreign(name)}
    return kept | {"PYTHONPATH": str(ROOT)}


def _is_foreign(name: str) -> bool:
    return name.startswith(_FOREIGN) or name.lower().endswith("_proxy")


# -- isolation --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nobody's settings, credentials or home, and nothing but loopback to connect to."""
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(_is_foreign, list(os.environ)):
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", _resolve_loopback(socket.getaddrinfo))
        yield


def _is_loopback(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return name is None or (
        isinstance(name, str) and (name in _LOOPBACK or name.startswith("127."))
    )


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and not _is_loopback(address[0]):
            raise AssertionError(f"a test may connect to loopback only, not to {address}")
        return connect(self, address)

    return guarded


def _resolve_loopback(getaddrinfo: Callable[..., Any]) -> Callable[..., Any]:
    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_loopback(host):  # the answer without a network
            raise socket.gaierror(socket.EAI_AGAIN, f"{host}: tests have no name server")
        return getaddrinfo(host, *args, **kwargs)

    return resolve


# -- the server -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """A bucket on a local S3 server; a test that puts or deletes objects restores what was there."""

    endpoint_url: str
    bucket: str
    client: S3Client
    objects: Mapping[str, bytes]
    """What the bucket holds, unless a test changes it."""

    env: Mapping[str, str]
    """Credentials that the server accepts."""

    @property
    def flags(self) -> list[str]:
        """Where it is, for the command line."""
        return ["--endpoint-url", self.endpoint_url, "--bucket", self.bucket]


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """The demo's dataset in small, on a server in a process of its own."""
    objects = dict(demo.dataset(width=250, height=200, slices=9))
    with demo.s3_server() as url:
        demo.upload(url, objects.items())
        session = boto3.Session("test", "test", region_name="us-east-1")
        client = session.client("s3", endpoint_url=url)
        yield Bucket(url, demo.BUCKET, client, objects, CREDENTIALS)


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Server]:
    """A server that can be slow, fail and go away; it holds the `OBJECTS` of the test's module, and its `FILES`:
    their ETags are MD5s."""
    root = None
    for key, content in getattr(request.module, "FILES", {}).items():
        root = root or tmp_path_factory.mktemp("bucket")
        (root / key).parent.mkdir(exist_ok=True)
        (root / key).write_bytes(content)
    with S3Server(getattr(request.module, "OBJECTS", {}), root=root, bucket="neurons") as server:
        yield server


# -- mounts -----------------------------------------------------------------------------------------------------


class Mounter:
    """Mounts a bucket with `bffs mount`, as often as called, and unmounts everything at the end."""

    def __init__(self, flags: Sequence[str], folder: Path) -> None:
        if not os.path.exists("/dev/fuse"):
            pytest.skip("there is no /dev/fuse on this machine")
        self.flags = flags
        self.folder = folder
        self._mounted: list[Path] = []

    def __call__(
        self, *args: str, env: Mapping[str, str] | None = None, binding: Binding = "libfuse3"
    ) -> Path:
        """Mount with further arguments and variables; returns the mountpoint once the tree is usable.

        Cache and home are this test's own and empty at first, the same for all its mounts.
        """
        mountpoint = self.folder / f"mnt{len(self._mounted)}"
        mountpoint.mkdir()
        self._mounted.append(mountpoint)
        self._mount(mountpoint, *args, env={**(env or {}), **self._binding(binding)})
        return mountpoint

    def _mount(self, mountpoint: Path, *args: str, env: Mapping[str, str]) -> None:
        cache = f"--cache-dir={self.folder / 'cache'}"
        done = self.run("mount", *self.flags, cache, *args, str(mountpoint), env=env)
        assert done.returncode == 0, done.stderr

    def crash(self, mountpoint: Path, *args: str, binding: Binding = "libfuse3") -> None:
        """Kill the driver, then mount there again."""
        kill(mountpoint)
        self._mount(mountpoint, *args, env=self._binding(binding))

    def run(
        self, *args: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run any `bffs` command in the same environment as the mounts; `prefix` is a command that
        runs commands."""
        return subprocess.run(
            [*prefix, sys.executable, "-m", "bffs", *args],
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=45,  # less than pytest allows a test, so that it can clean up
            check=False,
        )

    def start(self, mountpoint: Path, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Start a mount that the test itself waits for, in a process group of its own."""
        mountpoint.mkdir(exist_ok=True)
        self._mounted.append(mountpoint)
        cache = f"--cache-dir={self.folder / 'cache'}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-m", "bffs", "mount", *self.flags, cache, *args, str(mountpoint)],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            text=True,
            process_group=0,
            **(pipes | options),
        )

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of all commands, with `env` on top. Nothing is shown on a dumb terminal."""
        home = {"HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder), "TERM": "xterm"}
        return {**clean(os.environ), **CREDENTIALS, **home, **(env or {})}

    def close(self) -> None:
        """Unmount what is mounted still; every mount and every driver must be gone then, and none have died of a
        fault."""
        failures = faults(self.folder)
        for mountpoint in self._mounted:
            if mount_at(mountpoint) is not None:
                done = self.run("umount", str(mountpoint))
                if done.returncode:
                    failures.append(done.stderr)
            if mount_at(mountpoint) is not None:
                subprocess.run(["umount", "-l", str(mountpoint)], check=False)
                failures.append(f"{mountpoint} was still mounted")
            if left := _drivers_left(mountpoint):
                failures.append(f"processes {left} of {mountpoint} did not end")
        assert not failures, "\n".join(failures)

    def _binding(self, binding: Binding) -> dict[str, str]:
        """Variables that make the driver use that binding and library."""
        match binding:
            case "libfuse3":
                return {}
            case "libfuse2":
                return {"FUSE_LIBRARY_PATH": _library("libfuse.so.2")}
            case "fusepy":
                _library("libfuse.so.2")
                pytest.importorskip("fuse")
                hidden = self.folder / "hidden"
                hidden.mkdir(exist_ok=True)
                (hidden / "mfusepy.py").write_text("raise ImportError('hidden by a test')\n")
                return {"PYTHONPATH": f"{hidden}:{ROOT}"}


@pytest.fixture
def mounted(bucket: Bucket, tmp_path: Path) -> Iterator[Mounter]:
    """`mounted(...)` mounts the bucket and returns where."""
    mounter = Mounter(bucket.flags, tmp_path)
    yield mounter
    mounter.close()


@pytest.fixture
def mounter(server: S3Server, tmp_path: Path) -> Iterator[Mounter]:
    """`mounter(...)` mounts the bucket of the module's `server`, which is well again afterwards."""
    mounter = Mounter(flags_of(server), tmp_path)
    yield mounter
    try:
        server.reset()
        server.shape()
    finally:
        mounter.close()


def faults(home: Path) -> list[str]:
    """What drivers of that home have died of, as their log has it."""
    log = home / ".local/state/bffs/log/bffs.log"
    text = log.read_text() if log.exists() else ""
    return re.findall(r"^Fatal Python error:.*", text, re.MULTILINE | re.DOTALL)


def drivers(mountpoint: Path) -> list[int]:
    """The processes that have `mountpoint` on their command line."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):  # no process, or one that has just ended
            continue
        if os.fsencode(mountpoint) in words:
            found.append(int(process.name))
    return found


def kill(mountpoint: Path) -> None:
    """Kill the driver, and wait until the kernel has closed all that it held, so that the mount is dead. Before, while
    its last threads end, requests still come to it, and fail with any of three errors."""
    (driver,) = drivers(mountpoint)
    process = os.pidfd_open(driver)  # a command line is gone too soon: with the first thread
    try:
        os.kill(driver, signal.SIGKILL)
        ended, _, _ = select.select([process], [], [], DRIVER_WAIT)
    finally:
        os.close(process)
    assert ended, f"process {driver} of {mountpoint} did not end"


def _drivers_left(mountpoint: Path) -> list[int]:
    end = time.monotonic() + DRIVER_WAIT
    while (left := drivers(mountpoint)) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def _library(name: str) -> str:
    """The path of a shared library; skips the test where there is none."""
    import ctypes

    try:
        ctypes.CDLL(name)
    except OSError:
        pytest.skip(f"there is no {name} on this machine")
    return name


def until(condition: Callable[[], object], seconds: float = 15.0) -> float:
    """Wait until `condition` holds; the seconds that it took. Raises AssertionError after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


def status(mountpoint: Path) -> Any:
    """The live figures of a mount."""
    return json.loads((mountpoint / ".bffs/status.json").read_bytes())


def flags_of(server: S3Server) -> list[str]:
    """Where the bucket of a server that counts and fails is, for the command line."""
    return ["--endpoint-url", server.endpoint_url, "--bucket", server.bucket]


def flip(file: Path, offset: int, mask: int = 1) -> None:
    """Change the bits of `mask` in one byte."""
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ mask]))


def in_terminal(command: Sequence[str], env: Mapping[str, str]) -> str:
    """What a command writes to a terminal; it must succeed."""
    ours, theirs = os.openpty()
    with subprocess.Popen(command, env=env, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the other side is closed
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")
