"""Without the store: what was listed is shown, what is cached is read, and nothing else is ever made up."""

from __future__ import annotations

import errno
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bffs.cache import BLOCK, DiskCache, block_count
from bffs.deadlines import AGAIN
from bffs.settings import Dataset
from bffs.snapshot import load
from bffs.units import GIB
from tests.conftest import Mounter
from tests.s3server import S3Server

SLICE = 40 * BLOCK + 777
KEYS = [f"90/s-{number:04}.tif" for number in range(1, 5)]
FILES = {key: random.Random(key).randbytes(SLICE) for key in KEYS}


def read_some(mountpoint: Path, key: str, places: list[int]) -> None:
    """Read a little at each place, and nothing beside it."""
    fd = os.open(mountpoint / "train" / key, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for place in places:
            assert os.pread(fd, 100, place) == FILES[key][place : place + 100]
    finally:
        os.close(fd)


def cached_blocks(server: S3Server, tmp_path: Path, key: str) -> set[int]:
    """Which blocks are here, by the files of the cache."""
    dataset = Dataset(
        name="d",
        endpoint_url=server.endpoint_url,
        region="us-west-1",
        bucket=server.bucket,
        splits=(("TEST_DATA_SET/", "test"), ("", "train")),
    )
    cache = DiskCache(tmp_path / "cache", dataset, GIB)
    catalog = load(tmp_path / "cache", dataset)
    assert catalog is not None
    obj = next(obj for obj in catalog.specimens[0].slices if obj.key == key)
    cached = cache.open(obj)
    found = {block for block in range(block_count(SLICE)) if cached.has(block)}
    cache.close()
    return found


def pieces(mountpoint: Path, key: str, size: int) -> Iterator[tuple[int, bytes | int]]:
    """The file in pieces, each as it is read by a fresh open: bytes, or an error number."""
    for start in range(0, SLICE, size):
        fd = os.open(mountpoint / "train" / key, os.O_RDONLY)
        try:
            yield start, os.pread(fd, size, start)
        except OSError as error:
            yield start, error.errno or 0
        finally:
            os.close(fd)


@pytest.mark.parametrize("size", [4096, BLOCK])
def test_offline_every_cached_byte_is_read_and_no_other(
    mounter: Mounter, server: S3Server, tmp_path: Path, size: int
) -> None:
    mountpoint = mounter("--readahead", "off")
    read_some(mountpoint, KEYS[0], [0, 7 * BLOCK, 8 * BLOCK - 50, 21 * BLOCK, SLICE - 100])
    read_some(mountpoint, KEYS[1], [0])
    assert (mountpoint / "train" / KEYS[2]).read_bytes() == FILES[KEYS[2]]
    assert mounter.run("umount", str(mountpoint)).returncode == 0
    here = cached_blocks(server, tmp_path, KEYS[0])
    assert 4 < len(here) < 20
    server.reset()
    mountpoint = mounter("--offline")
    assert sorted(path.name for path in (mountpoint / "train/90").iterdir()) == sorted(
        [*(key[3:] for key in KEYS), "manifest.json"]
    )
    assert (mountpoint / "train" / KEYS[2]).read_bytes() == FILES[KEYS[2]]
    begun = time.monotonic()
    for start, found in pieces(mountpoint, KEYS[0], size):
        if start // BLOCK in here:
            assert found == FILES[KEYS[0]][start : start + size], start
        else:
            assert found == errno.EIO, start
    assert time.monotonic() - begun < 60  # a store that is waited for takes minutes
    with pytest.raises(OSError, match="Input/output error"):
        (mountpoint / "train" / KEYS[3]).read_bytes()
    about = mounter.run(
        "info", *mounter.flags, f"--cache-dir={tmp_path / 'cache'}", "--offline", "90"
    )
    assert about.returncode == 0 and "cached" in about.stdout
    assert server.stats()["requests"] == {}


def test_offline_needs_a_listing(mounter: Mounter, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    cache = f"--cache-dir={tmp_path / 'cache'}"
    done = mounter.run("mount", *mounter.flags, cache, "--offline", str(tmp_path / "mnt"))
    assert done.returncode == 3
    assert done.stderr == (
        "bffs: no listing of this dataset was kept, which --offline needs: mount or list it once without\n"
    )


def test_a_mount_made_while_the_store_was_away_reads_on_when_it_comes_back(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    flags = ["--endpoint-url", f"http://127.0.0.1:{port}", "--bucket", "bucket"]
    root = tmp_path / "bucket"
    for key, content in FILES.items():
        (root / key).parent.mkdir(exist_ok=True, parents=True)
        (root / key).write_bytes(content)
    mounter = Mounter(flags, tmp_path)
    try:
        with S3Server(root=root, port=port):
            mountpoint = mounter()
            assert (mountpoint / "train" / KEYS[0]).read_bytes() == FILES[KEYS[0]]
            assert mounter.run("umount", str(mountpoint)).returncode == 0
        mountpoint = mounter("--refresh", "--deadline", "5s", "--log-file", str(tmp_path / "log"))
        assert (mountpoint / "train" / KEYS[0]).read_bytes() == FILES[KEYS[0]]
        begun = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            (mountpoint / "train" / KEYS[1]).read_bytes()
        assert time.monotonic() - begun < 40
        with S3Server(root=root, port=port):
            time.sleep(2 * AGAIN)  # for which a read that has failed fails again at once
            for key in KEYS:
                assert (mountpoint / "train" / key).read_bytes() == FILES[key]
    finally:
        mounter.close()
