"""The contract of every content: the bytes from any offset, as many as there are, whoever reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bffs.blocks import BlockReader
from bffs.cache import BLOCK, DiskCache
from bffs.content import BytesContent, Content, LocalContent, ObjectContent
from bffs.errors import BffsError, ObjectChanged
from bffs.parts import PART
from bffs.units import GIB, MIB
from tests.conftest import DATASET
from tests.fakes import FakeStore
from tests.s3server import pattern

SIZE = PART + 3 * BLOCK + 17
DATA = pattern("content", 0, SIZE)


@pytest.fixture(scope="module")
def store() -> FakeStore:
    return FakeStore({"a.tif": DATA, "empty": b""})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiskCache]:
    cache = DiskCache(tmp_path_factory.mktemp("content") / "cache", DATASET, GIB)
    yield cache
    cache.close()


@pytest.fixture(scope="module")
def blocks(store: FakeStore, cache: DiskCache) -> Iterator[BlockReader]:
    blocks = BlockReader(store, cache, memory=64 * MIB, connections=4)
    blocks.start()
    yield blocks
    blocks.close()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, store: FakeStore) -> Iterator[DiskCache]:
    """A cache that holds all of the object."""
    cache = DiskCache(tmp_path_factory.mktemp("local") / "cache", DATASET, GIB)
    reader = BlockReader(store, cache, memory=64 * MIB, connections=1)
    reader.start()
    reader.read_into(store.info("a.tif"), 0, memoryview(bytearray(SIZE)))
    reader.close()
    yield cache
    cache.close()


@pytest.fixture(scope="module", params=["bytes", "object", "local"])
def content(
    request: pytest.FixtureRequest, store: FakeStore, blocks: BlockReader, local: DiskCache
) -> Content:
    """Each kind of content, of the same bytes."""
    make: dict[str, Callable[[], Content]] = {
        "bytes": lambda: BytesContent(DATA),
        "object": lambda: ObjectContent(blocks, store.info("a.tif")),
        "local": lambda: LocalContent(local.open(store.info("a.tif"))),
    }
    return make[request.param]()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, SIZE + BLOCK), size=st.integers(0, 3 * BLOCK))
def test_any_range_is_read(content: Content, start: int, size: int) -> None:
    into = bytearray(b"\xee" * size)
    n = content.read_into(start, memoryview(into))
    assert into[:n] == DATA[start : start + size]
    assert into[n:] == b"\xee" * (size - n)


def test_all_of_it_is_read_by_many_threads(content: Content) -> None:
    assert content.size == SIZE

    def read(number: int) -> bytes:
        into = bytearray(SIZE + number)
        return bytes(into[: content.read_into(0, memoryview(into))])

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(read, range(6))) == {DATA}


def test_an_empty_object(blocks: BlockReader, store: FakeStore) -> None:
    content = ObjectContent(blocks, store.info("empty"))
    assert content.size == 0
    assert content.read_into(0, memoryview(bytearray(5))) == 0


def test_what_is_not_here_is_an_error_for_local_content(store: FakeStore, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", DATASET, GIB)
    blocks = BlockReader(store, cache, memory=64 * MIB, connections=1)
    blocks.start()
    blocks.read_into(store.info("a.tif"), 0, memoryview(bytearray(1)))
    blocks.close()
    content = LocalContent(cache.open(store.info("a.tif")))
    into = bytearray(BLOCK)
    assert content.read_into(0, memoryview(into)) == BLOCK and into == DATA[:BLOCK]
    with pytest.raises(BffsError, match="not all here"):
        content.read_into(1, memoryview(into))
    assert content.read_into(SIZE, memoryview(into)) == 0
    cache.close()


def test_a_failure_is_an_error_never_fewer_bytes(store: FakeStore, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", DATASET, GIB)
    changing = FakeStore(store.objects)
    content_of = changing.info("a.tif")
    blocks = BlockReader(changing, cache, memory=64 * MIB, connections=1)
    blocks.start()
    content = ObjectContent(blocks, content_of)
    into = memoryview(bytearray(PART + BLOCK))
    assert content.read_into(0, into[:BLOCK]) == BLOCK
    changing.objects["a.tif"] = b"new"
    with pytest.raises(ObjectChanged):
        content.read_into(0, into)
    blocks.close()
    cache.close()
