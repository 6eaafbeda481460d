"""The only import of tifffile: what a slice's header says of its pixels.

A header is read through a `Content`, in the few ranges that the parser asks for, so a slice whose
image file directory lies at its end costs one more block. tifffile, and numpy with it, is imported
when the first header is read.

Headers are untrusted: whatever a broken one makes the parser raise means "not a TIFF that we
understand".
"""

from __future__ import annotations

import io
import logging
from typing import NamedTuple

from bffs.content import Content
from bffs.errors import BffsError

log = logging.getLogger(__name__)


class SliceLayout(NamedTuple):
    """The first page of a slice: pixels in `height` rows of `width`, of numpy type `dtype`."""

    height: int
    width: int
    dtype: str


class _Reader(io.RawIOBase):
    """A content as a seekable file, for the parser."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._content.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        n = self._content.read_into(self._at, memoryview(buffer).cast("B"))
        self._at += n
        return n


def slice_layout(content: Content) -> SliceLayout | None:
    """The layout of a slice's first page, or None if it is no TIFF that can be understood.

    Raises BffsError if its header can't be read.
    """
    import tifffile  # 0.2 s and 30 MB that most mounts never need

    try:
        with tifffile.TiffFile(io.BufferedReader(_Reader(content), 64 * 1024)) as file:
            page = file.pages.first
            height, width = page.shape[:2]
            return SliceLayout(int(height), int(width), str(page.dtype))
    except BffsError:
        raise
    except Exception as error:
        log.info("a slice is no TIFF that can be understood: %s", error)
        return None
