"""Content: immutable bytes of known length that can be read at any offset, whatever they are made
of.

All contents may be read from any number of threads at once; none has a position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bffs.blocks import BlockReader
from bffs.cache import CachedObject
from bffs.checking import Checker
from bffs.deadlines import as_one_read
from bffs.errors import BffsError
from bffs.store import ByteRange, ObjectInfo


class Content(Protocol):
    """What a file's handle reads from."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read_into(self, offset: int, into: memoryview) -> int:
        """Fill `into` with the bytes from `offset` on; returns how many there were before the end.

        Waits for bytes that are still to come. Raises BffsError where they can't be had, never
        returns fewer for such a reason.
        """
        ...


class Backed(Protocol):
    """A content that may be in a local file, byte for byte."""

    def backing(self) -> int | None:
        """The descriptor of that file, which stays open as long as the content is held; None if not
        all of it is there, or not known to be sound."""
        ...


class BytesContent:
    """Bytes that are in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self._data)

    def read_into(self, offset: int, into: memoryview) -> int:
        """See `Content.read_into`."""
        piece = self._data[offset : offset + len(into)]
        into[: len(piece)] = piece
        return len(piece)


class ObjectContent:
    """The bytes of one object version, through a block reader; `checker` knows whether it is cached
    whole."""

    def __init__(
        self, blocks: BlockReader, obj: ObjectInfo, checker: Checker | None = None
    ) -> None:
        self._blocks = blocks
        self.obj = obj
        self._checker = checker
        self._whole: CachedObject | None = None

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.obj.size

    def read_into(self, offset: int, into: memoryview) -> int:
        """See `Content.read_into`."""
        return self._blocks.read_into(self.obj, offset, into)

    def backing(self) -> int | None:
        """See `Backed.backing`; what is not checked yet is checked."""
        if self._checker is None or self._blocks.is_retired(self.obj):
            return None
        self._whole = self._checker.whole(self.obj, check=True)
        return None if self._whole is None else self._whole.fd


class LocalContent:
    """What the disk cache holds of one object version; reading anything else raises BffsError at
    once."""

    def __init__(self, cached: CachedObject) -> None:
        self._cached = cached

    @property
    def size(self) -> int:
        """Bytes in all, here or not."""
        return self._cached.obj.size

    def read_into(self, offset: int, into: memoryview) -> int:
        """See `Content.read_into`."""
        size = min(len(into), max(0, self.size - offset))
        done = 0
        while done < size:
            n = self._cached.read_into(offset + done, into[done:size])
            if not n:
                raise BffsError(f"{self._cached.obj.key} is not all here")
            done += n
        return size


class MappedContent:
    """A synthesized file: `head` and zeros up to `data_at`, then bytes `start` to `stop` of the
    content of each of `slices`, then `fill` zeros.

    `slice_content(index, stop, entered)` makes the content of one slice and is called when it is
    first read; it is `entered` where what comes before it in the file is read through the
    same handle. Which slice a byte is of is computed, so that files of any size cost the same.
    `by_plane` if its readers mostly look at one of them and not at all.
    """

    def __init__(
        self,
        head: bytes,
        data_at: int,
        slices: range,
        span: ByteRange,
        fill: int,
        slice_content: Callable[[int, int, bool], Content],
        *,
        by_plane: bool = False,
    ) -> None:
        self.by_plane = by_plane
        self._head = head
        self._data_at = max(data_at, len(head))
        self._slices = slices
        self._start, self._stop = span
        self._piece = self._stop - self._start
        self._data_end = self._data_at + len(slices) * self._piece
        self._slice_content = slice_content
        self._contents: dict[int, Content] = {}
        self.size = self._data_end + fill
        """Bytes in all."""

    def read_into(self, offset: int, into: memoryview) -> int:
        """See `Content.read_into`."""
        size = max(0, min(len(into), self.size - offset))
        done = 0
        with as_one_read():
            while done < size:
                done += self._read_piece(offset + done, into[done:size])
        return size

    def _read_piece(self, at: int, into: memoryview) -> int:
        """Fill as much of `into` as comes from one place; how many bytes that was."""
        if self._data_at <= at < self._data_end:
            place, within = divmod(at - self._data_at, self._piece)
            n = min(len(into), self._piece - within)
            return self._content(place).read_into(self._start + within, into[:n])
        if at < len(self._head):
            piece = self._head[at : at + len(into)]
            into[: len(piece)] = piece
            return len(piece)
        n = min(len(into), (self._data_at if at < self._data_at else self.size) - at)
        into[:n] = bytes(n)
        return n

    def _content(self, place: int) -> Content:
        content = self._contents.get(place)
        if content is None:
            entered = place - 1 in self._contents if place else self._data_at > 0
            content = self._slice_content(self._slices[place], self._stop, entered)
            content = self._contents.setdefault(place, content)
        return content
