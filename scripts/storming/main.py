"""Read through a storm of faults, and compare with calm weather.

Four readers read files of a mount, each its own and in order, and check every byte; first from a
store without faults, then from one with 5 % of its answers 503, 2 % reset, 2 % truncated and 0.5 %
stalled for ten minutes, each time with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.s3server import FAR, S3Server, rate

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
FILE = 32 * MIB
STALL = 600.0


class Trouble(NamedTuple):
    """One kind of fault: what, in which share of requests, and after how many bytes."""

    name: str
    share: float
    do: str
    value: float = 0
    at: int = 0


STORM = (
    Trouble("503", 0.05, "status", 503),
    Trouble("reset at once", 0.01, "reset"),
    Trouble("reset", 0.01, "reset", at=300_000),
    Trouble("truncated at once", 0.01, "close", at=100),
    Trouble("truncated", 0.01, "close", at=700_000),
    Trouble("stalled at once", 0.0025, "stall", STALL),
    Trouble("stalled", 0.0025, "stall", STALL, at=500_000),
)


class Run(NamedTuple):
    """What came of one run: seconds and CPU seconds of the driver, what the readers missed."""

    seconds: float
    cpu: float
    wrong: int
    errors: int
    faults: int
    requests: int


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all bytes were right and nobody saw an error."""
    parser = argparse.ArgumentParser(prog="storm", description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="MiB in all (default: 4096)")
    parser.add_argument("--readers", type=int, default=4, help="readers at once (default: 4)")
    parser.add_argument("--latency", type=float, default=FAR.latency, help="of the store, seconds")
    parser.add_argument("--per-connection", type=rate, default=FAR.per_connection, help="as 50M")
    parser.add_argument("--total", type=rate, default=FAR.total, help="bytes a second, as 1G")
    parser.add_argument("--worse", type=float, default=1.0, help="times as many faults")
    parser.add_argument("--dir", type=Path, help="folder on the cache disk (default: TMPDIR)")
    options = parser.parse_args(arguments)
    count = max(options.readers, options.size * MIB // FILE)
    size = options.size * MIB // count
    keys = [f"{1 + n % options.readers}/slice-{n:04}.tif" for n in range(count)]
    with (
        tempfile.TemporaryDirectory(prefix="bffs-storm-", dir=options.dir) as folder,
        S3Server(dict.fromkeys(keys, size)) as server,
    ):
        server.shape(options.latency, options.per_connection, options.total)
        runs = {}
        for weather in ("calm", "storm"):
            server.reset()
            if weather == "storm":
                _raise_storm(server, options.worse)
            runs[weather] = _run(server, Path(folder) / weather, keys, options.readers)
            _show(weather, runs[weather], count * size)
    calm, storm = runs["calm"], runs["storm"]
    print(f"speed in the storm: {calm.seconds / storm.seconds:.0%} of the speed in calm weather")
    failed = any(run.wrong or run.errors for run in runs.values())
    return 1 if failed or not storm.faults else 0


def _raise_storm(server: S3Server, worse: float) -> None:
    # A request meets the first fault that fits: each is drawn from those that are left.
    left = 1.0
    for number, trouble in enumerate(STORM):
        share = min(trouble.share * worse, left)
        server.fault(
            trouble.do,
            value=trouble.value,
            at=trouble.at,
            kind="get",
            probability=share / left,
            seed=number,
        )
        left -= share


def _show(weather: str, run: Run, size: int) -> None:
    print(
        f"{weather}: {size / MIB:.0f} MiB in {run.seconds:.1f} s, {size / 1e6 / run.seconds:.0f} MB/s,"
        f" {run.cpu / size * 1e9:.2f} s of CPU a GB; {run.requests} requests, {run.faults} faults;"
        f" {run.wrong} wrong bytes, {run.errors} errors",
        flush=True,
    )


def _run(server: S3Server, folder: Path, keys: list[str], readers: int) -> Run:
    mountpoint = folder / "mnt"
    mountpoint.mkdir(parents=True)
    where = ["--endpoint-url", server.endpoint_url, "--bucket", server.bucket, "--no-sign-request"]
    driver = subprocess.Popen(
        [
            *(sys.executable, "-m", "bffs", "mount", "-f", *where),
            *("--read-only", "--cache-dir", str(folder / "cache"), str(mountpoint)),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
    )
    try:
        _await(driver, mountpoint / "train")
        begun = time.monotonic()
        reading = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "scripts.storming.reader", str(mountpoint / "train")),
                    *keys[number::readers],
                ],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(readers)
        ]
        said = [json.loads(reader.communicate()[0]) for reader in reading]
        seconds = time.monotonic() - begun
        cpu = _cpu_seconds(driver.pid)
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=False)
        driver.terminate()
        driver.wait(30)
    stats = server.stats()
    return Run(
        seconds,
        cpu,
        sum(each["wrong"] for each in said),
        sum(each["errors"] for each in said),
        stats["faults"],
        stats["requests"]["get"],
    )


def _await(driver: subprocess.Popen[bytes], folder: Path) -> None:
    while not folder.is_dir():
        if driver.poll() is not None:
            sys.exit("it can't be mounted")
        time.sleep(0.05)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
