"""What a slice's header says: its shape, its type, and where its pixels lie. A parser, and no more.

tifffile takes 10 ms for a header and 30 MB of memory with numpy; here are the dozen fields that
matter, in 0.1 ms, because each slice of a stack file is looked at before its first pixel is given
out. Classic TIFF and BigTIFF of either byte order are understood.

Headers are untrusted: offsets may point anywhere and counts be anything. So at most `_MOST` bytes
are read, never outside the object, and whatever makes no sense means "not a TIFF that is
understood". No threads, no locks; `Content` does the waiting.
"""

from __future__ import annotations

import logging
import struct
from typing import Any, NamedTuple

from bffs.content import Content
from bffs.store import ByteRange

log = logging.getLogger(__name__)

MAX_RUNS = 4096
"""Pieces of a slice's pixels beyond which it is not mapped: a table of them is kept for each slice."""

_MOST = 8 << 20
"""Bytes of a header at most; a million strips have 8 MiB of offsets and byte counts."""

_AHEAD = 4096
"""Bytes to read at once: a header with its directory, mostly."""

_FIELDS = 4096
"""Fields in a directory at most; those of real ones are a few dozen."""

_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""Field types that are whole numbers, as `struct` calls them."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _COUNTS, _PREDICTOR = 273, 274, 277, 278, 279, 317
_TILES, _SAMPLE_FORMAT = (322, 324), 339

_COMPRESSIONS = {
    2: "CCITT",
    3: "CCITT",
    4: "CCITT",
    5: "LZW",
    6: "JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    50000: "Zstandard",
}


