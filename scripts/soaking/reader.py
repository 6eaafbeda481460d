"""Child process: reads a mount in one way until its standard input ends, and checks every byte.

    reader.py WAY MOUNTPOINT BYTES_A_SECOND SEED DIARY

`DIARY` is a file of one record that the parent watches: when the operation under way began (seconds
of the monotonic clock, 0 for none) and what it is. Out: one line of JSON, see `Report`.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from scripts.soaking import things

RECORD = struct.Struct("<d120s")
SLOW = 10.0
"""Seconds after which an operation needs an excuse."""

REQUEST = 256 << 10
V3DRAW_HEADER = 43

VERSIONS = 400
"""Versions that a changing object may have been through."""


@dataclass
class Report:
    """What became of it: operations, bytes, the slowest operations (began, seconds, what), errors
    by name, and what was wrong."""

    operations: int = 0
    bytes: int = 0
    longest: float = 0.0
    slow: list[tuple[float, float, str]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Reader:
    """Reads until `stopped`; never faster than `rate` bytes a second."""

    def __init__(self, mountpoint: Path, rate: float, seed: int, diary: IO[bytes]) -> None:
        self.mountpoint = mountpoint
        self.chance = random.Random(seed)
        self.report = Report()
        self.stopped = threading.Event()
        self._rate = rate
        self._diary = diary
        self._free = time.monotonic()

    @contextmanager
    def operation(self, what: str) -> Iterator[None]:
        """Everything that may wait is done within one of these."""
        began = time.monotonic()
        self._note(began, what)
        try:
            yield
        except OSError as error:
            self.report.errors[errno.errorcode.get(error.errno or 0, "?")] += 1
            raise
        finally:
            seconds = time.monotonic() - began
            self.report.operations += 1
            self.report.longest = max(self.report.longest, seconds)
            if seconds > SLOW:
                self.report.slow.append((began, seconds, what))
            self._note(0.0, "")

    def _note(self, began: float, what: str) -> None:
        os.pwrite(self._diary.fileno(), RECORD.pack(began, what.encode()[:120]), 0)

    def paced(self, size: int) -> None:
        """So many bytes were read: wait until the next may be."""
        self.report.bytes += size
        self._free = max(self._free, time.monotonic() - 1) + size / self._rate
        self.stopped.wait(max(0.0, self._free - time.monotonic()))

    def compare(self, key: str, start: int, found: bytes, expected: bytes) -> None:
        """Note any difference."""
        if found != expected:
            at = next(
                (
                    n
                    for n, pair in enumerate(zip(found, expected, strict=False))
                    if pair[0] != pair[1]
                ),
                -1,
            )
            self.report.wrong.append(
                f"{key} from {start}: {len(found)} bytes for {len(expected)}, differing at {at}"
            )

    def read(self, key: str, fd: int, start: int, size: int) -> None:
        """Read a range of a slice, and check it."""
        with self.operation(f"pread {key} {start}+{size}"):
            found = os.pread(fd, size, start)
        self.compare(key, start, found, things.expected(key, start, size))
        self.paced(len(found))

    @contextmanager
    def opened(self, key: str) -> Iterator[int]:
        """A handle."""
        with self.operation(f"open {key}"):
            fd = os.open(things.place(self.mountpoint, key), os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)

    # -- the ways --------------------------------------------------------------------------------

    def sequential(self) -> None:
        """A specimen, slice after slice, each whole."""
        for key in self._a_specimen():
            with self.opened(key) as fd:
                for start in range(0, things.slices_once()[key], REQUEST):
                    if self.stopped.is_set():
                        return
                    self.read(key, fd, start, REQUEST)

    def at_random(self) -> None:
        """A few ranges of any slice."""
        key = self.chance.choice(list(things.slices_once()))
        with self.opened(key) as fd:
            for _ in range(5):
                start = self.chance.randrange(things.slices_once()[key])
                self.read(key, fd, start, self.chance.choice((1, 4096, 100_000, REQUEST)))

    def region(self) -> None:
        """The same rows of all slices of a specimen."""
        first = self.chance.randrange(0, things.SLICE - 300_000)
        for key in self._a_specimen():
            if self.stopped.is_set():
                return
            with self.opened(key) as fd:
                for row in range(first, first + 200_000, 50_000):
                    self.read(key, fd, row, 8_000)

    def mapped(self) -> None:
        """Pages of a mapped slice."""
        key = self.chance.choice(list(things.slices_once()))
        with self.opened(key) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
            for _ in range(10):
                start = self.chance.randrange(len(view))
                with self.operation(f"mapped {key} {start}"):
                    found = view[start : start + 20_000]
                self.compare(key, start, found, things.expected(key, start, 20_000))
                self.paced(len(found))

    def names(self) -> None:
        """Names, attributes, manifests, and what is absent."""
        with self.operation("ls -lR"):
            done = subprocess.run(
                ["ls", "-lR", str(self.mountpoint), f"{self.mountpoint}/stacks/"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        missing = [k for k in things.slices_once() if k.rpartition("/")[2] not in done.stdout]
        if missing or done.stderr:
            self.report.wrong.append(f"ls said {done.stderr!r}, not {missing[:3]}")
        with self.operation("manifest"):
            whole = json.loads((self.mountpoint / "specimens_manifest.json").read_bytes())
        if len(whole) != things.SPECIMENS + 1:
            self.report.wrong.append(f"the manifest has {len(whole)} specimens")
        with self.operation("absent"):
            there = things.place(self.mountpoint, things.ABSENT).exists()
        if there:
            self.report.wrong.append(f"{things.ABSENT} is there")
        self.stopped.wait(2.0)

    def changing(self) -> None:
        """Objects that are replaced now and then: one version a handle, or a stale handle."""
        key = self.chance.choice(things.CHANGING)
        try:
            with self.opened(key) as fd:
                self._one_version(key, fd)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            self.stopped.wait(0.5)

    def planes(self) -> None:
        """The same objects as planes of one file: a version each, or a stale handle."""
        try:
            with self.operation("open stack"):
                fd = os.open(things.stack(self.mountpoint), os.O_RDONLY)
            try:
                for z, key in enumerate(things.CHANGING):
                    self._plane(fd, z, key)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            self.stopped.wait(0.5)

    def _plane(self, fd: int, z: int, key: str) -> None:
        size = things.HEIGHT * things.WIDTH
        found = bytearray()
        while len(found) < size and not self.stopped.is_set():
            want = min(REQUEST, size - len(found))
            with self.operation(f"pread plane {z} {len(found)}"):
                piece = os.pread(fd, want, V3DRAW_HEADER + z * size + len(found))
            if not piece:
                self.report.wrong.append(f"plane {z} ends after {len(found)} bytes")
                return
            found += piece
            self.paced(len(piece))
        versions = (things.plane(key, number) for number in range(VERSIONS))
        if not any(each.startswith(found) for each in versions):
            self.report.wrong.append(f"plane {z} is no version of {key}")

    def _one_version(self, key: str, fd: int) -> None:
        chosen: bytes | None = None
        start = 0
        while not self.stopped.is_set():
            with self.operation(f"pread {key} {start}"):
                found = os.pread(fd, REQUEST, start)
            if chosen is None:
                versions = (things.version(key, number) for number in range(VERSIONS))
                chosen = next((each for each in versions if each.startswith(found)), None)
                if chosen is None:
                    self.report.wrong.append(f"{key} begins like no version")
                    return
            # The kernel gives what it has before what is stale: a short read, then ESTALE.
            self.compare(key, start, found, chosen[start : start + (len(found) or REQUEST)])
            if not found:
                return
            start += len(found)
            self.paced(len(found))

    def _a_specimen(self) -> list[str]:
        keys = list(things.slices_once())
        first = self.chance.randrange(things.SPECIMENS) * things.SLICES
        return keys[first : first + things.SLICES]


WAYS: dict[str, Callable[[Reader], None]] = {
    "sequential": Reader.sequential,
    "random": Reader.at_random,
    "region": Reader.region,
    "mapped": Reader.mapped,
    "names": Reader.names,
    "changing": Reader.changing,
    "planes": Reader.planes,
}


def main() -> None:
    """Read until standard input ends."""
    way, mountpoint, rate, seed, diary = sys.argv[1:]
    with Path(diary).open("r+b") as file:
        reader = Reader(Path(mountpoint), float(rate), int(seed), file)

        def wait() -> None:
            sys.stdin.read()
            reader.stopped.set()

        threading.Thread(target=wait, daemon=True).start()
        while not reader.stopped.is_set():
            try:
                WAYS[way](reader)
            except OSError as error:
                reader.report.wrong.append(f"{way}: {error}")
                reader.stopped.wait(1.0)
        print(json.dumps(vars(reader.report)), flush=True)


if __name__ == "__main__":
    main()
