"""`stacks`, as the kernel is shown it: a symbolic link to a folder that no listing names.

Below it are millions of names, two for each piece of a Zarr array, and each specimen's cost a request the
first time. Programs that look at every file (`find`, `du`, `ls -R`, backups, the indexers of desktops) do not
follow links, so they stay out of it, while whoever opens `stacks/...` comes in. The folder is beside the link
and not further down, so that paths from it to the slices are the same either way.

Only the requests know of this: to everything below them, and in the scratch folder, `stacks` is a folder.
"""

from __future__ import annotations

import stat

from bffs.tree import Attributes, inode

LINK = "/stacks"
TARGET = ".stacks"
"""Of the link."""

_FOLDER = f"/{TARGET}"


def inside(path: str) -> str:
    """What a path of a request is called inside of bffs."""
    if path == _FOLDER or path.startswith(f"{_FOLDER}/"):
        return LINK + path[len(_FOLDER) :]
    return path


def outside(path: str) -> str:
    """Where the kernel knows what `inside` is called so: the folder, not the link."""
    return _FOLDER + path[len(LINK) :] if path == LINK or path.startswith(f"{LINK}/") else path


def link_attributes(mtime: int) -> Attributes:
    """What stat tells of the link; `mtime` is that of the folder."""
    return Attributes(inode(_FOLDER), stat.S_IFLNK | 0o777, len(TARGET), mtime, 1, 0)
