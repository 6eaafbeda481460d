"""What is read: the made-up dataset and the byte ranges of each case. Pure, apart from
`write_bases`."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.s3server import Shape

MIB = 1 << 20
SPECIMENS = ("647225829", "651806289", "663523681", "687702530")
SLOW = Shape(latency=0.100, per_connection=12e6, total=12e6)
"""A bad line: 100 ms and 12 MB/s, as from another continent over a shared office link."""


class Read(NamedTuple):
    """Bytes `start` to `stop` of the object `key`, read in one go through one open file."""

    key: str
    start: int
    stop: int


Plan = list[list[Read]]
"""For each reader, its reads in order. Readers run at the same time."""


@dataclass(frozen=True)
class Data:
    """The dataset: `slices` slices of `width` x `height` bytes a specimen, all made from a few base
    files.

    A slice is a classic TIFF: header, one strip, and behind it the directory. Which base file a key
    has follows from no pattern, so that a slice or an offset mistaken for another shows.
    """

    width: int
    height: int
    slices: int
    bases: int = 8

    PIXELS = 8
    """Offset of the first pixel: right behind the header."""

    @property
    def slice_size(self) -> int:
        """Bytes of one slice file."""
        return self.PIXELS + self.width * self.height + len(_directory(self.width, self.height))

    def key(self, specimen: int, slice_: int) -> str:
        """Key of a slice; both numbers count from 0."""
        folder = SPECIMENS[specimen]
        return f"{folder}/reconstruction_0_0539044533_639893239-{slice_ + 1:04}.tif"

    def base_of(self) -> dict[str, int]:
        """The base file of every key; neighbours never share one."""
        chance, base, bases = random.Random(1), 0, {}
        for specimen in range(len(SPECIMENS)):
            for slice_ in range(self.slices):
                base = (base + chance.randrange(1, self.bases)) % self.bases
                bases[self.key(specimen, slice_)] = base
        return bases

    def whole(self, specimen: int, slice_: int) -> Read:
        """The read of a whole slice file."""
        return Read(self.key(specimen, slice_), 0, self.slice_size)


def _directory(width: int, height: int) -> bytes:
    """The image file directory of a slice: 8-bit gray, one uncompressed strip, no further page."""
    short, long = 3, 4
    tags = [
        (256, long, width),
        (257, long, height),
        (258, short, 8),
        (259, short, 1),
        (262, short, 1),
        (273, long, Data.PIXELS),
        (277, short, 1),
        (278, long, height),
        (279, long, width * height),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<H", len(tags)) + entries + bytes(4)


def write_bases(data: Data, folder: Path) -> list[Path]:
    """Write the base files below `folder`: noise, which no driver and no disk can compress."""
    paths = []
    for number in range(data.bases):
        pixels = random.Random(number).randbytes(data.width * data.height)
        header = struct.pack("<2sHI", b"II", 42, Data.PIXELS + len(pixels))
        path = folder / f"base-{number}.tif"
        path.write_bytes(header + pixels + _directory(data.width, data.height))
        paths.append(path)
    return paths


def cold(data: Data) -> Plan:
    """One whole slice."""
    return [[data.whole(0, data.slices // 2)]]


def in_order(data: Data) -> Plan:
    """All slices of a specimen, one after the other."""
    return [[data.whole(0, z) for z in range(data.slices)]]


def reverse(data: Data) -> Plan:
    """The same from the last to the first."""
    return [in_order(data)[0][::-1]]


def every_fifth(data: Data) -> Plan:
    """Every fifth slice."""
    return [in_order(data)[0][::5]]


def region(data: Data) -> Plan:
    """64 rows out of each of up to 100 slices."""
    rows = min(64, data.height // 4)
    start = Data.PIXELS + data.height // 2 * data.width
    stop = start + rows * data.width
    return [[Read(data.key(0, z), start, stop) for z in range(min(100, data.slices))]]


def random_reads(data: Data) -> Plan:
    """64 KiB anywhere in a stack, again and again."""
    chance, size = random.Random(2), 64 << 10
    reads = []
    for _ in range(min(200, 2 * data.slices)):
        start = chance.randrange(data.slice_size - size)
        reads.append(Read(data.key(0, chance.randrange(data.slices)), start, start + size))
    return [reads]


def four_readers(data: Data) -> Plan:
    """Four readers, each through the first fifth of a specimen of its own."""
    count = max(4, data.slices // 5)
    return [[data.whole(n, z) for z in range(count)] for n in range(len(SPECIMENS))]


def jumps(data: Data) -> Plan:
    """Three times: two slices in order, so that prefetch is under way, then 1 MiB of a slice far
    off."""
    chance, reads = random.Random(3), []
    third = data.slices // 3
    for turn in range(3):
        first = turn * third
        far = data.key(1, chance.randrange(data.slices))
        start = data.slice_size // 2
        stop = min(data.slice_size, start + MIB)
        reads += [data.whole(0, first), data.whole(0, first + 1), Read(far, start, stop)]
    return [reads]


class Case(NamedTuple):
    """One kind of work. `shape` is None for the store that the options describe.

    A case with `after` is the same plan again on the same mount, from the disk cache or from the
    page cache.
    """

    name: str
    title: str
    plan: Callable[[Data], Plan]
    shape: Shape | None = None
    after: str | None = None


CASES = (
    Case("cold", "one cold slice", cold),
    Case("order", "all slices in order", in_order),
    Case("disk", "again, page cache dropped", in_order, after="order"),
    Case("page", "again, from the page cache", in_order, after="order"),
    Case("reverse", "in reverse", reverse),
    Case("fifth", "every fifth slice", every_fifth),
    Case("region", "64 rows through the slices", region),
    Case("random", "random 64 KiB", random_reads),
    Case("four", "four readers, four specimens", four_readers),
    Case("jump", "slow link, jump during prefetch", jumps, shape=SLOW),
)
