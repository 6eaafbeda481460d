"""The demo: a small made-up dataset of the real shape, on an S3 server of its own, mounted until Ctrl-C.

Three processes, because nothing may serve and use a mount at once: this one draws and uploads, then waits;
`python -m bffs.demo` is the server (moto's), which ends when its standard input does and so never outlives this one;
`bffs mount` is the driver. Both are in sessions of their own, so that Ctrl-C reaches this process alone, which stops
them in order.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bffs import mountpoint as mountpoints
from bffs.errors import BffsError, MountError
from bffs.options import DEFAULT_DATASET
from bffs.units import format_size

BUCKET = "bffs-demo"
TEST_FOLDER = "TEST_DATA_SET/"

MOUNT_WAIT = 60.0
"""Seconds that the driver has until the mount is there."""

STOP_WAIT = 15.0
"""Seconds that a process has to end when told to."""

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Neuron(NamedTuple):
    """A specimen of the dataset; `share` is how many of the largest stack's slices it has."""

    id: str
    stem: str
    first: int
    share: float
    train: bool
    test: bool


_NEURONS = (
    _Neuron("900000001", "reconstruction_0_0539000001_600000001", 1, 1, train=True, test=False),
    _Neuron("900000002", "reconstruction_0_0539000002_600000002", 7, 2 / 3, train=True, test=False),
    _Neuron("900000003", "reconstruction_0_0539000003_600000003", 1, 1 / 2, train=True, test=True),
    _Neuron("900000004", "reconstruction_0_0539000004_600000004", 1, 2 / 3, train=False, test=True),
)
"""As in the real dataset, one series starts later, one id is in both sets, and only training data has tracings."""


def dataset(width: int = 1000, height: int = 800, slices: int = 24) -> Iterator[tuple[str, bytes]]:
    """Keys and contents of all objects; `slices` is the number of the largest stack. The same at every call."""
    from bffs import drawing

    yield TEST_FOLDER, b""
    for seed, neuron in enumerate(_NEURONS, 1):
        count = max(2, round(slices * neuron.share))
        nodes = drawing.grow(seed, width, height, count)
        folders = [f"{neuron.id}/"] * neuron.train + [f"{TEST_FOLDER}{neuron.id}/"] * neuron.test
        for folder in folders:
            yield folder, b""
        if neuron.train:
            yield f"{folders[0]}{neuron.id}.swc", drawing.swc(nodes, neuron.first).encode()
        pictures = drawing.stack(nodes, seed, width, height, count)
        for number, picture in enumerate(pictures, neuron.first):
            content = _tiff(picture)
            for folder in folders:
                yield f"{folder}{neuron.stem}-{number:04}.tif", content


def _tiff(picture: Any) -> bytes:
    """One uncompressed page in one strip, like the published slices."""
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, picture, photometric="minisblack", metadata=None)
    return file.getvalue()


# -- the server -------------------------------------------------------------------------------------------------


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 server without any bucket on a free port of 127.0.0.1, in a process of its own; yields its URL.

    Raises BffsError where moto is missing or does not start.
    """
    if not all(find_spec(module) for module in ("moto", "flask", "flask_cors")):
        raise BffsError("the demo needs moto: pip install 'bffs[demo]'")
    server = subprocess.Popen(
        [sys.executable, "-m", "bffs.demo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
        start_new_session=True,
    )
    try:
        assert server.stdin is not None
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        if not url:
            raise BffsError(f"moto's S3 server did not start (exit code {server.wait()})")
        yield url
    finally:
        server.communicate()  # closes its standard input


def _serve() -> None:
    """Be the server: the first line of standard output is its URL; ends with standard input."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or it logs every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()


def upload(url: str, objects: Iterable[tuple[str, bytes]]) -> list[int]:
    """Make the bucket and put all objects into it, to be read without credentials; returns their sizes."""
    from urllib.parse import quote
    from urllib.request import ProxyHandler, Request, build_opener

    direct = build_opener(ProxyHandler({}))
    headers = {"x-amz-acl": "public-read", "Content-Type": "application/octet-stream"}

    def put(path: str, content: bytes) -> int:
        request = Request(f"{url}/{quote(path)}", content, headers, method="PUT")
        direct.open(request).close()
        return len(content)

    put(BUCKET, b"")
    return [put(f"{BUCKET}/{key}", content) for key, content in objects]


# -- the mount --------------------------------------------------------------------------------------------------


