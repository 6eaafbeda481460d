"""What is below one local folder, by descriptors of the folders on the way: no symbolic link is followed, so nothing
leads out of it. Open files there, and the calls of Linux that Python's `os` lacks.

Threads: any; nothing here changes but the files themselves.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_SYMLINK_NOFOLLOW = 0x100
_RWF_APPEND = 0x10
_libc = ctypes.CDLL(None, use_errno=True)


class Beneath:
    """The folder `root`, which must exist. Paths are relative to it, with neither `.` nor `..`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fd = os.open(root, _WALK)
        self.device = os.fstat(self._fd).st_dev

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._fd)

    @contextmanager
    def at(self, path: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that holds `path`, and the name in it. Raises OSError where
        there is no such folder."""
        *folders, name = path.split("/")
        fd = self._fd
        try:
            for folder in folders:
                inner = os.open(folder, _WALK, dir_fd=fd)
                if fd != self._fd:
                    os.close(fd)
                fd = inner
            yield fd, name or "."
        finally:
            if fd != self._fd:
                os.close(fd)

    def stat(self, path: str) -> os.stat_result:
        """What the disk says of `path` itself."""
        with self.at(path) as (folder, name):
            return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """A descriptor of a file or folder; see open(2)."""
        with self.at(path) as (folder, name):
            return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)

    @contextmanager
    def named(self, path: str) -> Iterator[str]:
        """An absolute name of `path` itself, for calls that take no descriptor of a folder."""
        fd = self.open(path, os.O_PATH)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    def scan(self, path: str) -> list[tuple[str, os.stat_result]]:
        """Names in a folder and what the disk says of each, in no order."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                found = []
                for entry in entries:
                    try:
                        found.append((entry.name, entry.stat(follow_symlinks=False)))
                    except FileNotFoundError:
                        continue
                return found
        finally:
            os.close(fd)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        """Rename within the folder; `flags` as for renameat2(2)."""
        with self.at(old) as (old_folder, old_name), self.at(new) as (new_folder, new_name):
            if not flags:
                os.rename(old_name, new_name, src_dir_fd=old_folder, dst_dir_fd=new_folder)
                return
            _check(
                _libc.renameat2(
                    old_folder, os.fsencode(old_name), new_folder, os.fsencode(new_name), flags
                )
            )

    def link(self, old: str, new: str) -> None:
        """Another name for a file."""
        with self.at(old) as (old_folder, old_name), self.at(new) as (new_folder, new_name):
            os.link(
                old_name, new_name,
                src_dir_fd=old_folder, dst_dir_fd=new_folder, follow_symlinks=False,
            )  # fmt: skip

    def set_times(self, path: str, times: Any) -> None:
        """Times of `path` itself; `times` points to what utimensat(2) takes, None is now."""
        with self.at(path) as (folder, name):
            _check(_libc.utimensat(folder, os.fsencode(name), times, _AT_SYMLINK_NOFOLLOW))


class OpenFile:
    """An open file of the local disk, which others may change at any time."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def size(self) -> int:
        """Bytes that it has now."""
        return os.fstat(self.fd).st_size

    def backing(self) -> int:
        """See `Backed.backing`."""
        return self.fd

    def read_into(self, offset: int, into: memoryview) -> int:
        """See `Content.read_into`."""
        return os.preadv(self.fd, [into], offset)

    def write(self, offset: int, buffer: memoryview, *, append: bool = False) -> int:
        """Write at `offset`, or with `append` at the end as it is now; the bytes written."""
        return os.pwritev(self.fd, [buffer], offset, _RWF_APPEND if append else 0)

    def sync(self, *, data_only: bool) -> None:
        """Wait until the disk has it."""
        (os.fdatasync if data_only else os.fsync)(self.fd)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """See fallocate(2)."""
        off_t = ctypes.c_int64
        _check(_libc.fallocate64(self.fd, mode, off_t(offset), off_t(length)))

    def set_times(self, times: Any) -> None:
        """See futimens(3)."""
        _check(_libc.futimens(self.fd, times))

    def close(self) -> None:
        """Close it; nothing else may be called afterwards."""
        os.close(self.fd)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
