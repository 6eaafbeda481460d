"""What mount(8) says, in the words of `bffs mount`: for a line in /etc/fstab, `mount -t fuse.bffs` and autofs.

`mount -t fuse.bffs SOURCE MOUNTPOINT -o OPTIONS` runs mount.fuse3, and that `bffs SOURCE MOUNTPOINT -o OPTIONS`.
The source is the name of a dataset profile, or one of `_NO_NAMES`. Pure, but for `be_at_home`.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Collection, Sequence
from contextlib import suppress

_NO_NAMES = frozenset({"", "-", "none", "bffs", "fuse"})
"""Sources that stand for the dataset that is chosen otherwise."""

_OF_OTHERS = frozenset(
    {"defaults", "auto", "noauto", "user", "users", "nouser", "nofail", "_netdev"}
)
"""Words that are meant for mount(8) and systemd, as is all that begins with x-."""

_SHORT = {"ro": "--read-only"}


def is_from_mount(arguments: Sequence[str], commands: Collection[str]) -> bool:
    """Whether these are the arguments of mount.fuse3, and not of a user."""
    match arguments:
        case [source, str(), "-o", str()]:
            return source not in commands and not source.startswith("-")
    return False


def translated(
    arguments: Sequence[str], switches: Collection[str], valued: Collection[str]
) -> list[str]:
    """The arguments of `bffs` that mean the same.

    Words that are called like one of the flags `switches` (`--read-only`) or, with a value, `valued`
    (`--cache-size`) become it, with _ or - in them; the others are FUSE's.
    """
    source, mountpoint, _, options = arguments
    flags = [] if source in _NO_NAMES else ["--dataset", source]
    rest = [f"fsname={source.replace(',', '_')}"]  # by which mount(8) knows its line in fstab again
    for word in options.split(","):
        name, equals, value = word.partition("=")
        flag = _SHORT.get(word, f"--{name.replace('_', '-')}")
        if flag in switches and not equals:
            flags.append(flag)
        elif flag in valued and equals:
            flags += [flag, value]
        elif word not in _OF_OTHERS and not word.startswith(("x-", "X-", "comment=")):
            rest.append(word)
    if "--read-only" in flags:
        rest = [word for word in rest if word != "rw"]
    return ["mount", *flags, "-o", ",".join(rest), "--", mountpoint]


def be_at_home() -> None:
    """Set HOME to this user's folder where it is another's: mount.fuse3 with `setuid=` leaves it root's."""
    with suppress(OSError, KeyError):
        if os.stat(os.environ.get("HOME", "")).st_uid == os.geteuid():
            return
    with suppress(KeyError):
        os.environ["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir
