"""The dataset in Python without a mount: the right pixels, for no more bytes than they take."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

import bffs
from bffs import regions
from bffs.cachefile import BLOCK
from bffs.dataset import Dataset
from bffs.errors import (
    BffsError,
    BrokenPromise,
    NoSuchSpecimen,
    ObjectChanged,
    StoreUnreachable,
    UsageError,
)
from bffs.store import ByteRange
from bffs.tiff import Runs
from tests.conftest import CREDENTIALS, ROOT, Mounter, flags_of, until
from tests.s3server import S3Server
from tests.slices import tiff

Open = Callable[..., Dataset]

HEIGHT, WIDTH, DEPTH = 700, 1000, 6
PIXELS = np.random.default_rng(7).integers(0, 256, (DEPTH, HEIGHT, WIDTH), np.uint8)
DEEP = np.random.default_rng(8).integers(0, 1 << 16, (3, 90, 70), np.uint16)
SWC = b"# a neuron\n1 1 5 6 7 1 -1\n"


def key(z: int) -> str:
    return f"1/a-{z + 1:04}.tif"


def deflated(image: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, compression="zlib", metadata=None, photometric="minisblack")
    return file.getvalue()


OBJECTS: dict[str, bytes] = {
    "1/1.swc": SWC,
    **{key(z): tiff(HEIGHT, WIDTH, PIXELS[z].tobytes()) for z in range(DEPTH)},
    **{
        f"2/b-{z:04}.tif": tiff(
            90, 70, DEEP[z].astype(">u2").tobytes(), order=">", rows=7 + z, gap=z, last=z == 1
        )
        for z in range(3)
    },
    **{f"3/c-{z:04}.tif": deflated(PIXELS[z, :300, :200]) for z in range(3)},
    "4/d-0001.tif": tiff(90, 70, bytes(90 * 70)),
    "4/d-0002.tif": tiff(70, 90, bytes(90 * 70)),
    "4/d-0003.tif": deflated(np.full((90, 70), 9, np.uint8)),
    "5/e-0001.tif": b"no picture at all",
    "6/f-0001.tif": tiff(90, 30, bytes(90 * 30 * 3), t277=(3, 3), t262=(3, 2)),
    "TEST/1/g-0001.tif": tiff(90, 70, bytes(90 * 70)),
}
PROFILE = '[splits]\n"TEST/" = "test"\n"" = "train"\n'


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(OBJECTS, bucket="neurons") as server:
        yield server


@pytest.fixture
def opened(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the server's dataset with a cache of this test's own."""
    for name, value in {**CREDENTIALS, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    profile = tmp_path / "lab.toml"
    place = f'endpoint_url = "{server.endpoint_url}"\nbucket = "{server.bucket}"\n'
    profile.write_text(place + PROFILE)
    made = []

    def open_it(**options: Any) -> Dataset:
        made.append(bffs.open_dataset(str(profile), cache_dir=tmp_path / "cache", **options))
        return made[-1]

    yield open_it
    for each in made:
        each.close()
    server.reset()


def sent(server: S3Server) -> int:
    return int(server.stats()["sent"].get("get", 0))


# -- what there is ----------------------------------------------------------------------------------------------


def test_specimens_are_found_by_position_and_by_id(opened: Open) -> None:
    dataset = opened()
    assert [(each.split, each.id) for each in dataset] == [
        *(("train", str(number)) for number in range(1, 7)),
        ("test", "1"),
    ]
    assert dataset["1"].split == "test" and dataset["train/1"].split == "train"
    assert dataset[0] is dataset["train/1"] and len(dataset[1:3]) == 2
    with pytest.raises(NoSuchSpecimen):
        dataset["7"]
    with pytest.raises(IndexError):
        dataset[7]


def test_a_specimen_tells_what_it_is(opened: Open) -> None:
    dataset = opened()
    specimen = dataset["train/1"]
    assert (specimen.shape, specimen.ndim, len(specimen)) == ((DEPTH, HEIGHT, WIDTH), 3, DEPTH)
    assert specimen.dtype == np.dtype(np.uint8)
    assert [each.name for each in specimen.slices] == [key(z)[2:] for z in range(DEPTH)]
    assert specimen.slices[2].shape == (HEIGHT, WIDTH) and specimen.slices[2].index == 2
    assert specimen.slices[2].read() == OBJECTS[key(2)]
    assert specimen.swc() == SWC.decode() and dataset["2"].swc() is None
    assert specimen.manifest()["shape"] == [DEPTH, HEIGHT, WIDTH]
    assert dataset.manifest()["1"]["bucket_prefix"] == "TEST/1/"
    assert specimen.voxel is None
    assert "train/1" in repr(specimen) and key(2)[2:] in repr(specimen.slices[2])


# -- pixels -----------------------------------------------------------------------------------------------------

INDICES: list[Any] = [
    ..., 2, -1, (2, 3), (2, 3, 4), slice(1, 5, 2), slice(None, None, -1),
    (slice(1, 3), slice(100, 612), slice(300, 812)), (slice(None), 5), (..., 7),
    (0, slice(650, 20, -7), slice(None, None, 300)), (slice(4, 2), 0), (slice(None), slice(9, 9)),
]  # fmt: skip


def test_pixels_are_indexed_as_in_numpy(opened: Open) -> None:
    specimen = opened()["train/1"]
    for index in INDICES:
        found, wanted = specimen[index], PIXELS[index]
        assert np.shape(found) == np.shape(wanted) and found.dtype == wanted.dtype
        assert np.array_equal(found, wanted), index
    assert np.array_equal(specimen.slices[3][10:20, ::-1], PIXELS[3][10:20, ::-1])
    assert specimen.slices[3][10, 20] == PIXELS[3, 10, 20]
    assert np.array_equal(np.asarray(specimen.slices[1]), PIXELS[1])
    assert np.array_equal(np.array(specimen, dtype=np.float32), PIXELS.astype(np.float32))
    assert [plane.shape for plane in specimen] == [(HEIGHT, WIDTH)] * DEPTH


@pytest.mark.parametrize("index", [DEPTH, (0, 0, 0, 0), 1.5, [1, 2], (0, None), "1"])
def test_other_indices_are_refused(opened: Open, index: Any) -> None:
    specimen = opened()["train/1"]
    with pytest.raises(IndexError):
        specimen[index]


def test_strips_gaps_and_byte_order_of_each_slice_are_respected(opened: Open) -> None:
    specimen = opened()["2"]
    assert specimen.dtype == np.dtype(">u2")
    assert np.array_equal(specimen[...], DEEP)
    assert np.array_equal(specimen[:, 3:80:5, 60:10:-3], DEEP[:, 3:80:5, 60:10:-3])


def test_compressed_slices_are_decoded(opened: Open) -> None:
    specimen = opened()["3"]
    assert np.array_equal(specimen[...], PIXELS[:3, :300, :200])
    assert np.array_equal(specimen[1:, 250:10:-3, 5:100:2], PIXELS[1:3, 250:10:-3, 5:100:2])
    array: Any = specimen.dask()
    assert np.array_equal(array[:, 7].compute(), PIXELS[:3, 7, :200])


def test_slices_unlike_the_first_are_errors(opened: Open) -> None:
    specimen = opened()["4"]
    assert not specimen[0].any()
    for z in (1, 2):
        with pytest.raises(BrokenPromise, match=f"d-000{z + 1}.tif"):
            specimen[z]


@pytest.mark.parametrize(("name", "why"), [("5", "not a TIFF"), ("6", "3 samples")])
def test_what_is_no_greyscale_picture_says_so(opened: Open, name: str, why: str) -> None:
    specimen = opened()[name]
    for ask in (lambda: specimen.shape, lambda: specimen[0], lambda: specimen.slices[0][:]):
        with pytest.raises(BffsError, match=f"train/{name} can't be read as an array.*{why}"):
            ask()
    assert specimen.slices[0].read() == OBJECTS[specimen.slices[0].listed.key]


# -- what it costs ----------------------------------------------------------------------------------------------


def blocks_of(first: int, stop: int) -> set[int]:
    return set(range(first // BLOCK, -(-stop // BLOCK)))


def cost(z: int, rows: range) -> int:
    """Bytes of the blocks that these rows of a slice and its header take."""
    size = len(OBJECTS[key(z)])
    head = size - HEIGHT * WIDTH
    touched = blocks_of(0, 1) | blocks_of(head + rows[0] * WIDTH, head + (rows[-1] + 1) * WIDTH)
    return sum(min(BLOCK, size - block * BLOCK) for block in touched)


def test_a_region_costs_the_blocks_that_it_touches(server: S3Server, opened: Open) -> None:
    specimen = opened()["train/1"]
    assert specimen.shape
    server.reset()
    rows = range(400, 500)
    assert np.array_equal(specimen[1:5, 400:500, 30:60], PIXELS[1:5, 400:500, 30:60])
    assert sent(server) == sum(cost(z, rows) for z in range(1, 5)) < 4 * HEIGHT * WIDTH // 2
    assert np.array_equal(specimen[1:5, 400:500], PIXELS[1:5, 400:500])
    assert sent(server) == sum(cost(z, rows) for z in range(1, 5))


def test_regions_of_a_dask_array_cost_no_more(server: S3Server, opened: Open) -> None:
    array: Any = opened(readahead="off")["train/1"].dask()
    assert array.shape == (DEPTH, HEIGHT, WIDTH) and array.chunksize == (1, HEIGHT, WIDTH)
    server.reset()
    found = array[:4, 400:500, 30:60].min(axis=0).compute()
    assert np.array_equal(found, PIXELS[:4, 400:500, 30:60].min(axis=0))
    known = BLOCK  # of the first header
    assert sent(server) == sum(cost(z, range(400, 500)) for z in range(4)) - known


def test_a_dask_array_takes_all_that_dask_takes(opened: Open) -> None:
    array: Any = opened()["train/1"].dask(rows=100)
    assert array.chunksize == (1, 100, WIDTH) and array.dtype == PIXELS.dtype
    for index in ((0, slice(5, 9)), (slice(2), slice(90, 110), [1, 5, 2]), [0, 2], (-1, 3, 4)):
        assert np.array_equal(array[index].compute(), PIXELS[index])
    assert np.array_equal(array.compute(), PIXELS)


def test_everything_costs_its_bytes_once_and_stays(server: S3Server, opened: Open) -> None:
    dataset = opened()
    server.reset()
    assert np.array_equal(dataset["train/1"][...], PIXELS)
    assert sent(server) == sum(len(OBJECTS[key(z)]) for z in range(DEPTH))
    dataset.close()
    server.reset()
    again = opened(offline=True)["train/1"]
    assert np.array_equal(again[...], PIXELS)
    assert server.stats()["requests"] == {}


def test_who_reads_slice_by_slice_has_the_next_ones_fetched(server: S3Server, opened: Open) -> None:
    specimen = opened()["train/1"]
    server.reset()
    for z in range(3):
        assert np.array_equal(specimen.slices[z][:], PIXELS[z])
    until(lambda: {get.key for get in server.log()} > {key(z) for z in range(4)})


def test_a_mount_shares_the_cache(server: S3Server, opened: Open, tmp_path: Path) -> None:
    mounter = Mounter([*flags_of(server), "--dataset", str(tmp_path / "lab.toml")], tmp_path)
    try:
        path = mounter() / "train" / key(0)
        assert path.read_bytes() == OBJECTS[key(0)]
        until(lambda: len(list((tmp_path / "cache").glob("v1/*/??/*.sums"))) >= 1)
    finally:
        mounter.close()
    server.reset()
    assert np.array_equal(opened(offline=True)["train/1"].slices[0][:], PIXELS[0])
    assert server.stats()["requests"] == {}


def test_more_than_fits_into_memory_is_fetched_once(server: S3Server, tmp_path: Path) -> None:
    size, depth = 6_000_000, 18
    images = np.random.default_rng(1).integers(0, 256, (depth, 2000, size // 2000), np.uint8)
    objects = {f"1/{z:04}.tif": tiff(2000, size // 2000, images[z].tobytes()) for z in range(depth)}
    with S3Server(objects, bucket="neurons") as large, bffs.open_dataset(
        endpoint_url=large.endpoint_url, bucket="neurons", no_sign_request=True,
        cache_dir=tmp_path, memory="64M",
    ) as dataset:  # fmt: skip
        assert np.array_equal(dataset["1"][...], images)
        assert sent(large) == sum(map(len, objects.values()))


# -- threads, faults, errors --------------------------------------------------------------------------------------


def test_many_threads_may_read_and_all_of_ours_end(server: S3Server, opened: Open) -> None:
    before = set(threading.enumerate())
    dataset = opened()
    server.fault("status", value=503, kind="get", probability=0.1)
    server.fault("close", at=50_000, kind="get", probability=0.1)
    specimen = dataset["train/1"]

    def right(number: int) -> bool:
        z, row = number % DEPTH, 37 * number % 600
        return np.array_equal(specimen[z, row : row + 90], PIXELS[z, row : row + 90])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(60)))
    dataset.close()
    dataset.close()
    left = set(threading.enumerate()) - before
    assert not {thread.name for thread in left}


def test_a_closed_dataset_says_so(opened: Open) -> None:
    with opened() as dataset:
        specimen = dataset["train/1"]
        assert specimen[0, 0, 0] == PIXELS[0, 0, 0]
    for ask in (lambda: specimen[0], specimen.swc, specimen.slices[1].read):
        with pytest.raises(BffsError, match="the dataset is closed"):
            ask()


def test_a_read_that_waits_ends_when_the_dataset_is_closed(server: S3Server, opened: Open) -> None:
    dataset = opened()
    specimen = dataset["train/1"]
    assert specimen.shape
    server.fault("stall", value=3600, kind="get")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: specimen[3])
        until(lambda: server.stats()["in_flight"])
        dataset.close()
        assert isinstance(reading.exception(30), BffsError)


def test_errors_are_those_of_bffs(server: S3Server, opened: Open) -> None:
    specimen = opened(deadline="1s")["train/1"]
    assert specimen.shape
    server.fault("reset", kind="get")
    with pytest.raises(StoreUnreachable):
        specimen[1]
    server.reset()
    server.fault("status", value=412, kind="get")
    with pytest.raises(ObjectChanged):
        specimen[2]
    with pytest.raises(UsageError, match=r"cache_siez.*cache_size"):
        opened(cache_siez="20G")
    with pytest.raises(UsageError, match="cache-size"):
        opened(cache_size="much")
    server.reset()
    with pytest.raises(StoreUnreachable):
        bffs.open_dataset(endpoint_url="http://127.0.0.1:9", bucket="b", no_sign_request=True)


def test_without_dask_it_says_what_to_install(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    specimen = opened()["train/1"]
    monkeypatch.setitem(sys.modules, "dask.array", None)
    with pytest.raises(BffsError, match=r"pip install 'bffs\[array\]'"):
        specimen.dask()


def test_importing_bffs_is_cheap() -> None:
    code = (
        "import sys, bffs\n"
        "heavy = {'numpy', 'dask', 'boto3', 'tifffile', 'bffs.dataset'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert callable(bffs.open_dataset)\n"
        "try: bffs.nothing\n"
        "except AttributeError: sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 7


# -- regions, in pure -----------------------------------------------------------------------------------------------


@given(st.data())
def test_bands_hold_the_wanted_pixels_and_little_else(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    item = data.draw(st.sampled_from([1, 2, 4]))
    part = st.slices(max(height, width))
    rows, columns = range(height)[data.draw(part)], range(width)[data.draw(part)]
    chosen = regions.box((data.draw(st.just(slice(None))), slice(None)), (height, width))
    assert chosen.ranges == (range(height), range(width))
    rows, columns = (each[::-1] if each.step < 0 else each for each in (rows, columns))
    wanted = {
        (row * width + column) * item + byte
        for row in rows
        for column in columns
        for byte in range(item)
    }
    bands = list(regions.bands(rows, columns, width * item, item))
    got = {at for band in bands for at in range(*band.span)}
    assert wanted <= got
    assert sum(band.number for band in bands) == (len(rows) if columns else 0)
    for earlier, later in pairwise(bands):
        assert (
            earlier.span.stop <= later.span.start and later.first == earlier.first + earlier.number
        )


def test_far_rows_are_read_one_by_one() -> None:
    wide = regions.NEAR + 1000
    found = list(regions.bands(range(3), range(10), wide, 1))
    assert [band.span for band in found] == [(n * wide, n * wide + 10) for n in range(3)]
    near = list(regions.bands(range(0, 2000, 2), range(10), 5000, 1))
    assert len(near) == 2 and all(band.span.stop - band.span.start <= regions.BAND for band in near)


def test_spans_follow_the_strips() -> None:
    runs = Runs((0, 100, 250), (8, 500, 700))
    assert list(regions.spans(runs, ByteRange(90, 260))) == [(98, 108), (500, 650), (700, 710)]
    assert list(regions.spans(runs, ByteRange(0, 100))) == [(8, 108)]
    assert list(regions.spans(runs, ByteRange(300, 310))) == [(750, 760)]
