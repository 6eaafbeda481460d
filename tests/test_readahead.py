"""What readers' demands lead to, seen at the store: what is fetched before it is asked for, and what is not."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bffs.blocks import BlockReader
from bffs.cache import BLOCK, DiskCache
from bffs.checking import Checker
from bffs.content import Content
from bffs.parts import PART
from bffs.readahead import AROUND, PROOF, Readahead, SliceContent, SpecimenReadahead
from bffs.s3 import S3Store
from bffs.settings import Dataset, Settings
from bffs.store import ByteRange, ObjectInfo
from bffs.units import GIB, MIB
from tests.conftest import until
from tests.s3server import S3Server, made_up, pattern

SIZE = 3 * MIB + 100
SLICES = [f"1/a-{n:04}.tif" for n in range(40)]
OTHERS = [f"2/b-{n:04}.tif" for n in range(40)]
LARGE = "3/large.tif"
SIZES = {**dict.fromkeys(SLICES + OTHERS, SIZE), LARGE: 64 * MIB}
MEMORY = 128 * MIB


def info(key: str) -> ObjectInfo:
    stored = made_up(key, SIZES[key])
    return ObjectInfo(key, stored.etag, stored.size, stored.mtime)


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with S3Server(dict(SIZES)) as server:
        yield server


@pytest.fixture
def server(running: S3Server) -> S3Server:
    running.reset()
    running.shape(latency=0.005)
    return running


@pytest.fixture(scope="module")
def store(running: S3Server) -> Iterator[S3Store]:
    dataset = Dataset(name="d", endpoint_url=running.endpoint_url, region="r", bucket="bucket")
    store = S3Store(Settings(dataset=dataset, sign_requests=False, cache_dir=Path("/nowhere")))
    yield store
    store.close()


@pytest.fixture
def blocks(server: S3Server, store: S3Store, tmp_path: Path) -> Iterator[BlockReader]:
    dataset = Dataset(name="d", endpoint_url="http://s3.test", region="r", bucket="b")
    cache = DiskCache(tmp_path / "cache", dataset, GIB)
    blocks = BlockReader(store, cache, memory=MEMORY, connections=8)
    blocks.start()
    yield blocks
    blocks.close()
    cache.close()


def following(blocks: BlockReader, keys: list[str], most: int | None = None) -> SpecimenReadahead:
    readahead = Readahead(blocks, memory=MEMORY, most=most)
    return readahead.specimen("train/1", [info(key) for key in keys])


def read_slice(
    follower: SpecimenReadahead, index: int, key: str, start: int = 0, stop: int = SIZE
) -> None:
    """Open a slice and read a part of it, in requests as the kernel makes them."""
    content = follower.content(index)
    assert content.size == SIZES[key]
    for at in range(start, stop, 256 * 1024):
        into = bytearray(min(256 * 1024, stop - at))
        n = content.read_into(at, memoryview(into))
        assert bytes(into[:n]) == pattern(key, at, at + n) and n == len(into)


def settled(server: S3Server, blocks: BlockReader) -> set[str]:
    """The keys that were asked for, once nothing is going on any longer."""

    def busy() -> bool:
        with blocks._fetcher._lock:
            wanted = not blocks._fetcher._schedule.is_empty
            return wanted or any(part.busy for part in blocks._fetcher._parts)

    end = time.monotonic() + 30
    while busy():
        assert time.monotonic() < end, "it goes on and on"
        time.sleep(0.005)
    return {get.key for get in server.log()}


def fetched(server: S3Server) -> int:
    return sum(get.stop - get.start for get in server.log())


@pytest.mark.parametrize("order", [1, -1, 3], ids=["up", "down", "every third"])
def test_the_next_slices_come_before_they_are_asked_for(
    server: S3Server, blocks: BlockReader, order: int
) -> None:
    follower = following(blocks, SLICES)
    walk = range(0, len(SLICES), order) if order > 0 else range(len(SLICES) - 1, -1, order)
    for index in list(walk)[:5]:
        read_slice(follower, index, SLICES[index])
    keys = settled(server, blocks)
    ahead = [SLICES[index] in keys for index in list(walk)[5:]]
    assert ahead[:2] == [True, True]
    if order == 3:
        assert not keys & {SLICES[1 + 3 * n] for n in range(13)}
    waits = blocks.counters.waits
    server.reset()
    read_slice(follower, list(walk)[5], SLICES[list(walk)[5]])
    assert blocks.counters.waits == waits
    assert SLICES[list(walk)[5]] not in settled(server, blocks)


def test_every_byte_of_a_stack_comes_once(server: S3Server, blocks: BlockReader) -> None:
    follower = following(blocks, SLICES)
    for index, key in enumerate(SLICES):
        read_slice(follower, index, key)
    assert settled(server, blocks) == set(SLICES)
    assert fetched(server) == SIZE * len(SLICES)


def test_the_rest_of_a_file_comes_before_it_is_asked_for(
    server: S3Server, blocks: BlockReader
) -> None:
    follower = following(blocks, [LARGE])
    read_slice(follower, 0, LARGE, 0, 4 * MIB)
    settled(server, blocks)
    assert fetched(server) > 8 * MIB


def test_a_region_through_the_slices_is_fetched_alone(
    server: S3Server, blocks: BlockReader
) -> None:
    follower = following(blocks, SLICES)
    for index in range(6):
        read_slice(follower, index, SLICES[index], MIB, MIB + 1000)
    keys = settled(server, blocks)
    assert SLICES[7] in keys
    assert all(get.stop - get.start <= 4 * BLOCK for get in server.log() if get.key in SLICES[3:])


def test_random_reads_fetch_what_was_asked_for(server: S3Server, blocks: BlockReader) -> None:
    follower = following(blocks, [LARGE])
    chance = random.Random(1)
    touched = set()
    content = follower.content(0)
    for _ in range(40):
        at = chance.randrange(1, 64) * MIB + chance.randrange(MIB - 10)
        content.read_into(at, memoryview(bytearray(10)))
        touched |= {at // BLOCK, (at + 9) // BLOCK}
    settled(server, blocks)
    assert fetched(server) <= len(touched) * BLOCK * 1.5


def test_opening_alone_fetches_nothing(server: S3Server, blocks: BlockReader) -> None:
    follower = following(blocks, SLICES)
    for index in range(len(SLICES)):
        follower.content(index)
    assert settled(server, blocks) == set()


def test_reading_past_the_end_is_no_demand(server: S3Server, blocks: BlockReader) -> None:
    content = following(blocks, SLICES).content(0)
    assert content.read_into(SIZE, memoryview(bytearray(10))) == 0
    assert content.read_into(SIZE + 10 * MIB, memoryview(bytearray(10))) == 0
    assert settled(server, blocks) == set()


def test_readahead_off(server: S3Server, blocks: BlockReader) -> None:
    follower = following(blocks, SLICES, most=0)
    for index in range(5):
        read_slice(follower, index, SLICES[index])
    assert settled(server, blocks) == set(SLICES[:5])
    assert fetched(server) == 5 * SIZE


def test_readahead_of_a_stated_size(server: S3Server, blocks: BlockReader) -> None:
    follower = following(blocks, SLICES, most=2 * SIZE)
    for index in range(5):
        read_slice(follower, index, SLICES[index])
    assert fetched(server) <= 5 * SIZE + 3 * SIZE
    assert settled(server, blocks) >= set(SLICES[:6])


def test_a_jump_gives_up_what_is_queued(server: S3Server, blocks: BlockReader) -> None:
    server.shape(latency=0.02, per_connection=20e6)
    follower = following(blocks, SLICES)
    for index in range(4):
        read_slice(follower, index, SLICES[index])
    read_slice(follower, 30, SLICES[30], 2 * MIB, 2 * MIB + 10)
    assert blocks._fetcher._schedule.is_empty
    keys = settled(server, blocks)
    assert len(keys & set(SLICES[:25])) < 25


def test_readers_of_two_specimens_share_the_memory(blocks: BlockReader) -> None:
    readahead = Readahead(blocks, memory=MEMORY, most=GIB)
    readahead.noted("a")
    assert readahead.depth() == MEMORY // 2
    readahead.noted("b")
    assert readahead.depth() == MEMORY // 4


def test_depth_follows_the_link(blocks: BlockReader) -> None:
    readahead = Readahead(blocks, memory=8 * GIB, most=None)
    readahead.noted("a")
    before = readahead.depth()
    assert before >= blocks.link.window + PART
    blocks.link.window *= 2
    assert readahead.depth() > before


def test_readers_on_many_threads_get_their_bytes(server: S3Server, blocks: BlockReader) -> None:
    readahead = Readahead(blocks, memory=MEMORY, most=None)
    followers = [
        (readahead.specimen("train/1", [info(key) for key in SLICES]), SLICES),
        (readahead.specimen("train/2", [info(key) for key in OTHERS]), OTHERS),
    ]

    def work(number: int) -> None:
        follower, keys = followers[number % 2]
        for index in range(number // 2, 20, 2):
            read_slice(follower, index, keys[index])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, number) for number in range(4)]:
            future.result(60)
    settled(server, blocks)
    # What has given way to a reader is asked for again, less what had come of it.
    log = server.log()
    once = {(get.key, get.start) for get in log}
    assert len(log) - len(once) <= len(log) // 20
    assert blocks.counters.fetched <= fetched(server) <= 1.05 * blocks.counters.fetched
    assert blocks.counters.fetched <= SIZE * len(SLICES + OTHERS)


# -- readers whom the kernel serves by itself -------------------------------------------------------------------


def test_slices_that_are_all_here_need_no_plan_but_near_the_first_that_is_not(
    server: S3Server, blocks: BlockReader
) -> None:
    cached = 30
    follower = following(blocks, SLICES)
    for index in range(cached):
        blocks.read_into(follower.slices[index], 0, memoryview(bytearray(SIZE)))
    until(lambda: not blocks.figures()["memory"]["unwritten"])
    readahead = Readahead(blocks, memory=MEMORY, most=None, checker=Checker(blocks._cache))
    follower = readahead.specimen("train/1", [info(key) for key in SLICES])

    def walk(indices: range) -> None:
        for index in indices:
            content = follower.content(index)
            assert isinstance(content, SliceContent)
            assert content.backing() is not None
            follower.left(SIZE, 1.0)  # long enough to have been read

    walk(range(cached))
    assert settled(server, blocks) >= set(SLICES[cached : cached + 2])
    foreseen = follower._predictor._now
    walk(range(cached - AROUND))
    assert follower._predictor._now == foreseen
    assert [progress.latest for progress in readahead.lately(60)] == [cached - AROUND - 1]
    walk(range(cached - AROUND, cached))
    assert follower._predictor._now == foreseen + AROUND


# -- readers of whole-stack files -------------------------------------------------------------------------------


def read_on(content: Content, stop: int) -> None:
    for at in range(0, stop, 256 * 1024):
        content.read_into(at, memoryview(bytearray(min(256 * 1024, stop - at))))


def test_who_came_from_the_slice_before_is_believed_when_it_has_read_a_while(
    server: S3Server, blocks: BlockReader
) -> None:
    follower = following(blocks, [LARGE])
    content = follower.content(0, entered=True)
    read_on(content, PROOF)
    settled(server, blocks)
    assert fetched(server) <= PROOF + BLOCK
    read_on(content, PROOF + MIB)
    settled(server, blocks)
    assert fetched(server) > PROOF + 2 * MIB


def test_nothing_is_read_ahead_past_a_readers_limit(server: S3Server, blocks: BlockReader) -> None:
    limit = 20 * MIB
    content = following(blocks, [LARGE]).content(0, limit)
    read_on(content, 10 * MIB)
    settled(server, blocks)
    assert fetched(server) == limit


def test_headers_come_before_the_columns_of_further_slices(
    server: S3Server, blocks: BlockReader
) -> None:
    follower = following(blocks, SLICES)
    follower.preface = [ByteRange(0, 4096), ByteRange(SIZE - 50, SIZE)]
    for index in range(6):
        read_slice(follower, index, SLICES[index], MIB, MIB + 512 * 1024)
    settled(server, blocks)
    ahead = [get for get in server.log() if get.key == SLICES[8]]
    assert {get.start for get in ahead} >= {0, SIZE - SIZE % BLOCK, MIB}
    assert sum(get.stop - get.start for get in ahead) <= 512 * 1024 + 3 * BLOCK
