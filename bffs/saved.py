"""What was saved in a mount, as it lies in the scratch folder: listing it, and giving way to the tree."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bffs.beneath import Beneath
from bffs.tree import Folder
from bffs.unlinked import RENAME_NOREPLACE

log = logging.getLogger(__name__)

PRIVATE = ".bffs"
"""Folder at the root of the tree that is bffs's own, and in the scratch folder, too."""

ASIDE = ".scratch"
"""What is added to a name that the dataset has as well."""

_LONGEST_NAME = 255


def saved_files(root: Path, below: str = "") -> Iterator[tuple[str, int]]:
    """All that was saved, sorted: paths in the mount, relative to it, and bytes; `below` is a folder
    of the tree."""
    found = []
    for folder, folders, names in os.walk(root / below):
        inside = Path(folder).relative_to(root)
        if inside == Path() and PRIVATE in folders:
            folders.remove(PRIVATE)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            try:
                size = os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
            found.append((str(inside / name), size))
    yield from sorted(found)


def saved_beside(root: Path, split: str, specimen: str) -> Iterator[tuple[str, int]]:
    """What was saved beside one specimen's files; see `saved_files`."""
    for folder in (f"{split}/{specimen}", f"stacks/{split}/{specimen}"):
        yield from saved_files(root, folder)


def saved_paths(root: Path) -> Iterator[str]:
    """All files and folders in a scratch folder, as paths in the mount."""
    for folder, _, names in os.walk(root):
        inside = Path(folder).relative_to(root)
        base = "" if inside == Path() else f"/{inside}"
        yield base or "/"
        yield from (f"{base}/{name}" for name in names)


def settle(disk: Beneath, lower: Folder, base: str = "", *, deep: bool = True) -> bool:
    """Give the tree every name that it has in the folder `lower`, which is `base` on the disk: what was saved under one
    is moved aside. Whether there was any.

    With `deep` also below it, as far as the tree knows its names by itself.
    """
    moved = False
    for name, status in disk.scan(base or "."):
        node = lower.entries.get(name)
        own = f"{base}/{name}" if base else name
        if node is None or own == PRIVATE:
            continue
        if not isinstance(node, Folder) or not stat.S_ISDIR(status.st_mode):
            _move_aside(disk, own, lower)
            moved = True
        elif deep and node.attributes.nlink > 1:
            moved |= settle(disk, node, own)
    return moved


def _move_aside(disk: Beneath, own: str, lower: Folder) -> None:
    base, _, aside = own.rpartition("/")
    while True:
        aside = _shortened(aside) + ASIDE
        if aside in lower.entries:
            continue
        target = f"{base}/{aside}" if base else aside
        try:
            disk.rename(own, target, RENAME_NOREPLACE)
        except FileExistsError:
            continue
        log.warning("%s is in the dataset now; the one that was saved is %s", own, target)
        return


def _shortened(name: str) -> str:
    room = _LONGEST_NAME - len(ASIDE)
    return os.fsdecode(os.fsencode(name)[:room])
