"""The disk cache on real disks: its format, what damage does, sharing, eviction, full and foreign disks."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bffs import cache as cache_module
from bffs import cachefile
from bffs import index as index_module
from bffs.cache import BLOCK, CachedObject, DiskCache, block_count, checksum
from bffs.settings import Dataset
from bffs.store import ObjectInfo
from bffs.units import GIB
from tests.conftest import DATASET

NOISE = random.Random(0).randbytes(64 * BLOCK)
ROOT = os.geteuid() == 0


def an_object(size: int, key: str = "1/a-0001.tif", etag: str = "e") -> ObjectInfo:
    return ObjectInfo(key, etag, size, 0)


def add(
    cache: DiskCache, obj: ObjectInfo, first: int = 0, stop: int | None = None, data: bytes = NOISE
) -> None:
    """Add blocks `first` to `stop` of an object whose bytes are those of `data`."""
    end = min(obj.size, (stop if stop is not None else block_count(obj.size)) * BLOCK)
    view = memoryview(bytearray(data[first * BLOCK : end]))
    sums = array("Q", (checksum(view[at : at + BLOCK]) for at in range(0, len(view), BLOCK)))
    cache.add(obj, first, view, sums)


def read(cached: CachedObject, start: int, stop: int) -> bytes:
    """What is here from `start` on, up to `stop` or the first miss."""
    data = bytearray()
    while start + len(data) < stop:
        into = memoryview(bytearray(stop - start - len(data)))
        n = cached.read_into(start + len(data), into)
        if not n:
            break
        data += into[:n]
    return bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(folder: Path) -> Iterator[DiskCache]:
    cache = DiskCache(folder, DATASET, GIB)
    yield cache
    cache.close()


def reopened(folder: Path, obj: ObjectInfo) -> CachedObject:
    """The object as another process finds it."""
    return DiskCache(folder, DATASET, GIB).open(obj)


def data_file(cache: DiskCache, obj: ObjectInfo) -> Path:
    return cache.open(obj).path


def sums_file(cache: DiskCache, obj: ObjectInfo) -> Path:
    path = data_file(cache, obj)
    return path.with_name(path.name + ".sums")


# -- format -----------------------------------------------------------------------------------------------------


def test_the_format_is_frozen(cache: DiskCache, folder: Path) -> None:
    obj = an_object(3 * BLOCK + 5, key="7/slice-0001.tif", etag="0123456789abcdef")
    content = bytes(range(256)) * (4 * BLOCK // 256)
    add(cache, obj, 1, 2, content)
    add(cache, obj, 3, 4, content)
    path = data_file(cache, obj)
    assert str(path.relative_to(folder)) == (
        "v1/d7f1747f0d421a5a2884d43b602a4349/b7/b745ef30c153c6cca4bca7ba6e5801b3"
    )
    assert sums_file(cache, obj).read_bytes() == bytes.fromhex(
        "626666732d76310a 0000020000000000 0500060000000000 bfbb6f3e24704f66"
        "0000000000000000 4c017eb10870708e 0000000000000000 be0fca843a7575b0"
    )
    assert path.stat().st_size == obj.size
    assert path.read_bytes()[BLOCK : 2 * BLOCK] == content[BLOCK : 2 * BLOCK]


def test_a_checksum_of_zero_is_stored_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cachefile.xxhash, "xxh3_64_intdigest", lambda data: 0)
    assert checksum(memoryview(b"")) == 1


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, 5 * BLOCK, 5 * BLOCK + 4097])
def test_a_complete_file_is_the_object(cache: DiskCache, size: int) -> None:
    obj = an_object(size)
    add(cache, obj)
    assert data_file(cache, obj).read_bytes() == NOISE[:size]
    assert cache.open(obj).bytes_present() == size


def test_only_the_user_may_look(cache: DiskCache, folder: Path) -> None:
    add(cache, an_object(BLOCK))
    for path in [folder, *folder.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        if path.name.startswith("index.sqlite3"):
            continue  # in a folder of 0700
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_what_is_missing(cache: DiskCache) -> None:
    obj = an_object(10 * BLOCK + 1)
    cached = cache.open(obj)
    assert list(cached.missing(0, 11)) == [(0, 11)]
    add(cache, obj, 2, 4)
    add(cache, obj, 10, 11)
    assert list(cached.missing(0, 11)) == [(0, 2), (4, 10)]
    assert list(cached.missing(3, 6)) == [(4, 6)]
    assert list(cached.missing(2, 4)) == []
    assert list(cached.missing(5, 99)) == [(5, 10)]
    assert cached.bytes_present() == 2 * BLOCK + 1
    assert cached.has(2) and not cached.has(4)


def test_an_empty_object_has_no_blocks(cache: DiskCache) -> None:
    cached = cache.open(an_object(0))
    assert cached.bytes_present() == 0 and list(cached.missing(0, 0)) == []


def test_versions_of_an_object_are_apart(cache: DiskCache) -> None:
    old, new = an_object(BLOCK, etag="1"), an_object(BLOCK, etag="2")
    add(cache, old)
    assert not cache.open(new).has(0)
    add(cache, new, data=NOISE[BLOCK:])
    assert read(cache.open(old), 0, BLOCK) == NOISE[:BLOCK]
    assert read(cache.open(new), 0, BLOCK) == NOISE[BLOCK : 2 * BLOCK]


def test_datasets_are_apart(folder: Path, cache: DiskCache) -> None:
    obj = an_object(BLOCK)
    add(cache, obj)
    other = Dataset(name="d", endpoint_url="http://other.test", region="r", bucket="b")
    assert not DiskCache(folder, other, GIB).open(obj).has(0)


# -- damage -----------------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def in_place_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


SIZE = 6 * BLOCK + 77
DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "bit in the data": lambda data, sums: flip(data, 2 * BLOCK + 9),
    "bit in the tail": lambda data, sums: flip(data, SIZE - 1),
    "bit in a checksum": lambda data, sums: flip(sums, 32 + 8 * 3),
    "bit in the header": lambda data, sums: flip(sums, 3),
    "bit in the identity": lambda data, sums: flip(sums, 24),
    "data cut short": lambda data, sums: cut(data, 3 * BLOCK + 1),
    "data too long": lambda data, sums: cut(data, SIZE + 1),
    "data empty": lambda data, sums: cut(data, 0),
    "checksums cut short": lambda data, sums: cut(sums, 32 + 8 * 4 + 3),
    "header cut short": lambda data, sums: cut(sums, 11),
    "checksums empty": lambda data, sums: cut(sums, 0),
    "checksums of another object": lambda data, sums: sums.write_bytes(b"bffs-v1\n" + bytes(80)),
    "data lost": lambda data, sums: data.unlink(),
    "checksums lost": lambda data, sums: sums.unlink(),
    "data is a folder": lambda data, sums: in_place_of(data),
    "data never arrived": lambda data, sums: data.write_bytes(bytes(SIZE)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_a_miss_never_wrong_bytes(cache: DiskCache, folder: Path, damage: str) -> None:
    obj = an_object(SIZE)
    add(cache, obj)
    DAMAGE[damage](data_file(cache, obj), sums_file(cache, obj))
    after = DiskCache(folder, DATASET, GIB)
    cached = after.open(obj)
    found = [read(cached, block * BLOCK, min(SIZE, (block + 1) * BLOCK)) for block in range(7)]
    assert all(
        data in (b"", NOISE[block * BLOCK : min(SIZE, (block + 1) * BLOCK)])
        for block, data in enumerate(found)
    )
    assert b"" in found
    # What was lost can be added again, and then everything is there, here and for others.
    if damage == "data is a folder":
        return
    for first, stop in list(after.open(obj).missing(0, 7)):
        add(after, obj, first, stop)
    assert read(after.open(obj), 0, SIZE) == NOISE[:SIZE]
    assert read(reopened(folder, obj), 0, SIZE) == NOISE[:SIZE]


def test_a_dropped_block_is_dropped_for_others_too(cache: DiskCache, folder: Path) -> None:
    obj = an_object(SIZE)
    add(cache, obj)
    flip(data_file(cache, obj), 2 * BLOCK)
    assert read(reopened(folder, obj), 0, SIZE) == NOISE[: 2 * BLOCK]
    assert list(reopened(folder, obj).missing(0, 7)) == [(2, 3)]


def test_one_log_line_tells_of_a_damaged_block(
    cache: DiskCache, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    obj = an_object(SIZE)
    add(cache, obj)
    flip(data_file(cache, obj), 2 * BLOCK)
    other = DiskCache(folder, DATASET, GIB)
    for _ in range(3):
        read(other.open(obj), 0, SIZE)
    assert other.damaged == 1
    assert [r.getMessage() for r in caplog.records] == [
        "block 2 of 1/a-0001.tif is fetched again: its checksum does not fit"
    ]


@pytest.mark.parametrize(
    ("start", "stop"),
    [(1, 2), (0, BLOCK - 1), (BLOCK - 1, BLOCK + 1), (5, 3 * BLOCK + 7), (SIZE - 1, SIZE)],
)
def test_the_edges_of_a_read_are_verified(
    cache: DiskCache, folder: Path, start: int, stop: int
) -> None:
    obj = an_object(SIZE)
    add(cache, obj)
    assert read(reopened(folder, obj), start, stop) == NOISE[start:stop]
    # The damage lies in the first block that the read touches, but outside of what is read.
    first = start // BLOCK
    outside = first * BLOCK if start % BLOCK else min(SIZE, (first + 1) * BLOCK) - 1
    flip(data_file(cache, obj), outside)
    assert read(reopened(folder, obj), start, stop) == b""


def test_what_was_checked_stays_so_when_its_files_are_closed_for_others(
    cache: DiskCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = [an_object(SIZE, key=f"1/a-{n:04}.tif") for n in range(5)]
    for obj in stack:
        add(cache, obj)
    monkeypatch.setattr(cache_module, "_KNOWN_OBJECTS", 2)
    again = DiskCache(folder, DATASET, GIB)
    for obj in stack:
        assert not again.open(obj).is_checked
        assert again.open(obj).check()
    assert [again.open(obj).is_checked for obj in stack] == [True] * 5
    flip(data_file(cache, stack[1]), 2 * BLOCK)
    assert not again.open(stack[1]).is_checked
    assert not again.open(stack[1]).check()


def test_killed_between_data_and_checksums(cache: DiskCache, folder: Path) -> None:
    obj = an_object(SIZE)
    add(cache, obj, 0, 2)
    with data_file(cache, obj).open("r+b") as file:  # the next block's bytes, half of them
        file.seek(2 * BLOCK)
        file.write(NOISE[2 * BLOCK : 2 * BLOCK + 4096])
    found = reopened(folder, obj)
    assert read(found, 0, SIZE) == NOISE[: 2 * BLOCK]
    assert list(found.missing(0, 7)) == [(2, 7)]


def test_checksums_of_a_file_evicted_while_it_was_made(cache: DiskCache, folder: Path) -> None:
    obj = an_object(SIZE)
    add(cache, obj)
    data_file(cache, obj).unlink()
    again = DiskCache(folder, DATASET, GIB)
    add(again, obj, 4, 5)
    found = reopened(folder, obj)
    assert read(found, 4 * BLOCK, 5 * BLOCK) == NOISE[4 * BLOCK : 5 * BLOCK]
    assert read(found, 0, BLOCK) == b""


# -- sharing ----------------------------------------------------------------------------------------------------


def test_two_processes_see_each_others_blocks(cache: DiskCache, folder: Path) -> None:
    obj = an_object(SIZE)
    other = DiskCache(folder, DATASET, GIB)
    here, there = cache.open(obj), other.open(obj)
    add(cache, obj, 0, 2)
    assert not there.has(0)
    there.refresh()
    assert read(there, 0, SIZE) == NOISE[: 2 * BLOCK]
    add(other, obj, 2, 7)
    here.refresh()
    assert read(here, 0, SIZE) == NOISE[:SIZE]


def _add_blocks(folder: Path, numbers: list[int]) -> None:
    cache = DiskCache(folder, DATASET, GIB)
    for number in numbers:
        for name in range(4):
            add(cache, an_object(32 * BLOCK, key=str(name)), number, number + 1)
    cache.close()


def test_processes_that_make_and_fill_the_same_files_at_once(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_add_blocks, args=(folder, [*range(n, 32, 2), 0, 1]))
        for n in (0, 1, 0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    for name in range(4):
        assert (
            read(reopened(folder, an_object(32 * BLOCK, key=str(name))), 0, 32 * BLOCK)
            == (NOISE[: 32 * BLOCK])
        )
    leftovers = [p.name for p in folder.rglob("draft-*")]
    assert leftovers == []


def test_a_reader_reads_on_while_another_process_evicts(cache: DiskCache, folder: Path) -> None:
    obj = an_object(SIZE)
    add(cache, obj)
    cached = cache.open(obj)
    cache_module.remove_cached(cached.path)
    assert cached.is_evicted()
    assert read(cached, 0, SIZE) == NOISE[:SIZE]
    fresh = cache.open(obj)
    assert fresh is not cached and not fresh.has(0)
    add(cache, obj, 0, 1)
    assert read(reopened(folder, obj), 0, SIZE) == NOISE[:BLOCK]


def test_adding_to_what_was_evicted_meanwhile_is_no_fault_of_the_disk(
    cache: DiskCache, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    obj = an_object(SIZE)
    add(cache, obj, 0, 1)
    cached = cache.open(obj)
    cache_module.remove_cached(cached.path)
    view = memoryview(bytearray(NOISE[BLOCK : 2 * BLOCK]))
    cached.add(1, view, array("Q", [checksum(view)]), direct=True)  # as a second writer may
    assert not cached.path.exists()
    assert read(cached, 0, 2 * BLOCK) == NOISE[: 2 * BLOCK]


def test_what_is_evicted_is_let_go_of(
    cache: DiskCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the disk would keep its bytes for as long as a mount lives."""
    monkeypatch.setattr(cache_module, "_HOUSEKEEPING", 0.01)
    objects = [an_object(SIZE, key=f"1/{name}") for name in "abc"]
    for obj in objects:
        add(cache, obj)
    cache.start()
    other = DiskCache(folder, DATASET, GIB)
    other.evict(objects[:2])
    end = time.monotonic() + 20
    while len(open_files(folder)) > 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(open_files(folder)) == 2
    assert read(cache.open(objects[2]), 0, SIZE) == NOISE[:SIZE]
    other.close()


