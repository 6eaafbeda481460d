"""Stacks as single files: what each format has before the pixels, and where its pixels come from.

A `StackFile` says all there is to say of such a file: a few bytes of its own, then the same range
of pixels of one slice after another, then zeros. Nothing is ever listed piece by piece, so a stack
of any size costs a few numbers. Pixels are meant as they lie in the slices, row by row, in their
own byte order; finding them there is `pixels`' job.

Pure: no I/O, no threads. Where a format can't hold a stack its function raises Unfit with the
reason. What real programs make of these layouts (the order of fields, one strip a page, no
Orientation, a byte count that is one page's even if the strip holds them all) was measured on
ImageJ 1.53t, Bio-Formats 7.3, libtiff 4.5, tifffile, Vaa3D's and ShuTu's readers.
"""

from __future__ import annotations

import json
import re
import struct
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

from bffs.cachefile import BLOCK
from bffs.catalog import Specimen, base_name
from bffs.store import ByteRange
from bffs.tiff import SliceLayout, item_size
from bffs.tiffhead import CLASSIC, tiff_head
from bffs.units import MIB

SHUTU_VOXELS = 350_000_000
"""Voxels in a tile of ShuTu at most: from 357 million on it computes with too few bits."""

SHUTU_PAGES = 1000
"""Pages that its reader takes at most."""

REGION = 512
REGION_COST = 1.3
"""Rows of a region through all slices, and what fetching it, in whole chunks, may cost of its bytes,
wherever it begins. That limits Zarr chunks to 0.2-1.2 MiB where slices are 3,900-11,900 columns wide."""

CHUNK = BLOCK
"""Bytes of a Zarr chunk at least: fewer are not fetched."""

ROOM = 2 * MIB
"""Bytes before the pixels of whole-stack TIFF files: who reads 1 MiB of header, as Python's files do
where that is the block size, makes the kernel read another one ahead, and none should be pixels."""

_ALIGNED = 4096
_OME_TYPES = {"float32": "float", "float64": "double"} | {
    name: name for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32")
}


class Unfit(ValueError):
    """A format can't hold this stack; the message says why."""


class Stack(NamedTuple):
    """The pixels of a specimen: `depth` slices of one layout, all of one sample a pixel.

    `voxel` is the size of one in micrometres along z, y, x, if that is known.
    """

    id: str
    depth: int
    layout: SliceLayout
    voxel: tuple[float, float, float] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        return self.depth, self.layout.height, self.layout.width


class StackFile(NamedTuple):
    """A file: `head` and zeros up to `data_at`, then bytes `start` to `stop` of the pixels of each
    of `slices`, then `fill` zeros. `by_plane` if programs look at one of its planes at a time."""

    head: bytes
    slices: range = range(0)
    pixels: ByteRange = ByteRange(0, 0)
    data_at: int = 0
    fill: int = 0
    by_plane: bool = False

    @property
    def size(self) -> int:
        """Bytes in all."""
        start, stop = self.pixels
        return max(self.data_at, len(self.head)) + len(self.slices) * (stop - start) + self.fill


# -- whether there is a stack ---------------------------------------------------------------------


class Views(NamedTuple):
    """What can be shown of a specimen: its `stack`, None if there is none; and why its pixels can't
    be mapped, or nothing."""

    stack: Stack | None
    obstacle: str


def views(
    specimen: Specimen,
    layout: SliceLayout | None,
    obstacle: str,
    voxel: tuple[float, float, float] | None,
) -> Views:
    """What can be shown of a specimen whose first slice has this layout and, maybe, obstacle."""
    if layout is None:
        return Views(None, f"its first slice is {obstacle}")
    stack = Stack(specimen.id, len(specimen.slices), layout, voxel)
    why_not = _series(specimen)
    if why_not or not layout.grey:
        return Views(None, why_not or f"its slices are {obstacle}")
    if obstacle:
        return Views(stack, f"its slices are {obstacle}")
    return Views(stack, _sizes(specimen, layout))


class Offer(NamedTuple):
    """One of the files or folders of a specimen's stack: its bytes, or why there is none."""

    name: str
    size: int
    why_not: str


