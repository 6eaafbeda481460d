"""Regions of stacks: what an index means, in which reads it comes, and where these lie in objects. Pure.

A *band* is some consecutive wanted rows of a slice that are read at once. Pixels are counted in bytes,
row by row, as if nothing were between them (`SliceLayout`, `Runs`).
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bffs.store import ByteRange
from bffs.tiff import Runs
from bffs.units import KIB, MIB

BAND = 8 * MIB
"""Bytes of a band at most, unless a row has more."""

NEAR = 128 * KIB
"""Bytes between two wanted rows that are read along with them: less than a block is fetched anyway."""


class Box(NamedTuple):
    """What an index chooses of each dimension, ascending: positions, whether they are wanted in
    reverse, and whether the dimension itself goes, as it does for a number."""

    ranges: tuple[range, ...]
    reverse: tuple[bool, ...]
    dropped: tuple[bool, ...]

    @property
    def finish(self) -> tuple[slice | int, ...]:
        """The index that makes of an array of the `ranges` what was asked for."""
        steps = (slice(None, None, -1) if back else slice(None) for back in self.reverse)
        return tuple(0 if drop else step for drop, step in zip(self.dropped, steps, strict=True))


def box(index: Any, shape: Sequence[int]) -> Box:
    """What numpy's basic indexing means: whole numbers, slices and one `...`. Raises IndexError."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)
    at = next(place for place, part in enumerate(parts) if part is Ellipsis)
    more = len(shape) - len(parts) + 1
    if more < 0:
        raise IndexError(f"too many indices for {len(shape)} dimensions")
    parts[at : at + 1] = [slice(None)] * more
    chosen = [_choose(part, size) for part, size in zip(parts, shape, strict=True)]
    return Box(
        tuple(each[::-1] if each.step < 0 else each for each in chosen),
        tuple(each.step < 0 for each in chosen),
        tuple(not isinstance(part, slice) for part in parts),
    )


def _choose(part: Any, size: int) -> range:
    if isinstance(part, slice):
        return range(size)[part]
    try:
        at = range(size)[operator.index(part)]
    except TypeError:
        raise IndexError(f"{part!r}: use whole numbers, slices and `...`") from None
    except IndexError:
        raise IndexError(f"{part} is not in a dimension of {size}") from None
    return range(at, at + 1)


class Band(NamedTuple):
    """Bytes of a slice's pixels, and how many wanted rows are in them: from the `first` of those that
    are wanted on, `count` of them, the columns at the bytes' front."""

    first: int
    number: int
    span: ByteRange


def bands(rows: range, columns: range, row_bytes: int, item: int) -> Iterator[Band]:
    """The reads of a region of one slice, whose pixels take `item` bytes."""
    if not rows or not columns:
        return
    left, right = columns[0] * item, (columns[-1] + 1) * item
    step = rows.step * row_bytes
    wide = right - left
    count = max(1, BAND // step) if len(rows) > 1 and step - wide < NEAR else 1
    for first in range(0, len(rows), count):
        some = rows[first : first + count]
        span = ByteRange(some[0] * row_bytes + left, some[-1] * row_bytes + right)
        yield Band(first, len(some), span)


def spans(runs: Runs, span: ByteRange) -> Iterator[ByteRange]:
    """Where these bytes of a slice's pixels lie in its object, piece by piece."""
    starts, offsets = runs
    at = span.start
    while at < span.stop:
        run = bisect_right(starts, at) - 1
        end = min(span.stop, starts[run + 1] if run + 1 < len(starts) else span.stop)
        place = offsets[run] + at - starts[run]
        yield ByteRange(place, place + end - at)
        at = end