def open_files(folder: Path) -> list[str]:
    """What this process has open below the folder."""
    links = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return [link for link in links if link.startswith(f"{folder}/v1/") and "index" not in link]


def test_the_limit_holds_for_what_is_open_too(folder: Path) -> None:
    cache = DiskCache(folder, DATASET, 10 * SIZE)
    for n in range(40):
        add(cache, an_object(SIZE, key=f"1/{n}"))
    cache._forget_evicted(0.0)
    assert len(open_files(folder)) <= 2 * 10
    cache.close()


def test_a_file_evicted_while_it_is_made_leaves_no_orphan(
    cache: DiskCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = an_object(SIZE)
    other = DiskCache(folder, DATASET, GIB)
    make = CachedObject.add

    def evicted_first(*args: Any, **kwargs: Any) -> None:
        other.evict([obj])
        make(*args, **kwargs)

    monkeypatch.setattr(CachedObject, "add", evicted_first)
    add(cache, obj)
    assert cache.files() == {} and cache.account().stored == 0
    other.close()


def test_a_process_killed_while_it_makes_a_file_leaves_no_draft(
    cache: DiskCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(folder: Path) -> None:
        os.link = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        add(DiskCache(folder, DATASET, GIB), an_object(SIZE))

    process = multiprocessing.get_context("fork").Process(target=die, args=(folder,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name[:6] for path in folder.glob("v1/*/??/*")] == [
        data_file(cache, an_object(SIZE)).name[:6]
    ]
    add(cache, an_object(SIZE))
    assert read(reopened(folder, an_object(SIZE)), 0, SIZE) == NOISE[:SIZE]


def test_descriptors_are_closed_with_the_last_reference(cache: DiskCache) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    obj = an_object(BLOCK)
    add(cache, obj)
    cache.close()
    gc.collect()
    before = descriptors()
    for _ in range(10):
        assert read(cache.open(obj), 0, BLOCK) == NOISE[:BLOCK]
        cache.close()
    gc.collect()
    assert descriptors() == before


# -- disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that mounts a disk of its own."""
    mounted: list[Path] = []

    def mount(kind: str, options: str) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", kind, "-o", options, kind, str(path)]
        if not ROOT or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(f"no {kind} can be mounted here")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_pauses_writing_and_reads_go_on(
    disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(index_module, "FLOOR_BYTES", -GIB)  # so that it runs full all the same
    cache = DiskCache(disk("tmpfs", "size=2m,mode=700"), DATASET, GIB)
    objects = [an_object(4 * BLOCK, key=str(n)) for n in range(8)]
    for obj in objects:
        add(cache, obj)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "nothing is cached on disk for 30 s: " in caplog.text
    assert "No space left on device" in caplog.text
    here = [read(cache.open(obj), 0, obj.size) for obj in objects]
    assert here[0] == NOISE[: 4 * BLOCK] and here[-1] == b""
    assert all(NOISE.startswith(data) for data in here)
    # With room again, and after the pause, it goes on.
    for obj in objects[:2]:
        cache_module.remove_cached(data_file(cache, obj))
    cache.close()
    gc.collect()
    now = cache._paused_until + 1
    monkeypatch.setattr(cache_module.time, "monotonic", lambda: now)
    add(cache, objects[-1])
    assert read(cache.open(objects[-1]), 0, 4 * BLOCK) == NOISE[: 4 * BLOCK]
    cache.close()


def test_a_disk_that_refuses_direct_writing(
    disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "FLOOR_BYTES", -GIB)  # a ramfs claims to have no room
    folder = disk("ramfs", "mode=700")
    with pytest.raises(OSError, match="Invalid argument"):
        os.open(folder / "x", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    cache = DiskCache(folder, DATASET, GIB)
    obj = an_object(SIZE)
    add(cache, obj)
    assert read(reopened(folder, obj), 0, SIZE) == NOISE[:SIZE]
    cache.close()


def test_a_disk_that_is_read_only(
    disk: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = disk("tmpfs", "size=4m,mode=700")
    cache = DiskCache(folder, DATASET, GIB)
    add(cache, an_object(SIZE))
    cache.close()
    gc.collect()
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    cache = DiskCache(folder, DATASET, GIB)
    for n in range(3):
        add(cache, an_object(SIZE, key=str(n)))
        assert not cache.open(an_object(SIZE, key=str(n))).has(0)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    cache.close()


def test_a_folder_that_is_removed_while_it_is_used(
    folder: Path, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = an_object(SIZE)
    add(cache, obj)
    shutil.rmtree(folder)
    add(cache, obj)
    now = cache._paused_until + 1
    monkeypatch.setattr(cache_module.time, "monotonic", lambda: now)
    add(cache, obj)
    assert read(reopened(folder, obj), 0, SIZE) == NOISE[:SIZE]
    assert (folder / "v1" / "index.sqlite3").exists()


def planted(tmp_path: Path, obj: ObjectInfo) -> Path:
    """A cache folder of sound files with other bytes than the store's."""
    folder = tmp_path / "planted"
    cache = DiskCache(folder, DATASET, GIB)
    add(cache, obj, data=NOISE[7:])
    cache.close()
    return folder


@pytest.mark.parametrize("level", [1, 2])
def test_a_symbolic_link_below_the_folder_is_refused(
    tmp_path: Path, level: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = an_object(SIZE)
    elsewhere = planted(tmp_path, obj)
    of_dataset = data_file(DiskCache(elsewhere, DATASET, GIB), obj).parent.parent
    inner = [Path("v1"), of_dataset.relative_to(elsewhere)][level - 1]
    folder = tmp_path / "cache"
    (folder / inner).parent.mkdir(parents=True, exist_ok=True)
    (folder / inner).symlink_to(elsewhere / inner)
    refuses(folder, obj, caplog, monkeypatch)


def test_the_folder_may_be_a_link_of_this_user(tmp_path: Path) -> None:
    obj = an_object(SIZE)
    (tmp_path / "other disk").mkdir()
    folder = tmp_path / "cache"
    folder.symlink_to(tmp_path / "other disk")
    cache = DiskCache(folder, DATASET, GIB)
    add(cache, obj)
    cache.close()
    assert read(reopened(tmp_path / "other disk", obj), 0, SIZE) == NOISE[:SIZE]


@pytest.mark.skipif(not ROOT, reason="only root can give links away")
def test_a_link_of_somebody_else_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = an_object(SIZE)
    folder = tmp_path / "cache"
    folder.symlink_to(planted(tmp_path, obj))
    os.chown(folder, 65534, 65534, follow_symlinks=False)
    refuses(folder, obj, caplog, monkeypatch)


@pytest.mark.skipif(not ROOT, reason="only root can give folders away")
@pytest.mark.parametrize("inner", ["", "v1"])
def test_a_folder_of_somebody_else_is_refused(
    tmp_path: Path, inner: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = an_object(SIZE)
    folder = planted(tmp_path, obj)
    os.chown(folder / inner, 65534, 65534)
    refuses(folder, obj, caplog, monkeypatch)


def refuses(
    folder: Path,
    obj: ObjectInfo,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Assert that nothing is read from the folder and nothing is written to it, now and later."""
    planted_files = sorted(folder.parent.glob("**/*"))
    caplog.clear()
    cache = DiskCache(folder, DATASET, GIB)
    assert "is not a folder of this user" in caplog.text
    for _ in range(2):
        cached = cache.open(obj)
        assert read(cached, 0, SIZE) == b""
        add(cache, an_object(SIZE, key="other"))
        cache.touch(cached)
        now = cache._paused_until + 1
        monkeypatch.setattr(cache_module.time, "monotonic", lambda now=now: now)
    cache.close()
    assert sorted(folder.parent.glob("**/*")) == planted_files


# -- random sequences -------------------------------------------------------------------------------------------

BLOCKS = 9
LAST = BLOCKS * BLOCK - 1000
steps = st.one_of(
    st.tuples(st.just("add"), st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)),
    st.tuples(st.just("read"), st.integers(0, LAST - 1), st.integers(1, 4 * BLOCK)),
    st.tuples(st.just("other process"), st.just(0), st.just(0)),
    st.tuples(st.just("refresh"), st.just(0), st.just(0)),
    st.tuples(st.just("evict"), st.just(0), st.just(0)),
    st.tuples(st.just("flip"), st.integers(0, LAST - 1), st.just(0)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(sequence=st.lists(steps, max_size=25))
def test_random_sequences_give_the_bytes_or_a_miss(
    tmp_path_factory: pytest.TempPathFactory, sequence: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("sequence")
    obj = an_object(LAST)
    cache = DiskCache(folder, DATASET, GIB)
    whole = True
    added: set[int] = set()
    for step, first, second in sequence:
        match step:
            case "add":
                stop = min(first + second, BLOCKS)
                add(cache, obj, first, stop)
                added |= set(range(first, stop))
            case "read":
                stop = min(LAST, first + second)
                found = read(cache.open(obj), first, stop)
                assert found == NOISE[first : first + len(found)]
                if whole and set(range(first // BLOCK, -(-stop // BLOCK))) <= added:
                    assert len(found) == stop - first
            case "other process":
                cache.close()
                cache = DiskCache(folder, DATASET, GIB)
            case "refresh":
                cache.open(obj).refresh()
            case "evict":
                cache_module.remove_cached(data_file(cache, obj))
                added.clear()
            case "flip" if data_file(cache, obj).exists():
                # What was verified in this process is not verified again: see with fresh eyes.
                flip_in_place(data_file(cache, obj), first)
                cache.close()
                cache = DiskCache(folder, DATASET, GIB)
                whole = False
    cache.close()


def flip_in_place(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
