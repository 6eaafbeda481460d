"""What is on the local disk, read through the mount: cached slices and saved files, with and without passthrough.

Beside them, in the same run and in turns, the same reads of the very files that those of the mount are made of, on the
local file system. Every figure is a median of the turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from bffs import passthrough
from bffs.mountpoint import is_dead, mount_at
from scripts.benchmark.drivers import cpu_seconds
from scripts.benchmark.plans import SPECIMENS, Data, write_bases
from scripts.benchmark.reader import read_all
from tests.s3server import S3Server

REPOSITORY = Path(__file__).resolve().parents[2]
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
MIB = 1 << 20
SETTLE = 5.0
"""Seconds between dropping the page cache and reading: soon after, a virtual machine tells its host which memory is
free (the kernel's page reporting), and while the host takes back what held 3 GB, every page that anybody touches costs
up to 0.5 ms of CPU. That would be half of what the driver's CPU time is found to be, in every other turn."""

LOCAL, WITH, WITHOUT = "local", "passthrough", "no passthrough"


class Line(NamedTuple):
    """One figure, and what it should be at least, or at most where `most`; None for no target."""

    title: str
    value: float
    limit: float | None = None
    most: bool = False

    @property
    def met(self) -> bool | None:
        if self.limit is None:
            return None
        return self.value <= self.limit if self.most else self.value >= self.limit


class _Mount(NamedTuple):
    """A mount at work: where, and which process it is."""

    path: Path
    pid: int

    def cpu(self) -> float:
        """CPU seconds so far."""
        return cpu_seconds(self.pid)

    def arrived(self) -> int:
        """Bytes of reads that have come to the driver."""
        figures = _status(self.path)
        return int(figures["from_memory"] + figures["from_disk"])


def run(folder: Path, data: Data, *, runs: int, request: int) -> list[Line]:
    """Measure everything `runs` times in `folder`; as root, for the page cache is dropped."""
    bases_folder = folder / "bases"
    bases_folder.mkdir(parents=True)
    bases = write_bases(data, bases_folder)
    keys = [data.key(0, number) for number in range(data.slices)]
    objects = {key: bases[data.base_of()[key]] for key in keys}
    found: dict[str, list[float]] = defaultdict(list)
    with S3Server(objects) as server:
        cache = folder / "cache"
        flags = ["--endpoint-url", server.endpoint_url, "--bucket", server.bucket]
        flags += ["--no-sign-request", "--cache-dir", str(cache)]
        environ = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(REPOSITORY)}

        def bffs(*arguments: str) -> None:
            command = [sys.executable, "-m", "bffs", *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environ, timeout=600)

        bffs("warm", *flags, SPECIMENS[0])
        files = [f for f in cache.glob("v1/*/??/*") if f.stat().st_size == data.slice_size]
        local = [(str(f.relative_to(cache)), 0, data.slice_size) for f in sorted(files)]
        through = [(f"train/{key}", 0, data.slice_size) for key in keys]
        scratch = [*flags, "--scratch", str(folder / "scratch")]
        with (
            _mounted(bffs, folder / "with", scratch) as with_it,
            _mounted(
                bffs, folder / "without", [*flags, "--read-only", "--no-passthrough"]
            ) as without,
        ):
            for each in (with_it, without):
                _read(each.path, through, request)  # verified once in a mount
            places: list[tuple[str, Path, list[tuple[str, int, int]], _Mount | None]] = [
                (LOCAL, cache, local, None),
                (WITH, with_it.path, through, with_it),
                (WITHOUT, without.path, through, without),
            ]
            for _ in range(runs):
                for heat in ("cold", "hot"):
                    for name, root, reads, mount in places:
                        for what, value in _measure(root, reads, mount, heat, request).items():
                            found[f"{name} {heat} {what}"].append(value)
                for what, value in _saved(folder / "local", with_it.path, request).items():
                    found[what].append(value)
    return _judge({name: statistics.median(values) for name, values in found.items()})


