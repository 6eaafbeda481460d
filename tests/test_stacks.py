"""Whole-stack files: for any geometry, and any range of any file, what concatenation in memory gives."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bffs import layout, pixels, stacks
from bffs.blocks import BlockReader
from bffs.cache import BLOCK, DiskCache
from bffs.catalog import Specimen, list_catalog
from bffs.content import BytesContent, Content
from bffs.errors import BrokenPromise, ObjectChanged, StoreUnreachable
from bffs.readahead import Readahead
from bffs.settings import Dataset, Settings
from bffs.shapes import Shapes
from bffs.stacks import Stack, Tile, Unfit
from bffs.store import ObjectInfo
from bffs.tiff import MAX_RUNS, SliceHeader, SliceLayout, slice_header
from bffs.tree import Folder, Node, Tree
from bffs.units import GIB, KIB, MIB
from bffs.views import Choice
from tests.fakes import FakeStore
from tests.slices import front_of, tiff

DATASET = Dataset(name="d", endpoint_url="http://s3.test", region="r", bucket="b", voxel=(3, 1, 2))


class Geometry(NamedTuple):
    """How the slices of a stack are stored."""

    depth: int
    height: int
    width: int
    dtype: str
    order: Literal["<", ">"] = "<"
    big: bool = False
    rows: int = 0
    gap: int = 0
    last: bool = False
    front: int = 0

    def numbers(self) -> np.ndarray[Any, Any]:
        """The pixels, all different enough."""
        noise = random.Random(repr(self)).randbytes(
            self.depth * self.height * self.width * np.dtype(self.dtype).itemsize
        )
        shape = (self.depth, self.height, self.width)
        return np.frombuffer(noise, np.dtype(self.dtype).newbyteorder(self.order)).reshape(shape)

    def slices(self) -> list[bytes]:
        kind = {"u": 1, "i": 2, "f": 3}[np.dtype(self.dtype).kind]
        storage = self._asdict()
        for name in ("depth", "height", "width", "dtype"):
            del storage[name]
        return [
            tiff(self.height, self.width, plane.tobytes(), t339=(3, kind), **storage)
            for plane in self.numbers()
        ]


geometries = st.builds(
    Geometry,
    depth=st.integers(1, 7),
    height=st.integers(1, 40),
    width=st.integers(1, 50),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int8", "uint32", "float32", "float64"]),
    order=st.sampled_from(["<", ">"]),
    big=st.booleans(),
    rows=st.integers(0, 45),
    gap=st.integers(0, 9),
    last=st.booleans(),
    front=st.integers(0, 5000),
)


class Mounted(Tree):
    """A tree over a store that counts what it is asked for."""

    def __init__(self, store: FakeStore, folder: Path, overlap: int = 3) -> None:
        chosen = Settings(dataset=DATASET, cache_dir=folder)
        self.cache = DiskCache(folder, DATASET, GIB)
        self.blocks = BlockReader(store, self.cache, memory=64 * MIB, connections=2)
        self.blocks.start()
        self.catalog = list_catalog(store, DATASET, connections=1)
        self.shapes = Shapes(chosen, self.blocks, self.cache)
        readahead = Readahead(self.blocks, memory=64 * MIB, most=0)
        choice = Choice(self.shapes, DATASET.voxel, overlap)
        super().__init__(layout.build(self.catalog, DATASET, readahead, self.cache, choice))

    def content(self, path: str) -> Content:
        node = self.find(path)
        assert not isinstance(node, Folder)
        content = node.open()
        assert content.size == node.attributes.size
        return content

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        content = self.content(path)
        into = bytearray(content.size + 1 if size is None else size)
        return bytes(into[: content.read_into(offset, memoryview(into))])

    def names(self, path: str) -> list[str]:
        folder = self.find(path)
        assert isinstance(folder, Folder)
        return list(folder.entries)


@contextmanager
def mounted(slices: list[bytes], **options: Any) -> Iterator[Mounted]:
    """The tree of one specimen, `7`."""
    store = FakeStore({f"7/s-{z:04}.tif": content for z, content in enumerate(slices, 5)})
    with TemporaryDirectory() as folder:
        tree = Mounted(store, Path(folder), **options)
        try:
            yield tree
        finally:
            tree.blocks.close()
            tree.cache.close()


def files(folder: Folder, path: str) -> Iterator[tuple[str, Node]]:
    for name, node in folder.entries.items():
        if isinstance(node, Folder):
            yield from files(node, f"{path}/{name}")
        else:
            yield f"{path}/{name}", node


# -- every format, any range ------------------------------------------------------------------------------------


def expected(path: str, whole: bytes, pixels: np.ndarray[Any, Any]) -> bytes:
    """What a file must hold: pixels by concatenation, checked against what its own header says."""
    name = path.rpartition("/")[2]
    raw = pixels.tobytes()
    if name.endswith(".v3draw"):
        assert whole.startswith(b"raw_image_stack_by_hpeng")
        return whole[:43] + raw
    if name.endswith((".imagej.tif", ".ome.btf")):
        return whole[: len(whole) - len(raw)] + raw
    if "/shutu/" in path and name.endswith(".tif"):
        with tifffile.TiffFile(io.BytesIO(whole)) as file:
            assert file.asarray().size * pixels.itemsize < len(whole)
        return whole
    if ".ome.zarr/0/" in path and name == "0":
        *_, z, band, _ = path.split("/")
        rows = len(whole) // pixels[0, 0].nbytes
        part = pixels[int(z), int(band) * rows :][:rows].tobytes()
        return part + bytes(len(whole) - len(part))
    return whole


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(geometry=geometries, data=st.data())
def test_any_range_of_any_file_of_any_stack(geometry: Geometry, data: st.DataObject) -> None:
    pixels = geometry.numbers()
    with mounted(geometry.slices()) as tree:
        root = tree.find("/stacks/train/7")
        assert isinstance(root, Folder)
        found = dict(files(root, "/stacks/train/7"))
        assert len(found) > 4
        for path in found:
            whole = tree.read(path)
            reference = expected(path, whole, pixels)
            assert whole == reference, path
            for _ in range(4):
                offset = data.draw(st.integers(0, len(whole) + 2))
                size = data.draw(st.integers(0, len(whole) + 2))
                assert tree.read(path, offset, size) == reference[offset : offset + size], path


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(geometry=geometries)
def test_readers_see_the_slices(geometry: Geometry) -> None:
    pixels = geometry.numbers()
    base = "/stacks/train/7/7"
    with mounted(geometry.slices()) as tree:
        names = set(tree.names("/stacks/train/7"))
        if geometry.dtype in ("uint8", "uint16", "int16", "float32"):
            with tifffile.TiffFile(io.BytesIO(tree.read(f"{base}.imagej.tif"))) as file:
                assert len(file.pages) == 1 and file.is_imagej
                assert same(file.asarray(), pixels)
                assert file.imagej_metadata is not None
                assert file.imagej_metadata["spacing"] == 3
        with tifffile.TiffFile(io.BytesIO(tree.read(f"{base}.ome.btf"))) as file:
            assert len(file.pages) == geometry.depth and file.is_ome and file.is_bigtiff
            assert same(file.asarray(), pixels)
        if geometry.dtype in ("uint8", "uint16", "float32"):
            raw = tree.read(f"{base}.v3draw")
            order = {b"L": "<", b"B": ">"}[raw[24:25]]
            item, *shape = struct.unpack(f"{order}h4i", raw[25:43])
            assert [item, *shape] == [pixels.itemsize, *reversed(pixels.shape), 1]
            assert raw[43:] == pixels.tobytes() and order == (geometry.order if item > 1 else "<")
        assert {"7.ome.btf", "7.ome.zarr", "ome"} <= names
        assert ("shutu" in names) == (geometry.dtype in ("uint8", "uint16"))


def same(array: Any, pixels: Any) -> bool:
    """Whether the numbers are the same, bit by bit (noise has NaNs in it)."""
    return bool(
        array.reshape(pixels.shape).astype(pixels.dtype, copy=False).tobytes() == pixels.tobytes()
    )


def test_zarr_reads_the_slices(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    geometry = Geometry(3, 2100, 700, "uint16", ">", rows=100, gap=3)
    pixels = geometry.numbers()
    with mounted(geometry.slices()) as tree:
        root = tree.find("/stacks/train/7/7.ome.zarr")
        assert isinstance(root, Folder)
        for path, _ in files(root, ""):
            place = tmp_path / "z.zarr" / path[1:]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(tree.read(f"/stacks/train/7/7.ome.zarr{path}"))
    group = zarr.open_group(tmp_path / "z.zarr", mode="r")
    assert (group["0"][:] == pixels).all() and group["0"].chunks == (1, 94, 700)
    image = dict(group.attrs)["multiscales"][0]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [3, 1, 2]


def test_shutu_bands_cover_the_stack_where_their_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "SHUTU_VOXELS", 5 * 12 * 50)
    geometry = Geometry(5, 40, 50, "uint8", rows=7)
    pixels = geometry.numbers()
    with mounted(geometry.slices()) as tree:
        folder = "/stacks/train/7/shutu"
        coordinates = tree.read(f"{folder}/7-StitchCoord.txt").decode()
        assert tree.read(f"{folder}/7-.StitchCoord.txt").decode() == coordinates
        (count, *shape), *places = [
            list(map(int, line.split())) for line in coordinates.split("\n")[:-1]
        ]
        assert count == len(places) == len(tree.names(folder)) - 2 and shape == [12, 50, 5]
        seen = np.zeros(pixels.shape, int)
        for number, row, column, z in places:
            with tifffile.TiffFile(io.BytesIO(tree.read(f"{folder}/7-{number}.tif"))) as file:
                assert not file.is_bigtiff and all(len(p.dataoffsets) == 1 for p in file.pages)
                band = file.asarray()
            place = (slice(z, z + 5), slice(row, row + 12), slice(column, None))
            assert (band == pixels[place]).all()
            seen[place] += 1
        assert seen.min() == 1 and (seen[:, 9:12] == 2).all()  # three rows are shared


@given(
    depth=st.integers(1, 3000),
    height=st.integers(1, 30_000),
    width=st.integers(1, 60_000),
    overlap=st.integers(0, 400),
)
def test_shutu_tiles_of_any_stack(depth: int, height: int, width: int, overlap: int) -> None:
    stack = Stack("7", depth, SliceLayout(height, width, "uint8"), None)
    tiles = stacks.shutu_tiles(stack, overlap)
    (size,) = {(tile.height, tile.depth) for tile in tiles}
    assert size[0] * size[1] * width <= stacks.SHUTU_VOXELS and size[1] <= stacks.SHUTU_PAGES
    for whole, part, starts in (
        (height, size[0], sorted({tile.row for tile in tiles})),
        (depth, size[1], sorted({tile.slice for tile in tiles})),
    ):
        assert starts[0] == 0 and starts[-1] + part == whole
        shared = [a + part - b for a, b in pairwise(starts)]
        assert all(rows >= min(overlap, part // 4) for rows in shared)
    assert len(tiles) == len(set(tiles))


def test_shutu_bands_go_through_all_slices_where_they_can() -> None:
    stack = Stack("7", 291, SliceLayout(4000, 5500, "uint8"), None)
    tiles = stacks.shutu_tiles(stack, 100)
    assert {(tile.slice, tile.depth) for tile in tiles} == {(0, 291)}
    assert tiles[0].height == 350_000_000 // (5500 * 291)
    assert tiles[1] == Tile(tiles[0].height - 100, tiles[0].height, 0, 291)


def test_the_companion_names_the_slices() -> None:
    geometry = Geometry(3, 4, 5, "uint16", ">")
    with mounted(geometry.slices()) as tree:
        root = ElementTree.fromstring(tree.read("/stacks/train/7/ome/7.companion.ome"))
    space = {"o": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    (pixels,) = root.iterfind(".//o:Pixels", space)
    assert pixels.get("BigEndian") == "true" and pixels.get("PhysicalSizeZ") == "3"
    found = [
        (data.get("FirstZ"), data[0].get("FileName"))
        for data in pixels.iterfind("o:TiffData", space)
    ]
    assert found == [(str(z), f"../../../../train/7/s-{z + 5:04}.tif") for z in range(3)]


def test_strange_ids_stay_well_formed() -> None:
    stack = Stack('a"<&>é', 2, SliceLayout(3, 4, "uint8"), None)
    slices = tuple(ObjectInfo(f"p/<\"{z}>'é.tif", "e", 1, 0) for z in range(2))
    specimen = Specimen(stack.id, "train", "p/", slices, None, ())
    for head in (stacks.companion(specimen, stack).head, stacks.ome_tiff(stack).head[16 + 400 :]):
        xml = head[head.index(b"<?xml") :].rstrip(b"\0")
        assert ElementTree.fromstring(xml)[0].get("Name") == stack.id
    assert json.loads(stacks.zarr_attributes(stack))["multiscales"][0]["name"] == stack.id


def test_sizes_beyond_4_gib() -> None:
    stack = Stack("7", 608, SliceLayout(9000, 11_900, "uint8"), (0.28, 0.1144, 0.1144))
    pixels = 608 * 9000 * 11_900
    for make in stacks.WHOLE.values():
        file = make(stack)
        assert file.size == file.data_at + pixels and len(file.head) <= file.data_at <= stacks.ROOM
    offsets = tifffile.TiffFile(io.BytesIO(stacks.ome_tiff(stack).head)).pages
    assert offsets[607].dataoffsets == (stacks.ome_tiff(stack).data_at + 607 * 9000 * 11_900,)
    array = stacks.zarr_array(stack)
    assert MIB <= array.chunk(0, 0).size < 4 * MIB
    assert array.bands * array.rows >= 9000 > (array.bands - 1) * array.rows
    with pytest.raises(Unfit, match="4 GiB"):
        stacks.imagej(Stack("7", 2, SliceLayout(1 << 17, 1 << 15, "uint8"), None))


@pytest.mark.parametrize("width", [3885, 5745, 7590, 9435, 11_330, 11_900])
def test_a_region_of_a_zarr_costs_little_more_than_its_bytes(width: int) -> None:
    """In blocks of the cache, each slice with its header, wherever the region begins: for widths like
    those of the dataset."""
    rows = stacks.zarr_array(Stack("7", 9, SliceLayout(9000, width, "uint8"), None)).rows
    for first in range(9000 - 512):
        start, stop = first // rows * rows, -(-(first + 512) // rows) * rows
        begin, end = ((4096 + row * width) // BLOCK for row in (start, min(stop, 9000)))
        blocks = set(range(begin, end + 1)) | {0}
        assert len(blocks) * BLOCK <= 1.3 * 512 * width, (rows, first)


# -- what is not offered, and why -------------------------------------------------------------------------------

PLAIN = Geometry(4, 30, 20, "uint8").slices()


def why_not(tree: Mounted, name: str = "7.imagej.tif") -> str:
    (specimen,) = tree.catalog.specimens
    shape = tree.shapes.learn(specimen)
    seen = stacks.views(specimen, shape.layout, shape.obstacle, DATASET.voxel)
    offers = {offer.name: offer for offer in stacks.offers(specimen, seen, 3)}
    assert list(offers) == [
        *("7.imagej.tif", "7.ome.btf", "7.v3draw", "7.ome.zarr", "ome/7.companion.ome", "shutu")
    ]
    present = {name.partition("/")[0] for name, offer in offers.items() if not offer.why_not}
    assert present == set(tree.names("/stacks/train/7"))
    assert all((offer.size == 0) == bool(offer.why_not) for offer in offers.values())
    return offers[name].why_not


def written(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, metadata=None, **options)
    return file.getvalue()


NOISE = np.frombuffer(random.Random(1).randbytes(64 * 64 * 3), "uint8").reshape(64, 64, 3)
GREY = NOISE[:, :, 0]


@pytest.mark.parametrize(
    ("slices", "reason", "companion"),
    [
        ([written(GREY, compression="zlib")] * 3, "its slices are compressed (Deflate)", True),
        ([written(GREY, tile=(16, 16))] * 3, "its slices are stored in tiles", True),
        (
            [written(NOISE, photometric="rgb")] * 3,
            "its slices are made of 3 samples a pixel",
            False,
        ),
        ([written(GREY > 9)] * 3, "its slices are made of 1 bits a sample, of format 1", False),
        ([tiff(3, 4, bytes(12), t274=(3, 4))] * 3, "its slices are turned or mirrored", False),
        ([tiff(3, 4, bytes(12), t262=(3, 3))] * 3, "its slices are not greyscale", False),
        ([tiff(3, 4, bytes(12), t279=(4, 11))], "its slices are short of pixels in a strip", True),
        ([tiff(3, 4, bytes(12), t257=(4, 4))] * 3, "its slices are short of strips", True),
        ([tiff(3, 4, bytes(12))[:-1]] * 3, "its slices are shorter than its pixels", True),
        ([b"no TIFF"] * 3, "its first slice is not a TIFF that bffs understands", False),
        ([b"", *PLAIN], "its first slice is not a TIFF that bffs understands", False),
        ([*PLAIN, b""], "s-0009.tif is too small for 30 x 20 pixels", True),
        ([*PLAIN, PLAIN[0] + bytes(200)], "s-0009.tif has another size than s-0005.tif", True),
        (
            [tiff(MAX_RUNS + 1, 1, bytes(MAX_RUNS + 1), rows=1, gap=1)],
            "more than 4096 pieces",
            True,
        ),
    ],
)
def test_what_can_not_be_mapped(slices: list[bytes], reason: str, companion: bool) -> None:
    with mounted(slices) as tree:
        assert reason in why_not(tree)
        assert (not why_not(tree, "ome/7.companion.ome")) == companion


def test_a_type_that_a_format_does_not_know() -> None:
    with mounted(Geometry(2, 3, 4, "float64").slices()) as tree:
        assert why_not(tree) == why_not(tree, "shutu") == "there is no float64 in this format"
        assert not why_not(tree, "7.ome.btf") and not why_not(tree, "7.ome.zarr")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a-1", "a-2", "a-4"], "slice 3 is missing"),
        (["a-0008", "a-0009", "a-0010", "a-0012"], "slice 11 is missing"),
        (["a-1", "a-3", "a-5"], ""),
        (["a-7"], ""),
        (["a", "b", "c"], ""),
        (["a-1", "b-9", "c-2"], ""),
        ([], "it has no slices"),
    ],
)
def test_a_missing_slice(names: list[str], reason: str) -> None:
    slices = tuple(ObjectInfo(f"7/{name}.tif", "e", 100, 0) for name in names)
    specimen = Specimen("7", "train", "7/", slices, None, ())
    seen = stacks.views(specimen, SliceLayout(5, 10, "uint8"), "", None)
    assert seen.obstacle == reason and (seen.stack is None) == bool(reason)


# -- promises ---------------------------------------------------------------------------------------------------


def test_headers_that_are_equal_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not of a slice that is too short for what the header says."""
    looked: list[int] = []

    def looking(content: Content) -> SliceHeader | None:
        looked.append(content.size)
        return slice_header(content)

    monkeypatch.setattr(pixels, "slice_header", looking)
    slices = Geometry(6, 30, 20, "uint8").slices()
    slices[3] = slices[3][:-1]
    with mounted(slices) as tree:
        content = tree.content("/stacks/train/7/7.v3draw")
        assert content.read_into(0, memoryview(bytearray(43 + 1800))) == 43 + 1800
        assert len(looked) == 1
        with pytest.raises(BrokenPromise, match="shorter than its pixels"):
            content.read_into(43 + 1800, memoryview(bytearray(600)))
        assert content.read_into(43 + 2400, memoryview(bytearray(1200))) == 1200
        assert looked == [len(slices[0]), len(slices[3])]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (tiff(20, 30, bytes(600)), "has 20 x 30 uint8, not 30 x 20 uint8"),
        (written(GREY[:30, :20], compression="zlib").ljust(len(PLAIN[0])), "is compressed"),
        (bytes(len(PLAIN[0])), "is not a TIFF that bffs understands"),
        (tiff(30, 20, bytes(600), t274=(3, 3)), "is turned or mirrored"),
        (tiff(30, 20, bytes(600), t262=(3, 0)), "0 shown as white, not"),
    ],
)
def test_a_slice_that_breaks_the_promise_is_an_error_never_pixels(
    odd: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    geometry = Geometry(4, 30, 20, "uint8")
    slices = geometry.slices()
    slices[2] = odd
    with mounted(slices) as tree:
        for ending, front in ((".imagej.tif", stacks.ROOM), (".v3draw", 43)):
            content = tree.content(f"/stacks/train/7/7{ending}")
            good, bad = bytearray(front + 1200), bytearray(front + 1201)
            assert content.read_into(0, memoryview(good)) == len(good)
            assert good[front:] == geometry.numbers()[:2].tobytes()
            for _ in range(2):
                with pytest.raises(BrokenPromise, match=reason):
                    content.read_into(0, memoryview(bad))
            assert content.read_into(front + 1800, memoryview(bytearray(600))) == 600
        assert [r.message for r in caplog.records if "s-0007.tif" in r.message] == [
            r.message for r in caplog.records if "can't be read here" in r.message
        ]
        assert sum("can't be read here" in r.message for r in caplog.records) == 1


def test_slices_of_one_layout_may_be_stored_in_several_ways() -> None:
    kinds = [{}, {"rows": 4, "gap": 2}, {"last": True}, {"big": True, "front": 20}]
    geometry = Geometry(4, 30, 20, "uint16")
    slices = [
        tiff(30, 20, plane.tobytes(), **kind)  # type: ignore[arg-type]
        for plane, kind in zip(geometry.numbers(), kinds, strict=True)
    ]
    with mounted(slices) as tree:
        assert tree.read("/stacks/train/7/7.v3draw")[43:] == geometry.numbers().tobytes()


def test_a_slice_in_another_byte_order_breaks_the_promise() -> None:
    slices = Geometry(2, 30, 20, "uint16").slices()
    slices[1] = Geometry(2, 30, 20, "uint16", ">").slices()[1]
    with mounted(slices) as tree, pytest.raises(BrokenPromise, match="big-endian"):
        tree.read("/stacks/train/7/7.v3draw")


def test_versions_and_inodes() -> None:
    with mounted(PLAIN) as tree, mounted([*PLAIN[:3], PLAIN[0]]) as other:
        path = "/stacks/train/7/7.ome.zarr/0/3/0/0"
        node, same_node, changed = tree.find(path), tree.find(path), other.find(path)
        assert not isinstance(node, Folder) and not isinstance(same_node, Folder)
        assert not isinstance(changed, Folder)
        assert node.version == same_node.version != changed.version
        assert node.attributes == same_node.attributes


@pytest.mark.parametrize("name", ["4", "-1", "03", "x", "٣", "1" * 30, ".zattrs", ""])
def test_there_are_no_other_chunks(name: str) -> None:
    with mounted(PLAIN) as tree:
        folder = tree.find("/stacks/train/7/7.ome.zarr/0")
        assert isinstance(folder, Folder)
        assert folder.entries.get(name) is None
        assert list(folder.entries) == [".zarray", "0", "1", "2", "3"]
        assert len(folder.entries) == 5


# -- what is asked of the store ---------------------------------------------------------------------------------


class Asked(FakeStore):
    """A store that remembers what was read, and can be told to fail."""

    def __init__(self, slices: list[bytes]) -> None:
        super().__init__({f"7/s-{z:04}.tif": content for z, content in enumerate(slices, 1)})
        self.reads: list[tuple[str, int, int]] = []
        self.error: Exception | None = None

    def read_into(self, obj: ObjectInfo, start: int, buffer: memoryview, *how: Any) -> None:
        self.reads.append((obj.key, start, len(buffer)))
        if self.error is not None:
            raise self.error
        super().read_into(obj, start, buffer, *how)


def large(z: int, **storage: Any) -> bytes:
    return tiff(1024, 1024, random.Random(z).randbytes(1 << 20), **storage)


@pytest.mark.parametrize("last", [False, True])
def test_a_folder_costs_one_small_read_once(tmp_path: Path, last: bool) -> None:
    store = Asked([large(z, last=last) for z in range(3)])
    tree = Mounted(store, tmp_path)
    assert tree.names("/stacks/train") == ["7"] and tree.find("/stacks").attributes.size == 0
    assert tree.find("/stacks/train/7").attributes.nlink == 1
    assert store.reads == []
    tree.names("/stacks/train/7")
    assert {key for key, _, _ in store.reads} == {"7/s-0001.tif"}
    assert sum(size for _, _, size in store.reads) <= (256 if last else 128) * KIB
    for path, node in files(tree.root, ""):
        assert node.attributes.size or "/stacks/" not in path
    tree.blocks.close()
    tree.cache.close()
    count = len(store.reads)
    for cached in (tmp_path / "v1").glob("*/??/*"):
        cached.unlink()  # even without anything cached
    again = Mounted(store, tmp_path)
    assert again.names("/stacks/train/7") == tree.names("/stacks/train/7")
    assert len(store.reads) == count
    again.blocks.close()
    again.cache.close()


def test_a_store_that_is_away_is_said_so_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bffs import shapes

    monkeypatch.setattr(shapes, "PATIENCE", 0.2)
    monkeypatch.setattr(shapes, "IMPATIENCE", 0.05)
    store = Asked(PLAIN)
    tree = Mounted(store, tmp_path)
    tree.blocks.close()  # nothing is fetched any more: a read would wait or fail
    with pytest.raises(Exception, match="closing"):
        tree.names("/stacks/train/7")
    fresh = BlockReader(store, tree.cache, memory=64 * MIB, connections=1)  # not started: waits
    slow = Shapes(Settings(dataset=DATASET, cache_dir=tmp_path), fresh, tree.cache)
    (specimen,) = tree.catalog.specimens
    for _ in range(2):
        with pytest.raises(StoreUnreachable, match=r"7/s-0001\.tif isn't known yet"):
            slow.learn(specimen)
    fresh.start()
    monkeypatch.setattr(shapes, "IMPATIENCE", 10)
    layout_found = slow.learn(specimen).layout
    assert layout_found is not None and layout_found.height == 30
    fresh.close()
    tree.cache.close()


def test_a_header_that_can_not_be_read_is_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it has been replaced, the folder can still be listed; where the store is away, it can't."""
    store = Asked(PLAIN)
    store.error = ObjectChanged("gone")
    tree = Mounted(store, tmp_path)
    assert tree.names("/stacks/train/7") == []
    assert caplog.text.count("stacks/train/7 shows no files until") == 1
    for name in ("7.v3draw", "7.ome.zarr", "ome", "shutu"):
        with pytest.raises(ObjectChanged):
            tree.find(f"/stacks/train/7/{name}")
    asked = len(store.reads)
    with pytest.raises(FileNotFoundError):
        tree.find("/stacks/train/7/saved.swc")  # what is none of a stack's names costs no request
    assert len(store.reads) == asked
    store.error = StoreUnreachable("away")
    with pytest.raises(StoreUnreachable):
        tree.names("/stacks/train/7")
    store.error = None
    assert tree.names("/stacks/train/7")
    assert caplog.text.count("stacks/train/7 shows no files until") == 1
    tree.blocks.close()
    tree.cache.close()


def test_damage_to_what_is_kept_is_learnt_anew(tmp_path: Path) -> None:
    store = Asked(PLAIN)
    for number in range(3):
        tree = Mounted(store, tmp_path)
        tree.names("/stacks/train/7")
        tree.blocks.close()
        tree.cache.close()
        (kept,) = tmp_path.glob("v1/*/shapes")
        kept.write_bytes(kept.read_bytes()[: -1 - number])
    assert len(store.reads) == 1  # the header itself is in the cache


@pytest.mark.parametrize(("height", "width"), [(30, 20), (2000, 1500)])
def test_front_of_is_a_header(height: int, width: int) -> None:
    front = front_of(height, width)
    header = slice_header(BytesContent(front + bytes(height * width)))
    assert header is not None and header.runs is not None
    assert header.layout == SliceLayout(height, width, "uint8")
    assert header.runs.offsets == (len(front),)
