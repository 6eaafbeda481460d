"""The pixels of slices, wherever in their objects they lie, and the proof that they lie there.

A stack file promises from the first `stat` that all slices have one layout; what is known then is
the header of one. So each slice's header is read - a few KiB, through the same blocks as everything
else - before its first pixel is given out. Headers that are equal byte for byte say the same, so
mostly just one is parsed. A slice that keeps the promise is remembered; one that breaks it is an
error, now and later.

Threads: any number may read; two that meet a slice first at the same time look at it twice.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bffs.blocks import BlockReader
from bffs.content import Content, ObjectContent
from bffs.errors import BrokenPromise
from bffs.store import ByteRange, ObjectInfo
from bffs.tiff import Runs, SliceLayout, slice_header

log = logging.getLogger(__name__)

KNOWN = 8
"""Different headers that are remembered: more than a few means that all differ."""


class Pixels:
    """The pixels of one specimen's slices, all of one `layout`.

    `follow` makes the content of a slice whose readers are followed (see
    `SpecimenReadahead.content`); headers are read past it.
    """

    def __init__(
        self,
        blocks: BlockReader,
        slices: Sequence[ObjectInfo],
        layout: SliceLayout,
        follow: Callable[[int, int, bool], Content],
    ) -> None:
        self._blocks = blocks
        self._slices = slices
        self.layout = layout
        self.follow = follow
        self._found: dict[int, Runs | str] = {}
        self._parsed: list[_Parsed] = []

    def content(self, index: int, stop: int, entered: bool) -> Content:
        """The pixels of a slice, row by row without a gap; its header is read when they are.

        Only bytes before `stop` will be read. `entered`: see `SpecimenReadahead.content`.
        """
        return _SlicePixels(self, index, stop, entered)

    def runs(self, index: int) -> Runs:
        """Where the pixels of a slice lie. Raises BrokenPromise, or BffsError if its header can't
        be read."""
        found = self._found.get(index)
        if found is None:
            found = self._look(index)
            if self._found.setdefault(index, found) is found and isinstance(found, str):
                log.error("%s; its stack's files can't be read here", found)
        if isinstance(found, str):
            raise BrokenPromise(found)
        return found

    def _look(self, index: int) -> Runs | str:
        obj = self._slices[index]
        content = ObjectContent(self._blocks, obj)
        for parsed in tuple(self._parsed):
            if parsed.end <= obj.size and _digest(content, parsed.said) == parsed.digest:
                return parsed.runs
        header = slice_header(content)
        if header is None:
            return f"{obj.key} is not a TIFF that bffs understands"
        if header.runs is None:
            return f"{obj.key} is {header.obstacle}"
        if header.layout != self.layout:
            return f"{obj.key} has {header.layout.in_words}, not {self.layout.in_words} like the others"
        if len(self._parsed) < KNOWN:
            end = _end(header.runs, self.layout.bytes)
            digest = _digest(content, header.said)
            self._parsed.append(_Parsed(header.said, digest, end, header.runs))
        return header.runs


class _Parsed(NamedTuple):
    """A header: where it is, its digest, and what follows for any object of at least `end` bytes."""

    said: tuple[ByteRange, ...]
    digest: bytes
    end: int
    runs: Runs


def _digest(content: Content, said: Sequence[ByteRange]) -> bytes:
    """What only equal bytes have in common. Raises BffsError if they can't be read."""
    found = hashlib.sha256()
    for start, stop in said:
        into = bytearray(stop - start)
        n = content.read_into(start, memoryview(into))
        found.update(into[:n])
    return found.digest()


def _end(runs: Runs, size: int) -> int:
    """The first byte of an object that no pixel needs, `size` being that of all pixels."""
    stops = (*runs.starts[1:], size)
    return max(
        offset + stop - start
        for start, stop, offset in zip(runs.starts, stops, runs.offsets, strict=True)
    )


class _SlicePixels:
    """The pixels of one slice; see `Content`."""

    def __init__(self, pixels: Pixels, index: int, stop: int, entered: bool) -> None:
        self._pixels = pixels
        self._index = index
        self._entered = entered
        self._found: tuple[Runs, Content] | None = None
        self.size = stop

    def _find(self) -> tuple[Runs, Content]:
        runs = self._pixels.runs(self._index)
        last = bisect_right(runs.starts, self.size - 1) - 1
        limit = runs.offsets[last] + self.size - runs.starts[last]
        return runs, self._pixels.follow(self._index, limit, self._entered)

    def read_into(self, offset: int, into: memoryview) -> int:
        if self._found is None:
            self._found = self._find()
        (starts, offsets), content = self._found
        size = max(0, min(len(into), self.size - offset))
        done = 0
        while done < size:
            at = offset + done
            run = bisect_right(starts, at) - 1
            end = starts[run + 1] if run + 1 < len(starts) else self.size
            n = min(size - done, end - at)
            place = offsets[run] + at - starts[run]
            if content.read_into(place, into[done : done + n]) < n:
                raise BrokenPromise("a slice ends before its pixels do")
            done += n
        return size