def _measure(
    root: Path, reads: list[tuple[str, int, int]], mount: _Mount | None, heat: str, request: int
) -> dict[str, float]:
    """Bytes a second of one reader, and what the driver had to do for them."""
    # The second reading counts, as in a training loop: who has slept first gets pages of his own back.
    if heat == "cold":
        _drop_page_cache()
    _read(root, reads, request)
    if heat == "cold":
        _drop_page_cache()
        time.sleep(SETTLE)
    if mount is None:
        return {"speed": _read(root, reads, request)[0]}
    arrived, cpu = mount.arrived(), mount.cpu()  # in this order: to be asked costs the driver time
    speed, size = _read(root, reads, request)
    cpu = mount.cpu() - cpu
    arrived = mount.arrived() - arrived
    return {"speed": speed, "cpu": cpu / (size / 1e9), "arrived": arrived}


def _read(root: Path, reads: list[tuple[str, int, int]], request: int) -> tuple[float, int]:
    told = read_all(str(root), request, reads, digests=False)
    return told["bytes"] / (told["ended"] - told["began"]), told["bytes"]


def _saved(local: Path, mount: Path, request: int) -> dict[str, float]:
    """A file of 1 GiB is written, read from the page cache, and read without."""
    local.mkdir(exist_ok=True)
    size, found = 1024 * MIB, {}
    reads = [("saved.bin", 0, size)]
    for name, folder in ((LOCAL, local), ("saved", mount)):
        file = folder / "saved.bin"
        began = time.monotonic()
        with file.open("wb", buffering=0) as opened:
            piece = os.urandom(MIB)
            for _ in range(size // MIB):
                opened.write(piece)
            os.fsync(opened.fileno())
        found[f"{name} write"] = size / (time.monotonic() - began)
        _read(folder, reads, request)
        found[f"{name} read hot"] = _read(folder, reads, request)[0]
        _drop_page_cache()
        found[f"{name} read cold"] = _read(folder, reads, request)[0]
        file.unlink()
    return found


def _judge(v: dict[str, float]) -> list[Line]:
    can = passthrough.why_not() is None
    lines = []
    for heat, least in (("cold", 0.90), ("hot", 0.75)):
        local = v[f"{LOCAL} {heat} speed"]
        lines.append(Line(f"{heat}: local file system, MB/s", local / 1e6))
        for name in (WITH, WITHOUT):
            speed, judged = v[f"{name} {heat} speed"], can and name == WITH
            cpu, arrived = v[f"{name} {heat} cpu"], v[f"{name} {heat} arrived"]
            lines += [
                Line(f"{heat}: {name}, MB/s", speed / 1e6),
                Line(f"{heat}: {name} / local", speed / local, least if judged else None),
                Line(f"{heat}: {name}, s CPU/GB", cpu, 0.01 if judged else None, most=True),
                Line(f"{heat}: {name}, driver read", arrived, 0 if judged else None, most=True),
            ]
    return [
        *lines,
        Line("saved: written, MB/s", v["saved write"] / 1e6, 300),
        Line("saved: written / local", v["saved write"] / v["local write"]),
        Line("saved: read hot / local", v["saved read hot"] / v["local read hot"], 0.60),
        Line("saved: read cold / local", v["saved read cold"] / v["local read cold"], 0.60),
    ]


def show(lines: Iterable[Line], console: Console) -> None:
    """The table on the terminal."""
    why = passthrough.why_not()
    title = "on the local disk" + (f" (no passthrough here: {why})" if why else "")
    table = Table("figure", "", "target", "", title=title)
    for line in lines:
        met = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[line.met]
        bound = "at most" if line.most else "at least"
        limit = "" if line.limit is None else f"{bound} {line.limit:g}"
        table.add_row(
            line.title,
            f"{line.value:,.3g}" if line.value < 100 else f"{line.value:,.0f}",
            limit,
            met,
        )
    console.print(table)


def as_json(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The figures for a file."""
    return [line._asdict() | {"met": line.met} for line in lines]


@contextmanager
def _mounted(
    bffs: Callable[..., None], mountpoint: Path, options: Sequence[str]
) -> Iterator[_Mount]:
    mountpoint.mkdir()
    try:
        bffs("mount", *options, str(mountpoint))
        yield _Mount(mountpoint, _status(mountpoint)["pid"])
    finally:
        if mount_at(mountpoint) is not None or is_dead(mountpoint):
            bffs("umount", str(mountpoint))


def _status(mountpoint: Path) -> Any:
    return json.loads((mountpoint / ".bffs/status.json").read_bytes())


def _drop_page_cache() -> None:
    """Forget what files hold, not which there are."""
    os.sync()
    DROP_CACHES.write_text("1")