class SliceLayout(NamedTuple):
    """The first page of a slice: `height` rows of `width` pixels, of numpy type `dtype`.

    `byte_order` is `<` or `>`, and `<` where the type has one byte. `white_is_zero` says how the
    numbers are meant to be shown; they are left as they are. `grey` says that there is one number a
    pixel, of a size that programs know, and that row 0 is on top.
    """

    height: int
    width: int
    dtype: str
    byte_order: str = "<"
    white_is_zero: bool = False
    grey: bool = True

    @property
    def row_bytes(self) -> int:
        """Bytes in a row of pixels with one sample each."""
        return self.width * item_size(self.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of all pixels."""
        return self.height * self.row_bytes

    @property
    def in_words(self) -> str:
        """What distinguishes it from other layouts."""
        text = f"{self.height} x {self.width} {self.dtype}"
        text += ", big-endian" if self.byte_order == ">" else ""
        return text + (", 0 shown as white" if self.white_is_zero else "")


class Runs(NamedTuple):
    """Where pixels lie in an object: from byte `starts[i]` of the pixels on, up to the next start,
    at byte `offsets[i]` of the object. `starts[0]` is 0."""

    starts: tuple[int, ...]
    offsets: tuple[int, ...]


class SliceHeader(NamedTuple):
    """What a header says. `runs` is None where the pixels aren't there byte by byte, row by row;
    `obstacle` then says why, and is empty otherwise. `read` is what had to be read of the object."""

    layout: SliceLayout
    runs: Runs | None
    obstacle: str
    read: tuple[ByteRange, ...]


def slice_header(content: Content) -> SliceHeader | None:
    """The header of a slice, or None if it is no TIFF that can be understood.

    Raises BffsError if it can't be read.
    """
    try:
        return _parse(_Bytes(content))
    except _Senseless as error:
        log.info("a slice is no TIFF that can be understood: %s", error)
        return None


def item_size(dtype: str) -> int:
    """Bytes of a number of that numpy type."""
    return 1 if dtype == "bool" else int(dtype.lstrip("uintfloacmpex")) // 8


class _Senseless(Exception):
    """This is no TIFF."""


class _Bytes:
    """The bytes of a content near the place where one was asked for last; knows what was read."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._start = 0
        self._here = b""
        self.size = content.size
        self.read: list[ByteRange] = []

    def at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Raises _Senseless where there are none."""
        start = offset - self._start
        if start < 0 or start + size > len(self._here):
            want = min(max(size, _AHEAD), self.size - offset)
            if want < size or sum(stop - start for start, stop in self.read) + want > _MOST:
                raise _Senseless("it points outside of itself, or its directory is too large")
            into = bytearray(want)
            if self._content.read_into(offset, memoryview(into)) < want:
                raise _Senseless("it ends early")
            self._here, self._start, start = bytes(into), offset, 0
            self.read.append(ByteRange(offset, offset + want))
        return self._here[start : start + size]


class _Field(NamedTuple):
    kind: str
    items: int
    value: bytes


class _Directory:
    """The fields of the first image file directory."""

    def __init__(self, data: _Bytes) -> None:
        self._data = data
        mark = data.at(0, 4)
        self.order = {b"II": "<", b"MM": ">"}.get(mark[:2], "")
        version = self._unpack("H", mark[2:]) if self.order else 0
        if version not in (42, 43):
            raise _Senseless("it does not begin like one")
        big = version == 43
        if big and self._unpack("2H", data.at(4, 4), -1) != (8, 0):
            raise _Senseless("a BigTIFF of another kind")
        self._inline, self._offset, count, entry = (8, "Q", "Q", 20) if big else (4, "I", "H", 12)
        at = self._unpack(self._offset, data.at(8 if big else 4, self._inline))
        width = struct.calcsize(count)
        fields = self._unpack(count, data.at(at, width))
        if fields > _FIELDS:
            raise _Senseless("its directory is too large")
        table = data.at(at + width, fields * entry)
        self._fields: dict[int, _Field] = {}
        for place in range(0, len(table), entry):
            tag, kind = self._unpack("2H", table[place : place + 4], -1)
            value = table[place + 4 : place + entry]
            items = self._unpack(self._offset, value[: self._inline])
            self._fields.setdefault(
                tag, _Field(_FORMATS.get(kind, ""), items, value[self._inline :])
            )

    def _unpack(self, kind: str, data: bytes, item: int = 0) -> Any:
        values = struct.unpack(self.order + kind, data)
        return values if item < 0 else values[item]

    def __contains__(self, tag: int) -> bool:
        return tag in self._fields

    def values(self, tag: int, most: int) -> tuple[int, ...]:
        """The first `most` numbers of a field; none if there is no such field."""
        field = self._fields.get(tag)
        if field is None:
            return ()
        if not field.kind or not field.items:
            raise _Senseless(f"field {tag} is no number")
        count = min(field.items, most)
        size = struct.calcsize(field.kind) * count
        data = field.value[:size]
        if struct.calcsize(field.kind) * field.items > self._inline:
            data = self._data.at(self._unpack(self._offset, field.value), size)
        return struct.unpack(f"{self.order}{count}{field.kind}", data)

    def value(self, tag: int, otherwise: int | None = None) -> int:
        """The first number of a field, or `otherwise`. Raises _Senseless where neither is there."""
        values = self.values(tag, 1)
        if values:
            return values[0]
        if otherwise is None:
            raise _Senseless(f"field {tag} is missing")
        return otherwise


def _parse(data: _Bytes) -> SliceHeader:
    fields = _Directory(data)
    height, width = fields.value(_HEIGHT), fields.value(_WIDTH)
    if not (0 < height < 1 << 31 and 0 < width < 1 << 31):
        raise _Senseless(f"{height} rows of {width} pixels")
    samples = fields.value(_SAMPLES, 1)
    bits = set(fields.values(_BITS, min(samples, 64))) or {1}
    kinds = set(fields.values(_SAMPLE_FORMAT, min(samples, 64))) or {1}
    if not 0 < max(bits) <= 128:
        raise _Senseless(f"{max(bits)} bits a sample")
    photometric = fields.value(_PHOTOMETRIC, 1)
    orientation = fields.value(_ORIENTATION, 1)
    obstacle = ""
    if samples != 1:
        obstacle = f"made of {samples} samples a pixel"
    elif photometric > 1:
        obstacle = "not greyscale"
    elif not bits <= {8, 16, 32, 64} or not kinds <= {1, 2, 3} or (kinds == {3} and bits == {8}):
        obstacle = f"made of {max(bits)} bits a sample, of format {max(kinds)}"
    elif orientation != 1:
        obstacle = f"turned or mirrored (Orientation {orientation})"
    dtype = _dtype(max(bits), max(kinds))
    order = fields.order if item_size(dtype) > 1 else "<"
    layout = SliceLayout(height, width, dtype, order, photometric == 0, not obstacle)
    obstacle = obstacle or _storage(fields)
    runs: Runs | None = None
    if not obstacle:
        runs, obstacle = _runs(fields, layout, data.size)
    return SliceHeader(layout, runs, obstacle, tuple(data.read))


def _dtype(bits: int, kind: int) -> str:
    """The numpy type that holds samples of so many bits and that SampleFormat."""
    if bits == 1:
        return "bool"
    name = {2: "int", 3: "float", 5: "complex", 6: "complex"}.get(kind, "uint")
    least = {"float": 16, "complex": 64}.get(name, 8)
    return f"{name}{max(least, 1 << (bits - 1).bit_length())}"


def _storage(fields: _Directory) -> str:
    """Why the pixels aren't stored as they are, as far as single values tell; empty if they may
    be."""
    compression = fields.value(_COMPRESSION, 1)
    if any(tag in fields for tag in _TILES):
        return "stored in tiles"
    if compression != 1:
        return f"compressed ({_COMPRESSIONS.get(compression, f'method {compression}')})"
    if fields.value(_FILL_ORDER, 1) != 1 or fields.value(_PREDICTOR, 1) != 1:
        return "stored with bits in reverse order, or as differences"
    return ""


def _runs(fields: _Directory, layout: SliceLayout, size: int) -> tuple[Runs | None, str]:
    """Where the strips have the pixels, or None and why that can't be mapped."""
    rows = min(fields.value(_ROWS, layout.height), layout.height)
    if not rows:
        raise _Senseless("strips without rows")
    strips = -(-layout.height // rows)
    whole = rows * layout.row_bytes
    offsets = fields.values(_OFFSETS, strips)
    counts = fields.values(_COUNTS, strips) or (whole,) * len(offsets)
    if len(offsets) < strips or len(counts) < strips:
        return None, "short of strips"
    starts: list[int] = []
    places: list[int] = []
    end = -1
    for start, offset, count in zip(range(0, layout.bytes, whole), offsets, counts, strict=True):
        need = min(whole, layout.bytes - start)
        if count < need and _COUNTS in fields:
            return None, "short of pixels in a strip"
        if offset + need > size:
            return None, "shorter than its pixels"
        if offset != end:
            starts.append(start)
            places.append(offset)
            if len(places) > MAX_RUNS:
                return None, f"stored in more than {MAX_RUNS} pieces"
        end = offset + need
    return Runs(tuple(starts), tuple(places)), ""
