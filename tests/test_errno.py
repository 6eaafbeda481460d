"""The errno table, every entry of it and what is not in it, through a real mount."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bffs.deadlines import AGAIN
from bffs.errors import to_errno
from tests.conftest import ROOT, Mounter, clean, flags_of
from tests.faulty_tree import FOREIGN, GOOD, OF_SYSTEM, OURS, make
from tests.s3server import S3Server, pattern


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A mount of `faulty_tree`, and its log."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse on this machine")
    folder = tmp_path_factory.mktemp("faulty")
    mountpoint, log = folder / "mnt", folder / "log"
    mountpoint.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.faulty_tree", str(mountpoint), str(log)],
        cwd=ROOT,
        env=clean(os.environ),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert driver.stdout is not None and driver.stdout.readline() == "ready\n"
        yield mountpoint, log
        assert (mountpoint / "good").read_bytes() == GOOD  # it lives on
        assert driver.poll() is None
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=False)
        driver.communicate(timeout=20)


CALLS: dict[str, Callable[[Path], object]] = {
    "getattr": lambda path: path.stat(),
    "open": lambda path: os.open(path, os.O_RDONLY),
    "read": lambda path: path.read_bytes(),
    "xattr": os.listxattr,
    "readdir": lambda path: list(path.iterdir()),
}


def errno_of(call: Callable[[Path], object], path: Path) -> int | None:
    """What a call fails with."""
    try:
        call(path)
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("name", [*OURS, *OF_SYSTEM, *FOREIGN])
@pytest.mark.parametrize("callback", CALLS)
def test_each_exception_is_its_errno_in_each_callback(
    mount: tuple[Path, Path], callback: str, name: str
) -> None:
    mountpoint, log = mount
    before = log.read_text() if log.exists() else ""
    expected = to_errno(make(name))
    code = errno_of(CALLS[callback], mountpoint / callback / name)
    if expected is None or (callback, expected) == ("readdir", errno.ENOENT):
        expected = errno.EIO  # glibc's readdir takes ENOENT for the end
    assert code == expected
    said = log.read_text()[len(before) :] if log.exists() else ""
    if name in FOREIGN:
        # Once a request: the kernel may ask again for a page, and for attributes.
        assert 1 <= said.count("Traceback") <= 4
        assert said.count("Traceback") == said.count("unexpected error in")
    else:
        assert "Traceback" not in said
    assert (mountpoint / "good").read_bytes() == GOOD


# -- what the store can do ---------------------------------------------------------------------------------------

FAULTS = {
    "400": ({"do": "status", "value": 400}, errno.EIO),
    "401": ({"do": "status", "value": 401}, errno.EACCES),
    "403": ({"do": "status", "value": 403}, errno.EACCES),
    "404": ({"do": "status", "value": 404}, errno.ESTALE),
    "412": ({"do": "status", "value": 412}, errno.ESTALE),
    "416": ({"do": "status", "value": 416}, errno.ESTALE),
    "429": ({"do": "status", "value": 429}, errno.EIO),
    "500": ({"do": "status", "value": 500}, errno.EIO),
    "503": ({"do": "status", "value": 503}, errno.EIO),
    "another ETag": ({"do": "etag"}, errno.ESTALE),
    "another range": ({"do": "range", "value": 7}, errno.EIO),
    "too long": ({"do": "resize", "value": 7}, errno.EIO),
    "too short": ({"do": "resize", "value": -7}, errno.EIO),
    "not S3": ({"do": "xml"}, errno.EIO),
    "reset": ({"do": "reset"}, errno.EIO),
    "closed": ({"do": "close"}, errno.EIO),
    "silent": ({"do": "stall", "value": 60}, errno.EIO),
}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    objects = {f"1/{name}.tif": 300_000 for name in FAULTS}
    with S3Server({**objects, "1/good.tif": 1000}, bucket="neurons") as server:
        yield server


@pytest.fixture(scope="module")
def mountpoint(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    mounter = Mounter(flags_of(server), tmp_path_factory.mktemp("faults"))
    yield mounter("--deadline=2s", "--readahead=off")
    mounter.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_the_store_is_its_errno(
    server: S3Server, mountpoint: Path, fault: str
) -> None:
    server.reset()
    how, expected = FAULTS[fault]
    server.fault(**how, kind="get", key=fault)  # type: ignore[arg-type]
    path = mountpoint / f"train/1/{fault}.tif"
    assert errno_of(CALLS["read"], path) == expected
    assert (mountpoint / "train/1/good.tif").read_bytes() == pattern("1/good.tif", 0, 1000)
    server.reset()
    time.sleep(AGAIN)
    assert path.read_bytes() == pattern(f"1/{fault}.tif", 0, 300_000)