def offers(specimen: Specimen, seen: Views, overlap: int) -> list[Offer]:
    """What there is below `stacks/<split>/<id>/`, and what there is not."""

    def offer(name: str, size: Callable[[Stack], int], *, mapped: bool = True) -> Offer:
        if seen.stack is None or (mapped and seen.obstacle):
            return Offer(name, 0, seen.obstacle)
        try:
            return Offer(name, size(seen.stack), "")
        except Unfit as error:
            return Offer(name, 0, str(error))

    def of_zarr(stack: Stack) -> int:
        array = zarr_array(stack)
        return stack.depth * array.bands * array.chunk(0, 0).size

    def of_tiles(stack: Stack) -> int:
        return sum(shutu_tile(stack, tile).size for tile in shutu_tiles(stack, overlap))

    return [
        *(offer(specimen.id + ending, partial(_size_of, make)) for ending, make in WHOLE.items()),
        offer(specimen.id + ZARR, of_zarr),
        offer(f"ome/{specimen.id}{COMPANION}", lambda s: companion(specimen, s).size, mapped=False),
        offer("shutu", of_tiles),
    ]


def _size_of(make: Callable[[Stack], StackFile], stack: Stack) -> int:
    return make(stack).size


def _series(specimen: Specimen) -> str:
    """Why the names of the slices aren't those of one series; empty if they may be."""
    names = [base_name(obj.key) for obj in specimen.slices]
    if not names:
        return "it has no slices"
    numbered = [re.fullmatch(r"(.*?)(\d+)(\D*)", name, re.DOTALL) for name in names]
    numbers = [int(match[2]) for match in numbered if match]
    if len({match and (match[1], match[3]) for match in numbered}) == 1 and len(numbers) > 2:
        steps = [later - earlier for earlier, later in pairwise(numbers)]
        for number, step in zip(numbers, steps, strict=False):
            if step != min(steps):
                return f"slice {number + min(steps)} is missing"
    return ""


def _sizes(specimen: Specimen, layout: SliceLayout) -> str:
    """Why slices of these sizes can't all have that layout, plainly stored; empty if they may."""
    first = specimen.slices[0]
    for obj in specimen.slices:
        if obj.size < layout.bytes:
            return f"{base_name(obj.key)} is too small for {layout.height} x {layout.width} pixels"
        if abs(obj.size - first.size) > layout.bytes // 8:
            return f"{base_name(obj.key)} has another size than {base_name(first.key)}"
    return ""


# -- TIFF -----------------------------------------------------------------------------------------


def imagej(stack: Stack) -> StackFile:
    """ImageJ's own TIFF: one page's directory, and a description that promises the others.

    They follow without a gap, so no offset needs more than 32 bits and the file may have any size.
    """
    _needs(stack, "uint8", "uint16", "int16", "float32")
    lines = ["ImageJ=1.53t", f"images={stack.depth}", f"slices={stack.depth}"]
    pixel_size = None
    if stack.voxel:
        spacing, pixel_size = stack.voxel[0], stack.voxel[1:]
        lines += ["unit=micron", f"spacing={spacing}"]
    text = "".join(f"{line}\n" for line in [*lines, "loop=false"]).encode() + b"\0"
    layout = stack.layout
    if layout.bytes >= CLASSIC:
        raise Unfit("a slice has 4 GiB or more")
    head = tiff_head(layout, [ROOM], layout.height, text=text, pixel_size=pixel_size)
    return _stack_file(stack, head, ROOM)._replace(by_plane=True)


def ome_tiff(stack: Stack) -> StackFile:
    """BigTIFF with OME-XML, all directories in front: one read indexes everything."""
    layout = stack.layout
    _needs(stack, *_OME_TYPES)
    planes = f'<TiffData IFD="0" PlaneCount="{stack.depth}"/>'
    text = _ome_xml(stack, planes).encode("ascii", "xmlcharrefreplace") + b"\0"
    data_at = 16 + stack.depth * (8 + 11 * 20 + 8) + 20 + len(text)
    data_at = max(ROOM, data_at + -data_at % _ALIGNED)
    offsets = [data_at + z * layout.bytes for z in range(stack.depth)]
    head = tiff_head(layout, offsets, layout.height, text=text, big=True)
    return _stack_file(stack, head, data_at)._replace(by_plane=True)


