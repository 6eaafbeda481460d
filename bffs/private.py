"""Folders that belong to this user alone: made with mode 0700, refused when somebody else planted them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def own_folder(folder: Path) -> None:
    """Make `folder` (0700) or make sure that it is a real folder of this user.

    Raises PermissionError for another user's folder or a symbolic link, other OSErrors where it can't be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "is not a folder of this user", str(folder))
