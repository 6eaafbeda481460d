"""The command that says what is wrong, and what to do."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bffs import completing
from bffs.cli_options import Given, absolute, command, table_option
from bffs.errors import BffsError, UsageError
from bffs.precedence import origins, unknown_variables
from bffs.profiles import config_file

if TYPE_CHECKING:
    from rich.console import Console

    from bffs.findings import Finding
    from bffs.settings import Settings

_RULE_FILE = "/etc/udev/rules.d/99-bffs.rules"
_MARKS = {"green": ("ok", "green"), "yellow": ("warn", "yellow"), "red": ("FAIL", "bold red")}
_INDENT = 21


@command()
@click.argument("mountpoint", callback=absolute, required=False, shell_complete=completing.folders)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option("--allow-other", is_flag=True, help="Check what --allow-other of a mount needs.")
@click.option(
    "--write-udev-rule",
    "rule",
    metavar="[FILE]",
    is_flag=False,
    flag_value=_RULE_FILE,
    help=f"Only write a rule that raises kernel readahead for good, to {_RULE_FILE} or FILE, - for the terminal.",
)
@table_option("cache-size")
@table_option("memory")
@table_option("max-connections")
@table_option("scratch")
@table_option("offline")
@click.pass_obj
def doctor(
    given: Given, mountpoint: Path | None, as_json: bool, allow_other: bool, rule: str | None
) -> int:
    """Check what mounting and reading need, and say what to do.

    Looks at FUSE, the disks, the way to the store, what it answers and how fast, and at MOUNTPOINT
    if there is one. Exit code 0 if nothing fails; else that of the failures, or 1 if they differ.
    """
    from bffs import findings, tables

    if rule is not None:
        _write_rule(rule)
        return 0
    console = tables.standard_output()
    found: list[Finding] = []
    for finding in _examine(given, mountpoint, allow_other):
        found.append(finding)
        if not as_json:
            _show(finding, console)
    try:
        suggested = _suggested(given.settings(), found)
    except UsageError:
        suggested = {}
    if as_json:
        click.echo(json.dumps(_as_json(found, suggested), indent=4))
    elif any("bandwidth" in finding.figures for finding in found):
        _show_options(suggested, console)
    return findings.exit_code(found)


def _examine(given: Given, mountpoint: Path | None, allow_other: bool) -> Iterator[Finding]:
    """All checks, one after the other, so that none disturbs what another measures."""
    from functools import partial

    from bffs import check_disk, check_fuse
    from bffs.findings import bounded, green, red, yellow
    from bffs.versions import versions

    yield green("versions", ", ".join(f"{name} {number}" for name, number in versions().items()))
    for line in unknown_variables(os.environ):
        yield yellow("environment", line, f"unset {line.split()[0]}")
    yield from bounded("FUSE", partial(check_fuse.check, allow_other=allow_other), "dmesg | tail")
    yield from bounded("mounts", check_fuse.check_mounts, "findmnt -t fuse.bffs")
    if mountpoint is not None:
        looking = partial(check_fuse.check_mountpoint, mountpoint)
        yield from bounded("mountpoint", looking, f"umount -l {mountpoint}")
    try:
        settings = given.settings()
        sources, _ = origins(given.flags, os.environ, config_file())
    except UsageError as error:
        yield red("settings", str(error), "put it right there", error.exit_code)
        return
    yield from bounded("disk", partial(check_disk.check, settings), "choose another --cache-dir")
    from bffs import check_content, check_store

    where = {origin.option.key: origin for origin in sources}
    lets_in = not settings.offline
    network = "check the network; `bffs -v ls` tries longer"
    for finding in bounded("store", partial(check_store.check, settings, where), network):
        lets_in = lets_in and finding.level != "red"
        yield finding
    if lets_in:
        yield from bounded("listing", partial(check_content.check, settings), network)


def _suggested(settings: Settings, found: list[Finding]) -> dict[str, str]:
    from bffs.advice import suggest

    return suggest(settings, {k: v for finding in found for k, v in finding.figures.items()})


def _show(finding: Finding, console: Console) -> None:
    """One finding: wrapped on a terminal, on one line in a pipe; its fix on a line of its own, to
    be copied."""
    from rich.text import Text

    word, style = _MARKS[finding.level]
    lines = [finding.seen]
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns - _INDENT, 20)
        lines = textwrap.wrap(finding.seen, width) or [""]
    console.print(Text.assemble((f"{word:6}", style), f"{finding.name:15}{lines[0]}"))
    for line in lines[1:]:
        console.print(Text(f"{'':{_INDENT}}{line}"))
    if finding.fix:
        console.print(Text.assemble(" " * _INDENT, ("fix: ", "bold"), finding.fix))


def _show_options(suggested: dict[str, str], console: Console) -> None:
    from rich.text import Text

    flags = " ".join(f"--{key.replace('_', '-')} {text}" for key, text in suggested.items())
    console.print()
    mount = f"bffs mount {flags} MOUNTPOINT" if flags else "the options as they are"
    console.print(Text(f"suggested: {mount}"))


def _as_json(found: list[Finding], suggested: dict[str, str]) -> dict[str, object]:
    return {
        "ok": all(finding.level != "red" for finding in found),
        "findings": [
            {
                "name": finding.name,
                "level": finding.level,
                "seen": finding.seen,
                "fix": finding.fix or None,
                **({"exit_code": finding.exit_code} if finding.level == "red" else {}),
                **({"figures": dict(finding.figures)} if finding.figures else {}),
            }
            for finding in found
        ],
        "suggested": suggested,
    }


def _write_rule(file: str) -> None:
    """Write the rule, and say what to do with it. Raises BffsError."""
    from bffs.check_fuse import RULE_MARK, udev_rule

    if file == "-":
        click.echo(udev_rule(), nl=False)
        return
    path = Path(file)
    try:
        if path.exists() and not path.read_text(errors="replace").startswith(RULE_MARK):
            raise BffsError(f"{path} is another's rule; name another FILE")
        path.write_text(udev_rule())
    except OSError as error:
        tee = f"bffs doctor --write-udev-rule - | sudo tee {path}"
        raise BffsError(f"can't write {path}: {error.strerror}; try {tee}") from error
    click.echo(f"{path} is written; it counts for new mounts after udevadm control --reload")
