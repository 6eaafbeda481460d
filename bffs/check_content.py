"""Checks of what is in the bucket: whether the listing is one of stacks, and how fast slices come.

What is read to measure is read as a mount reads, with all its checks, for `PROBE_TIME` seconds at most.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

from bffs.catalog import build_specimen
from bffs.errors import StoreError
from bffs.findings import Finding, green, red, yellow
from bffs.s3 import S3Store
from bffs.settings import Settings
from bffs.store import Interrupt, ObjectInfo
from bffs.units import KIB, MIB, format_size

PROBE_TIME = 2.0
WARM_UP = 0.5
"""Seconds until connections are made and up to speed."""

MOST = 256 * MIB
READERS = 16
_PIECE = 4 * MIB
_PINGS = 5

FAR = 0.5
"""Seconds to a first byte that make working with single slices a pain."""


def check(settings: Settings) -> Iterator[Finding]:
    """The listing, latency and bandwidth of a store that lets this user in."""
    with closing(S3Store(settings)) as store:
        yield from _check(settings, store)


def _check(settings: Settings, store: S3Store) -> Iterator[Finding]:
    try:
        counts, sample, specimen = _look(settings, store)
    except StoreError as error:
        yield red("listing", str(error), "bffs -v ls, which tries longer", error.exit_code)
        return
    found = ", ".join(f"{count:,} folders in {split}" for split, count in counts.items())
    if sample is None:
        seen = f"{found}, but no <specimen>/<slice>.tif in the first of them"
        yield red("listing", seen, "describe the folders in a profile's [splits], see README")
        return
    yield green("listing", f"{found}; {specimen} has slices")
    try:
        yield _latency(store, sample)
        yield _bandwidth(store, sample)
    except StoreError as error:
        yield red("reading", str(error), "bffs -v doctor", error.exit_code)


def _look(settings: Settings, store: S3Store) -> tuple[dict[str, int], ObjectInfo | None, str]:
    """Folders a split, as far as one page tells; the largest slice of a specimen; its name.

    Raises StoreError.
    """
    counts: dict[str, int] = {}
    places: list[tuple[str, str]] = []
    roots = {folder for folder, _ in settings.dataset.splits}
    for folder, split in settings.dataset.splits:
        page = next(store.list(folder, folders=True))
        below = [prefix for prefix in page.folders if prefix not in roots]
        counts[split] = len(below)
        places += [(split, prefix) for prefix in below[:2]]
    for split, prefix in places:
        specimen = build_specimen(split, prefix, next(store.list(prefix)).objects, Counter())
        if specimen.slices:
            largest = max(specimen.slices, key=lambda obj: obj.size)
            if largest.size:
                return counts, largest, f"{split}/{specimen.id}"
    return counts, None, ""


def _latency(store: S3Store, sample: ObjectInfo) -> Finding:
    """The time to a first byte: the median of a few small reads, the first one's connection aside."""
    size = min(4 * KIB, sample.size)
    times = []
    for number in range(_PINGS + 1):
        begin = time.monotonic()
        buffer = memoryview(bytearray(size))
        start = (sample.size - size) * number // _PINGS
        store.read_into(sample, start, buffer, lambda _: None, _never, Interrupt())
        times.append(time.monotonic() - begin)
    latency = statistics.median(times[1:])
    seen = f"{_ms(latency)} to a first byte"
    if latency > FAR:
        return yellow("latency", f"{seen}, which is long", "bffs warm ID", latency=latency)
    return green("latency", seen, latency=latency)


def _bandwidth(store: S3Store, sample: ObjectInfo) -> Finding:
    """What several connections carry together, once they are up to speed."""
    starts = range(0, max(1, sample.size - _PIECE + 1), _PIECE)
    arrived = [0] * READERS
    interrupts = [Interrupt() for _ in range(READERS)]
    failed: list[Exception] = []
    is_over = threading.Event()

    def read(reader: int) -> None:
        number = reader
        try:
            while not is_over.is_set():
                start, before = starts[number % len(starts)], arrived[reader]
                buffer = memoryview(bytearray(min(_PIECE, sample.size - start)))

                def count(n: int, before: int = before) -> None:
                    arrived[reader] = before + n

                store.read_into(sample, start, buffer, count, _never, interrupts[reader])
                number += READERS
        except Exception as error:
            if not is_over.is_set():
                failed.append(error)
                is_over.set()

    readers = [threading.Thread(target=read, args=(n,), daemon=True) for n in range(READERS)]
    for reader in readers:
        reader.start()
    is_over.wait(WARM_UP)
    begin, before = time.monotonic(), sum(arrived)
    while not is_over.wait(0.05):
        if time.monotonic() > begin + PROBE_TIME or sum(arrived) > MOST:
            break
    done, taken = sum(arrived) - before, time.monotonic() - begin
    is_over.set()
    for interrupt in interrupts:
        interrupt()
    for reader in readers:
        reader.join(1.0)
    if failed:
        raise failed[0]
    bandwidth = done / taken
    seen = f"{format_size(int(bandwidth))}/s over {READERS} connections"
    return green("bandwidth", seen, bandwidth=bandwidth)


def _never(_: StoreError) -> bool:
    return False


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else "less than 1 ms"
