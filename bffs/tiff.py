"""The only import of tifffile: what a slice's header says of its shape, its type, and where its
pixels lie.

A header is read through a `Content`, in the few ranges that tifffile asks for, so a slice whose
image file directory lies at its end costs one more block. tifffile, and numpy with it, is imported
when the first header is parsed (0.2 s, 30 MB), and takes some 10 ms for each: who looks at many
slices compares their headers first (`pixels`).

Headers are untrusted: offsets may point anywhere and counts be anything. So at most `_MOST` bytes
are read in `_READS` reads, never outside the object, and whatever makes no sense, or makes tifffile
raise, means "not a TIFF that is understood". No threads, no locks; `Content` does the waiting.
"""

from __future__ import annotations

import io
import logging
from typing import Any, NamedTuple

from bffs.content import Content
from bffs.errors import BffsError
from bffs.store import ByteRange

log = logging.getLogger(__name__)

MAX_RUNS = 4096
"""Pieces of a slice's pixels beyond which it is not mapped: a table of them is kept for each slice."""

_MOST = 8 << 20
"""Bytes of a header at most; a million strips have 8 MiB of offsets and byte counts."""

_AHEAD = 4096
"""Bytes to read at once: a header with its directory, mostly."""

_READS = 20_000
"""Reads of a header at most: a directory that leads back to itself ends."""

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
    `obstacle` then says why, and is empty otherwise. `read` is what had to be read of the object,
    and `said` those of its bytes that all this follows from."""

    layout: SliceLayout
    runs: Runs | None
    obstacle: str
    read: tuple[ByteRange, ...]
    said: tuple[ByteRange, ...]


def slice_header(content: Content) -> SliceHeader | None:
    """The header of a slice, or None if it is no TIFF that can be understood.

    Raises BffsError if it can't be read.
    """
    import tifffile

    file = _File(content)
    try:
        with tifffile.TiffFile(file) as parsed:  # type: ignore[arg-type]  # reads it like any
            return _header(_Fields(parsed), file)
    except BffsError:
        raise
    except Exception as error:
        log.info("a slice is no TIFF that can be understood: %s", error)
        return None


def decode(data: bytes) -> Any:
    """The first page of a slice as a numpy array, whatever its compression.

    Raises ValueError with the reason, which may be a codec that is missing.
    """
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as parsed:
            return parsed.pages.first.asarray()
    except Exception as error:
        if "imagecodecs" in str(error):
            raise ValueError("its compression needs `pip install imagecodecs`") from error
        raise ValueError(f"{type(error).__name__}: {error}") from error


def item_size(dtype: str) -> int:
    """Bytes of a number of that numpy type."""
    return 1 if dtype == "bool" else int(dtype.lstrip("uintfloacmpex")) // 8


class _Senseless(Exception):
    """This is no TIFF."""


class _File(io.RawIOBase):
    """A content as a file for the parser, `_AHEAD` bytes at a time; knows what was read of it."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._at = 0
        self._start = 0
        self._here = memoryview(b"")
        self._reads = 0
        self.size = content.size
        self.read_ranges: list[ByteRange] = []
        self.said: list[ByteRange] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer).cast("B")
        size = min(len(into), max(0, self.size - self._at))
        start = self._at - self._start
        if start < 0 or start + size > len(self._here):
            self._fetch(size)
            start = 0
        self._reads += 1
        if self._reads > _READS:
            raise _Senseless("its directory leads back to itself")
        into[:size] = self._here[start : start + size]
        if self.said and self.said[-1].stop == self._at:
            self.said[-1] = ByteRange(self.said[-1].start, self._at + size)
        else:
            self.said.append(ByteRange(self._at, self._at + size))
        self._at += size
        return size

    def _fetch(self, size: int) -> None:
        want = min(max(size, _AHEAD), self.size - self._at)
        if sum(stop - start for start, stop in self.read_ranges) + want > _MOST:
            raise _Senseless("its directory is too large")
        self._here = memoryview(bytearray(want))
        self._start = self._at
        if self._content.read_into(self._at, self._here) < want:
            raise _Senseless("it ends early")
        self.read_ranges.append(ByteRange(self._at, self._at + want))


class _Fields:
    """The fields of the first page."""

    def __init__(self, parsed: Any) -> None:
        self.page = parsed.pages.first
        self.order: str = parsed.byteorder

    def __contains__(self, tag: int) -> bool:
        return tag in self.page.tags

    def values(self, tag: int) -> tuple[int, ...]:
        """The numbers of a field; none if there is no such field."""
        field = self.page.tags.get(tag)
        if field is None:
            return ()
        value = field.value
        return tuple(int(each) for each in (value if isinstance(value, tuple) else (value,)))

    def value(self, tag: int, otherwise: int | None = None) -> int:
        """The first number of a field, or `otherwise`. Raises _Senseless where neither is there."""
        values = self.values(tag)
        if values:
            return values[0]
        if otherwise is None:
            raise _Senseless(f"field {tag} is missing")
        return otherwise


def _header(fields: _Fields, file: _File) -> SliceHeader:
    height, width = fields.value(_HEIGHT), fields.value(_WIDTH)
    if not (0 < height < 1 << 31 and 0 < width < 1 << 31):
        raise _Senseless(f"{height} rows of {width} pixels")
    samples = fields.value(_SAMPLES, 1)
    bits = set(fields.values(_BITS)[:samples]) or {1}
    kinds = set(fields.values(_SAMPLE_FORMAT)[:samples]) or {1}
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
        runs, obstacle = _runs(fields, layout, file.size)
    return SliceHeader(layout, runs, obstacle, tuple(file.read_ranges), tuple(file.said))


def _dtype(bits: int, kind: int) -> str:
    """The numpy type that holds samples of so many bits and that SampleFormat."""
    if bits == 1:
        return "bool"
    name = {2: "int", 3: "float", 5: "complex", 6: "complex"}.get(kind, "uint")
    least = {"float": 16, "complex": 64}.get(name, 8)
    return f"{name}{max(least, 1 << (bits - 1).bit_length())}"


def _storage(fields: _Fields) -> str:
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


def _runs(fields: _Fields, layout: SliceLayout, size: int) -> tuple[Runs | None, str]:
    """Where the strips have the pixels, or None and why that can't be mapped."""
    rows = min(fields.value(_ROWS, layout.height), layout.height)
    if not rows:
        raise _Senseless("strips without rows")
    strips = -(-layout.height // rows)
    whole = rows * layout.row_bytes
    offsets = fields.page.dataoffsets[:strips]
    counts = fields.page.databytecounts[:strips] if _COUNTS in fields else (whole,) * len(offsets)
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
