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
from typing import Any

import pytest

from bffs.blocks import BlockReader
from bffs.cache import BLOCK, DiskCache
from bffs.deadlines import AGAIN, as_one_read
from bffs.errors import (
    AccessDenied,
    BffsError,
    Closing,
    ObjectChanged,
    StoreBusy,
    StoreUnreachable,
)
from bffs.parts import BLOCKS_IN_PART, PART, READY, Buffer, Part, Parts
from bffs.s3 import S3Store
from bffs.schedule import Priority
from bffs.settings import Dataset, Settings
from bffs.store import ObjectInfo
from bffs.units import GIB, MIB
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
    "changing": 2 * MIB,
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
        self,
        store: object = None,
        *,
        memory: int = 256 * MIB,
        connections: int = 8,
        disk: int = GIB,
        **options: Any,
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
            **options,
        )
        blocks.start()
        self._started.append(blocks)
        return blocks

    def close(self) -> None:
        before = {thread.name for thread in threading.enumerate()}
        for blocks in self._started:
            blocks.close()
        left = [
            t.name for t in threading.enumerate() if t.name.startswith(("bffs-fetch", "bffs-write"))
        ]
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
    with blocks._fetcher._lock:
        parts, schedule = blocks._fetcher._parts, blocks._fetcher._schedule
        buffers = [part.buffer for part in parts] + parts._free + parts._ready
        held = BLOCK * sum(buffer.touched.bit_count() for buffer in buffers)
        idle = {**parts._idle, **parts._spent}
        return (
            not any(part.pins or part.busy or part.waiters for part in parts)
            and idle == parts._parts
            and schedule.is_empty
            and not (schedule._prefetching or schedule._demanded)
            and schedule._prefetching_bytes == blocks._fetcher._keeper.unwritten == 0
            and parts.used == held <= parts.limit
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


@pytest.mark.parametrize("key", ["empty", "byte", "block", "odd", "part", "parts"])
def test_an_object_is_read_to_its_end_and_no_further(reader: Readers, key: str) -> None:
    blocks = reader(memory=64 * MIB)
    size = SIZES[key]
    assert read(blocks, key, 0, size + 10) == expect(key, 0, size)
    assert read(blocks, key, size, 10) == b""
    assert read(blocks, key, size + BLOCK, 10) == b""
    assert read(blocks, key, max(0, size - 1), 10) == expect(key, max(0, size - 1), 1)
    settle(blocks)


def test_random_reads_by_many_threads_with_little_memory(server: S3Server, reader: Readers) -> None:
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


def test_a_damaged_file_of_the_cache_is_fetched_again(server: S3Server, reader: Readers) -> None:
    blocks = reader()
    read(blocks, "odd", 0, SIZES["odd"])
    settle(blocks)
    path = reader.cache.open(info("odd")).path
    with path.open("r+b") as file:
        file.seek(BLOCK + 5)
        file.write(b"damage")
    server.reset()
    blocks = reader()
    assert read(blocks, "odd", 0, SIZES["odd"]) == expect("odd", 0, SIZES["odd"])
    assert fetched_blocks(server.log()) == {("odd", 1): 1}
    settle(blocks)
    blocks = reader()
    server.reset()
    assert read(blocks, "odd", 0, SIZES["odd"]) == expect("odd", 0, SIZES["odd"])
    assert server.log() == []


# -- once -------------------------------------------------------------------------------------------------------


def test_every_block_is_fetched_once_whoever_asks_for_it(server: S3Server, reader: Readers) -> None:
    server.shape(latency=0.01)
    blocks = reader()
    size = SIZES["large"]

    def work(number: int) -> None:
        if number % 2:
            blocks.prefetch(number, Priority.FILE, [(info("large"), 0, size)])
        for start in range(0, size, MIB):
            assert read(blocks, "large", start, MIB) == expect("large", start, MIB)

    at_once(8, work, blocks)
    settle(blocks)
    counts = fetched_blocks(server.log())
    assert set(counts.values()) == {1}
    assert len(counts) == size // BLOCK
    assert server.stats()["sent"]["get"] == size == blocks.counters.fetched
    assert blocks.counters.from_memory + blocks.counters.from_disk == 8 * size


def test_a_small_read_fetches_the_blocks_that_it_touches(server: S3Server, reader: Readers) -> None:
    blocks = reader()
    assert read(blocks, "large", BLOCK - 1, 2) == expect("large", BLOCK - 1, 2)
    assert read(blocks, "large", PART - 1, 2) == expect("large", PART - 1, 2)
    settle(blocks)
    assert fetched_blocks(server.log()) == {
        ("large", block): 1 for block in (0, 1, BLOCKS_IN_PART - 1, BLOCKS_IN_PART)
    }


def test_what_is_on_disk_is_never_fetched(server: S3Server, reader: Readers) -> None:
    size = SIZES["parts"]
    blocks = reader()
    for start, stop in ((0, BLOCK), (5 * BLOCK, PART + BLOCK), (size - 100, size)):
        read(blocks, "parts", start, stop - start)
    settle(blocks)
    first = set(fetched_blocks(server.log()))
    server.reset()
    blocks = reader()
    blocks.prefetch("a", Priority.SLICES, [(info("parts"), 5 * BLOCK, PART)])
    settle(blocks)
    assert server.log() == []
    blocks.prefetch("a", Priority.SLICES, [(info("parts"), 0, size)])
    assert read(blocks, "parts", 0, size) == expect("parts", 0, size)
    settle(blocks)
    second = fetched_blocks(server.log())
    assert set(second.values()) == {1} and first.isdisjoint(second)
    assert blocks.counters.from_disk >= len(first) * BLOCK // 2


def test_blocks_that_another_process_adds_are_found(server: S3Server, reader: Readers) -> None:
    first, second = reader(), reader()
    read(first, "odd", 0, 1)  # so that its files are open
    read(second, "odd", 0, SIZES["odd"])
    settle(second)
    server.reset()
    assert read(first, "odd", 2 * BLOCK, BLOCK) == expect("odd", 2 * BLOCK, BLOCK)
    assert server.log() == []


# -- order ------------------------------------------------------------------------------------------------------


def test_a_demand_overtakes_what_is_queued(server: S3Server, reader: Readers) -> None:
    server.shape(latency=0.02, per_connection=5e6)
    blocks = reader(connections=4)
    blocks.prefetch("a", Priority.FILE, [(info("large"), 0, SIZES["large"])])
    wait_until(lambda: len(server.log()) >= 3, "prefetching")
    assert read(blocks, "part", 0, BLOCK) == expect("part", 0, BLOCK)
    assert blocks.counters.fetched < SIZES["large"] // 2
    blocks.cancel("a")
    settle(blocks)


def test_a_demand_for_what_is_queued_goes_first(server: S3Server, reader: Readers) -> None:
    server.shape(latency=0.02, per_connection=20e6)
    blocks = reader(connections=4)
    size = SIZES["large"]
    blocks.prefetch("a", Priority.FILE, [(info("large"), 0, size)])
    wait_until(lambda: len(server.log()) >= 3, "prefetching")
    at = size - 2 * MIB
    assert read(blocks, "large", at, BLOCK) == expect("large", at, BLOCK)
    assert blocks.counters.fetched < size // 2
    blocks.cancel("a")
    settle(blocks)


def test_cancelled_prefetch_is_not_fetched(server: S3Server, reader: Readers) -> None:
    server.shape(latency=0.05)
    blocks = reader(connections=4)
    blocks.prefetch("a", Priority.FILE, [(info("large"), 0, SIZES["large"])])
    wait_until(lambda: len(server.log()) >= 1, "prefetching")
    blocks.cancel("a")
    settle(blocks)
    assert blocks.counters.fetched < SIZES["large"] // 2
    blocks.prefetch("a", Priority.FILE, [(info("parts"), 0, SIZES["parts"])])
    blocks.prefetch("a", Priority.FILE, [])
    settle(blocks)


def test_the_nearest_comes_first_and_streams_take_turns(server: S3Server, reader: Readers) -> None:
    """One connection, so that requests follow each other."""
    server.shape(latency=0.01, per_connection=10e6)
    blocks = reader(connections=1)
    blocks.prefetch("warm", Priority.WARM, [(info("slice-00"), 0, 7 * MIB)])
    wait_until(lambda: len(server.log()) == 1, "prefetching")
    blocks.prefetch("next", Priority.SLICES, [(info("slice-01"), 0, 7 * MIB)])
    blocks.prefetch("x", Priority.FILE, [(info("slice-02"), 0, 7 * MIB)])
    blocks.prefetch("y", Priority.FILE, [(info("slice-03"), 0, 7 * MIB)])
    settle(blocks)
    keys = [get.key for get in server.log()]
    assert keys.pop(0) == "slice-00"  # had begun before the others came
    order = list(dict.fromkeys(keys))
    assert order == ["slice-02", "slice-03", "slice-01", "slice-00"]
    turns = [key for key in keys if key in ("slice-02", "slice-03")]
    assert turns[:4] == ["slice-02", "slice-03"] * 2
    assert set(fetched_blocks(server.log()).values()) == {1}


@pytest.mark.parametrize("connections", [1, 2, 5])
def test_prefetching_needs_no_more_than_one_connection(
    server: S3Server, reader: Readers, connections: int
) -> None:
    blocks = reader(connections=connections)
    blocks.prefetch("a", Priority.WARM, [(info("parts"), 0, SIZES["parts"])])
    settle(blocks)
    assert blocks.counters.fetched == SIZES["parts"]


def test_a_reader_gets_its_block_before_the_request_is_done(
    server: S3Server, reader: Readers
) -> None:
    server.shape(per_connection=4e6)
    blocks = reader()
    blocks.prefetch("a", Priority.FILE, [(info("slice-00"), 0, 4 * MIB)])
    wait_until(lambda: len(server.log()) >= 1, "prefetching")
    assert read(blocks, "slice-00", 0, BLOCK) == expect("slice-00", 0, BLOCK)
    assert blocks.counters.fetched < 2 * MIB
    blocks.cancel("a")
    settle(blocks)


def test_a_slow_link_is_not_taken_for_a_far_one(server: S3Server, reader: Readers) -> None:
    server.shape(latency=0.02, total=1e6)
    blocks = reader()
    blocks.prefetch("s", Priority.WARM, [(info("large"), 0, 4 * BLOCK)])
    assert read(blocks, "large", 0, 4 * BLOCK) == expect("large", 0, 4 * BLOCK)
    assert 0.02 <= blocks.link.latency < BLOCK / 1e6


# -- faults -----------------------------------------------------------------------------------------------------


def test_a_failure_reaches_those_who_wait_and_nobody_else(
    server: S3Server, reader: Readers
) -> None:
    server.shape(latency=0.3)
    server.fault("status", value=403, key="part", kind="get", times=1)
    blocks = reader()
    with ThreadPoolExecutor(4) as pool:
        wanted = [("part", 0), ("part", 5), ("odd", 0)]
        first = pool.submit(read, blocks, "part", 0, 10)
        wait_until(lambda: server.stats()["in_flight"] == 1, "fetching")
        futures = [pool.submit(read, blocks, key, at, 10) for key, at in wanted]
        errors = [future.exception(SOON) for future in (first, *futures)]
    assert [type(error) for error in errors] == [AccessDenied] * 3 + [type(None)]
    assert Counter(get.key for get in server.log()) == {"part": 1, "odd": 1}
    assert read(blocks, "part", 0, MIB) == expect("part", 0, MIB)
    settle(blocks)


def test_what_arrived_before_a_failure_stays(server: S3Server, reader: Readers) -> None:
    server.fault("close", at=3 * BLOCK + 500, key="part", times=1)
    server.fault("status", value=403, key="part", times=1)
    blocks = reader(connections=1)  # so that it is one request
    with pytest.raises(AccessDenied):
        read(blocks, "part", 0, MIB)
    settle(blocks)
    server.reset()
    assert read(blocks, "part", 0, MIB) == expect("part", 0, MIB)
    assert fetched_blocks(server.log()) == {("part", block): 1 for block in range(3, 8)}


def test_a_failed_prefetch_is_nobodys_error(
    server: S3Server, reader: Readers, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault("status", value=403, key="part", times=1)
    blocks = reader()
    blocks.prefetch("a", Priority.FILE, [(info("part"), 0, MIB)])
    settle(blocks)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert read(blocks, "part", 0, MIB) == expect("part", 0, MIB)


def test_a_changed_object_is_an_error_never_a_mixture(server: S3Server, reader: Readers) -> None:
    blocks = reader()
    old = info("changing")
    assert read(blocks, "changing", 0, BLOCK) == expect("changing", 0, BLOCK)
    server.change({"changing": b"n" * old.size})
    with pytest.raises(ObjectChanged):
        read(blocks, "changing", MIB, BLOCK)
    assert read(blocks, "changing", 0, BLOCK) == expect("changing", 0, BLOCK)
    server.change({"changing": None})
    with pytest.raises(ObjectChanged):
        read(blocks, "changing", MIB, BLOCK)
    settle(blocks)
    server.change({"changing": SIZES["changing"]})
    assert read(blocks, "changing", MIB, BLOCK) == expect("changing", MIB, BLOCK)


def failure(
    blocks: BlockReader, key: str, start: int, size: int = 1
) -> tuple[BaseException, float]:
    """What reading ends with, and after how many seconds."""
    begun = time.monotonic()
    with pytest.raises(BffsError) as caught:
        read(blocks, key, start, size)
    return caught.value, time.monotonic() - begun


def test_each_reader_waits_as_long_as_its_own_deadline(server: S3Server, reader: Readers) -> None:
    """Even if others have been waiting for the same blocks, or a prefetch has failed for them."""
    server.fault("status", value=503, key="part")
    blocks = reader(deadline=2.0)
    blocks.prefetch("a", Priority.FILE, [(info("part"), 0, MIB)])
    wait_until(lambda: bool(server.log()), "prefetching")
    with ThreadPoolExecutor(3) as pool:
        waiting = []
        for _ in range(3):
            time.sleep(0.9)
            waiting.append(pool.submit(failure, blocks, "part", 1000))
        for each in waiting:
            error, seconds = each.result(SOON)
            assert isinstance(error, StoreBusy | StoreUnreachable)
            assert 2.0 <= seconds < SOON / 2
    settle(blocks)
    server.reset()
    time.sleep(AGAIN)
    assert read(blocks, "part", 0, MIB) == expect("part", 0, MIB)


def test_a_read_in_several_places_has_one_deadline(server: S3Server, reader: Readers) -> None:
    server.fault("status", value=503)
    blocks = reader(deadline=2.0)
    with as_one_read():
        assert failure(blocks, "part", 0)[1] >= 2.0
        assert failure(blocks, "odd", 0)[1] < 1.5
    assert failure(blocks, "parts", 0)[1] >= 2.0
    server.reset()
    settle(blocks)


def test_a_reader_leaves_at_its_deadline_whatever_the_store_does(
    server: S3Server, reader: Readers
) -> None:
    server.fault("stall", value=60, at=0, key="part")
    blocks = reader(deadline=0.2)  # before the silence counts as a stall
    error, seconds = failure(blocks, "part", 0)
    assert type(error) is StoreUnreachable and "part did not come in time" in str(error)
    assert 0.2 <= seconds < 10
    again, _ = failure(blocks, "part", 0)  # as the kernel does, page by page
    assert again is error
    server.reset()
    time.sleep(AGAIN)
    assert read(blocks, "part", 0, MIB) == expect("part", 0, MIB)
    settle(blocks)


def test_a_reader_without_memory_leaves_at_its_deadline(server: S3Server, reader: Readers) -> None:
    server.fault("status", value=503, key="large")
    blocks = reader(memory=4 * PART, deadline=1.0)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(failure, blocks, "large", n * PART, PART) for n in range(6)]
        for each in waiting:
            error, seconds = each.result(SOON)
            assert isinstance(error, StoreBusy | StoreUnreachable)
            assert 0.9 < seconds < SOON / 2
    server.reset()
    settle(blocks)
    time.sleep(AGAIN)
    assert read(blocks, "large", 0, PART) == expect("large", 0, PART)


def test_a_reader_that_is_gone_waits_no_longer(server: S3Server, reader: Readers) -> None:
    gone = threading.Event()
    server.fault("stall", value=60, at=0, key="part", times=1)
    blocks = reader(abandoned=gone.is_set)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read, blocks, "part", 0, 1)
        wait_until(lambda: bool(server.log()), "fetching")
        gone.set()
        with pytest.raises(InterruptedError):
            waiting.result(SOON)
    gone.clear()
    server.reset()
    assert read(blocks, "part", 0, MIB) == expect("part", 0, MIB)
    settle(blocks)


