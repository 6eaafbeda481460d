"""Content: immutable bytes of known length that can be read at any offset, whatever they are made
of.

All contents may be read from any number of threads at once; none has a position.
"""

from __future__ import annotations

from typing import Protocol

from bffs.blocks import BlockReader
from bffs.cache import CachedObject
from bffs.errors import BffsError
from bffs.store import ObjectInfo


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
    """The bytes of one object version, through a block reader."""

    def __init__(self, blocks: BlockReader, obj: ObjectInfo) -> None:
        self._blocks = blocks
        self._obj = obj

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._obj.size

    def read_into(self, offset: int, into: memoryview) -> int:
        """See `Content.read_into`."""
        return self._blocks.read_into(self._obj, offset, into)


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
