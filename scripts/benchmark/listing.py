"""How quickly names come: mounting, `ls -lR` and `bffs ls` over the real dataset's 53,926 keys.

Beside them, in the same run, the same tree of sparse files on the local disk, and a bare parallel
listing of the bucket with boto3.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from rich.console import Console
from rich.table import Table

from bffs.mountpoint import is_dead, mount_at
from tests.s3server import S3Server, layout_sizes

REPOSITORY = Path(__file__).resolve().parents[2]
FEW_KEYS = 2000
ABSENT = 1000
THREADS = 16
MIB = 1 << 20


class Line(NamedTuple):
    """One figure: seconds or MiB, and what it should be at most; None for no target."""

    title: str
    value: float
    limit: float | None
    why: str

    @property
    def met(self) -> bool | None:
        return None if self.limit is None else self.value <= self.limit


def run(folder: Path, *, short: bool, runs: int) -> list[Line]:
    """Measure everything `runs` times in `folder`, which may be filled; medians."""
    sizes = dict(list(layout_sizes().items())[: FEW_KEYS if short else None])
    local = folder / "local"
    _make_tree(local, sizes)
    with S3Server(sizes, bucket="listing") as server:
        found: dict[str, list[float]] = {}
        for number in range(runs):
            for name, value in _once(server, folder, local, number).items():
                found.setdefault(name, []).append(value)
    return _judge({name: statistics.median(values) for name, values in found.items()})


def _once(server: S3Server, folder: Path, local: Path, number: int) -> dict[str, float]:
    place = folder / f"run-{number}"
    mountpoint = place / "mnt"
    mountpoint.mkdir(parents=True)
    flags = ["--endpoint-url", server.endpoint_url, "--bucket", "listing", "--no-sign-request"]
    flags += ["--cache-dir", str(place / "cache")]
    environ = {**os.environ, "HOME": str(place), "PYTHONPATH": str(REPOSITORY)}

    def bffs(*arguments: str) -> float:
        return _seconds([sys.executable, "-m", "bffs", *arguments], env=environ)

    def ls(tree: Path) -> float:
        return _seconds(["ls", "-lR", str(tree)])

    values = {"bare": _timed(lambda: _bare_listing(server.endpoint_url))}
    ls(local)
    values["local"] = ls(local)
    try:
        values["mount anew"] = bffs("mount", *flags, str(mountpoint))
        bffs("umount", str(mountpoint))
        server.reset()
        values["mount"] = bffs("mount", *flags, str(mountpoint))
        values["empty"] = _resident(mountpoint)
        values["first"] = ls(mountpoint)
        values["again"] = ls(mountpoint)
        values["absent"] = _timed(lambda: _look_for_absent(mountpoint / "train"))
        values["resident"] = _resident(mountpoint)
        values["requests"] = float(sum(server.stats()["requests"].values()))
        values["ls"] = bffs("ls", *flags)
        values["help"] = bffs("--help")
    finally:
        if mount_at(mountpoint) is not None or is_dead(mountpoint):
            bffs("umount", str(mountpoint))
    return values


def _judge(v: Mapping[str, float]) -> list[Line]:
    return [
        Line("bare parallel listing, s", v["bare"], None, ""),
        Line("ls -lR of the same tree on the local disk, s", v["local"], None, ""),
        Line("mount without a snapshot, s", v["mount anew"], 1.2 * v["bare"] + 1, "1.2 x bare + 1"),
        Line("mount from a snapshot, s", v["mount"], 0.8, "0.8"),
        Line("first ls -lR, s", v["first"], min(1.5, 8 * v["local"]), "1.5 and 8 x local"),
        Line("ls -lR again, s", v["again"], 2 * v["local"], "2 x local"),
        Line(f"{ABSENT} absent names, s", v["absent"], None, ""),
        Line("requests from the mount to here", v["requests"], 0, "none"),
        Line("bffs ls, s", v["ls"], 0.5, "0.5"),
        Line("bffs --help, s", v["help"], 0.25, "0.25"),
        Line("driver after the mount, MiB", v["empty"], None, ""),
        Line("driver after ls -lR, MiB", v["resident"], None, ""),
    ]


def show(lines: Iterable[Line], console: Console) -> None:
    """The table on the terminal."""
    table = Table("figure", "", "at most", "", title="names: bffs and the local disk")
    for line in lines:
        met = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[line.met]
        limit = "" if line.limit is None else f"{line.limit:.2f} ({line.why})"
        table.add_row(line.title, f"{line.value:.2f}", limit, met)
    console.print(table)


def as_json(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The figures for a file."""
    return [line._asdict() | {"met": line.met} for line in lines]


def _make_tree(root: Path, sizes: Mapping[str, int]) -> None:
    for key, size in sizes.items():
        path = root / key
        if key.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.truncate(path, size)


def _bare_listing(endpoint_url: str) -> int:
    """List folder by folder with `THREADS` threads, as plainly as boto3 allows; the keys found."""
    config = Config(signature_version=UNSIGNED, max_pool_connections=THREADS)
    client = boto3.client("s3", endpoint_url=endpoint_url, region_name="any", config=config)
    pages = client.get_paginator("list_objects_v2")

    def folders(prefix: str) -> list[str]:
        found = pages.paginate(Bucket="listing", Prefix=prefix, Delimiter="/")
        return [each["Prefix"] for page in found for each in page.get("CommonPrefixes", ())]

    def keys(prefix: str) -> int:
        found = pages.paginate(Bucket="listing", Prefix=prefix)
        return sum(len(page.get("Contents", ())) for page in found)

    test = "TEST_DATA_SET/"
    prefixes = [prefix for prefix in folders("") if prefix != test] + folders(test)
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(keys, prefixes))


def _look_for_absent(folder: Path) -> None:
    specimen = next(folder.iterdir())
    for number in range(ABSENT):
        if (specimen / f"Index-{number}.xml").exists():
            raise AssertionError("a file that nobody made")


def _resident(mountpoint: Path) -> float:
    """MiB of the driver's memory, or of several in a test's coverage run."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
            if b"mount" in words and os.fsencode(mountpoint) in words:
                pages = int((status.parent / "statm").read_text().split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE") / MIB
        except OSError:
            continue
    return total


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _seconds(command: Sequence[str], **options: Any) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300, **options)
    return time.perf_counter() - began
