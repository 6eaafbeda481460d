"""Warming: in order, but readers first; and no more than is missing."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bffs import warm
from bffs.cache import BLOCK, DiskCache, checksum
from bffs.errors import BffsError, StoreError
from bffs.store import Interrupt, ObjectInfo
from bffs.units import GIB, MIB
from bffs.warm import Warmer, fitting
from tests.conftest import DATASET, until
from tests.fakes import FakeStore

SIZE = 20 * BLOCK + 5
CONTENT = {f"1/{name}.tif": bytes([name]) * SIZE for name in range(8)}


class Watched(FakeStore):
    """A store that tells what is asked for, and may be slow."""

    def __init__(self) -> None:
        super().__init__(CONTENT)
        self.asked: list[tuple[str, int, int]] = []
        self.before: Callable[[str], None] = lambda key: None

    def read_into(
        self,
        obj: ObjectInfo,
        start: int,
        buffer: memoryview,
        advance: Callable[[int], None],
        persist: Callable[[StoreError], bool],
        interrupt: Interrupt,
    ) -> None:
        self.asked.append((obj.key, start, start + len(buffer)))
        self.before(obj.key)
        super().read_into(obj, start, buffer, advance, persist, interrupt)


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskCache]:
    cache = DiskCache(tmp_path / "cache", DATASET, GIB, stamp=time.time())
    yield cache
    cache.close()


@pytest.fixture
def reader(cache: DiskCache) -> Iterator[DiskCache]:
    """The cache as a mount has it."""
    reader = DiskCache(cache.folder, DATASET, GIB)
    yield reader
    reader.close()


def warmer(store: Watched, cache: DiskCache, connections: int = 1) -> Warmer:
    objects = [store.info(key) for key in CONTENT]
    return Warmer(store, cache, objects, connections=connections, deadline=1.0)


def add(cache: DiskCache, obj: ObjectInfo, block: int) -> None:
    data = memoryview(bytearray(CONTENT[obj.key][block * BLOCK : (block + 1) * BLOCK]))
    assert cache.store(obj, block, data, array("Q", [checksum(data)]))


def test_everything_is_fetched_once_in_order(store: Watched, cache: DiskCache) -> None:
    figures: list[warm.Figures] = []
    warmer(store, cache).run(figures.append)
    assert [key for key, _, _ in store.asked] == sorted(key for key, _, _ in store.asked)
    assert sum(stop - start for _, start, stop in store.asked) == 8 * SIZE
    assert figures[-1] == (8 * SIZE, 8 * SIZE, 8 * SIZE, 0)
    again = warmer(store, cache)
    assert again.figures().here == 8 * SIZE
    asked = len(store.asked)
    again.run(lambda figures: None)
    assert len(store.asked) == asked


def test_what_others_store_meanwhile_is_not_fetched(
    store: Watched, cache: DiskCache, reader: DiskCache
) -> None:
    last = store.info("1/7.tif")

    def store_meanwhile(key: str) -> None:
        if key == "1/0.tif" and not reader.open(last).has(3):
            add(reader, last, 3)

    store.before = store_meanwhile
    running = warmer(store, cache)
    running.run(lambda figures: None)
    assert not any(
        key == last.key and start <= 3 * BLOCK < stop for key, start, stop in store.asked
    )
    assert running.figures() == (8 * SIZE, 8 * SIZE, 8 * SIZE - BLOCK, 0)
    assert cache.open(last).bytes_present() == SIZE


@pytest.mark.parametrize("left", [1, 2])
def test_what_is_read_goes_first_and_gets_the_connections(
    store: Watched, cache: DiskCache, reader: DiskCache, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr(warm, "_LOOK", 0.01)
    monkeypatch.setattr(warm, "READER_SEEN", 600.0)
    add(reader, store.info("1/6.tif"), 0)
    store.before = lambda key: time.sleep(0.02)
    running = warmer(store, cache, connections=warm.YIELD * left)
    busiest = 0

    def look(figures: warm.Figures) -> None:
        nonlocal busiest
        busiest = max(busiest, running._busy)

    running.run(look)
    assert busiest == left
    keys = [key for key, _, _ in store.asked]
    if left == 1:  # else two threads ask at once, in no order
        assert "1/6.tif" not in keys[keys.index("1/0.tif") :]
    assert keys.index("1/6.tif") < keys.index("1/1.tif")


def test_a_stopped_warming_keeps_what_it_has(store: Watched, cache: DiskCache) -> None:
    running = warmer(store, cache)

    def interrupt(figures: warm.Figures) -> None:
        if figures.fetched > SIZE:
            raise KeyboardInterrupt

    def dawdle(key: str) -> None:
        if key > "1/2.tif":
            until(lambda: running._stopping)

    store.before = dawdle
    with pytest.raises(KeyboardInterrupt):
        running.run(interrupt)
    here = sum(cache.open(store.info(key)).bytes_present() for key in CONTENT)
    assert SIZE < here < 8 * SIZE
    assert here == running.figures().here


def test_a_changed_object_is_left_out(store: Watched, cache: DiskCache) -> None:
    running = warmer(store, cache)
    store.objects["1/3.tif"] = b"another"
    running.run(lambda figures: None)
    assert running.figures() == (8 * SIZE, 7 * SIZE, 7 * SIZE, 1)


def test_a_cache_without_room_ends_it(store: Watched, tmp_path: Path) -> None:
    small = DiskCache(tmp_path / "small", DATASET, MIB, stamp=time.time())
    with pytest.raises(BffsError, match="the cache is full"):
        warmer(store, small).run(lambda figures: None)
    small.close()


def test_what_fits(store: Watched, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "small", DATASET, 3 * SIZE)
    objects = [store.info(key) for key in CONTENT]
    other = [obj._replace(key=f"2/{n}") for n, obj in enumerate(objects)]
    assert fitting(objects, cache) == 3
    add(cache, objects[0], 0)
    cache.pin("1/", objects)
    assert fitting(objects, cache) == 3
    assert fitting(other, cache) == 2
    cache.close()
