"""A folder of the user's own with links to the files of one specimen in a mount."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from bffs import mountpoint as mountpoints
from bffs.catalog import Specimen
from bffs.errors import BffsError, MountError
from bffs.settings import Dataset


def mounted_folder(specimen: Specimen, dataset: Dataset) -> Path:
    """The folder of a specimen in the newest mount of this dataset. Raises MountError where there is none."""
    for mount in reversed([*mountpoints.mounts()]):
        if mount.file_system != mountpoints.FILE_SYSTEM:
            continue
        folder = mount.mountpoint / specimen.split / specimen.id
        with suppress(OSError, ValueError):  # a dead mount, another user's, another dataset
            about = json.loads((folder / "manifest.json").read_bytes())
            if (about["endpoint_url"], about["bucket"]) == (dataset.endpoint_url, dataset.bucket):
                return folder
    raise MountError(f"bucket {dataset.bucket} is not mounted: bffs mount MOUNTPOINT first")


def link_folder(source: Path, names: Iterable[str], folder: Path) -> int:
    """Make links in `folder` to these files in `source`, and the folder if need be; how many are there.

    Links that are there already are fine; anything else of such a name raises BffsError, before anything is made.
    """
    targets = {folder / name: source / name for name in names}
    missing = {}
    try:
        for link, target in targets.items():
            if not os.path.lexists(link):
                missing[link] = target
            elif not link.is_symlink() or os.readlink(link) != str(target):
                raise BffsError(f"{link} is in the way: choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        for link, target in missing.items():
            link.symlink_to(target)
    except OSError as error:
        raise BffsError(f"{folder} can't be used: {error.strerror}") from error
    return len(targets)
