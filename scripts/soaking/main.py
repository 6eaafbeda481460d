"""Use a mount in all weathers: readers, faults, changes, refreshes, a small cache, remounts, kills.

Ends with what was done and what was found: wrong bytes, errors, operations over 10 s without a
fault to excuse them, memory, threads, descriptors or reservations that did not come back. The exit
code is 1 if anything was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from scripts.soaking import things
from scripts.soaking.driver import ROOT, Driver, Holdings
from scripts.soaking.reader import RECORD, SLOW, WAYS, Report
from scripts.soaking.weather import WEATHERS, Record
from tests.s3server import S3Server

LONGEST_EXCUSED = 150.0
"""Seconds that an operation may take even with an excuse: weather, its aftermath, some retries."""

SLACK = Holdings(48.0, 8, 48, 0.0)
"""What a driver may hold at its end more than it held at most in the first third of its life."""


DEAD = ("not connected", "connection abort", "differing at -1")
"""What the kernel says of a mount whose driver is dead; or it gives what it had still got, and no more."""

WARM_UP = 90.0
"""Seconds of life below which nothing is known of what a driver usually holds."""


class Child(NamedTuple):
    """A reader, and its diary."""

    way: str
    process: subprocess.Popen[str]
    diary: Path


class Soak:
    """All of it; `findings` is what must not be."""

    def __init__(self, options: argparse.Namespace, folder: Path, server: S3Server) -> None:
        self.findings: list[str] = []
        self.total = Report()
        self.kills = 0
        self.longest: Counter[str] = Counter()
        self._folder = folder
        self._options = options
        self._chance = random.Random(options.seed)
        self._server = server
        self._weather = Record(server)
        self._driver = Driver(
            folder / "mnt",
            f"--endpoint-url={server.endpoint_url}",
            f"--bucket={server.bucket}",
            "--no-sign-request",
            f"--cache-dir={folder / 'cache'}",
            f"--cache-size={options.cache_size}",
            f"--memory={options.memory}",
            f"--log-file={folder / 'log'}",
        )
        self._versions = dict.fromkeys(things.CHANGING, 0)
        self._bad_refresh = False

    def life(self, seconds: float) -> None:
        """One mount, from its beginning to its end."""
        self._driver.start()
        children = [self._reader(way) for way in WAYS]
        held: list[Holdings] = []
        began = time.monotonic()
        next_weather = next_change = began
        while (now := time.monotonic()) < began + seconds:
            if now >= next_weather:
                self._weather.change(self._chance.choice(WEATHERS))
                next_weather = now + self._chance.uniform(0.5, 1.5) * self._options.weather
            if now >= next_change:
                self._change()
                self._driver.ask()
                next_change = now + self._chance.uniform(5, 20)
                held.append(self._driver.holdings())
            self._watch(children)
            time.sleep(0.25)
        if self._chance.random() < self._options.kills:
            self.kills += 1
            self.say("killing the driver while everybody reads")
            self._driver.kill()
            for child in children:
                self._finish(child, killed=True)
            return
        self._weather.change(WEATHERS[0])
        for child in children:
            self._finish(child)
        last = self._driver.at_rest()
        early = held[: len(held) // 3] if seconds >= WARM_UP else [last]
        self._judge(early, last)
        self.say(f"driver at rest: {last.resident:.0f} MiB, {last.threads} threads, "
                 f"{last.descriptors} descriptors, {last.reserved:.1f} MiB reserved")  # fmt: skip
        if (wrong := self._driver.stop()) is not None:
            self.find(wrong)

    def find(self, what: str) -> None:
        """Note, and say, what must not be."""
        self.findings.append(what)
        self.say(f"FOUND: {what}")

    def say(self, what: str) -> None:
        """Tell what is going on."""
        print(f"{time.strftime('%H:%M:%S')} [{self._weather.now.name}] {what}", flush=True)

    def _reader(self, way: str) -> Child:
        diary = self._folder / f"{way}.diary"
        diary.write_bytes(RECORD.pack(0.0, b""))
        seed = self._chance.randrange(1 << 30)
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.soaking.reader", way, str(self._driver.mountpoint),
             str(self._options.load), str(seed), str(diary)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return Child(way, process, diary)

    def _change(self) -> None:
        """Replace an object, and tell the mount most times."""
        key = self._chance.choice(things.CHANGING)
        self._versions[key] += 1
        changes: dict[str, bytes | None] = {key: things.version(key, self._versions[key])}
        changes[things.COMES_AND_GOES] = self._chance.choice((None, b"here"))
        self._server.change(changes)
        if self._chance.random() < 0.8:
            self._driver.refresh()

    def _watch(self, children: list[Child]) -> None:
        """Look for an operation under way that takes too long, and for readers that died."""
        now = time.monotonic()
        for child in children:
            began, what = RECORD.unpack(child.diary.read_bytes())
            if began and now - began > LONGEST_EXCUSED:
                self._stuck(child, now - began, what)
            if child.process.poll() is not None:
                self.find(f"reader {child.way} ended with {child.process.returncode}")
                children.remove(child)

    def _stuck(self, child: Child, seconds: float, what: bytes) -> None:
        said = what.rstrip(b"\0").decode(errors="replace")
        self.find(f"{child.way}: {said} under way for {seconds:.0f} s; {self._driver.status()}")
        child.process.kill()

    def _finish(self, child: Child, *, killed: bool = False) -> None:
        """End a reader, and take its report. Of a driver that was `killed` nothing can be read any more;
        who reads mapped pages then dies."""
        try:
            said, _ = child.process.communicate(timeout=LONGEST_EXCUSED)
        except subprocess.TimeoutExpired:
            self.find(f"reader {child.way} did not end: {child.diary.read_bytes()!r}")
            child.process.kill()
            return
        if not said and killed and child.process.returncode == -signal.SIGBUS:
            return
        if not said:
            self.find(f"reader {child.way} ended with {child.process.returncode} and no report")
            return
        report: dict[str, Any] = json.loads(said)
        self.total.operations += report["operations"]
        self.total.bytes += report["bytes"]
        self.total.errors.update(report["errors"])
        self.longest[child.way] = max(self.longest[child.way], report["longest"])
        for wrong in report["wrong"]:
            if killed and any(words in wrong for words in DEAD):
                continue
            self.find(f"{child.way}: {wrong}")
        for began, seconds, what in report["slow"]:
            excused = self._weather.excuses(began, began + seconds)
            if not excused or seconds > LONGEST_EXCUSED:
                self.find(f"{child.way}: {what} took {seconds:.1f} s")
            self.total.slow.append((began, seconds, what))

    def _judge(self, early: list[Holdings], last: Holdings) -> None:
        """Note what the driver still holds and did not hold early in its life."""
        for name, end, slack, *before in zip(Holdings._fields, last, SLACK, *early, strict=True):
            base = 0 if name == "reserved" else max(before)
            if end > base + slack:
                self.find(f"{name} did not come back: {end:.0f}, at first at most {base:.0f}")


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="for how long (default: 10)")
    add("--mounts", type=int, help="mounts one after the other (default: one for every 4 minutes)")
    add("--load", type=float, default=20e6, help="bytes a second of each reader (default: 20e6)")
    add("--cache-size", default="150M", help="of 432 MB that are read (default: 150M)")
    add("--memory", default="64M", help="memory of the driver (default: 64M)")
    add(
        "--kills", type=float, default=0.3, help="share of mounts that end by a kill (default: 0.3)"
    )
    add("--weather", type=float, default=20.0, help="seconds of a weather (default: 20)")
    add("--seed", type=int, default=int.from_bytes(os.urandom(3)), help="default: any")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    options = options_of(arguments)
    mounts = options.mounts or max(2, round(options.minutes / 4))
    objects: dict[str, Any] = {**things.slices()}
    objects |= {key: things.version(key, 0) for key in things.CHANGING}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        server = stack.enter_context(S3Server(objects, bucket="soak"))
        soak = Soak(options, folder, server)
        soak.say(f"seed {options.seed}, {options.minutes:g} minutes, {mounts} mounts, in {folder}")
        stack.callback(soak._driver.bffs, "umount", str(folder / "mnt"))
        for number in range(mounts):
            soak.life(options.minutes * 60 / mounts)
            soak.say(f"mount {number + 1} of {mounts} is over: {soak.total.operations} operations, "
                     f"{soak.total.bytes / 1e9:.2f} GB so far, {len(soak.findings)} findings")  # fmt: skip
        log = (folder / "log").read_text(errors="replace")
        if "Traceback" in log:
            soak.find("tracebacks in the log:\n" + log[log.index("Traceback") - 300 :][:4000])
    longest = ", ".join(f"{way} {seconds:.1f}" for way, seconds in soak.longest.items())
    print(f"{soak.total.operations} operations, {soak.total.bytes / 1e9:.2f} GB, {soak.kills} kills, errors "
          f"{dict(soak.total.errors)}, {len(soak.total.slow)} operations over {SLOW:.0f} s; "
          f"longest (s): {longest}")  # fmt: skip
    print(f"{len(soak.findings)} findings")
    for finding in soak.findings:
        print(f"- {finding}")
    return int(bool(soak.findings))
