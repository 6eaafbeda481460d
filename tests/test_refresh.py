"""Refreshing: mounts without a listing, and what changes in the bucket while programs read."""

import contextlib
import errno
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from bffs import passthrough, snapshot, stacks
from bffs.catalog import list_catalog
from bffs.errors import StoreError
from bffs.refresh import around, compare, obtain
from bffs.settings import Settings
from bffs.store import ObjectInfo
from tests.conftest import DATASET, ROOT, Mounter, drivers, status, until
from tests.fakes import FakeStore
from tests.s3server import S3Server, Source
from tests.slices import tiff

KEPT, GONE, CHANGED = "7/a-0001.tif", "7/a-0002.tif", "7/a-0003.tif"
OLD, NEW = b"old!" * 500_000, b"NEW?" * 700_000


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server({KEPT: b"kept" * 1000, GONE: b"gone", CHANGED: OLD}, bucket="changing") as made:
        yield made


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# -- without a mount --------------------------------------------------------------------------------------------


def test_a_command_lists_once_and_then_no_more(tmp_path: Path) -> None:
    store = FakeStore({"1/a.tif": b"x"})
    settings = Settings(dataset=DATASET, cache_dir=tmp_path)
    listed = obtain(settings, store, nullcontext, anew=False)
    store.objects["1/b.tif"] = b"y"
    assert obtain(settings, store, nullcontext, anew=False) == listed
    anew = obtain(settings, store, nullcontext, anew=True)
    assert len(anew.specimens[0].slices) == 2
    assert obtain(settings, store, nullcontext, anew=False) == anew


def test_a_listing_that_fails_half_way_replaces_nothing(tmp_path: Path) -> None:
    class Failing(FakeStore):
        def list(self, prefix: str, *, folders: bool = False):  # type: ignore[no-untyped-def]
            if prefix.startswith("2"):
                raise StoreError("half way")
            return super().list(prefix, folders=folders)

    settings = Settings(dataset=DATASET, cache_dir=tmp_path)
    whole = obtain(settings, FakeStore({"1/a.tif": b"x", "2/a.tif": b"x"}), nullcontext, anew=True)
    with pytest.raises(StoreError, match="half way"):
        obtain(settings, Failing({"1/z.tif": b"x", "2/a.tif": b"x"}), nullcontext, anew=True)
    assert snapshot.load(tmp_path, DATASET) == whole


def test_what_two_catalogs_differ_in() -> None:
    before = list_catalog(FakeStore({"1/a.tif": b"x", "1/b.tif": b"y", "2/c.tif": b"z"}), DATASET)
    after = list_catalog(FakeStore({"1/a.tif": b"x", "1/b.tif": b"Y", "3/d.tif": b"z"}), DATASET)
    change = compare(before, after)
    assert change.paths == ["/train/1/b.tif", "/train/2/c.tif", "/train/3/d.tif"]
    assert {obj.key for obj in change.gone} == {"1/b.tif", "2/c.tif"}
    assert {obj.key for obj in change.new} == {"1/b.tif", "3/d.tif"}
    assert all(isinstance(obj, ObjectInfo) for obj in change.gone)
    assert compare(before, before) == ([], [], [])
    assert around(["/train/1/b.tif"]) == [
        "/", "/specimens_manifest.json", "/train", "/train/1", "/train/1/manifest.json",
    ]  # fmt: skip


# -- through a mount --------------------------------------------------------------------------------------------


def test_a_mount_from_a_snapshot_asks_nothing_and_needs_no_store(
    server: S3Server, mounter: Mounter
) -> None:
    names = sorted(path.name for path in (mounter() / "train/7").iterdir())
    server.reset()
    second = mounter()
    assert sorted(path.name for path in (second / "train/7").iterdir()) == names
    for number in range(1000):
        assert not (second / f"train/7/absent-{number}").exists()
    assert not server.stats()["requests"]

    server.fault("close")
    server.reset()
    third = mounter()
    assert (third / "train/7" / Path(KEPT).name).stat().st_size == 4000
    assert (
        mounter.run("ls", *mounter.flags, f"--cache-dir={mounter.folder / 'cache'}").returncode == 0
    )


