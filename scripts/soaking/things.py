"""What is in the bucket: slices that stay as they are, and some objects that have version after
version."""

from __future__ import annotations

import functools
import random
from pathlib import Path

from tests.s3server import pattern

SLICE = 6_000_000
"""Bytes in a slice, a little different for each: no whole number of blocks, more than half a part."""

SPECIMENS = 3
SLICES = 24
CHANGING = tuple(f"changing/c-{number:04}.tif" for number in range(1, 4))
CHANGING_SIZE = 2_500_000
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
def version(key: str, number: int) -> bytes:
    """All bytes of one version of an object that changes. Sizes differ, too."""
    chance = random.Random(f"{key} {number}")
    return chance.randbytes(CHANGING_SIZE + 1000 * (number % 7))


def expected(key: str, start: int, size: int) -> bytes:
    """Bytes of a slice."""
    return pattern(key, start, min(start + size, slices_once()[key]))


@functools.cache
def slices_once() -> dict[str, int]:
    """`slices()`, made once."""
    return slices()


def place(mountpoint: Path, key: str) -> Path:
    """Where a mount shows `key`."""
    return mountpoint / "train" / key
