"""How far a long command is: a bar on a terminal, JSON lines for a program, nothing otherwise."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from bffs.units import format_duration, format_size

Show = Callable[[int, int, int], None]
"""Told the bytes that are done, those in all, and those that were worked for, which make the rate."""

RATE_OVER = 10.0
"""Seconds over which a rate is taken."""

_JSON_EVERY = 1.0


class Pace:
    """Bytes per second of late, and what is left at that rate."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def rate(self, worked: int) -> float:
        """Bytes per second, now that so many bytes have been worked for."""
        now = time.monotonic()
        self._points.append((now, worked))
        while now - self._points[0][0] > RATE_OVER:
            self._points.popleft()
        since, before = self._points[0]
        return (worked - before) / (now - since) if now > since else 0.0


@contextmanager
def shown(label: str, as_json: bool = False) -> Iterator[Show]:
    """Show how far the work is: JSON lines on standard output, or a bar where standard error is a
    terminal."""
    pace = Pace()
    if as_json:
        yield _json_lines(pace)
    elif sys.stderr.isatty():
        with _bar(label, pace) as show:
            yield show
    else:
        yield lambda done, total, worked: None


def _json_lines(pace: Pace) -> Show:
    last = time.monotonic()

    def show(done: int, total: int, worked: int) -> None:
        nonlocal last
        rate = pace.rate(worked)
        if time.monotonic() - last < _JSON_EVERY:
            return
        last = time.monotonic()
        line = {
            "event": "progress",
            "cached_bytes": done,
            "bytes": total,
            "fetched_bytes": worked,
            "bytes_per_second": round(rate),
            "seconds_left": round((total - done) / rate) if rate else None,
        }
        click.echo(json.dumps(line))
        sys.stdout.flush()

    return show


@contextmanager
def _bar(label: str, pace: Pace) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn(label),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %  {task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, figures="")

        def show(done: int, total: int, worked: int) -> None:
            rate = pace.rate(worked)
            figures = f"{format_size(done)} of {format_size(total)}, {format_size(round(rate))}/s"
            if rate:
                figures += f", {format_duration((total - done) / rate)} left"
            bar.update(task, completed=done, total=total, figures=figures)

        yield show