@pytest.mark.parametrize("how", ["refresh", "SIGHUP"])
def test_changes_appear_after_a_refresh(server: S3Server, mounter: Mounter, how: str) -> None:
    mountpoint = mounter()
    folder = mountpoint / "train/7"
    added = folder / "a-0004.tif"
    assert not added.exists()
    assert (folder / "a-0003.tif").read_bytes() == OLD
    before = (folder / "a-0001.tif").stat()
    kept = os.open(folder / "a-0001.tif", os.O_RDONLY)
    changed = os.open(folder / "a-0003.tif", os.O_RDONLY)
    server.change({GONE: None, CHANGED: NEW, "7/a-0004.tif": b"new"})
    if how == "refresh":
        done = mounter.run("refresh", *mounter.flags, f"--cache-dir={mounter.folder / 'cache'}")
        assert done.stdout == "1 specimens, 3 files\n"
    else:
        (driver,) = drivers(mountpoint)
        os.kill(driver, signal.SIGHUP)

    until(lambda: (folder / "a-0003.tif").stat().st_size == len(NEW))
    assert (folder / "a-0003.tif").read_bytes() == NEW
    until(lambda: "a-0004.tif" in names(folder))
    assert "a-0002.tif" not in names(folder)
    assert not (folder / "a-0002.tif").exists()
    until(added.exists, seconds=70)
    assert added.read_bytes() == b"new"
    assert "a-0004.tif" in (folder / "manifest.json").read_text()
    assert (folder / "a-0001.tif").stat() == before
    assert os.pread(kept, 4, 0) == b"kept"
    with pytest.raises(OSError, match="|".join(map(os.strerror, _stale()))):
        os.pread(changed, 4, 0)
    os.close(kept)
    with contextlib.suppress(OSError):
        os.close(changed)


def _stale() -> set[int]:
    """What reads of a former version fail with, and where the kernel reads by itself also an open at
    that very moment; see `Session.revoke`."""
    return {errno.ESTALE} | (set() if passthrough.why_not() else {errno.EIO, errno.ENXIO})


_READER = """
import os, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
end, seen = time.monotonic() + seconds, set()
while time.monotonic() < end:
    try:
        with open(path, "rb", 0) as file:
            size = os.fstat(file.fileno()).st_size
            data = b""
            while len(data) < size:
                piece = os.pread(file.fileno(), 150_000, len(data))
                if not piece:
                    break
                data += piece
            kinds = {data[at:at + 4] for at in range(0, len(data), 4)}
            seen.add(b"".join(sorted(kinds)).decode())
    except OSError as error:
        seen.add(f"errno {error.errno}")
print(" ".join(sorted(seen)))
"""


def test_readers_never_get_two_versions_mixed(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter()
    path = mountpoint / "train/7" / Path(CHANGED).name
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _READER, str(path), "6"], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    (driver,) = drivers(mountpoint)
    versions = [NEW, OLD, NEW]
    for version in versions:
        time.sleep(1.2)
        server.change({CHANGED: version})
        os.kill(driver, signal.SIGHUP)
    seen = [set(reader.communicate(timeout=60)[0].split()) for reader in readers]
    assert set.union(*seen) <= {"old!", "NEW?", "errno", *map(str, _stale())}, seen
    assert {"old!", "NEW?"} <= set.union(*seen)


def test_a_handle_stays_stale_over_further_changes_until_its_version_is_back(
    server: S3Server, mounter: Mounter
) -> None:
    mountpoint = mounter("--no-passthrough")
    path = mountpoint / "train" / CHANGED
    assert path.read_bytes() == OLD
    fd = os.open(path, os.O_RDONLY)
    until(lambda: int(os.getxattr(path, "user.bffs.cached")) == len(OLD))
    for version in (b"new!" * 500_000, b"3rd!" * 500_000):
        change(server, mountpoint, {CHANGED: version})
        with pytest.raises(OSError, match="Stale"):
            os.pread(fd, 4, 0)
        assert path.read_bytes() == version
    change(server, mountpoint, {CHANGED: OLD})
    assert os.pread(fd, 4, 0) == b"old!"
    os.close(fd)


