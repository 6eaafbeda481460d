"""What is written to the disk cache, when, and in how many goes."""

from __future__ import annotations

import os
import random
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bffs.cache import BLOCK, DiskCache, checksum
from bffs.keeping import Keeper
from bffs.parts import BLOCKS_IN_PART, Buffer, Part
from bffs.schedule import Piece
from bffs.store import ObjectInfo
from bffs.units import GIB
from tests.conftest import DATASET, until

OBJ = ObjectInfo("1/a-0001.tif", "e", BLOCKS_IN_PART * BLOCK - 1000, 0)
BYTES = os.urandom(OBJ.size)


class Recording(DiskCache):
    """A cache that remembers what it was given: first block and number of bytes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, DATASET, GIB)
        self.added: list[tuple[int, int]] = []

    def add(self, obj: ObjectInfo, block: int, data: memoryview, sums: array[int]) -> None:
        self.added.append((block, len(data)))
        super().add(obj, block, data, sums)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Recording]:
    cache = Recording(tmp_path / "cache")
    yield cache
    cache.close()


@pytest.fixture
def keeper(cache: Recording) -> Iterator[Callable[[int], Keeper]]:
    """Makes one that may hold so many bytes."""
    made: list[Keeper] = []

    def make(limit: int) -> Keeper:
        made.append(Keeper(cache, limit, lambda part: None))
        return made[-1]

    yield make
    for each in made:
        each.close(10.0)


def fetched_part() -> Part:
    """The object's only part, all of whose bytes have come."""
    part = Part(OBJ, 0, Buffer())
    part.buffer.view[: OBJ.size] = BYTES
    for block in range(BLOCKS_IN_PART):
        part.sums[block] = checksum(memoryview(BYTES)[block * BLOCK : (block + 1) * BLOCK])
    return part


def piece(part: Part, first: int, blocks: int, done: int | None = None) -> Piece:
    return Piece(part, first, blocks, None, done=blocks if done is None else done)


def test_neighbours_are_written_in_one_go(
    cache: Recording, keeper: Callable[[int], Keeper]
) -> None:
    part = fetched_part()
    pieces = [piece(part, first, 4) for first in range(0, BLOCKS_IN_PART, 4)]
    random.Random(0).shuffle(pieces)
    keeping = keeper(GIB)
    for each in pieces:
        assert keeping.offer(each)
    keeping.start()
    until(lambda: cache.open(OBJ).is_whole)
    until(lambda: keeping.unwritten == 0)
    assert cache.added == [(0, OBJ.size)]
    assert cache.open(OBJ).check()


def test_what_did_not_come_is_a_gap(cache: Recording, keeper: Callable[[int], Keeper]) -> None:
    part = fetched_part()
    keeping = keeper(GIB)
    for each in (piece(part, 8, 4), piece(part, 4, 4, done=3), piece(part, 0, 4)):
        assert keeping.offer(each)
    assert not keeping.offer(piece(part, 20, 4, done=0))
    keeping.start()
    until(lambda: keeping.unwritten == 0)
    assert cache.added == [(0, 7 * BLOCK), (8, 4 * BLOCK)]
    assert list(cache.open(OBJ).missing(0, 13)) == [(7, 8), (12, 13)]


def test_nothing_waits_while_memory_is_short_nor_at_the_end(
    cache: Recording, keeper: Callable[[int], Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bffs.keeping.DWELL", 3600.0)
    part = fetched_part()
    keeping = keeper(8 * BLOCK)
    keeping.start()
    assert keeping.offer(piece(part, 0, 4))
    assert not keeping.offer(piece(part, 4, 5))
    time.sleep(0.1)
    assert not cache.added
    assert keeping.offer(piece(part, 4, 4))
    until(lambda: keeping.unwritten == 0)
    assert cache.added == [(0, 8 * BLOCK)]
    assert keeping.offer(piece(part, 8, 1))
    keeping.close(10.0)
    assert cache.added[1:] == [(8, BLOCK)]