class Faulty(FakeStore):
    """A store with a fault that nobody foresaw."""

    def read_into(self, *_: object) -> None:
        raise ZeroDivisionError


def test_a_fault_of_our_own_reaches_the_reader_and_ends_no_thread(
    reader: Readers, caplog: pytest.LogCaptureFixture
) -> None:
    store = Faulty({"a": bytes(BLOCK)})
    blocks = reader(store, connections=2)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            blocks.read_into(store.info("a"), 0, memoryview(bytearray(10)))
    settle(blocks)
    assert "went wrong inside bffs" in caplog.text


def test_a_part_that_was_given_up_does_not_come_back(reader: Readers) -> None:
    """A reader may still be copying from it while another part takes its place, and its memory."""
    blocks = reader(memory=4 * PART, disk=0)
    assert read(blocks, "slice-00", 0, MIB) == expect("slice-00", 0, MIB)
    (old,) = blocks._fetcher._parts
    assert read(blocks, "large", 0, 40 * MIB) == expect("large", 0, 40 * MIB)
    assert read(blocks, "slice-00", 0, MIB) == expect("slice-00", 0, MIB)
    settle(blocks)
    assert blocks._fetcher._parts.find(old.key) is not old
    old.have = (1 << BLOCKS_IN_PART) - 1
    blocks._copy_part(old, SIZES["slice-00"] - 10, memoryview(bytearray(10)))
    settle(blocks)