class Tile(NamedTuple):
    """A full-width band of rows through some slices."""

    row: int
    height: int
    slice: int
    depth: int


def shutu_tiles(stack: Stack, overlap: int) -> list[Tile]:
    """Bands of one size that cover the stack and share `overlap` rows, none too large for ShuTu.

    They go through all slices where that leaves them twice as high as they overlap. Where it does
    not, they are four times as high, and the stack is cut along z, too.
    """
    depth, height, width = stack.shape
    deep = min(depth, SHUTU_PAGES)
    high = min(height, SHUTU_VOXELS // (width * deep))
    if high < min(height, max(1, 2 * overlap)):
        high = min(height, max(1, 4 * overlap), SHUTU_VOXELS // width)
        if not high:
            raise Unfit("one row has more voxels than ShuTu takes")
        deep = min(deep, SHUTU_VOXELS // (width * high))
    return [
        Tile(row, high, first, deep)
        for first in _places(depth, deep, min(overlap, deep // 4))
        for row in _places(height, high, min(overlap, high // 2))
    ]


def _places(whole: int, size: int, overlap: int) -> list[int]:
    """Where pieces of one size begin that cover the whole and overlap; the last one may do so more."""
    return [*range(0, whole - size, size - overlap), whole - size]


def shutu_tile(stack: Stack, tile: Tile) -> StackFile:
    """A tile for ShuTu: classic TIFF, a directory a page, all in front."""
    layout = stack.layout
    _needs(stack, "uint8", "uint16")
    page = tile.height * layout.row_bytes
    data_at = 8 + tile.depth * (2 + 10 * 12 + 4)
    data_at += -data_at % _ALIGNED
    if data_at + tile.depth * page >= CLASSIC:
        raise Unfit("a tile would have more than 4 GiB")
    offsets = [data_at + z * page for z in range(tile.depth)]
    start = tile.row * layout.row_bytes
    return StackFile(
        tiff_head(layout, offsets, tile.height),
        range(tile.slice, tile.slice + tile.depth),
        ByteRange(start, start + page),
        data_at,
    )


def stitch_coordinates(stack: Stack, tiles: Sequence[Tile]) -> bytes:
    """ShuTu's StitchCoord file: how many tiles, their rows, columns and slices; then where each is."""
    lines = [f"{len(tiles)} {tiles[0].height} {stack.layout.width} {tiles[0].depth}"]
    lines += [f"{number} {tile.row} 0 {tile.slice}" for number, tile in enumerate(tiles, 1)]
    return "".join(f"{line}\n" for line in lines).encode()


# -- other formats --------------------------------------------------------------------------------


def v3draw(stack: Stack) -> StackFile:
    """Vaa3D's raw format: 43 bytes, then all pixels."""
    _needs(stack, "uint8", "uint16", "float32")
    depth, height, width = stack.shape
    if max(stack.shape) >= 1 << 31:
        raise Unfit("a side has 2^31 voxels or more")
    order = stack.layout.byte_order
    head = b"raw_image_stack_by_hpeng" + (b"L" if order == "<" else b"B")
    head += struct.pack(f"{order}h4i", item_size(stack.layout.dtype), width, height, depth, 1)
    return _stack_file(stack, head, len(head))


class ZarrArray(NamedTuple):
    """How a stack is cut into chunks: one slice deep, `rows` high, as wide as the slice."""

    stack: Stack
    rows: int

    @property
    def bands(self) -> int:
        """Chunks in a slice."""
        return -(-self.stack.layout.height // self.rows)

    def metadata(self) -> bytes:
        """`.zarray`."""
        layout = self.stack.layout
        order = "|" if item_size(layout.dtype) == 1 else layout.byte_order
        return _json(
            {
                "zarr_format": 2,
                "shape": list(self.stack.shape),
                "chunks": [1, self.rows, layout.width],
                "dtype": f"{order}{layout.dtype[0]}{item_size(layout.dtype)}",
                "compressor": None,
                "fill_value": 0,
                "order": "C",
                "filters": None,
                "dimension_separator": "/",
            }
        )

    def chunk(self, z: int, band: int) -> StackFile:
        """Chunk `band` of slice `z`; the last one of a slice is filled up with zeros."""
        layout = self.stack.layout
        whole = self.rows * layout.row_bytes
        start = band * whole
        stop = min(start + whole, layout.bytes)
        return StackFile(b"", range(z, z + 1), ByteRange(start, stop), 0, whole - (stop - start))


def zarr_array(stack: Stack) -> ZarrArray:
    """Chunks as high as `REGION_COST` allows, but not below `CHUNK` bytes.

    Of n chunks with at least `REGION` - 1 rows together, n + 1 hold any region. Besides them a slice
    costs three blocks at most: the one with its header, and what is not needed of the first and last.
    """
    row = stack.layout.row_bytes
    allowed = REGION_COST * REGION - 3 * BLOCK / row
    heights = ((n, -(-(REGION - 1) // n)) for n in range(1, REGION))
    rows = next((high for n, high in heights if (n + 1) * high <= allowed), 1)
    return ZarrArray(stack, min(max(rows, -(-CHUNK // row)), stack.layout.height))


def zarr_group() -> bytes:
    """`.zgroup`."""
    return _json({"zarr_format": 2})


def zarr_attributes(stack: Stack) -> bytes:
    """`.zattrs` of the group: OME-Zarr 0.4, one level at full resolution."""
    unit = {"unit": "micrometer"} if stack.voxel else {}
    scale = {"type": "scale", "scale": list(stack.voxel or (1.0, 1.0, 1.0))}
    level = {"path": "0", "coordinateTransformations": [scale]}
    axes = [{"name": name, "type": "space", **unit} for name in "zyx"]
    image = {"version": "0.4", "name": stack.id, "axes": axes, "datasets": [level]}
    return _json({"multiscales": [image]})


def companion(specimen: Specimen, stack: Stack) -> StackFile:
    """OME-XML that names the slices, which Bio-Formats then reads as one stack, however they are
    compressed. The paths are relative to `stacks/<split>/<id>/ome/`."""
    _needs(stack, *_OME_TYPES)
    slices = f"../../../../{specimen.split}/{specimen.id}/"
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1">'
        f"<UUID FileName={quoteattr(slices + base_name(obj.key))}>"
        f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{obj.key} {obj.etag}')}</UUID></TiffData>"
        for z, obj in enumerate(specimen.slices)
    )
    return StackFile(_ome_xml(stack, planes).encode("ascii", "xmlcharrefreplace"))


def _ome_xml(stack: Stack, planes: str) -> str:
    depth, height, width = stack.shape
    physical = "".join(
        f' PhysicalSize{axis}="{size}"'
        for axis, size in zip("ZYX", stack.voxel or (), strict=False)
    )
    namespace = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<OME xmlns="{namespace}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
        f' xsi:schemaLocation="{namespace} {namespace}/ome.xsd">'
        f'<Image ID="Image:0" Name={quoteattr(stack.id)}><Pixels ID="Pixels:0"'
        f' DimensionOrder="XYZCT" Type="{_OME_TYPES[stack.layout.dtype]}"'
        f' BigEndian="{"true" if stack.layout.byte_order == ">" else "false"}"'
        f' SizeX="{width}" SizeY="{height}" SizeZ="{depth}" SizeC="1" SizeT="1"{physical}>'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
    )


WHOLE: dict[str, Callable[[Stack], StackFile]] = {
    ".imagej.tif": imagej,
    ".ome.btf": ome_tiff,
    ".v3draw": v3draw,
}
"""What makes the files that hold a whole stack, by the end of their names."""

ZARR = ".ome.zarr"
COMPANION = ".companion.ome"


def _stack_file(stack: Stack, head: bytes, data_at: int) -> StackFile:
    """All pixels of all slices after a head that ends before `data_at`."""
    return StackFile(head, range(stack.depth), ByteRange(0, stack.layout.bytes), data_at)


def _needs(stack: Stack, *dtypes: str) -> None:
    if stack.layout.dtype not in dtypes:
        raise Unfit(f"there is no {stack.layout.dtype} in this format")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
