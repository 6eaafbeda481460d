"""What `bffs doctor` finds: one value a check, their exit code, and checks that never hang.

Exit codes: 0 where nothing is red; that of the red ones (2, 3, 4, 6 as everywhere, see `errors`) where all have the
same; otherwise 1.
"""

from __future__ import annotations

import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from bffs.errors import BffsError

Level = Literal["green", "yellow", "red"]

PATIENCE = 15.0
"""Seconds that a check may take; a name server that is away takes five or ten."""

_INSTALL = {
    "apt-get": "apt-get install -y",
    "dnf": "dnf install -y",
    "yum": "yum install -y",
    "zypper": "zypper install -y",
    "pacman": "pacman -S --noconfirm",
    "apk": "apk add",
}


class Finding(NamedTuple):
    """What one check has seen.

    `fix` is the command that mends it, or what to do where there is no command; "" where nothing is
    to be done. `figures` are what was measured: bytes, seconds, bytes a second.
    """

    name: str
    level: Level
    seen: str
    fix: str = ""
    exit_code: int = 1
    """Of a red one."""

    figures: Mapping[str, float] = MappingProxyType({})


def green(name: str, seen: str, **figures: float) -> Finding:
    """All is well."""
    return Finding(name, "green", seen, figures=figures)


def yellow(name: str, seen: str, fix: str = "", **figures: float) -> Finding:
    """It works, but not as it could."""
    return Finding(name, "yellow", seen, fix, figures=figures)


def red(name: str, seen: str, fix: str, exit_code: int = 1) -> Finding:
    """It doesn't work."""
    return Finding(name, "red", seen, fix, exit_code)


def exit_code(findings: Iterable[Finding]) -> int:
    """What the shell is told."""
    codes = {finding.exit_code for finding in findings if finding.level == "red"}
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def as_root(command: str) -> str:
    """The command as this user has to type it."""
    return command if os.geteuid() == 0 else f"sudo {command}"


def installing(package: str) -> str:
    """The command that installs a package of the system."""
    for program, command in _INSTALL.items():
        if shutil.which(program):
            return as_root(f"{command} {package}")
    return f"install {package} with the package manager of your system"


def bounded(
    name: str,
    check: Callable[[], Iterable[Finding]],
    fix: str,
    patience: float = PATIENCE,
) -> Iterator[Finding]:
    """What `check` finds; where it breaks or takes too long a red finding of that name, with that
    `fix`. It has a thread of its own, which is left behind then, for a dead disk or a mount whose
    driver hangs answers never."""
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            for finding in check():
                found.put(finding)
        except BffsError as error:
            found.put(red(name, str(error), fix, error.exit_code))
        except Exception as error:
            found.put(red(name, f"could not be checked: {type(error).__name__}: {error}", fix))
        found.put(None)

    threading.Thread(target=run, name=f"bffs-{name}", daemon=True).start()
    while True:
        try:
            finding = found.get(timeout=patience)
        except queue.Empty:
            yield red(name, f"no answer within {patience:.0f} s", fix)
            return
        if finding is None:
            return
        yield finding