def run_demo(mountpoint: Path | None) -> int:
    """Mount the made-up dataset, at a temporary folder unless told where, until Ctrl-C or SIGTERM; then leave no trace.

    Returns the exit code: 0 after such a stop or an unmount, the driver's where it failed. Raises BffsError.
    """
    with ExitStack() as stack:
        stack.enter_context(_stopped_by_signals())
        temporary = TemporaryDirectory(prefix="bffs-demo-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(temporary))
        mountpoint = mountpoints.normalize(mountpoint or folder / "mnt")
        stack.enter_context(_folder(mountpoint))
        mountpoints.check(mountpoint, allow_other=False)
        _say("Drawing neurons and uploading them to an S3 server on this machine ...")
        url = stack.enter_context(s3_server())
        sizes = upload(url, dataset())
        driver = stack.enter_context(_driver(mountpoint, url, folder))
        _await_mount(driver, mountpoint)
        with suppress(KeyboardInterrupt):
            if driver.returncode is None:
                _say(_what_to_try(mountpoint, url, folder, sum(sizes)))
            driver.wait()
            return max(driver.returncode, 1) if driver.returncode else 0
        _say("Unmounting ...")
    return 0


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """The first signal to stop interrupts; those that follow don't interrupt the cleaning up."""

    def stop(*_: object) -> None:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """A folder that is removed at the end if it was made here. Raises MountError."""
    try:
        folder.mkdir()
    except FileExistsError:
        yield
        return
    except OSError as error:
        raise MountError(f"{folder} can't be made: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _driver(mountpoint: Path, url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`bffs mount` in the foreground as a process that keeps all in `folder`; stopped and unmounted at the end."""
    command = [sys.executable, "-m", "bffs", "mount", "--foreground", "--dataset", DEFAULT_DATASET]
    kept = ["--cache-dir", str(folder / "cache"), "--scratch", str(folder / "scratch")]
    place = [*_location(url), *kept, str(mountpoint)]
    driver = subprocess.Popen(
        [*command, *place], stdin=subprocess.DEVNULL, env=_environment(), start_new_session=True
    )
    try:
        yield driver
    finally:
        driver.terminate()
        try:
            driver.wait(STOP_WAIT)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
        if _is_mounted(mountpoint):
            mountpoints.unmount(mountpoint)


def _await_mount(driver: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """Return when the mount is there, or the driver has ended. Raises MountError when it takes too long."""
    end = time.monotonic() + MOUNT_WAIT
    while driver.poll() is None and not _is_mounted(mountpoint):
        if time.monotonic() > end:
            raise MountError(f"nothing was mounted at {mountpoint} within {MOUNT_WAIT:.0f} s")
        time.sleep(0.05)


def _is_mounted(mountpoint: Path) -> bool:
    mount = mountpoints.mount_at(mountpoint)
    return mount is not None and mount.file_system == mountpoints.FILE_SYSTEM


def _environment() -> dict[str, str]:
    """This process's environment without the user's choices for other datasets, and no proxy on the way."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BFFS_"))}
    return kept | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def _location(url: str) -> list[str]:
    """The flags that name the dataset."""
    return ["--endpoint-url", url, "--bucket", BUCKET, "--no-sign-request"]


def _what_to_try(mountpoint: Path, url: str, kept: Path, size: int) -> str:
    first = _NEURONS[0]
    folder = mountpoint / "train" / first.id
    stack = mountpoint / "stacks" / "train" / first.id / f"{first.id}.imagej.tif"
    read = "import sys, tifffile; print(tifffile.imread(sys.argv[1]))"
    commands = [
        f"ls -lh {shlex.quote(str(folder))}",
        f"head {shlex.quote(str(folder / 'manifest.json'))}",
        shlex.join([sys.executable, "-c", read, str(folder / f"{first.stem}-0012.tif")]),
        shlex.join([*_bffs(), "ls", *_location(url)]),
        shlex.join([*_bffs(), "status", str(mountpoint)]),
    ]
    if find_spec("matplotlib"):
        cache = ["--cache-dir", str(kept / "cache")]
        for what, place in (("sizes", _location(url)), ("cache", [*_location(url), *cache])):
            picture = str(kept / f"{what}.png")
            commands.append(shlex.join([*_bffs(), "plot", what, "-o", picture, *place]))
    return f"""
Mounted at {mountpoint}: {format_size(size)} of slices and tracings, fetched as they are read.

Try in another terminal:

{"".join(f"  {command}{os.linesep}" for command in commands)}
or in Fiji, File > Import > Image Sequence..., the folder

  {folder}

or File > Import > TIFF Virtual Stack..., the same slices as one file

  {stack}

Ctrl-C here unmounts it and deletes everything.
"""


def _bffs() -> list[str]:
    """How this very bffs is called in a shell."""
    script = Path(sys.executable).with_name("bffs")
    if not script.exists():
        return [sys.executable, "-m", "bffs"]
    return ["bffs"] if shutil.which("bffs") == str(script) else [str(script)]


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    _serve()
