"""What is in the bucket: slices that stay as they are, and some objects that have version after
version."""

from __future__ import annotations

import functools
import random
from pathlib import Path

from tests.s3server import pattern
from tests.slices import tiff

SLICE = 6_000_000
"""Bytes in a slice, a little different for each: no whole number of blocks, more than half a part."""

SPECIMENS = 3
SLICES = 24
CHANGING = tuple(f"changing/c-{number:04}.tif" for number in range(1, 4))
HEIGHT, WIDTH = 1000, 2500
COMES_AND_GOES = "changing/now-and-then.txt"
ABSENT = "changing/never.tif"


def slices() -> dict[str, int]:
    """The keys and sizes of what stays."""
    return {
        f"90000000{specimen}/s-{number:04}.tif": SLICE + 4099 * number
        for specimen in range(1, SPECIMENS + 1)
        for number in range(1, SLICES + 1)
    }


@functools.lru_cache(64)
def plane(key: str, number: int) -> bytes:
    """The pixels of one version of an object that changes."""
    return random.Random(f"{key} {number}").randbytes(HEIGHT * WIDTH)


@functools.lru_cache(64)
def version(key: str, number: int) -> bytes:
    """All bytes of that version: a slice, and some more, since sizes differ, too."""
    return tiff(HEIGHT, WIDTH, plane(key, number)) + bytes(1000 * (number % 7))


def expected(key: str, start: int, size: int) -> bytes:
    """Bytes of a slice."""
    return pattern(key, start, min(start + size, slices_once()[key]))


@functools.cache
def slices_once() -> dict[str, int]:
    """`slices()`, made once."""
    return slices()


def stack(mountpoint: Path) -> Path:
    """Where a mount shows the objects that change as one file."""
    return mountpoint / "stacks" / "train" / "changing" / "changing.v3draw"


def place(mountpoint: Path, key: str) -> Path:
    """Where a mount shows `key`."""
    return mountpoint / "train" / key
