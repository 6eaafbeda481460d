"""The block reader over real requests: right bytes, fetched once, in order of urgency, within its memory."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from bffs.blocks import BLOCKS_IN_PART, PART, BlockReader, Priority
from bffs.cache import BLOCK, DiskCache
from bffs.errors import BadAnswer, BffsError, Closing, ObjectChanged, StoreUnreachable
from bffs.s3 import S3Store
from bffs.settings import Dataset, Settings
from bffs.store import ObjectInfo
from bffs.units import GIB, KIB, MIB
from tests.fakes import FakeStore
from tests.s3server import Get, S3Server, made_up, pattern

SIZES = {
    "empty": 0,
    "byte": 1,
    "block": BLOCK,
    "odd": 3 * BLOCK + 1234,
    "part": PART,
    "parts": 3 * PART + 54_321,
    "large": 80 * MIB,
    **{f"slice-{n:02}": 7 * MIB + 77 for n in range(20)},
}
SOON = 30.0
"""Seconds after which a reader counts as hanging."""


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
    running.shape()
    return running


@pytest.fixture(scope="module")
def store(running: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    dataset = Dataset(name="d", endpoint_url=running.endpoint_url, region="r", bucket="bucket")
    settings = Settings(
        dataset=dataset, sign_requests=False, cache_dir=tmp_path_factory.mktemp("unused")
    )
    store = S3Store(settings)
    yield store
    store.close()


class Readers:
    """Starts block readers, on a disk cache of their own or on none, and checks what they leave."""

    def __init__(self, store: S3Store, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self._started: list[BlockReader] = []

    def __call__(
        self, store: object = None, *, memory: int = 256 * MIB, connections: int = 8, disk: int = GIB
    ) -> BlockReader:
        """A reader; without `disk`, nothing is cached on disk."""
        dataset = Dataset(name="d", endpoint_url="http://s3.test", region="r", bucket="b")
        folder = self.folder / "cache" if disk else Path("/dev/null/no-cache")
        self.cache = DiskCache(folder, dataset, disk)
        blocks = BlockReader(
            store or self.store,  # type: ignore[arg-type]
            self.cache,
            memory=memory,
            connections=connections,
        )
        blocks.start()
        self._started.append(blocks)
        return blocks

    def close(self) -> None:
        before = {thread.name for thread in threading.enumerate()}
        for blocks in self._started:
            blocks.close()
        left = [t.name for t in threading.enumerate() if t.name.startswith("bffs-")]
        assert not left, f"of {before}, {left} did not end"


@pytest.fixture
def reader(store: S3Store, tmp_path: Path) -> Iterator[Readers]:
    readers = Readers(store, tmp_path)
    yield readers
    readers.close()


def read(blocks: BlockReader, key: str, start: int, size: int) -> bytes:
    data = bytearray(size)
    return bytes(data[: blocks.read_into(info(key), start, memoryview(data))])


def expect(key: str, start: int, size: int) -> bytes:
    return pattern(key, start, max(start, min(start + size, SIZES[key])))


def wait_until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SOON
    while not done():
        assert time.monotonic() < end, f"not {what} within {SOON:.0f} s"
        time.sleep(0.002)


def is_at_rest(blocks: BlockReader) -> bool:
    """Nothing wanted, fetched, copied or written; and the memory that counts as used is what parts hold."""
    with blocks._lock:
        buffers = [part.buffer for part in blocks._parts.values()] + blocks._free
        held = BLOCK * sum(buffer.touched.bit_count() for buffer in buffers)
        idle = set(blocks._idle) | set(blocks._spent)
        return (
            not any(part.pins or part.busy or part.waiters for part in blocks._parts.values())
            and idle == set(blocks._parts)
            and not (blocks._demands or blocks._streams)
            and blocks._prefetching == blocks._prefetching_bytes == blocks._unwritten == 0
            and blocks._used == held <= blocks._memory
        )


def settle(blocks: BlockReader) -> None:
    wait_until(lambda: is_at_rest(blocks), "at rest")


def fetched_blocks(log: list[Get]) -> Counter[tuple[str, int]]:
    """How often each block was asked for."""
    return Counter(
        (get.key, block)
        for get in log
        for block in range(get.start // BLOCK, -(-get.stop // BLOCK))
    )


def at_once(count: int, work: Callable[[int], None], blocks: BlockReader) -> None:
    """Run `work(n)` on `count` threads; a thread that hangs is a failure, and is let go."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, n) for n in range(count)]
        end = time.monotonic() + SOON
        try:
            for future in futures:
                future.result(max(0.0, end - time.monotonic()))
        except TimeoutError:
            pytest.fail(f"readers hang; {sum(not f.done() for f in futures)} of {count}")
        finally:
            if not all(future.done() for future in futures):
                blocks.abort()


# -- bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", SIZES)
def test_an_object_is_read_to_its_end_and_no_further(reader: Readers, key: str) -> None:
    if key == "large" or key.startswith("slice-1"):
        pytest.skip("the others show it")
    blocks = reader(memory=64 * MIB)
    size = SIZES[key]
    assert read(blocks, key, 0, size + 10) == expect(key, 0, size)
    assert read(blocks, key, size, 10) == b""
    assert read(blocks, key, size + BLOCK, 10) == b""
    assert read(blocks, key, max(0, size - 1), 10) == expect(key, max(0, size - 1), 1)
    settle(blocks)


def test_random_reads_by_many_threads_with_little_memory(
    server: S3Server, reader: Readers
) -> None:
    server.shape(latency=0.002)
    blocks = reader(memory=4 * PART)

    def work(number: int) -> None:
        chance = random.Random(number)
        for step in range(40):
            key = chance.choice(list(SIZES))
            start = chance.randrange(SIZES[key] + 1)
            size = min(chance.choice([1, 5000, BLOCK, MIB, 3 * MIB]), SIZES[key])
            if step % 7 == 0:
                ranges = [(info("large"), start, start + 4 * MIB)] if key == "large" else []
                blocks.prefetch(number, chance.choice(list(Priority)), ranges)
            if step % 11 == 0:
                blocks.cancel(chance.randrange(8))
            assert read(blocks, key, start, size) == expect(key, start, size)

    at_once(8, work, blocks)
    for number in range(8):
        blocks.cancel(number)
    settle(blocks)


@pytest.mark.parametrize("disk", [0, GIB])
def test_readers_of_more_than_the_memory_never_wait_for_each_other(
    server: S3Server, reader: Readers, disk: int
) -> None:
    """Sixteen files are read abreast, each of them a quarter of all memory."""
    server.shape(latency=0.001)
    blocks = reader(memory=4 * PART, disk=disk)

    def work(number: int) -> None:
        key = f"slice-{number:02}"
        for start in range(0, SIZES[key], MIB):
            assert read(blocks, key, start, MIB) == expect(key, start, MIB)

    at_once(16, work, blocks)
    settle(blocks)


@pytest.mark.parametrize("disk", [0, GIB])
def test_reads_larger_than_the_memory(server: S3Server, reader: Readers, disk: int) -> None:
    server.shape(latency=0.001)
    blocks = reader(memory=4 * PART, disk=disk)

    def work(number: int) -> None:
        start = number * 3 * MIB
        assert read(blocks, "large", start, 40 * MIB) == expect("large", start, 40 * MIB)

    at_once(6, work, blocks)
    settle(blocks)
