"""The table on the terminal, the JSON file and the picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.benchmark.drivers import BFFS, CEILING
from scripts.benchmark.figures import Row
from scripts.benchmark.measure import Measurement

Results = Mapping[str, Mapping[str, list[Measurement]]]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _mark(met: bool | None) -> str:
    return {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[met]


def print_table(rows: list[Row], names: list[str], console: Console) -> None:
    """One line a figure: the drivers side by side, the ratios of bffs, its target."""
    table = Table(title="bffs, its ceiling and its peers")
    table.add_column("figure")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", style="bold" if name == BFFS else "")
    for title in (f"of {CEILING}", "of best peer"):
        table.add_column(title, justify="right")
    table.add_column("target")
    table.add_column("")
    for row in rows:
        ratios = ["" if r is None else f"{r:.2f} x" for r in (row.of_ceiling, row.of_best_peer)]
        values = [_number(row.values.get(name)) for name in names]
        table.add_row(row.title, row.unit, *values, *ratios, row.target, _mark(row.met))
    console.print(table)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def write_json(path: Path, options: Mapping[str, Any], results: Results, rows: list[Row]) -> None:
    """Everything: the machine, the options, each measurement of each run, and the table's rows."""
    document = {
        "machine": machine(),
        "options": dict(options),
        "results": {
            case: {driver: [asdict(m) for m in runs] for driver, runs in drivers.items()}
            for case, drivers in results.items()
        },
        "rows": [row._asdict() for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def plot(path: Path, rows: list[Row], names: list[str]) -> None:
    """Bars of all throughputs and of all waiting times, side by side. Raises ImportError without
    matplotlib."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(13, 7), layout="constrained")
    for place, unit in enumerate(("MB/s", "ms"), 1):
        shown = [row for row in rows if row.unit == unit][::-1]
        axes = canvas.add_subplot(1, 2, place)
        height = 0.8 / len(names)
        for number, name in enumerate(names):
            bars = [(y, row.values[name]) for y, row in enumerate(shown) if name in row.values]
            axes.barh(
                [y + 0.4 - (number + 0.5) * height for y, _ in bars],
                [value for _, value in bars],
                height,
                label=name,
                color="black" if name == BFFS else "lightgray" if name == CEILING else None,
            )
        axes.set_yticks(range(len(shown)), [row.title for row in shown])
        axes.set_xscale("log")
        better = "more" if unit == "MB/s" else "less"
        axes.set_xlabel(f"{unit} ({better} is better, logarithmic)")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(*canvas.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=9)
    canvas.savefig(path, dpi=120)
