"""Slice headers: what tifffile makes of sound ones, and that broken ones are no error."""

from __future__ import annotations

import io
import random
import struct
from typing import Any

import pytest

from bffs.content import BytesContent, Content
from bffs.errors import ObjectChanged
from bffs.tiff import slice_header

np = pytest.importorskip("numpy")
tifffile = pytest.importorskip("tifffile")


def slice_layout(content: Content) -> tuple[int, int, str] | None:
    header = slice_header(content)
    return None if header is None else header.layout[:3]


def tiff(height: int = 300, width: int = 500, dtype: str = "uint8", **options: Any) -> bytes:
    """A slice of noise."""
    file = io.BytesIO()
    pixels = np.frombuffer(
        random.Random(1).randbytes(height * width * np.dtype(dtype).itemsize), dtype
    )
    tifffile.imwrite(file, pixels.reshape(height, width), **options)
    return file.getvalue()


class Counted(BytesContent):
    """A content that knows how much of it was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.read = 0

    def read_into(self, offset: int, into: memoryview) -> int:
        n = super().read_into(offset, into)
        self.read += n
        return n


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, "uint8"),
        ({"dtype": "uint16"}, "uint16"),
        ({"dtype": "uint16", "byteorder": ">"}, "uint16"),
        ({"dtype": "float32", "bigtiff": True}, "float32"),
        ({"rowsperstrip": 1}, "uint8"),
        ({"tile": (128, 128)}, "uint8"),
        ({"compression": "zlib"}, "uint8"),
        ({"photometric": "miniswhite"}, "uint8"),
    ],
    ids=str,
)
def test_a_sound_header(options: dict[str, Any], dtype: str) -> None:
    assert slice_layout(BytesContent(tiff(**options))) == (300, 500, dtype)


def test_only_the_first_page_counts() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(np.zeros((10, 20), "uint8"), metadata=None)
        writer.write(np.zeros((30, 40), "uint16"), metadata=None)
    assert slice_layout(BytesContent(file.getvalue())) == (10, 20, "uint8")


def test_rows_and_columns_of_a_colour_slice() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((10, 20, 3), "uint8"), photometric="rgb")
    assert slice_layout(BytesContent(file.getvalue())) == (10, 20, "uint8")


def ifd_at_the_end(height: int, width: int) -> bytes:
    """A slice as the published ones are: pixels first, then the image file directory."""
    pixels = random.Random(2).randbytes(height * width)
    fields = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (278, 4, height),
        (279, 4, len(pixels)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in fields)
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def test_the_pixels_are_not_read() -> None:
    content = Counted(ifd_at_the_end(2000, 3000))
    assert slice_layout(content) == (2000, 3000, "uint8")
    assert content.read < 300_000 < content.size


SOUND = tiff()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"I",
        b"II*\0",
        b"not a TIFF at all, but long enough to be one",
        bytes(1000),
        SOUND[:100],
        SOUND[:8] + b"\xff" * 500,
        b"II*\0\xff\xff\xff\x7f" + bytes(100),
        b"II*\0\x09\0\0\0" + b"\xff" * 20_000,
        b"II*\0\x08\0\0\0\0\0\0\0\0\0",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_tiff_is_no_error(data: bytes) -> None:
    assert slice_layout(BytesContent(data)) is None


def test_any_damage_to_a_header_is_no_error() -> None:
    chance = random.Random(3)
    for _ in range(150):
        data = bytearray(SOUND[:2000])
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(300)] = chance.randrange(256)
        layout = slice_layout(BytesContent(bytes(data)))
        assert layout is None or len(layout) == 3


class Unreadable(BytesContent):
    """A content whose bytes can't be had."""

    def read_into(self, offset: int, into: memoryview) -> int:
        raise ObjectChanged("gone")


class UnreadableDirectory(BytesContent):
    """A content that is gone before the image file directory is read."""

    def read_into(self, offset: int, into: memoryview) -> int:
        if offset > 1000:
            raise ObjectChanged("gone")
        return super().read_into(offset, into)


def test_what_can_not_be_read_is_an_error_not_a_broken_slice() -> None:
    with pytest.raises(ObjectChanged):
        slice_layout(Unreadable(SOUND))
    with pytest.raises(ObjectChanged):
        slice_layout(UnreadableDirectory(ifd_at_the_end(2000, 3000)))
