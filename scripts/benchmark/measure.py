"""One case with one driver: mount, run, count, check the bytes, unmount."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from scripts.benchmark import drivers
from scripts.benchmark.drivers import CEILING, Driver, DriverError, Mounted, Site
from scripts.benchmark.plans import CASES, Case, Data, Plan, Read
from tests.s3server import S3Server, Shape

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass
class Measurement:
    """What one run of one case gave. Times in seconds, sizes in bytes; `error` says why there is
    nothing else.

    `first` and `each`: per read, time to its first bytes and to its last. `rates`: bytes a second
    of each reader. `fetched`: bytes that the server sent. `cpu` and `memory` (peak) are the
    driver's.
    """

    seconds: float = 0.0
    size: int = 0
    first: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    fetched: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    cpu: float | None = None
    memory: int | None = None
    mount_seconds: float | None = None
    server_cpu: float = 0.0
    error: str | None = None


class RunError(Exception):
    """A run that gives no figure, and why."""


class WrongBytes(RunError):
    """A driver that showed other bytes than the store has: none of its figures count."""


@dataclass
class _At:
    """Where a driver's files are to be read."""

    root: Path
    mount: Mounted | None
    mount_seconds: float


@dataclass
class Bench:
    """The benchmark's place: a running server with the data, and a working folder on the cache
    disk."""

    server: S3Server
    data: Data
    bases: list[Path]
    folder: Path
    shape: Shape
    request: int
    memory: int
    timeout: float

    def run(self, case: Case, driver: Driver | None, wanted: set[str]) -> dict[str, Measurement]:
        """Run `case` with `driver` (None: the ceiling), and of the cases that follow it those in
        `wanted`.

        A driver that fails gets a Measurement that says so; only a fault of the benchmark itself
        raises.
        """
        plan = case.plan(self.data)
        found: dict[str, Measurement] = {}
        place = self.folder / (driver.name if driver else CEILING)
        name = case.name
        self.server.shape(*(case.shape or self.shape))
        try:
            with self._started(driver, place, plan[0][0].key) as at:
                if at.mount is None:
                    found[name] = self._ceiling(plan, at.root)
                else:
                    found[name] = self._read(plan, at)
                    found[name].mount_seconds = at.mount_seconds
                for later in CASES:
                    if later.after == case.name and later.name in wanted:
                        name = later.name
                        if name == "disk":
                            self._drop_page_cache()
                        found[name] = self._read(plan, at)
                self._check(plan, at)
        except WrongBytes as error:
            return {each: Measurement(error=str(error)) for each in found}
        except (DriverError, RunError) as error:
            found[name] = Measurement(error=str(error))
        return found

    @contextmanager
    def _started(self, driver: Driver | None, place: Path, probe: str) -> Iterator[_At]:
        """The driver at work in fresh folders below `place`; for the ceiling just the folders."""
        with _fresh(place) as (cache, mountpoint):
            if driver is None:
                yield _At(cache, None, 0.0)
                return
            url, bucket = self.server.endpoint_url, self.server.bucket
            site = Site(url, bucket, cache, mountpoint, self.memory)
            began = time.monotonic()
            with drivers.mounted(driver, site, probe, place / "log") as mount:
                yield _At(mount.root, mount, time.monotonic() - began)

    def _ceiling(self, plan: Plan, cache: Path) -> Measurement:
        reads = [read for reader in plan for read in reader]
        order = {
            "endpoint_url": self.server.endpoint_url,
            "bucket": self.server.bucket,
            "root": str(cache),
            "reads": reads,
            "size": self.data.slice_size,
        }
        measurement, (result,) = self._measured("scripts.benchmark.ceiling", [order], None)
        measurement.cpu = result["cpu"]
        return measurement

    def _read(self, plan: Plan, at: _At) -> Measurement:
        orders = [self._order(at, reads, digests=False) for reads in plan]
        return self._measured("scripts.benchmark.reader", orders, at.mount)[0]

    def _order(self, at: _At, reads: list[Read], *, digests: bool) -> dict[str, Any]:
        return {"root": str(at.root), "request": self.request, "reads": reads, "digests": digests}

    def _measured(
        self, module: str, orders: list[dict[str, Any]], mount: Mounted | None
    ) -> tuple[Measurement, list[dict[str, Any]]]:
        self.server.reset()
        server_cpu = self.server.stats()["cpu_seconds"]
        cpu = mount.cpu_seconds() if mount else 0.0
        results = self._children(module, orders)
        stats = self._quiet()
        ended, began = max(r["ended"] for r in results), min(r["began"] for r in results)
        measurement = Measurement(
            seconds=ended - began,
            size=sum(r["bytes"] for r in results),
            first=[t for r in results for t in r.get("first", [])],
            each=[t for r in results for t in r.get("each", [])],
            rates=[r["bytes"] / (r["ended"] - r["began"]) for r in results],
            fetched=stats["sent"].get("get", 0),
            requests=stats["requests"],
            cpu=mount.cpu_seconds() - cpu if mount else None,
            memory=mount.peak_memory() if mount else None,
            server_cpu=stats["cpu_seconds"] - server_cpu,
        )
        return measurement, results

    def _quiet(self) -> dict[str, Any]:
        """The server's figures once nothing is on its way any more: what was read ahead counts,
        too."""
        end, still = time.monotonic() + 10, 0
        while True:
            stats = self.server.stats()
            still = 0 if stats["in_flight"] else still + 1
            if still >= 3 or time.monotonic() > end:
                return stats
            time.sleep(0.1)

    def _children(self, module: str, orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Results of child processes that start their work together. Raises RunError."""
        children = [
            subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=drivers.ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in orders
        ]
        try:
            for child, order in zip(children, orders, strict=True):
                assert child.stdin is not None and child.stdout is not None
                child.stdin.write(json.dumps(order) + "\n")
                child.stdin.flush()
                child.stdout.readline()
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            return [self._result(child, time.monotonic() + self.timeout) for child in children]
        finally:
            for child in children:
                child.kill()
                # A reader stuck in a mount ends only with the mount, which is next: don't wait.
                with suppress(subprocess.TimeoutExpired):
                    child.communicate(timeout=5)

    def _result(self, child: subprocess.Popen[str], end: float) -> dict[str, Any]:
        try:
            output, said = child.communicate(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise RunError(f"not done after {self.timeout:.0f} s") from None
        if child.returncode:
            raise RunError(said.strip().splitlines()[-1] if said.strip() else "the reader died")
        result = json.loads(output)
        assert isinstance(result, dict)
        return result

    def _check(self, plan: Plan, at: _At) -> None:
        """Read the plan once more, untimed, and compare every read with its source. Raises
        RunError, WrongBytes."""
        orders = [self._order(at, reads, digests=True) for reads in plan]
        results = self._children("scripts.benchmark.reader", orders)
        base_of = self.data.base_of()
        known: dict[tuple[int, int, int], str] = {}
        for reads, result in zip(plan, results, strict=True):
            for read, digest in zip(reads, result["digests"], strict=True):
                source = (base_of[read.key], read.start, read.stop)
                if source not in known:
                    content = self.bases[source[0]].read_bytes()[read.start : read.stop]
                    known[source] = xxhash.xxh3_128(content).hexdigest()
                if digest != known[source]:
                    raise WrongBytes(f"WRONG BYTES in {read.key}, {read.start} to {read.stop}")

    def _drop_page_cache(self) -> None:
        """Drop the machine's page cache, then warm the server's files again. Raises RunError."""
        os.sync()
        try:
            DROP_CACHES.write_text("3")
        except OSError as error:
            raise RunError(f"can't drop the page cache ({error.strerror}); run as root") from None
        for base in self.bases:
            base.read_bytes()


@contextmanager
def _fresh(place: Path) -> Iterator[tuple[Path, Path]]:
    """A new cache folder and a new mountpoint below `place`, gone afterwards."""
    cache, mountpoint = place / "cache", place / "mnt"
    for folder in (cache, mountpoint):
        folder.mkdir(parents=True)
    try:
        yield cache, mountpoint
    finally:
        shutil.rmtree(cache)
        mountpoint.rmdir()
        for other in place.iterdir():
            if other.is_dir():
                shutil.rmtree(other)
