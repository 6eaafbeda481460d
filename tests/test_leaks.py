"""What is begun and ended again and again leaves nothing: threads, sockets, descriptors, files, memory.

`BFFS_CYCLES=1000` makes it a thousand times instead of a few.
"""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from bffs.blocks import BlockReader
from bffs.cache import DiskCache
from bffs.late import LateStore
from bffs.schedule import Priority
from bffs.settings import Dataset, Settings
from bffs.store import ObjectInfo
from bffs.units import MIB
from tests.conftest import Mounter, flags_of, until
from tests.s3server import S3Server, made_up, pattern
from tests.test_mount_life import nothing_left

CYCLES = int(os.environ.get("BFFS_CYCLES", "20"))
WARM_UP = 4
SIZE = 3_000_000
KEYS = [f"1/a-{number:04}.tif" for number in range(4)]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(dict.fromkeys(KEYS, SIZE), bucket="neurons") as server:
        yield server


def held() -> Counter[str]:
    """Threads and descriptors of this process, by kind."""
    found: Counter[str] = Counter()
    found["threads"] = threading.active_count()
    found["tasks"] = len(list(Path("/proc/self/task").iterdir()))
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        found[
            target.split(":")[0] if target.startswith(("socket", "pipe", "anon")) else target
        ] += 1
    return found


def use_once(server: S3Server, folder: Path, cycle: int) -> None:
    """What a mount is made of, without the mount: read with faults, some ahead, and end in the middle."""
    dataset = Dataset(name="d", endpoint_url=server.endpoint_url, region="r", bucket=server.bucket)
    settings = Settings(dataset=dataset, sign_requests=False, cache_dir=folder)
    with ExitStack() as stack:
        store = LateStore(settings)
        stack.callback(store.close)
        cache = DiskCache(folder, dataset, 64 * MIB)
        stack.callback(cache.close)
        blocks = BlockReader(store, cache, memory=64 * MIB, connections=4)
        stack.callback(blocks.close)
        stack.callback(store.stop)
        blocks.start()
        for key in KEYS[: 1 + cycle % len(KEYS)]:
            obj = ObjectInfo(key, made_up(key, SIZE).etag, SIZE, 0)
            blocks.prefetch(key, Priority.FILE, [(obj, 0, SIZE)])
            data = bytearray(100_000)
            assert blocks.read_into(obj, 1_000_000, memoryview(data)) == len(data)
            assert data == pattern(key, 1_000_000, 1_100_000)


def test_the_parts_of_a_mount_leave_nothing(server: S3Server, tmp_path: Path) -> None:
    server.reset()
    server.fault("status", value=503, kind="get", probability=0.2)
    server.fault("reset", at=50_000, kind="get", probability=0.1, seed=1)
    for cycle in range(WARM_UP):
        use_once(server, tmp_path / "cache", cycle)
    gc.collect()
    before, files = held(), sorted(tmp_path.rglob("*"))
    for cycle in range(CYCLES):
        use_once(server, tmp_path / "cache", cycle)
    gc.collect()
    until(lambda: held() <= before)
    assert sorted(tmp_path.rglob("*")) == files
    server.reset()


def test_mounts_leave_nothing(server: S3Server, tmp_path: Path) -> None:
    server.reset()
    mounter = Mounter(flags_of(server), tmp_path)
    for cycle in range(max(2, CYCLES // 20)):
        mountpoint = mounter("--read-only", "--log-file", str(tmp_path / "log"))
        key = KEYS[cycle % len(KEYS)]
        assert (mountpoint / "train" / key).read_bytes() == pattern(key, 0, SIZE)
        assert mounter.run("umount", str(mountpoint)).returncode == 0
        until(partial(nothing_left, mounter, mountpoint))
        left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("mnt")}
        assert left <= {"cache", "log", "bffs"}
    mounter.close()
