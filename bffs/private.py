"""Folders and files that belong to this user alone: made with mode 0700 or 0600, refused when
somebody else planted them.

The cache folder itself may be a symbolic link of this user, or of root, to a folder of this user: on
clusters it often leads to another disk. Whoever could replace such a link could replace a folder.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import platformdirs
import xxhash

from bffs.settings import Dataset, Settings

CACHE_VERSION = "v1"
"""Folder below the cache folder; another version leaves this one alone."""


def own_folder(folder: Path, *, link: bool = False) -> None:
    """Make `folder` (0700) or make sure that it is a folder of this user; see `is_own`.

    Raises PermissionError where it isn't, other OSErrors where it can't be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_own(folder, link=link):
        raise PermissionError(errno.EPERM, "is not a folder of this user", str(folder))


def is_own(folder: Path, *, link: bool = False) -> bool:
    """Whether `folder` is a real folder of this user, or with `link` a link to one, made by this
    user or by root. Raises OSError where there is nothing."""
    found = folder.lstat()
    if link and stat.S_ISLNK(found.st_mode) and found.st_uid in (0, os.geteuid()):
        found = folder.stat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def open_own_file(path: str | Path, flags: int) -> int:
    """Open a file of this user, made (0600) if there is none; a device will do, too.

    Raises PermissionError for a file or a link of somebody else, other OSErrors where it can't be
    opened.
    """
    flags |= (
        os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    )  # a pipe that nobody reads is no reason to wait
    follow = os.path.islink(path) and os.lstat(path).st_uid in (0, os.geteuid())
    fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW, 0o600)
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode):
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            os.close(fd)
            raise PermissionError(errno.EPERM, "is not a file of this user", str(path))
        os.fchmod(fd, found.st_mode & 0o700)
    return fd


def dataset_folder(cache_dir: Path, dataset: Dataset) -> Path:
    """Where what is kept of this dataset is kept."""
    identity = f"{dataset.endpoint_url}\n{dataset.bucket}".encode()
    return cache_dir / CACHE_VERSION / xxhash.xxh3_128_hexdigest(identity)


def scratch_folder(settings: Settings) -> Path:
    """Where what is saved in mounts of the dataset is kept."""
    if settings.scratch is not None:
        return settings.scratch
    dataset = settings.dataset
    bucket = re.sub(r"[^A-Za-z0-9._-]", "_", dataset.bucket)
    name = f"{bucket}-{dataset_folder(Path(), dataset).name[:8]}"
    return Path(platformdirs.user_data_path("bffs")) / "scratch" / name


def own_scratch_folder(settings: Settings) -> Path:
    """Make `scratch_folder`, or make sure that it is this user's; its path without links. See
    `own_folder`."""
    folder = scratch_folder(settings)
    levels = [folder] if settings.scratch is not None else [*reversed(folder.parents[:2]), folder]
    for level in levels:
        own_folder(level, link=True)
    return Path(os.path.realpath(folder))


def own_dataset_folder(cache_dir: Path, dataset: Dataset) -> Path:
    """Make the folders down to `dataset_folder`, or make sure that they are this user's; see
    `own_folder`."""
    folder = dataset_folder(cache_dir, dataset)
    own_folder(cache_dir, link=True)
    for level in (folder.parent, folder):
        own_folder(level)
    return folder


def is_own_dataset_folder(cache_dir: Path, dataset: Dataset) -> bool:
    """Whether all of these folders are there and this user's. Raises OSError where there are none."""
    folder = dataset_folder(cache_dir, dataset)
    return is_own(cache_dir, link=True) and is_own(folder.parent) and is_own(folder)
