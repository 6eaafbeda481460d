"""The command that shows what a mount is doing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bffs import completing
from bffs.cli_options import absolute, command

if TYPE_CHECKING:
    from rich.console import Console, Group

SAMPLE = 0.5
"""Seconds between the two readings that a rate is taken from."""

EVERY = 1.0
"""Seconds between two looks of `--watch`."""


@command()
@click.argument("mountpoint", callback=absolute, shell_complete=completing.mounted)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch an object a line.")
@click.option("--watch", is_flag=True, help="Show it anew each second, until Ctrl-C.")
def status(mountpoint: Path, as_json: bool, watch: bool) -> None:
    """Show what the mount at MOUNTPOINT is doing.

    What comes from the store, from memory and from the disk cache, now and in all; how much was
    there in time; which files are open; what was saved. What the kernel answers from its page cache
    never reaches bffs, and is not counted.
    """
    from bffs.outside import figures

    if watch:
        with suppress(KeyboardInterrupt):
            (_stream if as_json else _watch)(mountpoint)
    elif as_json:
        click.echo(json.dumps(figures(mountpoint), indent=4))
    else:
        before = figures(mountpoint)
        time.sleep(SAMPLE)
        _print(before, figures(mountpoint))


def _looks(mountpoint: Path) -> Iterator[dict[str, Any]]:
    """The figures, now and each second. Raises MountError."""
    from bffs.outside import figures

    while True:
        yield figures(mountpoint)
        time.sleep(EVERY)


def _stream(mountpoint: Path) -> None:
    """Print an object each second."""
    for told in _looks(mountpoint):
        click.echo(json.dumps(told))
        sys.stdout.flush()


def _watch(mountpoint: Path) -> None:
    """Show it in place on a terminal, and leave the last look there; one after the other elsewhere."""
    from rich.console import Console
    from rich.live import Live

    from bffs import dashboard

    console = Console()
    if not console.is_terminal:
        for before, told in pairwise(chain((None,), _looks(mountpoint))):
            assert told is not None
            _print(before or told, told)
            click.echo()
        return
    view: Any = ""
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            for before, told in pairwise(chain((None,), _looks(mountpoint))):
                assert told is not None
                view = dashboard.lines(before or told, told, console.width)
                live.update(_fitting(console, before or told, told), refresh=True)
    finally:
        console.print(view)


def _fitting(console: Console, before: dict[str, Any], after: dict[str, Any]) -> Group:
    """As much as the terminal has lines for: gaps go first, then open files."""
    from bffs import dashboard

    view = dashboard.lines(before, after, console.width)
    for files in range(dashboard.MOST_FILES, 0, -1):
        if len(console.render_lines(view)) <= console.height:
            break
        view = dashboard.lines(before, after, console.width, most_files=files, gaps=False)
    return view


def _print(before: dict[str, Any], after: dict[str, Any]) -> None:
    from rich.console import Console

    from bffs import dashboard, tables

    terminal = Console()
    width = terminal.width if terminal.is_terminal else None
    console = terminal if width else tables.standard_output()
    with console.capture() as capture:
        console.print(dashboard.lines(before, after, width))
    text = "\n".join(line.rstrip() for line in capture.get().split("\n"))  # columns are filled up
    click.echo(text, nl=False, color=True)  # colours are the console's decision