def test_bytes_copied_while_their_memory_was_given_up_do_not_count(
    reader: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = reader(memory=4 * PART, disk=0)
    assert read(blocks, "slice-00", 0, MIB) == expect("slice-00", 0, MIB)
    settle(blocks)
    copy = blocks._copy_part

    def copy_slowly(part: Part, start: int, into: memoryview) -> int:
        monkeypatch.setattr(blocks, "_copy_part", copy)
        read(blocks, "large", 0, 40 * MIB)
        n = copy(part, start, into)
        into[:n] = bytes(n)
        return n

    monkeypatch.setattr(blocks, "_copy_part", copy_slowly)
    assert read(blocks, "slice-00", 0, MIB) == expect("slice-00", 0, MIB)
    settle(blocks)


def test_a_demand_without_memory_holds_up_nobody_who_has_it(
    store: S3Store, reader: Readers
) -> None:
    """Else both would wait for ever: the one for memory, the other for being fetched."""
    reader(disk=0)
    blocks = BlockReader(store, reader.cache, memory=4 * PART, connections=1)
    whole = (1 << BLOCKS_IN_PART) - 1
    with blocks._fetcher._lock:
        for number in range(4):
            part = blocks._fetcher._parts.add(info("large"), number, whole, BLOCKS_IN_PART)
            assert part is not None
            blocks._fetcher._parts.pin(part)
        blocks._fetcher._schedule.demand(info("parts"), [(0, BLOCKS_IN_PART)])
        blocks._fetcher._schedule.demand(info("large"), [(0, BLOCKS_IN_PART)])
        piece = blocks._fetcher._schedule.next(1)
        assert piece is not None and piece.part.key == (*info("large")[:2], 0)


# -- the end ----------------------------------------------------------------------------------------------------


def test_abort_wakes_all_who_wait(server: S3Server, reader: Readers) -> None:
    server.fault("stall", value=60)
    blocks = reader(memory=4 * PART, connections=4)
    with ThreadPoolExecutor(12) as pool:
        # More than memory holds: some wait for bytes, some for memory.
        futures: list[Future[bytes]] = [
            pool.submit(read, blocks, f"slice-{n:02}", 0, 7 * MIB) for n in range(12)
        ]
        wait_until(lambda: server.stats()["in_flight"] == 4, "fetching")
        begun = time.monotonic()
        blocks.abort()
        errors = [future.exception(SOON) for future in futures]
        assert time.monotonic() - begun < 10
    server.reset()
    assert {type(error) for error in errors} == {Closing}
    with pytest.raises(Closing):
        read(blocks, "parts", 0, 1)
    blocks.prefetch("a", Priority.FILE, [(info("parts"), 0, MIB)])
    assert blocks._fetcher._schedule.is_empty


def test_close_writes_what_has_arrived(server: S3Server, reader: Readers) -> None:
    blocks = reader()
    read(blocks, "part", 0, PART)
    blocks.close()
    assert not [t for t in threading.enumerate() if t.name.startswith(("bffs-fetch", "bffs-write"))]
    assert reader.cache.open(info("part")).bytes_present() == PART
    server.reset()
    assert read(reader(), "part", 0, PART) == expect("part", 0, PART)
    assert server.log() == []


def test_close_waits_no_longer_than_it_is_told(server: S3Server, reader: Readers) -> None:
    server.fault("stall", value=60)
    blocks = reader()
    blocks.prefetch("a", Priority.FILE, [(info("part"), 0, MIB)])
    wait_until(lambda: server.stats()["in_flight"] == 1, "fetching")
    begun = time.monotonic()
    blocks.close(timeout=0.2)
    assert time.monotonic() - begun < 10
    server.reset()


# -- memory -----------------------------------------------------------------------------------------------------


def test_memory_for_a_first_slice_is_taken_beforehand_and_used_first(reader: Readers) -> None:
    blocks = reader(disk=0)
    blocks.make_ready()
    assert blocks._fetcher._parts.used == READY
    addresses = {id(buffer) for buffer in blocks._fetcher._parts._ready}
    assert read(blocks, "large", 5, READY) == expect("large", 5, READY)
    assert addresses <= {id(part.buffer) for part in blocks._fetcher._parts}
    assert blocks._fetcher._parts.used == READY + BLOCK  # the last bytes are in one part more


def test_memory_taken_beforehand_is_left_to_who_needs_it() -> None:
    parts = Parts(4 * PART)
    first, _ = parts.add(info("large"), 0, 1, 1), parts.add(info("large"), 1, 1, 1)
    assert first is not None
    for _ in range(4):  # there is room for three
        buffer = Buffer()
        buffer.touch()
        parts.keep_ready(buffer)
    assert parts.used == 3 * PART + 2 * BLOCK
    assert parts.make_room(first, (1 << BLOCKS_IN_PART) - 1)
    assert parts.used == 3 * PART + BLOCK
    assert len(parts._ready) == 2


def test_memory_is_never_exceeded_and_comes_back(server: S3Server, reader: Readers) -> None:
    blocks = reader(memory=4 * PART, disk=0)
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, blocks._fetcher._parts.used)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(60):
            at = chance.randrange(SIZES["large"])
            read(blocks, "large", at, chance.choice([1, MIB]))

    try:
        at_once(8, work, blocks)
    finally:
        done.set()
        watcher.join()
    settle(blocks)
    assert 3 * PART < most <= 4 * PART
    # All of it can be given up for one who needs it.
    assert read(blocks, "large", 0, 30 * MIB) == expect("large", 0, 30 * MIB)
    settle(blocks)