def test_while_an_old_version_is_open_the_new_one_is_read_but_not_mapped(
    server: S3Server, mounter: Mounter
) -> None:
    """Past the kernel's pages, of which there is one set a file: what it refuses is not worse."""
    mountpoint = mounter()
    path = mountpoint / "train" / CHANGED
    old = os.open(path, os.O_RDONLY)
    change(server, mountpoint, {CHANGED: NEW})
    with path.open("rb") as file:
        assert file.read() == NEW
        with pytest.raises(OSError, match="No such device"):
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.close(old)

    def is_mapped() -> bool:
        with (
            contextlib.suppress(OSError),
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            return view[:] == NEW
        return False

    until(is_mapped)  # the driver hears of a close a moment later


OLD_KERNEL = "import bffs.fuse; bffs.fuse._increment_epoch = lambda device: None"
"""Before Linux 6.16 there is no message that makes it look up all names again."""


@pytest.mark.parametrize("kernel", ["this", "old"])
def test_stacks_change_with_their_slices(
    server: S3Server, mounter: Mounter, tmp_path: Path, kernel: str
) -> None:
    env = {}
    if kernel == "old":
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(OLD_KERNEL)
        env = {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}

    def plane(number: int) -> bytes:
        return bytes([number]) * (1200 * 1000)

    def slices(*numbers: int) -> dict[str, Source | None]:
        planes = enumerate(map(plane, numbers), 1)
        return {f"8/s-{z}.tif": tiff(1200, 1000, each) for z, each in planes}

    server.change(slices(1, 2, 3))
    mountpoint = mounter(env=env)
    folder = mountpoint / "stacks" / "train" / "8"
    views = [folder / "8.imagej.tif", folder / "8.v3draw"]
    chunks = [folder / "8.ome.zarr" / "0" / str(z) / "0" / "0" for z in range(3)]

    def check(*numbers: int) -> None:
        whole = b"".join(map(plane, numbers))
        assert all(path.read_bytes().endswith(whole) for path in views)
        found = [path.read_bytes() for path in chunks]
        assert found == [plane(number)[: len(found[0])] for number in numbers[:3]]
        assert (folder / "shutu" / "8-1.tif").read_bytes().endswith(whole)

    check(1, 2, 3)
    change(server, mountpoint, {CHANGED: NEW})  # another specimen
    change(server, mountpoint, slices(1, 7, 3))
    check(1, 7, 3)
    change(server, mountpoint, slices(1, 2, 3))
    check(1, 2, 3)
    open_before = (views[0].open("rb"), chunks[1].open("rb"))
    change(server, mountpoint, slices(1, 9, 3, 4))
    check(1, 9, 3, 4)
    assert len(names(folder / "8.ome.zarr" / "0")) == 5
    for file, at in zip(open_before, (stacks.ROOM + len(plane(1)), 0), strict=True):
        with file, pytest.raises(OSError, match="Stale"):
            os.pread(file.fileno(), 1 << 20, at)
    change(server, mountpoint, dict.fromkeys(slices(1, 2, 3, 4)))
    assert not folder.exists() and "8" not in names(folder.parent)


def test_a_stack_whose_slices_were_replaced_unseen_can_be_listed(
    server: S3Server, mounter: Mounter
) -> None:
    """Nothing is known of its header, and the one that was listed is no more."""

    def slices(number: int) -> dict[str, Source | None]:
        return {f"8/s-{z}.tif": tiff(120, 100, bytes([number]) * 12_000) for z in (1, 2)}

    server.change(slices(1))
    mountpoint = mounter("--log-file", str(mounter.folder / "log"))
    folder = mountpoint / "stacks" / "train" / "8"
    server.change(slices(2))
    (folder / "saved.txt").write_text("mine")
    for _ in range(2):
        assert names(folder) == ["saved.txt"]
        with pytest.raises(OSError, match="Stale"):
            (folder / "8.v3draw").stat()
    said = (mounter.folder / "log").read_text()
    assert (
        said.count("stacks/train/8 shows no files until `bffs refresh` lists the bucket anew") == 1
    )
    change(server, mountpoint, {})
    assert "8.v3draw" in names(folder) and "saved.txt" in names(folder)
    assert (folder / "8.v3draw").read_bytes()[43:] == bytes([2]) * 24_000


def change(server: S3Server, mountpoint: Path, objects: dict[str, Source | None]) -> None:
    """Change the bucket, and wait until the mount shows it."""
    server.change(objects)
    before = status(mountpoint)["listing"]["listed_at"]
    (driver,) = drivers(mountpoint)
    os.kill(driver, signal.SIGHUP)
    until(lambda: status(mountpoint)["listing"]["listed_at"] != before)


def test_an_old_snapshot_is_refreshed_in_the_background(server: S3Server, mounter: Mounter) -> None:
    mounter()
    server.change({GONE: None})
    mountpoint = mounter("--refresh-after=0.0001")
    until(lambda: "a-0002.tif" not in names(mountpoint / "train/7"))
    assert server.stats()["requests"]["list"] >= 4


def test_refresh_lists_before_anything_is_shown(server: S3Server, mounter: Mounter) -> None:
    mounter()
    server.change({GONE: None})
    assert "a-0002.tif" not in names(mounter("--refresh") / "train/7")


def test_info_from_a_snapshot_does_not_wait_for_a_store_that_is_away(
    server: S3Server, mounter: Mounter
) -> None:
    mounter()
    server.fault("reset")
    began = time.monotonic()
    done = mounter.run("info", *mounter.flags, f"--cache-dir={mounter.folder / 'cache'}", "7")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
    assert time.monotonic() - began < 20
