"""Options, and all cases with all drivers in turns."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import signal
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from rich.console import Console

from scripts.benchmark import figures, listing, passing, report
from scripts.benchmark.drivers import CEILING, DRIVERS, installed
from scripts.benchmark.measure import Bench, Measurement
from scripts.benchmark.plans import CASES, MIB, Case, Data, write_bases
from tests.s3server import S3Server, Shape, rate

DATA = Data(width=4096, height=5444, slices=150)
"""Slices of 22.3 MB, like those of specimen 651806289; 150 of them are enough to see a steady
state."""

MEAN = Data(width=7050, height=7050, slices=60)
"""Slices of the dataset's mean size: 2,671,458,682,941 bytes in 53,705 of them."""

SHORT = Data(width=1024, height=640, slices=12, bases=4)
SHORT_SHAPE = Shape(latency=0.005, per_connection=200e6, total=1e9)


def _names(text: str) -> set[str]:
    return {name for name in text.replace(",", " ").split() if name}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    known = [CEILING, *(driver.name for driver in DRIVERS)]
    cases = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--cases", type=_names, help=f"of {', '.join(cases)} (default: all)")
    parser.add_argument("--only", type=_names, help=f"of {', '.join(known)} (default: all found)")
    parser.add_argument("--latency", type=float, help="of the store, in seconds (default: 0.030)")
    parser.add_argument("--per-connection", type=rate, help="bytes a second (default: 50M)")
    parser.add_argument("--total", type=rate, help="bytes a second (default: 1G)")
    parser.add_argument("--slices", type=int, help="slices a specimen (default: 150)")
    parser.add_argument("--runs", type=int, default=1, help="turns; medians are shown (default: 1)")
    parser.add_argument("--request", type=int, default=MIB, help="bytes a read (default: 1 MiB)")
    parser.add_argument("--memory", type=int, default=512, help="of bffs, in MiB (default: 512)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a case (default: 300)")
    parser.add_argument("--dir", type=Path, help="folder on the cache disk (default: TMPDIR)")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--plot", type=Path, help="draw the figures into this PNG file")
    parser.add_argument("--listing", action="store_true", help="names instead of bytes")
    parser.add_argument("--local", action="store_true", help="what is on the local disk, as root")
    parser.add_argument("--short", action="store_true", help="small data: is everything working?")
    parser.add_argument("--keep", action="store_true", help="keep the working folder")
    options = parser.parse_args(arguments)
    for chosen, all_names in ((options.cases, cases), (options.only, known)):
        if chosen and (strange := sorted(chosen - set(all_names))):
            parser.error(f"no {', '.join(strange)}; there are {', '.join(all_names)}")
    if options.slices is not None and options.slices < 6:
        parser.error("--slices: 6 at least")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    shape = SHORT_SHAPE if options.short else Shape(0.030, 50e6, 1e9)
    for name, default in shape._asdict().items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run it; 0 if every driver gave every figure."""
    options = parse(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    if options.listing:
        return _list(options)
    if options.local:
        return _read_local(options)
    console = Console(stderr=True, highlight=False)
    found = {driver.name: driver for driver in installed()}
    names = [CEILING, *found]
    if options.only:
        if missing := sorted(options.only - set(names)):
            console.print(f"not installed: {', '.join(missing)}")
        names = [name for name in names if name in options.only]
    elif absent := [driver.name for driver in DRIVERS if driver.name not in found]:
        console.print(f"not installed, left out: {', '.join(absent)}")
    data = SHORT if options.short else DATA
    if options.slices:
        data = Data(data.width, data.height, options.slices, data.bases)
    wanted = options.cases or {case.name for case in CASES}
    results: dict[str, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as stack:
        bench = _prepare(options, data, stack)
        for _ in range(options.runs):
            for case in CASES:
                if case.after or not _asked_for(case, wanted):
                    continue
                for name in names:
                    console.print(f"{case.title}: {name} ...", end=" ")
                    for each, measurement in bench.run(case, found.get(name), wanted).items():
                        results[each][name].append(measurement)
                        console.print(_said(measurement), end="  ")
                    console.print()
    terms = figures.Terms(bench.shape, bench.memory)
    rows = figures.rows(results, terms)
    if options.short:
        rows = [row._replace(met=None) for row in rows]  # too little data to judge by
    report.print_table(rows, names, Console(width=None if sys.stdout.isatty() else 200))
    if options.json:
        report.write_json(options.json, _as_json(options), results, rows)
    if options.plot:
        report.plot(options.plot, rows, names)
    failed = [m.error for runs in results.values() for ms in runs.values() for m in ms if m.error]
    return 1 if failed else 0


def _list(options: argparse.Namespace) -> int:
    """Run `--listing`."""
    with tempfile.TemporaryDirectory(prefix="bffs-bench-", dir=options.dir) as folder:
        lines = listing.run(Path(folder).resolve(), short=options.short, runs=options.runs)
    listing.show(lines, Console(width=None if sys.stdout.isatty() else 200))
    if options.json:
        options.json.write_text(json.dumps(listing.as_json(lines), indent=4) + "\n")
    return 0


def _read_local(options: argparse.Namespace) -> int:
    """Run `--local`."""
    data = SHORT if options.short else MEAN
    data = Data(data.width, data.height, options.slices or data.slices, data.bases)
    with tempfile.TemporaryDirectory(prefix="bffs-bench-", dir=options.dir) as folder:
        place = Path(folder).resolve()
        lines = passing.run(place, data, runs=options.runs, request=options.request)
    passing.show(lines, Console(width=None if sys.stdout.isatty() else 200))
    if options.json:
        options.json.write_text(json.dumps(passing.as_json(lines), indent=4) + "\n")
    return 0


def _asked_for(case: Case, wanted: set[str]) -> bool:
    return case.name in wanted or any(
        later.name in wanted for later in CASES if later.after == case.name
    )


def _prepare(options: argparse.Namespace, data: Data, stack: contextlib.ExitStack) -> Bench:
    """The data and the server, both gone when `stack` is closed (the data not with `--keep`)."""
    if options.keep:
        folder = Path(tempfile.mkdtemp(prefix="bffs-bench-", dir=options.dir))
        print(f"working in {folder}", file=sys.stderr)
    else:
        temporary = tempfile.TemporaryDirectory(prefix="bffs-bench-", dir=options.dir)
        folder = Path(stack.enter_context(temporary))
    folder = folder.resolve()
    (folder / "bases").mkdir()
    bases = write_bases(data, folder / "bases")
    objects = {key: bases[number] for key, number in data.base_of().items()}
    shape = Shape(options.latency, options.per_connection, options.total)
    server = stack.enter_context(S3Server(objects, shape=shape))
    memory = options.memory * MIB
    return Bench(server, data, bases, folder, shape, options.request, memory, options.timeout)


def _said(m: Measurement) -> str:
    return m.error or f"{m.seconds:.2f} s, {m.size / m.seconds / 1e6:.0f} MB/s"


def _as_json(options: argparse.Namespace) -> dict[str, object]:
    plain = (int, float, str, bool, type(None))
    return {
        name: value
        if isinstance(value, plain)
        else sorted(value)
        if isinstance(value, set)
        else str(value)
        for name, value in vars(options).items()
    }
