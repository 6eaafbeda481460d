"""Folders that belong to this user alone: made with mode 0700, refused when somebody else planted
them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import xxhash

from bffs.settings import Dataset

CACHE_VERSION = "v1"
"""Folder below the cache folder; another version leaves this one alone."""


def own_folder(folder: Path) -> None:
    """Make `folder` (0700) or make sure that it is a real folder of this user.

    Raises PermissionError for another user's folder or a symbolic link, other OSErrors where it
    can't be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_own(folder):
        raise PermissionError(errno.EPERM, "is not a folder of this user", str(folder))


def is_own(folder: Path) -> bool:
    """Whether `folder` is a real folder of this user. Raises OSError where there is nothing."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def dataset_folder(cache_dir: Path, dataset: Dataset) -> Path:
    """Where what is kept of this dataset is kept."""
    identity = f"{dataset.endpoint_url}\n{dataset.bucket}".encode()
    return cache_dir / CACHE_VERSION / xxhash.xxh3_128_hexdigest(identity)


def own_dataset_folder(cache_dir: Path, dataset: Dataset) -> Path:
    """Make the folders down to `dataset_folder`, or make sure that they are this user's; see
    `own_folder`."""
    folder = dataset_folder(cache_dir, dataset)
    for level in (cache_dir, folder.parent, folder):
        own_folder(level)
    return folder
